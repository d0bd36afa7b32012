"""Active rounds: what is bought, what is read, and that one program serves them all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import active

KEY = jax.random.key(0)
SIZES = np.array([12, 5, 9, 6, 7, 10, 8, 11])
N = len(SIZES)
BUDGETS = np.array([3, 2, 4, 1, 2, 3, 2, 0])


def model(params, inputs):
    return inputs @ params["w"] + params["b"]


def restart(key):
    return {"w": 0.1 * jax.random.normal(key, (3, 3)), "b": jnp.zeros(3)}


@functools.cache
def task():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(SIZES.sum(), 3)).astype(np.float32)
    labels = (inputs @ generator.normal(size=(3, 3))).argmax(1)
    owned = np.split(np.arange(SIZES.sum()), np.cumsum(SIZES)[:-1])
    pools = dx.data.pools(dx.data.from_indices(owned), 2)
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), classes=3)
    return dx.Federation(
        data,
        pools,
        batch_size=4,
        local_steps=2,
        participation=dx.participation.uniform(5),
        replacement=True,
    )


UPDATES = {
    "KCFU": dx.server.kcfu(model, optax.sgd(0.3, 0.9), N),
    "FedAvg": dx.server.fedavg(
        dx.losses.classification(model), optax.sgd(0.3), keep_model=True, clients=N
    ),
}


def loop(update="KCFU", acquisition=None, budgets=BUDGETS, rounds=3):
    acquisition = active.ksas(model, chunk=5) if acquisition is None else acquisition
    return active.active_learning(UPDATES[update], acquisition, budgets, restart, rounds=rounds)


def begun(algorithm, federation):
    return algorithm.init(KEY, restart(KEY), federation.partition)


@functools.cache
def rounds(update):
    """Three active rounds, one by one, of one program."""
    algorithm, source = loop(update), active.ActiveRounds(task())
    step = jax.jit(lambda state, source, t: algorithm.step(state, source.draw(KEY, t)))
    states, metrics = [begun(algorithm, task())], []
    for t in range(3):
        state, measured = step(states[-1], source, t)
        states.append(state)
        metrics.append(measured)
    return step, states, metrics


@pytest.mark.some(1)
@pytest.mark.parametrize("update", UPDATES)
def test_pools_grow_by_the_budgets_and_never_shrink(update):
    step, states, metrics = rounds(update)
    assert step._cache_size() == 1
    valid = np.asarray(task().partition.valid)
    for before, after, measured in zip(states, states[1:], metrics, strict=False):
        old, new = (np.asarray(s.clients.labelled) for s in (before, after))
        assert not np.any(old & ~new)
        assert not np.any(new & ~valid)
        left = SIZES - old.sum(1)
        np.testing.assert_array_equal(new.sum(1) - old.sum(1), np.minimum(BUDGETS, left))
        assert measured["labels"] == old.sum()
        assert measured["bought"] == new.sum() - old.sum()
        np.testing.assert_array_equal(measured["bought_of_class"].sum(1), np.minimum(BUDGETS, left))
        assert measured["clients_reporting"] == N
    # Client 1 had 3 examples left, client 2 had 7.
    np.testing.assert_array_equal(states[-1].clients.labelled.sum(1)[1:3], [5, 9])


@pytest.mark.slow
def test_a_round_is_training_from_a_fresh_model_and_then_a_purchase():
    """By hand: communication rounds of the federation with these pools, the last with all."""
    _, states, metrics = rounds("KCFU")
    campaign = active.ActiveRounds(task()).draw(KEY, jnp.int32(1))
    pools = dataclasses.replace(task().partition, labelled=states[1].clients.labelled)
    federation = task().replace(partition=pools)
    start, init, run, query = jax.random.split(campaign.key, 4)
    algorithm = UPDATES["KCFU"]

    @jax.jit
    def trained(federation, everyone):
        state = algorithm.init(init, restart(start))
        state, _ = dx.rollout(algorithm, state, federation, run, 2)
        return dx.rollout(algorithm, state, everyone, run, 1, start=2)[0]

    state = trained(federation, federation.replace(participation=dx.participation.everyone()))
    assert_trees_close(state.server, states[2].server, rtol=1e-5, atol=1e-6)
    assert_trees_close(state.clients.params, states[2].clients.params, rtol=1e-5, atol=1e-6)
    counts = pools.class_counts(task().data.labels, 3)
    keys = jax.random.split(query, N)

    def score(key, local, examples, labelled, unlabelled, counts):
        asked = active.Query(
            key, local, state.server.params, examples, labelled, unlabelled, counts
        )
        return active.ksas(model)(asked, task().data)

    given = (state.clients.params, pools.owned, pools.labelled, pools.unlabelled, counts)
    scores = jax.jit(jax.vmap(score))(keys, *given)
    after = pools.bought(scores, BUDGETS)
    np.testing.assert_array_equal(after.labelled, states[2].clients.labelled)
    bought, rest = np.asarray(after.labelled & ~pools.labelled), np.asarray(after.unlabelled)
    for name, mask in (("score_of_bought", bought), ("score_of_rest", rest)):
        np.testing.assert_allclose(metrics[1][name], np.asarray(scores)[mask].mean(), rtol=1e-4)


def test_labels_that_are_not_bought_are_never_read():
    """Training, scores and what is bought are the same when all other labels are garbage."""
    step, states, metrics = rounds("KCFU")
    known = np.asarray(states[1].clients.labelled)
    owned = np.asarray(task().partition.owned)
    hidden = np.setdiff1d(np.arange(SIZES.sum()), owned[known])
    data = dataclasses.replace(task().data, labels=task().data.labels.at[hidden].set(-1000))
    garbled = active.ActiveRounds(task().replace(data=dataclasses.replace(task().data)))
    garbled.federation.data = data
    state, measured = step(states[0], garbled, 0)
    assert_trees_equal(state, states[1])
    assert_trees_equal(measured, metrics[0])


@pytest.mark.slow
def test_active_rounds_scan_and_run_on_devices():
    algorithm, source = loop(), active.ActiveRounds(task())
    _, states, metrics = rounds("KCFU")
    start = begun(algorithm, task())
    dealt, history = dx.run(algorithm, start, source, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(dealt.server, states[3].server, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(dealt.clients.labelled, states[3].clients.labelled)
    np.testing.assert_array_equal(history.metrics["labels"], [m["labels"] for m in metrics])


def test_an_acquisition_that_knows_the_answer_gets_what_it_asks_for():
    """The examples with the largest numbers are bought, the data's labels are hidden."""

    def largest(query, data):
        assert data.labels.shape == (SIZES.sum(),)
        return query.examples - jnp.where(data.labels[query.examples] == -1, 0.0, jnp.nan)

    algorithm = loop("FedAvg", largest, budgets=1, rounds=1)
    source = active.ActiveRounds(task())
    state, _ = jax.jit(lambda s, source: algorithm.step(s, source.draw(KEY, 0)))(
        begun(algorithm, task()), source
    )
    pools = task().partition
    bought = np.asarray(state.clients.labelled & ~pools.labelled)
    best = np.where(pools.unlabelled, pools.owned, -1).max(1)
    np.testing.assert_array_equal(np.asarray(pools.owned)[bought], best)


