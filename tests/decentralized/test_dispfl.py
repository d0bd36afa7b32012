import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax import participation, topology
from dflax.decentralized import Grow, Order, dfedavg, dispfl
from dflax.local.masks import active_entries, prune_and_grow, random_masks

KEY = jax.random.key(0)
N = 8
TASK = regression(N)
SOURCE = dx.Federation(TASK.data, TASK.partition, batch_size=8, local_steps=2)
RING = dx.gossip.ring(N)
START = {"w": jax.random.normal(KEY, (5, 3)), "b": jnp.ones(3)}
RATE = optax.sgd(0.2)
W = topology.metropolis(topology.ring(N)).dense()


def advance(algorithm, rounds, source=SOURCE):
    @jax.jit
    def run(source):
        return dx.rollout(algorithm, algorithm.init(KEY, START), source, KEY, rounds)

    return run(source)


def test_density_one_is_dfedavg_that_combines_first():
    sparse, metrics = advance(dispfl(softmax_loss, RATE, RING, rounds=4, density=1.0), 4)
    plain, _ = advance(dfedavg(softmax_loss, RATE, RING, order=Order.COMBINE_THEN_ADAPT), 4)
    assert_trees_close(sparse.clients.params, plain.clients.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["active"], 1.0)
    np.testing.assert_array_equal(metrics["moved"], 0.0)


GRADIENT = jax.jit(jax.grad(softmax_loss, has_aux=True))


def expected_round(state, drawn, rate, share):
    """A round in NumPy, from the oracle's gradients alone."""
    count = active_entries(START, 0.4)["w"]
    after, masks = [], []
    held = {name: np.asarray(mask, np.float64) for name, mask in state.clients.memory.items()}
    for i in range(N):
        model = {}
        for name, mask in held.items():
            x = np.asarray(state.clients.params[name], np.float64) * mask
            weight = np.einsum("j,j...->...", W[i], mask)
            total = np.einsum("j,j...->...", W[i], x)
            safe = np.where(weight > 0, weight, 1)
            model[name] = jnp.asarray(mask[i] * np.where(weight > 0, total / safe, 0), jnp.float32)
        for minibatch in drawn.assignments.minibatches[i]:
            batch = TASK.data.fetch(minibatch)
            slope = GRADIENT(model, batch, None)[0]
            model = {k: x - rate * slope[k] * held[k][i] for k, x in model.items()}
        batch = TASK.data.fetch(drawn.assignments.minibatches[i, 0])
        slope = np.asarray(GRADIENT(model, batch, None)[0]["w"]).reshape(-1)
        mask = held["w"][i].reshape(-1) > 0
        values, moved = np.abs(model["w"]).reshape(-1), int(np.ceil(share * count))
        smallest = sorted(np.flatnonzero(mask), key=lambda j: values[j])[:moved]
        largest = sorted(np.flatnonzero(~mask), key=lambda j: -abs(slope[j]))[:moved]
        mask[smallest], mask[largest] = False, True
        masks.append(mask.reshape(5, 3))
        after.append(np.where(masks[-1], model["w"], 0))
    return np.stack(after), np.stack(masks)


def test_a_round_is_the_published_one():
    algorithm = dispfl(softmax_loss, RATE, RING, rounds=10, density=0.4, anneal=0.5)
    step = jax.jit(algorithm.step)
    state = jax.jit(algorithm.init)(KEY, START)
    counts = active_entries(START, 0.4)
    for t in range(3):
        drawn = SOURCE.draw(KEY, t)
        share = 0.25 * (1 + np.cos(np.pi * t / 10))
        expected, masks = expected_round(state, drawn, 0.2, share)
        state, metrics = step(state, drawn)
        np.testing.assert_array_equal(state.clients.memory["w"], masks)
        np.testing.assert_allclose(state.clients.params["w"], expected, rtol=1e-4, atol=1e-6)
        for name, count in counts.items():
            held = np.asarray(state.clients.memory[name]).reshape(N, -1)
            np.testing.assert_array_equal(held.sum(1), count)
        assert metrics["active"] == pytest.approx(sum(counts.values()) / 18)
        assert metrics["moved"] > 0


