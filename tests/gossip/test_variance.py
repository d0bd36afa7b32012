import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(0)
NODES = 8
GRAPH = topology.random_regular(NODES, 4, seed=1)
ALONE = functools.partial(topology.uniform, self_weight=0.0)


def everything(path, leaf):
    return True


def neighbours(graph=GRAPH):
    return gossip.mixer(graph, weights=ALONE)


def models(nodes=NODES, seed=0, shape=(30, 40)):
    generator = np.random.default_rng(seed)
    deviation = np.linspace(0.5, 2.0, nodes).reshape(-1, *([1] * len(shape)))
    kernel = 0.3 + deviation * generator.normal(size=(nodes, *shape))
    return {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.asarray(generator.normal(size=(nodes, 5)), jnp.float32),
    }


def reference(stacked, matrix, beta, target):
    """The published rule, one node and one tensor after another, in float64."""
    w = np.asarray(stacked["kernel"], np.float64)
    bias = np.asarray(stacked["bias"], np.float64)
    out = np.empty_like(w)
    for i in range(len(w)):
        mixed = beta * w[i] + (1 - beta) * np.tensordot(matrix[i], w, 1)
        received = matrix[i] @ [tensor.var() for tensor in w]
        wanted = {
            gossip.Target.OTHERS: received,
            gossip.Target.SELF: w[i].var(),
            gossip.Target.ALL: beta * w[i].var() + (1 - beta) * received,
        }[target]
        out[i] = mixed.mean() + np.sqrt(wanted / mixed.var()) * (mixed - mixed.mean())
    return {"kernel": out, "bias": beta * bias + (1 - beta) * matrix @ bias}


@pytest.mark.some(2)
@pytest.mark.parametrize("target", list(gossip.Target))
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_one_mixing_is_the_published_rule(target, beta):
    mixer = gossip.variance_corrected(neighbours(), beta, target=target)
    stacked = models()
    mixed, _, metrics = jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(KEY, 0))
    expected = reference(stacked, ALONE(GRAPH).dense(), beta, target)
    assert_trees_close(mixed, expected, rtol=1e-4, atol=1e-4)
    # The variance of each chosen tensor travels with a model.
    assert metrics["models_sent"] == pytest.approx(NODES * 4, rel=1e-2)
    assert metrics["models_sent"] > NODES * 4


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("graph", "beta", "left"),
    [
        (topology.path(2), 0.5, 0.5),
        (topology.ring(NODES), 0.5, 0.375),
        (GRAPH, 0.5, 0.3125),
        (topology.complete(9), 0.5, 0.28125),
        (topology.complete(9), 0.2, 0.12),
    ],
)
def test_independent_models_lose_variance_as_the_law_says_and_get_it_back(graph, beta, left):
    """E var = v (beta^2 + (1 - beta)^2 / k) for k neighbours, here k = 1, 2, 4, 8 and v = 1."""
    nodes = graph.nodes
    stacked = jnp.asarray(np.random.default_rng(1).normal(size=(nodes, 250, 400)), jnp.float32)
    plain = gossip.mixer(graph, weights=functools.partial(topology.uniform, self_weight=beta))
    mixed, _, _ = jax.jit(plain.apply)(stacked, plain.init(stacked), Mixing(KEY, 0))
    np.testing.assert_allclose(np.asarray(mixed).reshape(nodes, -1).var(1), left, rtol=0.02)
    mixer = gossip.variance_corrected(neighbours(graph), beta)
    mixed, _, metrics = jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(KEY, 0))
    np.testing.assert_allclose(np.asarray(mixed).reshape(nodes, -1).var(1), 1.0, rtol=0.02)
    np.testing.assert_allclose(metrics["variance_scale"], left**-0.5, rtol=0.01)


def test_the_sum_over_clients_is_not_kept_but_for_what_is_marked():
    """Two clients, the published example: (1,0,0,-1) twice becomes (r,0,0,-r), r the root of 2."""
    pair = jnp.asarray([[1.0, -1, 1, -1], [1.0, 1, -1, -1]])
    mixer = gossip.variance_corrected(neighbours(topology.path(2)), choose=everything)
    mixed, _, _ = jax.jit(mixer.apply)(pair, mixer.init(pair), Mixing(KEY, 0))
    np.testing.assert_allclose(mixed.sum(0), [8**0.5, 0, 0, -(8**0.5)], rtol=1e-6)
    np.testing.assert_allclose(mixed.mean(1), pair.mean(1), atol=1e-6)
    both = {"model": pair, "tracker": gossip.Uncorrected({"y": pair})}
    both, _, _ = mixer.apply(both, mixer.init(both), Mixing(KEY, 0))
    np.testing.assert_array_equal(both["model"], mixed)
    np.testing.assert_allclose(both["tracker"].part["y"].sum(0), [2, 0, 0, -2], rtol=1e-6)


def test_repeated_mixing_agrees_in_direction_and_keeps_the_variance():
    """With correction the mean variance stays, without it falls to 1/n of what it was."""
    stacked = jnp.asarray(np.random.default_rng(1).normal(size=(NODES, 64, 64)), jnp.float32)
    corrected = gossip.repeat(gossip.variance_corrected(neighbours()), 60)
    plain = gossip.repeat(neighbours(), 60)
    flat = []
    for mixer in (corrected, plain):
        mixed, _, _ = jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(KEY, 0))
        flat.append(np.asarray(mixed, np.float64).reshape(NODES, -1))
    before = np.asarray(stacked).reshape(NODES, -1).var(1)
    np.testing.assert_allclose(flat[0].var(1), before.mean(), rtol=1e-4)
    np.testing.assert_allclose(flat[1].var(1), 1 / NODES, rtol=0.1)
    assert np.corrcoef(flat[0]).min() > 1 - 1e-6