def epochs():
    return dx.Federation(task().data, task().partition, batch_size=4, local_epochs=1)


def plain():
    partition = dx.data.iid(int(SIZES.sum()), N)
    return dx.Federation(task().data, partition, batch_size=4, local_steps=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: begun(loop(budgets=13), task()), "budgets must be at most .* got 13 for client 0"),
        (lambda: begun(loop(budgets=SIZES + 1), task()), "budgets must be at most .* got 13"),
        (lambda: begun(loop(budgets=[1, 2]), task()), "budgets"),
        (lambda: loop(budgets=-1), "budgets must be"),
        (lambda: loop(rounds=0), "rounds must be"),
        (lambda: active.ActiveRounds(epochs()), "federation must have local_steps"),
        (lambda: active.ActiveRounds(plain()), "partition must be of type Pools"),
        (lambda: active.ActiveRounds(3), "federation must be of type Federation"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_algorithms_without_local_models_and_wrong_scores_are_refused():
    forgetful = dx.server.fedavg(dx.losses.classification(model), optax.sgd(0.1))
    algorithm = active.active_learning(forgetful, active.random(), 1, restart, rounds=1)
    with pytest.raises(ValueError, match="algorithm must keep the clients' local models"):
        begun(algorithm, task())
    algorithm = loop("FedAvg", lambda query, data: jnp.zeros(3), rounds=1)
    campaign = active.ActiveRounds(task()).draw(KEY, 0)
    with pytest.raises(ValueError, match="acquisition must return one score"):
        jax.eval_shape(algorithm.step, begun(algorithm, task()), campaign)
