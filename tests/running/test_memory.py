"""What a run holds: its history on the host, and a bounded buffer in the compiled program."""

import gc
import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.running import history, rounds

KEY = jax.random.key(0)
WIDE = 300_000


def counting(width=1):
    """Counts, and measures the count `width` times."""

    def step(state, round):
        state = state + 1
        return state, {"count": jnp.broadcast_to(state, (width,))}

    return dx.Algorithm(lambda key, params: jnp.float32(0), step)


def run(algorithm, total, **options):
    source = dx.Events(jnp.zeros(total))
    return dx.run(algorithm, jnp.float32(0), source, rounds=total, key=KEY, **options)


def wide(state):
    return {"model": jnp.broadcast_to(state, (WIDE,))}


def shapes(*sizes):
    return {str(number): jax.ShapeDtypeStruct((n,), np.float32) for number, n in enumerate(sizes)}


def test_rows_follow_their_size():
    assert rounds.room({}, {}) == (1024, 1024)
    assert rounds.room(shapes(1, 3), shapes(1000)) == (1024, 262)
    assert rounds.room(shapes(WIDE), shapes(10**9)) == (1, 1)


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("rows", [(1, 1), (4, 1), (4, 2), (100, 3)])
def test_every_call_has_room_for_what_it_measures(every, rows):
    room, done, stop = rounds.Room(*rows), 3, 40
    while done < stop:
        until = room.until(done, 10, stop, every)
        numbers = range(done + 1, until + 1)
        assert 1 <= len(numbers) <= min(10, room.rounds)
        assert sum(n % every == 0 or n == stop for n in numbers) <= room.evaluations
        done = until
    assert done == stop


def test_rows_wider_than_the_buffer_are_measured_one_call_at_a_time():
    told = []
    _, measured = run(
        counting(WIDE),
        7,
        evaluate=wide,
        every=3,
        sinks=[lambda numbers, metrics: told.append((numbers.tolist(), metrics))],
    )
    assert measured.metrics["count"][:, -1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert measured.evaluated.tolist() == [3, 6, 7]
    assert measured.evaluations["model"][:, 5].tolist() == [3, 6, 7]
    assert [numbers for numbers, _ in told] == [[n] for n in range(1, 8)]
    seen = [metrics["evaluation"]["model"][0, 0] for _, metrics in told]
    np.testing.assert_array_equal(seen, [np.nan, np.nan, 3, np.nan, np.nan, 6, 7])


def test_one_program_serves_all_lengths_of_chunks():
    algorithm = counting()
    run(algorithm, 20, chunk=1)
    programs = rounds.advance._cache_size()
    for chunk in (3, 7, 1024, None):
        run(algorithm, 20, chunk=chunk)
    assert rounds.advance._cache_size() == programs


def test_the_program_has_a_few_rows_of_a_model_not_a_thousand():
    algorithm, state = counting(), jnp.float32(0)
    evaluate = jax.tree_util.Partial(wide)
    bounds = [np.int32(n) for n in (0, 5, 5, 2)]
    room = rounds.room(shapes(1), shapes(WIDE))
    program = rounds.advance.lower(
        algorithm, room, state, dx.Events(jnp.zeros(5)), evaluate, KEY, *bounds
    )
    needed = program.compile().memory_analysis()
    model = 4 * WIDE
    assert needed.output_size_in_bytes < model + rounds.BYTES
    assert needed.temp_size_in_bytes < 4 * model + rounds.BYTES


def test_rows_on_the_host_hold_no_buffer(monkeypatch):
    kept = []
    monkeypatch.setattr(history, "taken", keeping(kept, history.taken))
    run(counting(1000), 30, chunk=1)
    leaves = [leaf for rows in kept for leaf in jax.tree.leaves(rows.values)]
    assert len(leaves) == 31
    assert all(leaf.base is None for leaf in leaves)
    gc.collect()
    held = sum(math.prod(leaf.shape) * leaf.itemsize for leaf in leaves)
    assert held == 30 * 4000


def keeping(kept, function):
    def keep(*arguments):
        kept.append(function(*arguments))
        return kept[-1]

    return keep


SOAK = """
    import gc, json, pathlib, sys
    import jax, jax.numpy as jnp, optax
    import dflax as dx
    from dflax.running.checkpoints.checkpoint import Checkpoints
    from tasks import regression, softmax_loss

    task = regression()
    federation = dx.Federation(task.data, task.partition, batch_size=6, local_steps=2)
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1))
    key = jax.random.key(0)
    resident = []

    def look(rounds, metrics):
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        resident.append((int(rounds[-1]), pages))

    dx.run(
        algorithm,
        algorithm.init(key, task.params),
        federation,
        rounds=3000,
        key=key,
        chunk=5,
        evaluate=dx.evaluation.server_model(dx.evaluation.on(softmax_loss, task.data)),
        every=10,
        sinks=[look],
        checkpoint=Checkpoints(sys.argv[1], every_rounds=50),
    )
    print(json.dumps(resident))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_three_thousand_rounds_take_the_memory_of_six_hundred(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SOAK), tmp_path / "run"],
        capture_output=True,
        text=True,
        env=soaking(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resident = dict(json.loads(done.stdout.splitlines()[-1]))
    warm = [pages for number, pages in resident.items() if 600 <= number <= 800]
    late = [pages for number, pages in resident.items() if number > 2800]
    assert np.median(late) <= 1.02 * np.median(warm)


def soaking():
    here = pathlib.Path(__file__).parent.parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