def test_masks_are_the_clients_own_and_stay_after_the_last_round():
    algorithm = dispfl(softmax_loss, RATE, RING, rounds=3, density=0.4, grow=Grow.RANDOM)
    state, metrics = advance(algorithm, 5)
    masks = np.asarray(state.clients.memory["w"]).reshape(N, -1)
    assert len(np.unique(masks, axis=0)) > N // 2
    assert (metrics["moved"][:3] > 0).all()
    np.testing.assert_array_equal(metrics["moved"][3:], 0)


def test_leaf_densities_follow_the_erdos_renyi_kernel_rule():
    shapes = {"bias": (10,), "large": (200, 100), "small": (20, 10), "kernel": (3, 3, 8, 16)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    counts = active_entries(params, 0.2)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    assert sum(counts.values()) == pytest.approx(0.2 * sum(sizes.values()), abs=2)
    scale = {name: counts[name] / sum(shapes[name]) for name in shapes}
    assert counts["bias"] == 10
    sparse = [name for name in shapes if counts[name] < sizes[name]]
    assert "large" in sparse
    for name in sparse:
        assert scale[name] == pytest.approx(scale["large"], rel=0.05)
    assert active_entries(params, 1.0) == sizes


def test_where_nearly_all_is_active_no_more_moves_than_can_enter():
    params = {"w": jnp.arange(1.0, 11.0)}
    masks = {"w": jnp.arange(10) != 4}
    moved = prune_and_grow(params, masks, {"w": jnp.ones(10)}, 0.5, {"w": 9})
    np.testing.assert_array_equal(moved["w"], np.arange(10) != 0)
    drawn = random_masks(KEY, params, {"w": 3})
    assert drawn["w"].sum() == 3


@pytest.mark.slow
def test_absent_clients_keep_model_and_mask_and_devices_agree():
    source = dx.Federation(
        TASK.data,
        TASK.partition,
        batch_size=8,
        local_steps=2,
        participation=participation.uniform(4),
    )

    state = jax.jit(dispfl(softmax_loss, RATE, RING, rounds=5, density=0.4).init)(KEY, START)

    def final(anneal):
        algorithm = dispfl(softmax_loss, RATE, RING, rounds=5, density=0.4, anneal=anneal)
        return algorithm.step(state, source.draw(KEY, 0))[0].clients

    before, after = state.clients, jax.jit(final)(0.5)
    absent = np.setdiff1d(np.arange(N), np.asarray(source.draw(KEY, 0).cohort))
    for name in START:
        for old, new in ((before.params, after.params), (before.memory, after.memory)):
            np.testing.assert_array_equal(old[name][absent], new[name][absent])
    swept = jax.jit(jax.vmap(final))(jnp.asarray([0.0, 0.5]))
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.jit(final)(0.5)
    for other in (dealt, jax.tree.map(lambda leaf: leaf[1], swept)):
        assert_trees_close(other.params, after.params, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_half_the_model_learns_ones_own_digits():
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    partition = dx.data.label_shards(labels, 8, 2, seed=0)
    source = dx.Federation(data, partition, batch_size=16, local_steps=5)
    model = dx.models.MLP((), classes=10)
    loss = dx.losses.classification(model.apply)
    algorithm = dispfl(loss, optax.sgd(0.1), RING, rounds=20)
    state = jax.jit(algorithm.init)(KEY, model.init(KEY, data.example)["params"])
    state, metrics = jax.jit(functools.partial(dx.rollout, algorithm, rounds=20))(
        state, source, KEY
    )
    assert metrics["accuracy"][-1] > 0.9
    assert metrics["active"][-1] == pytest.approx(0.5, abs=0.01)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"density must be .* in \(0, 1\], got 0"):
        dispfl(softmax_loss, RATE, RING, rounds=3, density=0.0)
    with pytest.raises(ValueError, match=r"anneal must be .* in \[0, 1\], got 2"):
        dispfl(softmax_loss, RATE, RING, rounds=3, anneal=2.0)
    with pytest.raises(ValueError, match="rounds must be an integer >= 1"):
        dispfl(softmax_loss, RATE, RING, rounds=0)
    with pytest.raises(TypeError, match="grow must be of type Grow"):
        dispfl(softmax_loss, RATE, RING, rounds=3, grow="gradient")
    with pytest.raises(TypeError, match="mixer must be a Mixer"):
        dispfl(softmax_loss, RATE, W, rounds=3)
