import functools

import jax
import numpy as np
import pytest

import dflax as dx
from experiments.studies.split import sfprompt
from experiments.studies.split._sfprompt_costs import Shape, on_paper
from experiments.tasks import turned_digits
from experiments.tools.lanes import stacked
from experiments.tools.report import Report

TINY = sfprompt.Config(
    width=4, depth=2, heads=1, epochs=1, clients=3, cohort=2, samples=8, batch_size=4, rounds=2
)


@functools.cache
def tiny():
    return turned_digits.task(
        sfprompt.network(TINY),
        3,
        epochs=1,
        rate=1e-3,
        clients=3,
        samples=8,
        alpha=0.5,
        local_epochs=1,
        batch_size=4,
        participation=dx.participation.uniform(2),
    )


@pytest.mark.slow
def test_the_other_task_is_transposed_renumbered_and_apart():
    task, digits = tiny(), dx.data.digits()
    inputs = np.concatenate([digits.train.inputs, digits.test.inputs])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    generator = np.random.default_rng(3)
    other = generator.permutation(1797)[898:]
    names = generator.permutation(10)
    np.testing.assert_array_equal(task.test.inputs, inputs[other[:299]].swapaxes(1, 2))
    np.testing.assert_array_equal(task.test.labels, names[labels[other[:299]]])
    np.testing.assert_array_equal(task.federation.data.labels, names[labels[other[299:]]])
    assert (np.asarray(task.federation.partition.sizes) == 8).all()


@pytest.mark.slow
def test_the_closed_forms_are_the_networks_own():
    form = sfprompt.shape(TINY)
    assert form.whole == sum(leaf.size for leaf in jax.tree.leaves(tiny().params))
    for prompts in (0, 4):
        cost = sfprompt.measured_cost(TINY, prompts, tiny())
        assert cost.numbers(7, 2) == form.sent(prompts, 7, 2)
        assert cost.head_products + cost.tail_products == form.ends(prompts)


def counts(method, off=0):
    """What the counters say of two rounds of two clients with 8 examples each."""
    found = {"accuracy": np.zeros((1, 2)), "examples_kept": np.full((1, 2), 16 * method.keep + off)}
    if method.keep < 1:
        found["examples_scored"] = np.full((1, 2), 16)
    if method.local:
        found["examples_local"] = np.full((1, 2), 16 * TINY.local_epochs)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("off", [0, 1])
def test_one_example_more_than_the_cost_model_has_is_told(off):
    report = Report()
    found = {name: counts(method, off) for name, method in sfprompt.methods(TINY).items()}
    sfprompt.costs(TINY, report, found, tiny())
    assert [claim.holds for claim in report.claims] == [not off] * 3


@pytest.mark.parametrize("good", [True, False])
def test_claims_of_accuracy_follow_from_the_numbers(good):
    level = dict.fromkeys(sfprompt.LOOKS, 0.6) | {sfprompt.LINEAR: 0.4}
    level |= {sfprompt.HALF: 0.56, sfprompt.QUARTER: 0.56}
    if not good:
        level |= {sfprompt.LINEAR: 0.65, sfprompt.HALF: 0.7, sfprompt.QUARTER: 0.7}
        level |= {sfprompt.LOCAL: 0.4, sfprompt.GENTLE: 0.7}
    found = {name: {"accuracy": np.full((3, 4), value)} for name, value in level.items()}
    last = {name: values["accuracy"].mean(1) for name, values in found.items()}
    sent = {name: np.tile(np.arange(1, 5), (3, 1)) for name in found}
    report = Report()
    sfprompt.accuracies(report, found, last, sent)
    assert [claim.holds for claim in report.claims] == [good] * 6


def test_accuracy_at_a_budget_is_of_the_rounds_before_it():
    accuracy = np.array([[0.1, 0.2, 0.3, 0.9], [0.5, 0.6, 0.7, 0.8]])
    sent = np.array([[1, 2, 3, 4], [2, 4, 6, 8]])
    np.testing.assert_allclose(sfprompt.at_bytes(accuracy, sent, np.array([3, 5])), [0.2, 0.55])


def test_the_form_of_vit_base_by_hand():
    """86 million parameters; 0.116 of 17.5 G products in the patches."""
    form = Shape(196, 768, 768, 12, 1000)
    assert abs(form.whole / 86.4e6 - 1) < 0.005
    assert form.ends(0, blocks=0) == 196 * 768 * 768 + 768 * 1000
    assert abs((form.ends(0, blocks=12)) / 17.5e9 - 1) < 0.02


@pytest.mark.slow
def test_what_is_said_of_vision_transformers_holds():
    claims = on_paper(None).claims
    assert [claim.holds for claim in claims] == [True] * 4


@pytest.mark.slow
def test_a_run_counts_what_the_cost_model_says():
    tasks = stacked([tiny()])
    found = {
        name: sfprompt.run(TINY, method, tasks)
        for name, method in [
            *sfprompt.methods(TINY).items(),
            (sfprompt.FULL, None),
        ]
    }
    assert all(((f["accuracy"] >= 0) & (f["accuracy"] <= 1)).all() for f in found.values())
    for name, method in sfprompt.methods(TINY).items():
        assert (found[name]["examples_kept"] == 2 * int(8 * method.keep)).all()
