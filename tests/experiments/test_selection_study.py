"""The measured table of the selection's study, and the requests it was measured with."""

import numpy as np

from dflax.inference import selection as sel
from experiments.studies.inference.selection import MEASURED
from experiments.tasks.accelerated_decoding import (
    LONGEST,
    PROMPTS,
    SIZES,
    WAYS,
    network,
    random_task,
)


def test_the_measured_table_is_what_the_command_writes():
    found = sel.read_measurements(MEASURED)
    assert found.methods == tuple(WAYS)
    assert found.models == tuple(f"{width} x {depth}" for width, depth in SIZES)
    assert np.asarray(found.table.observed).all()
    assert set(np.asarray(found.tasks.workload.prompt)) <= set(PROMPTS)
    for number, (width, depth) in enumerate(SIZES):
        rows = np.asarray(found.tasks.model) == number
        assert rows.sum() == 28
        sizes = np.asarray(found.tasks.network.parameters)[rows]
        np.testing.assert_allclose(sizes, network(width, depth).parameters, rtol=1e-5)


def test_answers_have_the_mean_and_the_variation_that_is_asked():
    generator = np.random.default_rng(0)
    tasks = [random_task(generator) for _ in range(400)]
    answers = [task.answers / task.output for task in tasks]
    assert abs(np.concatenate(answers).mean() - 1) < 0.05
    assert max(task.answers.max() for task in tasks) <= LONGEST
    assert min(task.answers.min() for task in tasks) >= 1
    spread = np.array([a.std() for a in answers if len(a) == 16])
    asked = np.array([task.variation for task in tasks if task.batch == 16])
    assert np.corrcoef(spread, asked)[0, 1] > 0.8
