"""A run with a rule stops where the numbers say, keeps its state, and does so again when resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_equal

import dflax as dx
from dflax import stop
from dflax.running.checkpoints.checkpoint import Checkpoints

KEY = jax.random.key(0)
# What is measured after each round: up to 5 in round 3, then down, up to 6 in round 10.
VALUES = [1.0, 3.0, 5.0, 4.0, 4.5, 4.0, np.nan, 2.0, 1.0, 6.0, 6.0, 0.0]
SOURCE = dx.Events({"value": np.array(VALUES, np.float32)})
ACCURACY = stop.highest("accuracy")
LOSS = stop.lowest("loss")


def follow(key, params):
    return {"value": jnp.float32(0), "rounds": params, "key": key}


def step(state, drawn):
    row, key = drawn
    state = {"value": row["value"], "rounds": state["rounds"] + 1, "key": key}
    return state, {"cost": -row["value"]}


ALGORITHM = dx.Algorithm(follow, step)


def measure(state):
    return {"accuracy": state["value"], "loss": -state["value"], "all": state["rounds"]}


def run(rounds=12, **options):
    options = {"evaluate": measure, "every": 1} | options
    state = ALGORITHM.init(KEY, jnp.zeros(3))
    return dx.run(ALGORITHM, state, SOURCE, rounds=rounds, key=KEY, **options)


def numbers(end):
    """A run's end as numbers, but for the times."""
    state, history = end

    def of(leaf):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        )
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(of, (state, history._replace(seconds=0.0, compile_seconds=0.0)))


def same(first, second):
    """Bit for bit but for the times."""
    assert_trees_equal(numbers(first), numbers(second))


PATIENT = stop.patience(ACCURACY, 3)
STOPPED = [
    (PATIENT, 6, "accuracy has not risen above 5, of round 3, in 3 evaluations"),
    # NaN is no better, and does not count as anything else.
    (stop.patience(ACCURACY, 5), 8, "accuracy has not risen above 5, of round 3, in 5 evaluations"),
    (stop.patience(LOSS, 3), 6, "loss has not fallen below -5, of round 3, in 3 evaluations"),
    (
        stop.patience(ACCURACY, 1, least=2.5),
        2,
        "accuracy has not risen above 1, of round 1, in 1 eva",
    ),
    (stop.target(ACCURACY, 4.5), 3, "accuracy reached 5"),
    (stop.target(LOSS, -3), 2, "loss reached -3"),
    (stop.target(stop.lowest("cost"), -4.75), 3, "cost reached -5"),
    (stop.when(lambda seen: seen.round > 4, "enough"), 5, "enough"),
    (stop.when(lambda seen: not np.isfinite(seen.metrics["cost"])), 7, "its condition was met"),
    (stop.either(PATIENT, stop.target(ACCURACY, 3)), 2, "accuracy reached 3"),
]


@pytest.mark.parametrize(("rule", "last", "reason"), STOPPED)
def test_it_ends_at_the_round_with_the_state_of_a_run_of_as_many_rounds(rule, last, reason):
    ended, history = run(stop=rule)
    plain, told = run(last)
    same((ended, history._replace(stopped=None)), (plain, told))
    assert history.stopped.startswith(reason)


def test_a_rule_that_never_holds_changes_nothing():
    plain, told = run(every=4)
    ended, history = run(every=4, stop=stop.target(ACCURACY, 100))
    same((ended, history), (plain, told))
    assert history.stopped is None


def test_it_looks_at_rounds_that_every_divides_only():
    ended, history = run(every=4, stop=stop.target(ACCURACY, 3.5), chunk=12)
    assert (len(history.rounds), int(ended["rounds"][0])) == (4, 4)
    # Round 6 is evaluated as the last one, and is no round to look at.
    _, history = run(6, every=5, stop=stop.when(lambda seen: seen.round == 6))
    assert history.evaluated.tolist() == [5, 6]
    assert history.stopped is None