def test_scaling_all_models_scales_the_result_and_equal_models_stay():
    mixer = gossip.variance_corrected(neighbours())
    stacked = models()
    mixed, _, _ = jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(KEY, 0))
    large = jax.tree.map(lambda leaf: 8.0 * leaf, stacked)
    assert_trees_close(
        mixer.apply(large, mixer.init(large), Mixing(KEY, 0))[0],
        jax.tree.map(lambda leaf: 8.0 * leaf, mixed),
        rtol=1e-5,
        atol=1e-5,
    )
    same = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], NODES, 0), stacked)
    assert_trees_close(
        mixer.apply(same, mixer.init(same), Mixing(KEY, 0))[0], same, rtol=1e-4, atol=1e-4
    )


def test_weight_one_for_oneself_is_the_identity_or_takes_the_neighbours_variance():
    stacked = models()
    own = gossip.variance_corrected(neighbours(), 1.0, target=gossip.Target.SELF)
    mixed, _, _ = own.apply(stacked, own.init(stacked), Mixing(KEY, 0))
    assert_trees_close(mixed, stacked, rtol=1e-5, atol=1e-5)
    others = gossip.variance_corrected(neighbours(), 1.0)
    mixed, _, _ = others.apply(stacked, others.init(stacked), Mixing(KEY, 0))
    before = np.asarray(stacked["kernel"]).reshape(NODES, -1).var(1)
    np.testing.assert_allclose(
        np.asarray(mixed["kernel"]).reshape(NODES, -1).var(1),
        ALONE(GRAPH).dense() @ before,
        rtol=1e-4,
    )


def test_the_absent_keep_their_models_and_spread_no_nan():
    active = jnp.asarray([1.0, 0, 1, 1, 0, 1, 1, 1])
    stacked = models()
    stacked["kernel"] = stacked["kernel"].at[1].set(jnp.nan)
    mixer = gossip.variance_corrected(neighbours())
    mixed, _, metrics = jax.jit(mixer.apply)(stacked, mixer.init(stacked), Mixing(KEY, 0, active))
    np.testing.assert_array_equal(mixed["kernel"][1], stacked["kernel"][1])
    np.testing.assert_array_equal(mixed["kernel"][4], stacked["kernel"][4])
    present = np.flatnonzero(active)
    assert np.isfinite(np.asarray(mixed["kernel"])[present]).all()
    assert np.isfinite(metrics["variance_scale"])
    # The weight of an absent neighbour stays with the client itself, in models and variances alike.
    matrix = ALONE(GRAPH).dense()[np.ix_(present, present)]
    matrix += np.diag(1 - matrix.sum(1))
    kept = jax.tree.map(lambda leaf: leaf[present], stacked)
    expected = reference(kept, matrix, 0.5, gossip.Target.OTHERS)
    assert_trees_close(
        jax.tree.map(lambda leaf: leaf[present], mixed), expected, rtol=1e-4, atol=1e-4
    )
    nobody = jnp.zeros(NODES).at[0].set(1.0)
    alone, _, _ = mixer.apply(models(), mixer.init(models()), Mixing(KEY, 0, nobody))
    assert_trees_close(alone, models(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: topology.ring(NODES), lambda: topology.complete(NODES)])
def test_on_eight_devices_the_result_is_the_same(make):
    mixer = gossip.variance_corrected(neighbours(make()))
    stacked = models()
    state = mixer.init(stacked)
    expected, _, _ = jax.jit(mixer.apply)(stacked, state, Mixing(KEY, 0))
    mesh = dx.client_mesh()
    dealt = jax.device_put(
        stacked, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    )
    with jax.set_mesh(mesh):
        mixed, _, _ = jax.jit(mixer.apply)(dealt, state, Mixing(KEY, 0))
    assert_trees_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_weights_can_be_swept():
    stacked = models()

    def kernel(beta):
        mixer = gossip.variance_corrected(neighbours(), beta)
        return mixer.apply(stacked, mixer.init(stacked), Mixing(KEY, 0))[0]["kernel"]

    swept = jax.jit(jax.vmap(kernel))(jnp.asarray([0.2, 0.8]))
    np.testing.assert_allclose(swept[1], kernel(0.8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 3}, "neighbours must be a Mixer"),
        ({"own_weight": 1.5}, "own_weight must be"),
        ({"target": "others"}, "target must be of type Target"),
        ({"strength": 2.0}, "strength must be"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        gossip.variance_corrected(**({"neighbours": neighbours()} | options))


def test_a_model_of_vectors_is_refused_unless_they_are_chosen():
    mixer = gossip.variance_corrected(neighbours())
    with pytest.raises(ValueError, match="choose must take at least one tensor"):
        mixer.init(jnp.ones((NODES, 3)))
    chosen = gossip.variance_corrected(neighbours(), choose=everything)
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(NODES, 3)), jnp.float32)
    mixed, _, metrics = jax.jit(chosen.apply)(vectors, chosen.init(vectors), Mixing(KEY, 0))
    assert metrics["variance_scale"] > 1
    assert np.isfinite(np.asarray(mixed)).all()
