import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import aggregation, gossip, matching, topology
from dflax.data.dataset import Dataset
from dflax.gossip import Mixing

KEY = jax.random.key(0)
N = 8
INPUTS = jax.random.normal(KEY, (160, 6))
DATA = Dataset(INPUTS, jnp.zeros(160, jnp.int32), classes=3)
PARTITION = dx.data.from_indices(np.array_split(np.arange(160), N))
FEDERATION = dx.Federation(DATA, PARTITION, batch_size=4, local_steps=1)
ROUND = FEDERATION.draw(KEY, 0)


class Tanh(nn.Module):
    """One hidden layer whose units are all alive."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(8, bias_init=nn.initializers.normal(0.3))(x)))


MODEL = Tanh()
ONE = MODEL.init(KEY, INPUTS)["params"]
SYMMETRIES = matching.symmetries(MODEL, ONE, INPUTS)
WIDTHS = matching.widths_of(SYMMETRIES, ONE)
WAYS = {
    "activations": matching.by_activations(MODEL, SYMMETRIES),
    "weights": matching.by_weights(SYMMETRIES),
}


def shuffled():
    """One model in eight orders of its units."""

    @jax.jit
    @jax.vmap
    def order(key):
        return matching.permute(ONE, SYMMETRIES, matching.random_permutations(key, WIDTHS))

    return order(jax.random.split(jax.random.key(1), N))


def independent():
    keys = jax.random.split(jax.random.key(2), N)
    return jax.jit(jax.vmap(lambda key: MODEL.init(key, INPUTS)["params"]))(keys)


def of(client, models):
    return jax.tree.map(lambda leaf: leaf[client], models)


def mix(mixer, models, active=None):
    def once(models, round, active):
        return mixer.apply(models, mixer.init(models), Mixing(KEY, 0, active, round))

    mixed, _, metrics = jax.jit(once)(models, ROUND, active)
    return mixed, metrics


@pytest.mark.parametrize("way", WAYS)
def test_one_network_in_different_orders_is_left_as_it_is_by_aligned_averaging_alone(way):
    models = shuffled()
    mixed, metrics = mix(gossip.aligned(topology.ring(N), WAYS[way], batch_size=20), models)
    assert_trees_close(mixed, models, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["similarity"], 1.0, atol=1e-4)
    assert metrics["fixed_units"] < 0.5
    assert metrics["models_sent"] == 2 * N
    plain, _ = mix(gossip.ring(N), models)
    assert np.abs(plain["Dense_0"]["kernel"] - models["Dense_0"]["kernel"]).max() > 0.1


@pytest.mark.slow
def test_equal_models_are_averaged_as_plain_mixing_does():
    near = jax.tree.map(
        lambda p: p + 1e-3 * jax.random.normal(jax.random.key(4), (N, *p.shape)), ONE
    )
    for graph in (topology.ring(N), topology.star(N)):
        expected, _ = mix(gossip.mixer(graph), near)
        mixed, metrics = mix(gossip.aligned(graph, WAYS["weights"]), near)
        assert_trees_close(mixed, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["fixed_units"], 1.0, rtol=1e-6)


@pytest.mark.slow
def test_each_neighbour_is_permuted_towards_the_client_itself():
    """Against one client after another, by scipy's assignment, on its own examples."""
    models = independent()
    mixer = gossip.aligned(topology.star(N), WAYS["activations"], batch_size=20)
    mixed, _ = mix(mixer, models)
    matrix = topology.metropolis(topology.star(N)).dense()
    by_scipy = matching.by_activations(MODEL, SYMMETRIES, assign=matching.assign_on_host)
    match = jax.jit(by_scipy.match)
    for client in (0, 3):
        row = of(client, models)
        rows = jnp.asarray(np.array_split(np.arange(160), N)[client], jnp.int32)[None]
        found, _ = match(row, models, DATA, rows)
        moved = jax.vmap(lambda m, p: matching.permute(m, SYMMETRIES, p))(models, found)
        expected = jax.tree.map(functools.partial(np.tensordot, matrix[client], axes=1), moved)
        assert_trees_close(of(client, mixed), expected, rtol=1e-4, atol=1e-5)


def test_on_three_clients_ring_and_complete_graph_are_one():
    models = jax.tree.map(lambda leaf: leaf[:3], independent())
    ends = [
        mix(gossip.aligned(graph, WAYS["weights"]), models)[0]
        for graph in (topology.ring(3), topology.complete(3))
    ]
    assert_trees_close(*ends, rtol=1e-5, atol=1e-6)


def test_without_edges_or_neighbours_nothing_moves():
    models = independent()
    mixed, metrics = mix(gossip.aligned(np.eye(N), WAYS["weights"]), models)
    assert_trees_equal(mixed, models)
    assert metrics["models_sent"] == 0
    assert np.isnan(metrics["similarity"])