def test_without_an_evaluation_it_looks_at_metrics():
    rule = stop.target(stop.lowest("cost"), -4)
    _, history = run(evaluate=None, every=2, stop=rule)
    assert history.rounds.tolist() == [1, 2, 3, 4]
    assert history.evaluations == {}


class Killed(Exception):  # noqa: N818
    pass


def killed_at(number):
    def sink(rounds, metrics):
        if number in rounds:
            raise Killed

    return [sink]


@pytest.mark.some(2)
@pytest.mark.parametrize("number", [2, 4, 6])
@pytest.mark.parametrize("chunk", [1, None])
def test_a_killed_run_stops_at_the_same_round_with_the_same_bits(tmp_path, number, chunk):
    options = {"stop": PATIENT, "keep_best": ACCURACY, "chunk": chunk}
    whole = run(**options)
    settings = Checkpoints(tmp_path, every_rounds=1)
    with pytest.raises(Killed):
        run(checkpoint=settings, sinks=killed_at(number), **options)
    same(run(checkpoint=settings, **options), whole)
    # It has ended: the same call does nothing, and tells the same.
    seen = []
    sinks = [lambda rounds, metrics: seen.extend(rounds)]
    same(run(checkpoint=settings, sinks=sinks, **options), whole)
    assert seen == []
    assert whole[1].best.round == 3


def test_without_its_rule_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    _, history = run(stop=PATIENT, checkpoint=tmp_path)
    assert len(history.rounds) == 6
    _, history = run(stop=stop.patience(ACCURACY, 5), checkpoint=tmp_path)
    assert len(history.rounds) == 8
    same(run(checkpoint=tmp_path), run())


def test_a_rule_that_would_have_stopped_earlier_says_so_and_returns_what_is_there(tmp_path):
    run(9, checkpoint=tmp_path)
    ended, history = run(stop=PATIENT, checkpoint=tmp_path)
    assert int(ended["rounds"][0]) == 9
    assert "in round 6; the run had gone on" in history.stopped


def test_a_limit_that_was_not_reached_says_nothing(recwarn):
    _, history = run(stop=PATIENT, limit=dx.Limit(8, "eight rounds are paid for"))
    assert len(history.rounds) == 6
    assert not recwarn.list


def test_the_best_state_is_kept_beside_the_last():
    last, history = run(keep_best=ACCURACY)
    # Of two equal values the first counts.
    assert (history.best.round, history.best.value) == (10, 6.0)
    best, of_ten = run(10)
    same((history.best.state, of_ten), (best, of_ten))
    assert int(last["rounds"][0]) == 12
    _, history = run(keep_best=stop.lowest("cost"), evaluate=None, every=4)
    assert (history.best.round, history.best.value) == (4, -4.0)


def test_the_last_round_may_be_the_best_and_nan_never_is():
    _, history = run(11, every=3, keep_best=ACCURACY)
    assert history.evaluated.tolist() == [3, 6, 9, 11]
    assert history.best.round == 11
    _, history = run(7, every=7, keep_best=ACCURACY)
    assert history.best is None


@pytest.mark.some(1)
@pytest.mark.parametrize("number", [5, 11])
def test_the_best_state_is_kept_over_a_kill(tmp_path, number):
    whole = run(keep_best=ACCURACY)
    settings = Checkpoints(tmp_path, every_rounds=2)
    with pytest.raises(Killed):
        run(checkpoint=settings, sinks=killed_at(number), keep_best=ACCURACY, chunk=1)
    same(run(checkpoint=settings, keep_best=ACCURACY), whole)


def test_a_best_state_by_something_else_is_not_taken_for_it(tmp_path):
    run(6, checkpoint=tmp_path, keep_best=ACCURACY)
    with pytest.warns(RuntimeWarning, match="no best state by lowest loss in the checkpoint"):
        _, history = run(8, checkpoint=tmp_path, keep_best=LOSS)
    assert (history.best.round, history.best.value) == (8, -2.0)
    # Without it the folder is read as ever.
    _, history = run(9, checkpoint=tmp_path)
    assert history.best is None


