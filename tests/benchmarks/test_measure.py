import json
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest

from benchmarks import __main__ as command
from benchmarks import load, measure, products, rounds
from benchmarks.measure import Row, milliseconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: Clock.now))
    return Clock


def test_a_row_relates_our_time_to_the_peers_and_to_the_hardwares():
    row = Row("round", ours_ms=4.0, peer="other 1.0", peer_ms=10.0, limit_ms=1.0)
    assert row.ratio == 2.5
    assert row.share_of_limit == 0.25


def test_a_row_without_peer_or_limit_leaves_them_open():
    row = Row("round", ours_ms=4.0)
    assert row.ratio is None
    assert row.share_of_limit is None
    slower = Row("round", ours_ms=4.0, peer="other 1.0", peer_ms=1.0)
    assert (slower.ratio, slower.share_of_limit) == (0.25, None)
    bounded = Row("round", ours_ms=4.0, limit_ms=4.0)
    assert (bounded.ratio, bounded.share_of_limit) == (None, 1.0)


def test_a_row_is_repeated_for_every_peer_that_was_measured():
    row = Row("round", ours_ms=4.0, limit_ms=1.0)
    found = row.beside({"peer": "a 1", "ms": 8.0}, None, {"peer": "b 2", "ms": 2.0})
    assert [(r.peer, r.ratio, r.share_of_limit) for r in found] == [
        ("a 1", 2.0, 0.25),
        ("b 2", 0.5, 0.25),
    ]
    assert row.beside(None, None) == [row]


def test_rows_of_all_meshes_stand_beside_the_same_peers(monkeypatch):
    own = [Row("round", ours_ms=4.0), Row("round, mesh of 2", ours_ms=2.0)]
    found = rounds.beside_each(own, {"peer": "a 1", "ms": 8.0}, None)
    assert [(row.name, row.ratio) for row in found] == [("round", 2.0), ("round, mesh of 2", 4.0)]
    for count, timed in ((1, (1,)), (2, (1, 2)), (8, (1, 8))):
        monkeypatch.setattr(jax, "device_count", lambda count=count: count)
        assert rounds.meshes() == timed


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            Row("a", 4.0, "other 1.0", 10.0, 1.0, 500.0, 1024, 3e6, 2e6),
            {
                "name": "a",
                "ours_ms": 4.0,
                "peer": "other 1.0",
                "peer_ms": 10.0,
                "ratio": 2.5,
                "limit_ms": 1.0,
                "share_of_limit": 0.25,
                "compile_ms": 500.0,
                "peak_bytes": 1024,
                "flops": 3e6,
                "bytes": 2e6,
                "ceiling": None,
                "others": None,
                "beside_load": False,
            },
        ),
        (
            Row("b", 2.0),
            {
                "name": "b",
                "ours_ms": 2.0,
                "peer": None,
                "peer_ms": None,
                "ratio": None,
                "limit_ms": None,
                "share_of_limit": None,
                "compile_ms": None,
                "peak_bytes": None,
                "flops": None,
                "bytes": None,
                "ceiling": None,
                "others": None,
                "beside_load": False,
            },
        ),
    ],
)
def test_the_file_has_exactly_the_promised_entries(row, expected):
    assert json.loads(json.dumps(row.as_json())) == expected


def test_milliseconds_is_the_least_per_unit_after_a_warm_up(clock):
    seconds = iter([100.0, 3.0, 2.0, 4.0])

    def work():
        clock.now += next(seconds)
        return jnp.zeros(())

    assert milliseconds(work, repeats=3, units=10) == pytest.approx(200.0)
    assert next(seconds, None) is None


def test_milliseconds_waits_for_what_the_work_returns(clock, monkeypatch):
    waited = []

    def block_until_ready(result):
        waited.append(result)
        clock.now += 0.5
        return result

    monkeypatch.setattr(measure.jax, "block_until_ready", block_until_ready)
    assert milliseconds(lambda: "result", repeats=2) == pytest.approx(500.0)
    assert waited == ["result"] * 3


def test_works_that_take_turns_are_each_timed_at_their_best(clock):
    order, slow = [], iter([9.0, 3.0, 2.0, 5.0])

    def first():
        order.append("first")
        clock.now += 1.0
        return jnp.zeros(())

    def second():
        order.append("second")
        clock.now += next(slow)
        return jnp.zeros(())

    assert measure.alternately(first, second, repeats=3) == [1000.0, 2000.0]
    assert order == ["first", "second"] * 4


def test_rows_that_ran_beside_other_load_say_so():
    free, slow, beside = (measure.Row(name, 1.0) for name in ("free", "slow", "beside"))
    found = [
        ([free], load.Load(100.0, 0.02)),
        ([slow], load.Load(80.0, None)),
        ([beside], load.Load(99.0, 0.4)),
    ]
    rows = command.marked(found)
    assert [row.beside_load for row in rows] == [False, True, True]
    assert rows[1].as_json()["ceiling"] == 80.0


def test_what_children_take_is_our_own_and_what_others_take_is_not():
    spin = "import time; began = time.process_time()\nwhile time.process_time() - began < 0.5: pass"

    def wait():
        return subprocess.run([sys.executable, "-c", spin], check=True).returncode

    code, own = load.under_watch(wait)
    assert code == 0
    assert own.ceiling > 0
    if own.others is None:
        pytest.skip("this system does not tell what its cores did.")
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:
        _, met = load.under_watch(lambda: time.sleep(0.3))
    finally:
        other.kill()
        other.wait()
    assert met.others > 0.05


def test_products_alone_are_those_of_the_gradient_on_a_cpu():
    def gradient(w, x):
        def loss(w):
            hidden = jax.lax.platform_dependent(
                w, x, cpu=lambda w, x: x @ w @ w, default=lambda w, x: x @ w
            )
            looped, _ = jax.lax.scan(lambda h, _: (h @ w, None), hidden, None, length=3)
            return looped.sum()

        return jax.grad(loss)(w)

    shapes = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((2, 4), jnp.float32)
    # Forward 2 and 3; back 2 each of both, but for the first one's inputs.
    assert len(products.of(jax.make_jaxpr(gradient)(*shapes))) == 5 + 9
    found = products.alone(gradient, *shapes, times=2)
    assert found["peer"] == "its products alone"
    assert found["ms"] > 0