@pytest.mark.parametrize("way", WAYS)
def test_the_absent_keep_their_models_and_spread_no_nan(way):
    active = jnp.asarray([1.0, 0, 1, 1, 0, 1, 1, 1])
    models = independent()
    models["Dense_0"]["kernel"] = models["Dense_0"]["kernel"].at[1].set(jnp.nan)
    mixed, metrics = mix(gossip.aligned(topology.ring(N), WAYS[way]), models, active)
    for client in (1, 4):
        assert_trees_equal(of(client, mixed), of(client, models))
    present = np.flatnonzero(active)
    assert all(np.isfinite(np.asarray(leaf)[present]).all() for leaf in jax.tree.leaves(mixed))
    assert np.isfinite(metrics["similarity"])
    assert metrics["models_sent"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_on_eight_devices_the_result_is_the_same(way):
    models = independent()
    mixer = gossip.aligned(topology.ring(N), WAYS[way], batch_size=20)
    expected, known = mix(mixer, models)
    mesh = dx.client_mesh()
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    with jax.set_mesh(mesh):
        mixed, metrics = mix(mixer, jax.device_put(models, spec))
    assert_trees_close(mixed, expected, rtol=1e-4, atol=1e-5)
    assert_trees_close(metrics, known, rtol=1e-4, atol=1e-5)


@pytest.mark.some(1)
@pytest.mark.parametrize("way", WAYS)
def test_through_an_anchor_all_pairs_agree(way):
    """Against client after client matched to the anchor; the merged networks are one function."""
    models = independent()
    complete = gossip.complete(N)
    mixed, metrics = mix(
        gossip.anchored(complete, WAYS[way], broadcast=False, batch_size=20), models
    )
    outputs = jax.vmap(lambda params: MODEL.apply({"params": params}, INPUTS))
    everyone = outputs(mixed)
    np.testing.assert_allclose(everyone, np.broadcast_to(everyone[:1], everyone.shape), atol=1e-5)
    # Pair by pair they are not.
    apart = outputs(mix(gossip.aligned(topology.complete(N), WAYS[way], batch_size=20), models)[0])
    assert np.abs(apart - apart[:1]).max() > 0.01
    assert metrics["models_sent"] == N * (N - 1)
    by_dimat = dx.decentralized.dimat_mixer(
        topology.complete(N), WAYS[way], anchored=True, batch_size=20
    )
    same, known = mix(by_dimat, models)
    assert_trees_equal(same, mixed)
    assert known["models_sent"] == N * (N - 1)

    match = jax.jit(WAYS[way].match)
    anchor = jax.tree.map(lambda leaf: leaf[:1], models)
    total, cosines = 0.0, []
    for client in range(N):
        rows = jnp.asarray(np.array_split(np.arange(160), N)[client], jnp.int32)[None]
        found, similarity = match(of(client, models), anchor, DATA, rows)
        (order,) = (np.asarray(p)[0] for p in found.values())
        # Unit u of the client is unit order[u] of the anchor.
        kernel = np.empty_like(models["Dense_1"]["kernel"][0])
        kernel[:, order] = models["Dense_1"]["kernel"][client]
        total = total + kernel / N
        cosines.append(float(similarity[0]))
        if client == 3:
            third = order
    np.testing.assert_allclose(mixed["Dense_1"]["kernel"][0], total, atol=1e-5)
    np.testing.assert_allclose(mixed["Dense_1"]["kernel"][3], total[:, third], atol=1e-5)
    np.testing.assert_allclose(metrics["similarity"], np.mean(cosines[1:]), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_anchor_is_the_first_who_takes_part_on_any_graph_and_device(way):
    models = independent()
    models["Dense_0"]["kernel"] = models["Dense_0"]["kernel"].at[0].set(jnp.nan)
    active = jnp.asarray([0.0, 1, 1, 1, 0, 1, 1, 1])
    mixer = gossip.anchored(gossip.ring(N), WAYS[way], batch_size=20)
    mixed, metrics = mix(mixer, models, active)
    assert np.isfinite(jnp.stack([leaf[1:].sum() for leaf in jax.tree.leaves(mixed)])).all()
    assert_trees_equal(of(4, mixed), of(4, models))
    # 4 edges of the ring are left, both ways; the anchor's model goes to five others besides.
    assert metrics["models_sent"] == 8 + 5
    assert -1 <= metrics["similarity"] <= 1
    mesh = dx.client_mesh()
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    with jax.set_mesh(mesh):
        dealt, _ = mix(mixer, jax.device_put(models, spec), active)
    assert_trees_close(dealt, mixed, rtol=1e-4, atol=1e-5)


def test_one_network_in_different_orders_keeps_them_through_an_anchor():
    models = shuffled()
    mixer = gossip.anchored(gossip.repeat(gossip.ring(N), 2), WAYS["weights"])
    mixed, metrics = mix(mixer, models)
    assert_trees_close(mixed, models, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["similarity"], 1.0, atol=1e-5)
    assert metrics["models_sent"] == 2 * 2 * N + N - 1
    with pytest.raises(ValueError, match="average of running statistics fits no"):
        mixer.init(WITH_STATISTICS)
    informed = gossip.anchored(gossip.ring(N), WAYS["activations"])
    state = informed.init(models)
    with pytest.raises(ValueError, match="round must be"):
        informed.apply(models, state, Mixing(KEY, 0))


def test_matched_models_can_be_corrected_in_the_anchors_order():
    """Orders change no variance: every kernel gets the mean of those received."""
    models = independent()
    alone = functools.partial(topology.uniform, self_weight=0.0)
    neighbours = gossip.mixer(topology.ring(N), weights=alone)
    mixed, _ = mix(gossip.anchored(gossip.variance_corrected(neighbours), WAYS["weights"]), models)
    received = alone(topology.ring(N)).dense() @ np.asarray(aggregation.variances(models))
    np.testing.assert_allclose(aggregation.variances(mixed), received, rtol=1e-4)


def test_a_shared_set_serves_without_the_round_and_mixings_repeat():
    models = shuffled()
    shared = gossip.aligned(topology.ring(N), WAYS["activations"], calibration=DATA)
    mixing = Mixing(KEY, 0)
    assert jax.eval_shape(lambda: shared.apply(models, shared.init(models), mixing)[0]) is not None
    mixed, _ = mix(gossip.repeat(shared, 2), models)
    assert_trees_close(mixed, models, rtol=1e-5, atol=1e-6)


class Normed(nn.Module):
    """A hidden layer with batch normalisation."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.relu(x))


def test_running_statistics_are_estimated_afresh_on_the_clients_own_examples():
    module = Normed()
    models = jax.jit(jax.vmap(lambda key: module.init(key, INPUTS)))(jax.random.split(KEY, N))
    mixer = gossip.recalibrated(gossip.ring(N), module, batches=1, batch_size=20)
    mixed, _ = mix(mixer, models)
    weights, _ = mix(gossip.ring(N), models["params"])
    assert_trees_close(mixed["params"], weights, rtol=1e-6)
    owned = np.array_split(np.arange(160), N)[5]
    layer = jax.tree.map(lambda leaf: leaf[5], weights["Dense_0"])
    hidden = np.asarray(INPUTS[owned] @ layer["kernel"] + layer["bias"])
    found = jax.tree.map(lambda leaf: leaf[5], mixed["batch_stats"]["BatchNorm_0"])
    np.testing.assert_allclose(found["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], hidden.var(0), rtol=1e-3, atol=1e-5)


ALIGNED = gossip.aligned(topology.ring(N), WAYS["activations"])
WITH_STATISTICS = {"params": jnp.ones((N, 3)), "batch_stats": jnp.ones((N, 3))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gossip.aligned(topology.ring(N), 3), "matching must be of type Matching"),
        (lambda: gossip.aligned(3, WAYS["weights"]), "topology must be a Graph"),
        (lambda: gossip.aligned(topology.ring(N), WAYS["weights"], batches=0), "batches must"),
        (lambda: gossip.aligned(topology.ring(N), WAYS["weights"], calibration=3), "calibration"),
        (lambda: ALIGNED.init(WITH_STATISTICS), "average of running statistics fits no"),
        (lambda: ALIGNED.init(jnp.ones((N, 3))), "must name leaves of the model"),
        (lambda: ALIGNED.init(jax.tree.map(lambda p: p[:3], shuffled())), "leading axis"),
        (
            lambda: gossip.aligned(
                topology.ring(N),
                matching.by_weights({"a": [("Dense_0/bias", 0), ("Dense_1/bias", 0)]}),
            ).init(shuffled()),
            "no permutation of each other",
        ),
        (
            lambda: ALIGNED.apply(shuffled(), ALIGNED.init(shuffled()), Mixing(KEY, 0)),
            "round must be",
        ),
        (lambda: gossip.recalibrated(gossip.ring(N), 3), "model must be a module"),
        (lambda: gossip.recalibrated(gossip.ring(N), lambda p, x: x), "model must be a module"),
        (lambda: gossip.recalibrated(gossip.ring(N), Normed(), batch_size=0), "batch_size must"),
        (
            lambda: gossip.recalibrated(gossip.ring(N), Normed()).init(shuffled()),
            "must be variables dicts",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