def test_where_no_state_could_be_the_best_none_is_missed(tmp_path, recwarn):
    options = {"checkpoint": tmp_path, "every": 7, "keep_best": ACCURACY}
    assert run(7, **options)[1].best is None
    assert run(12, **options)[1].best.round == 12
    assert not recwarn.list


def test_a_damaged_best_state_makes_the_checkpoint_one_that_is_skipped(tmp_path):
    settings = Checkpoints(tmp_path, every_rounds=3)
    whole = run(6, checkpoint=settings, keep_best=ACCURACY)
    for path in (tmp_path / "round_000000006" / "best").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="is skipped: its file best/"):
        same(run(6, checkpoint=settings, keep_best=ACCURACY), whole)


@pytest.mark.slow
def test_the_best_state_lies_on_the_mesh_as_the_state_does(tmp_path):
    import optax
    from tasks import half_square, quadratics

    algorithm = dx.decentralized.dfedavg(half_square, optax.sgd(0.3), dx.gossip.ring(8))
    source = quadratics(clients=8).federation()
    mesh = dx.client_mesh()

    def disagreement(state):
        return {"distance": jnp.var(state.clients.params, axis=0).sum()}

    def on(**options):
        return dx.run(
            algorithm, algorithm.init(KEY, jnp.ones(3)), source, rounds=6, key=KEY, mesh=mesh,
            evaluate=disagreement, every=1, keep_best=stop.highest("distance"), **options,
        )  # fmt: skip

    last, history = on()
    assert jax.tree.map(lambda leaf: leaf.sharding, history.best.state) == jax.tree.map(
        lambda leaf: leaf.sharding, last
    )
    with pytest.raises(Killed):
        on(checkpoint=Checkpoints(tmp_path, every_rounds=1), sinks=killed_at(4), chunk=1)
    resumed, told = on(checkpoint=Checkpoints(tmp_path, every_rounds=1))
    same((resumed, told), (last, history))
    assert told.best.state.clients.params.sharding == last.clients.params.sharding


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": "accuracy"}, "stop must be of type Rule, not str"),
        ({"stop": ACCURACY}, "stop must be of type Rule, not Objective"),
        ({"keep_best": "accuracy"}, r"keep_best must be of type Objective.*dflax.stop.highest"),
        ({"stop": PATIENT, "every": None}, "stop needs every, got every=None"),
        ({"keep_best": ACCURACY, "every": None}, "keep_best needs every, got every=None"),
        (
            {"stop": stop.patience(stop.highest("acuracy"), 2)},
            r"stop must name what is measured, one of \['accuracy', 'all', 'cost', 'loss'\], got 'acu",
        ),
        ({"keep_best": stop.lowest("all")}, r"keep_best must name a single number.*shape \[3\]"),
        ({"stop": stop.when(lambda seen: np.ones(2) > 0)}, "predicate must return True or False"),
    ],
)
def test_what_cannot_be_watched_is_refused_by_name(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        run(**options)


def test_rules_are_checked_when_they_are_made():
    with pytest.raises(TypeError, match=r"objective must be.*dflax.stop.highest"):
        stop.patience("accuracy", 3)
    with pytest.raises(ValueError, match="evaluations must be an integer >= 1, got 0"):
        stop.patience(ACCURACY, 0)
    with pytest.raises(ValueError, match="rules must be at least one rule"):
        stop.either()
    with pytest.raises(TypeError, match=r"stop is no option of a sweep.*stop the run of one"):
        dx.sweep(lambda rate: ALGORITHM, lambda a, k: a, SOURCE, grid={"rate": [1.0]}, key=KEY,
                 rounds=1, stop=PATIENT)  # fmt: skip
