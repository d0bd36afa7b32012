import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax import evaluation, topology
from dflax.decentralized import Order, dfedavg, dfedsam

KEY = jax.random.key(0)
TASK = regression()
SOURCE = dx.Federation(TASK.data, TASK.partition, batch_size=8, local_steps=3)
START = {
    "w": jax.random.normal(KEY, (5, 3)),
    "b": jnp.zeros(3),
}
RATE = optax.sgd(0.1)
RING = dx.gossip.ring(8)
SECOND = (1 + np.sqrt(2)) / 3


def advance(algorithm, rounds=3, source=SOURCE, params=START):
    return jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))(
        algorithm.init(KEY, params), source, KEY
    )


def models(algorithm, **options):
    return advance(algorithm, **options)[0].clients.params


@pytest.mark.parametrize("order", [Order.ADAPT_THEN_COMBINE, Order.COMBINE_THEN_ADAPT])
def test_radius_zero_is_dfedavg(order):
    still = dfedsam(softmax_loss, RATE, RING, radius=0.0, order=order)
    plain = dfedavg(softmax_loss, RATE, RING, order=order)
    assert_trees_close(models(still), models(plain), rtol=1e-5, atol=1e-6)


def test_several_gossip_steps_are_one_with_the_matrix_to_that_power():
    several = dfedsam(softmax_loss, RATE, RING, radius=0.2, gossip_steps=4)
    power = np.linalg.matrix_power(topology.metropolis(topology.ring(8)).dense(), 4)
    once = dfedsam(softmax_loss, RATE, dx.gossip.mixer(power, kind="dense"), radius=0.2)
    state, metrics = advance(several)
    assert_trees_close(state.clients.params, models(once), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["models_sent"], 4 * 16.0)


def test_many_gossip_steps_are_fedsam_with_everyone():
    many = dfedsam(softmax_loss, RATE, RING, radius=0.2, gossip_steps=120)
    server = dx.server.fedavg(dx.local.sam(softmax_loss, 0.2), RATE)
    equal = dx.Federation(
        TASK.data, TASK.partition, batch_size=8, local_steps=3, weights=jnp.ones(8)
    )
    averaged, _ = advance(server, source=equal)
    everyone = dx.replicate(averaged.server.params, 8)
    assert_trees_close(models(many, source=equal), everyone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [3])
def test_gossip_keeps_the_mean_and_contracts_by_the_second_eigenvalue(steps):
    mixed = models(dfedsam(softmax_loss, RATE, RING, radius=0.3, gossip_steps=steps), rounds=1)
    alone = models(dfedsam(softmax_loss, RATE, dx.gossip.identity(8), radius=0.3), rounds=1)
    assert_trees_close(dx.weighted_mean(mixed), dx.weighted_mean(alone), rtol=1e-5, atol=1e-6)
    before, after = (np.sqrt(evaluation.consensus_distance(m)) for m in (alone, mixed))
    assert after <= SECOND**steps * before * (1 + 1e-5)


def test_the_second_eigenvalue_of_the_studied_ring():
    ring = topology.metropolis(topology.ring(20))
    assert topology.second_eigenvalue(ring) == pytest.approx(0.967371, abs=1e-6)
    assert topology.second_eigenvalue(ring) ** 4 == pytest.approx(0.875734, abs=1e-6)


def test_one_step_by_hand():
    """f = (x1^2 + 4 x2^2) / 2: the perturbation's length is rho over all parameters together."""

    def bowl(params, batch, key):
        loss = 0.5 * (params["x"] ** 2 + 4 * params["y"] ** 2)
        return loss, {"loss": loss}

    start = {"x": jnp.float32(1.0), "y": jnp.float32(0.5)}
    end = models(
        dfedsam(bowl, RATE, RING, radius=0.1),
        rounds=1,
        source=quadratics(8).federation(),
        params=start,
    )
    np.testing.assert_allclose(end["x"], 0.8955279, rtol=1e-6)
    np.testing.assert_allclose(end["y"], 0.2642229, rtol=1e-6)


def test_at_a_fixed_radius_a_parabola_ends_in_a_two_cycle():
    """f = a x^2 / 2: x+ = (1 - eta a) x - eta a rho sign(x) ends at +-eta a rho / (2 - eta a)."""

    def parabola(params, batch, key):
        return jnp.sum(params**2), {}

    algorithm = dfedsam(parabola, RATE, RING, radius=0.05)
    source = quadratics(8).federation()
    first = models(algorithm, rounds=1, source=source, params=jnp.ones(()))
    np.testing.assert_allclose(first, 0.79, rtol=1e-6)
    late, later = (
        models(algorithm, rounds=t, source=source, params=jnp.ones(())) for t in (200, 201)
    )
    np.testing.assert_allclose(np.abs(late), 0.0055556, rtol=1e-4)
    np.testing.assert_allclose(later, -late, rtol=1e-4)


def test_the_radius_can_be_swept():
    source = quadratics(8).federation(2)

    def final(rho):
        algorithm = dfedsam(half_square, RATE, RING, radius=rho, gossip_steps=2)
        return dx.rollout(algorithm, algorithm.init(KEY, jnp.ones(3)), source, KEY, 3)[
            0
        ].clients.params

    swept = jax.jit(jax.vmap(final))(jnp.asarray([0.0, 0.3]))
    np.testing.assert_allclose(swept[1], jax.jit(final)(0.3), rtol=1e-5, atol=1e-6)
    assert np.abs(swept[1] - swept[0]).max() > 1e-3


@pytest.mark.slow
def test_four_gossip_steps_help_on_digits():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 12, 0.1, seed=1)
    source = dx.Federation(data, partition, batch_size=16, local_steps=10)
    model = dx.models.MLP((), classes=10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    measure = jax.jit(evaluation.client_models(evaluation.on(loss, data.test)))
    reached = [
        measure(
            advance(
                dfedsam(loss, RATE, dx.gossip.ring(12), radius=0.1, gossip_steps=q),
                30,
                source,
                params,
            )[0]
        )["accuracy"]
        for q in (1, 4)
    ]
    assert reached[1] > max(0.7, reached[0] + 0.02)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="gossip_steps must be an integer >= 1, got 0"):
        dfedsam(softmax_loss, RATE, RING, gossip_steps=0)
    with pytest.raises(ValueError, match=r"radius must be .*got -1"):
        dfedsam(softmax_loss, RATE, RING, radius=-1.0)
    with pytest.raises(TypeError, match="mixer must be a Mixer"):
        dfedsam(softmax_loss, RATE, topology.ring(8))
    with pytest.raises(TypeError, match="order must be one of"):
        dfedsam(softmax_loss, RATE, RING, order="adapt")
