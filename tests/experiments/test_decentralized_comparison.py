"""The comparison of the gossip family: its runs, what they count as sent, and claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import evaluation, topology
from dflax.gossip import Mixing
from experiments.studies.decentralized import decentralized_comparison as comparison
from experiments.tasks.gossip import CLIENTS, NOWHERE, Method, Task, given_matrix, graphs
from experiments.tools.traffic import megabytes, model_bytes


@pytest.fixture(scope="module")
def task():
    # Digits in place of the images: what is tested does not depend on them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dx.data, "fashion_mnist", dx.data.digits)
        return small_task()


def small_task():
    return Task(
        "perceptron",
        (0, 1),
        alpha=0.3,
        local_steps=2,
        batch_size=4,
        rounds=4,
        every=2,
        examples=60,
    )


def dfedavg(task):
    def make(table, rate):
        return dx.decentralized.dfedavg(task.loss, optax.sgd(rate), given_matrix(table))

    return make


def test_bytes_of_messages_and_megabytes_of_runs():
    model = {"kernel": jnp.zeros((10, 3)), "bias": jnp.zeros(2)}
    assert model_bytes(model) == 4 * 32
    sent = np.array([[32.0, 32.0, 64.0], [0.0, 16.0, 0.0]])
    found = megabytes(sent, 5e5, clients=16)
    np.testing.assert_allclose(found, [[1.0, 2.0, 4.0], [0.0, 0.5, 0.5]])


@pytest.mark.slow
def test_curves_are_those_of_the_algorithms_own_runs(task):
    tables = {name: graph.dense().astype(np.float32) for name, graph in graphs().items()}
    found = task.curves(Method(dfedavg(task), tables), (0.02, 0.1))
    assert found.shape == (4, 3, 2, 2, 2)
    key = jax.random.key(1)
    source = task.several[1]
    mixer = dx.gossip.ring(CLIENTS)
    algorithm = dx.decentralized.dfedavg(task.loss, optax.sgd(0.1), mixer)
    state = algorithm.init(key, task.start(jax.random.fold_in(key, 0xFFFFFFFE)))
    _, history = dx.run(
        algorithm,
        state,
        source,
        rounds=4,
        key=key,
        every=2,
        evaluate=evaluation.together(
            evaluation.client_models(task.measure),
            evaluation.mean_model(task.measure),
            evaluation.consensus,
        ),
    )
    seen, (local, averaged, distance, sent) = history.evaluations, found[:, 0, 1, 1]
    np.testing.assert_allclose(local, seen["accuracy"], atol=0.01)
    np.testing.assert_allclose(averaged, seen["mean_model_accuracy"], atol=0.02)
    np.testing.assert_allclose(distance**2, seen["consensus_distance"], rtol=1e-3)
    # Models to 2 neighbours on the ring, 4 on the exponential graph, 15 on the complete one.
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(task.shapes)) / 1e6
    np.testing.assert_allclose(sent, [4 * size, 8 * size], rtol=1e-6)
    ratios = found[3, :, 0, 0, -1] / found[3, 0, 0, 0, -1]
    np.testing.assert_allclose(ratios, [1.0, 2.0, 7.5], rtol=1e-6)
    # Rates and graphs reach the runs, and on the complete graph nobody is apart.
    assert (found[2, 0, 0] < found[2, 0, 1]).all()
    assert (found[2, 0] > found[2, 1]).all()
    np.testing.assert_allclose(found[2, 2], 0.0, atol=1e-4)


@pytest.mark.slow
def test_a_merge_is_counted_and_rounds_of_a_quarter_are_four(task):
    methods = comparison.methods(task)
    merging = task.curves(methods["single merging"][0], (0.1,))
    size = model_bytes(task.shapes) / 1e6
    models = merging[3, 0, 0] / size * CLIENTS
    drawn = models - CLIENTS * (CLIENTS - 1)
    np.testing.assert_allclose(drawn, drawn.round(), atol=1e-2)
    assert (drawn >= 0).all()
    assert (drawn[:, -1] > 0).any()
    assert (drawn[:, -1] < 4 * CLIENTS).all()
    one_model = task.curves(methods["MoDeST"][0], (0.1,))
    np.testing.assert_array_equal(one_model[0], one_model[1])
    # At most two models each way between a sample of four and one aggregator, 4 rounds in one.
    assert (one_model[3, 0, 0] / size * CLIENTS <= np.array([2, 4]) * 4 * 8 + 0.1).all()


@pytest.mark.slow
def test_matcha_is_the_same_with_matchings_that_never_meet():
    schedule, tables = comparison.matcha_tables(0.5)
    for name, edges in (("ring", 2 * CLIENTS), ("complete", CLIENTS * (CLIENTS - 1))):
        mixer = dx.gossip.mixer(schedule._replace(tables=tables[name]))
        models = jax.random.normal(jax.random.key(3), (CLIENTS, 5))
        state = mixer.init(models)

        def mixed(key, mixer=mixer, models=models, state=state):
            out, _, metrics = mixer.apply(models, state, Mixing(key, jnp.int32(0)))
            return out.mean(0), metrics["models_sent"]

        means, sent = jax.vmap(mixed)(jax.random.split(jax.random.key(4), 400))
        np.testing.assert_allclose(means, jnp.broadcast_to(models.mean(0), means.shape), atol=1e-5)
        np.testing.assert_allclose(sent.mean() / edges, 0.5, atol=0.05)


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    level = {"ring": 0.6, "exponential": 0.7, "complete": 0.8}
    if not good:
        level = {"ring": 0.28, "exponential": 0.27, "complete": 0.26}
    sign = 1 if good else -1

    def own(local, averaged, sent, delivers="local"):
        curves = {"local": local, "averaged": averaged, "distance": 0.1, "megabytes": sent}
        filled = {name: np.full((3, 4), value) for name, value in curves.items()}
        return comparison.Found(0.1, filled, delivers)

    better = {"DFedSAM-MGS": 0.02, "DSGT": -0.01, "D-PSGD": -0.05, "DFedADMM": 0.01}
    names = ("DFedAvg", "DFedAvgM", "DFedSAM", "variance corrected", *better)
    found = {}
    for name in names:
        for graph in level:
            local = level[graph] + sign * better.get(name, 0.0)
            averaged = local if good else local + 0.1
            found[name, graph] = own(local, averaged, 2.0)
    if not good:
        found["variance corrected", "ring"] = own(0.1, 0.1, 2.0)
    for graph in ("ring", "complete"):
        averaged = found["D-PSGD", graph].curves["averaged"][0, 0] - (0.02 if good else 0.2)
        found["MATCHA", graph] = own(level[graph] - 0.1, averaged, 1.0 if good else 2.0)
    merged = 0.75 if good else 0.55
    found["single merging", NOWHERE] = own(0.5, merged, 1.0, "averaged")
    stated = comparison.claims(found)
    assert [claim.holds for claim in stated] == [good] * len(stated)
    assert [claim.claim for claim in stated] == comparison.statements(comparison.Config())


def test_a_row_tells_who_reached_the_target():
    setting = comparison.SETTINGS["perceptron"]
    curve = np.array([[0.1, 0.61, 0.7], [0.2, 0.3, 0.65]])
    curves = {
        "local": curve,
        "averaged": curve + 0.1,
        "distance": curve,
        "megabytes": np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]),
    }
    shown = comparison.row(comparison.Found(0.1, curves, "local"), setting)
    assert shown["rounds to 0.6"] == "10 ± 2"
    assert shown["MB to 0.6"] == "2.5 ± 0.5"
    assert shown["local"] == "0.675 ± 0.025"
    curves["local"] = curve - 0.06
    shown = comparison.row(comparison.Found(0.1, curves, "local"), setting)
    assert shown["rounds to 0.6"] == "1 of 2 did"


def test_the_graphs_come_in_the_order_of_their_spectral_gaps():
    gaps = [topology.spectral_gap(matrix) for matrix in graphs().values()]
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(1.0)
