"""A run with a limit ends there, says so, keeps its state, and goes on as if it had never stopped."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal, half_square, quadratics

import dflax as dx

KEY = jax.random.key(0)
SOURCE = quadratics().federation(participation=dx.participation.uniform(2))
ALGORITHM = dx.server.fedavg(half_square, optax.sgd(0.1), optax.sgd(1.0, momentum=0.9))
LIMIT = dx.Limit(5, "five rounds are paid for")
EVALUATED = {"evaluate": lambda state: {"x": state.server.params}, "every": 2}


def run(rounds, state=None, **options):
    state = ALGORITHM.init(KEY, jnp.ones(3)) if state is None else state
    return dx.run(ALGORITHM, state, SOURCE, rounds=rounds, key=KEY, **options)


def test_it_ends_at_the_limit_with_the_state_of_a_run_of_as_many_rounds(tmp_path):
    plain, told = run(5, **EVALUATED)
    with pytest.warns(dx.interrupt.LimitReached, match=r"after round 5 of 9: five rounds are paid"):
        ended, history = run(9, limit=LIMIT, **EVALUATED)
    assert_trees_equal(ended, plain)
    assert_trees_equal(history.metrics, told.metrics)
    # The last allowed round is evaluated as the last of any run.
    np.testing.assert_array_equal(history.evaluated, [2, 4, 5])
    # Nothing is left, and nothing is done.
    with pytest.warns(dx.interrupt.LimitReached, match="after round 5 of 8"):
        again, none = run(3, ended, limit=LIMIT)
    assert_trees_equal(again, ended)
    assert len(none.rounds) == 0


def test_a_limit_that_is_not_reached_says_and_changes_nothing():
    plain, _ = run(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", dx.interrupt.LimitReached)
        ended, _ = run(5, limit=LIMIT)
    assert_trees_equal(ended, plain)


def test_taken_up_with_a_higher_limit_it_is_the_uninterrupted_run_bit_for_bit(tmp_path):
    whole, told = run(9, **EVALUATED)
    folder = tmp_path / "run"
    with pytest.warns(dx.interrupt.LimitReached, match="A checkpoint is saved"):
        ended, _ = run(9, limit=LIMIT, checkpoint=folder, **EVALUATED)
    # Once more by the same call: the state is still there, and no round is done.
    with pytest.warns(dx.interrupt.LimitReached):
        kept, _ = run(9, limit=LIMIT, checkpoint=folder, **EVALUATED)
    assert_trees_equal(kept, ended)
    with pytest.warns(dx.interrupt.LimitReached, match="after round 7 of 9"):
        run(9, limit=LIMIT._replace(rounds=7), checkpoint=folder, **EVALUATED)
    resumed, history = run(9, checkpoint=folder, **EVALUATED)
    assert_trees_equal(resumed, whole)
    assert_trees_equal(history.metrics, told.metrics)


@pytest.mark.slow
def test_all_points_of_a_sweep_end_at_the_limit():
    def swept(rounds, **options):
        return dx.sweep(
            lambda rate: dx.server.fedavg(half_square, optax.sgd(rate)),
            lambda algorithm, key: algorithm.init(key, jnp.ones(3)),
            SOURCE,
            grid={"rate": [0.1, 0.2]},
            key=KEY,
            rounds=rounds,
            **options,
        )

    with pytest.warns(dx.interrupt.LimitReached, match="after round 5 of 9"):
        ended = swept(9, limit=LIMIT)
    plain = swept(5)
    assert_trees_equal(ended.states, plain.states)
    assert_trees_equal(ended.metrics, plain.metrics)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (5, "limit must be of type Limit, not int, got 5"),
        (dx.Limit(-1, "no"), r"limit.rounds must be an integer >= 0, got -1"),
        (dx.Limit(2.5, "no"), "limit.rounds must be an integer"),
        (dx.Limit(5, 3), "limit.reason must be"),
    ],
)
def test_what_is_no_limit_is_refused_by_name(limit, words):
    with pytest.raises((TypeError, ValueError), match=words):
        run(9, limit=limit)
