import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import evaluation, participation
from dflax.server import Attacked, fal

KEY = jax.random.key(0)
TASK = regression()
# At 0 the inputs would have no slope.
START = TASK.params | {"w": jax.random.normal(KEY, (5, 3))}
STRONG = dx.local.projected_gradient(softmax_loss, 0.3, 3)
FEDERATION = dx.Federation(TASK.data, TASK.partition, batch_size=6, local_steps=2)


def end(algorithm, federation=FEDERATION, rounds=3, params=START):
    return dx.rollout(algorithm, algorithm.init(KEY, params), federation, KEY, rounds)


@pytest.mark.parametrize("attack", [(0.0, 2), (0.3, 0)])
def test_without_an_attack_it_is_fedavg_bit_for_bit(attack):
    weak = dx.local.projected_gradient(softmax_loss, *attack)
    ours, _ = end(fal(softmax_loss, optax.sgd(0.2), weak, server_rate=0.7))
    theirs, _ = end(dx.server.fedavg(softmax_loss, optax.sgd(0.2), optax.sgd(0.7)))
    assert_trees_equal(ours.server.params, theirs.server.params)


@pytest.mark.parametrize("attacked", list(Attacked))
def test_one_full_step_of_everyone_is_one_step_on_the_robust_loss(attacked):
    """Whatever the split: x - eta_global eta_local grad L_A(x), at the attacked points."""
    rows = np.arange(240)
    still = dx.local.projected_gradient(softmax_loss, 0.3, 3, random_start=False)
    oracle = dx.local.adversarial(softmax_loss, still)
    seen, _ = jax.jit(oracle.evaluate)(START, TASK.data.fetch(rows), KEY)
    expected = jax.tree.map(lambda x, g: x - 0.5 * 0.2 * g, START, seen)
    for clients in (1, 8) if attacked is Attacked.CURRENT else (8,):
        federation = dx.Federation(
            TASK.data,
            dx.data.from_indices(np.split(rows, clients)),
            batch_size=240 // clients,
            local_steps=1,
        )
        algorithm = fal(softmax_loss, optax.sgd(0.2), still, server_rate=0.5, attacked=attacked)
        state, metrics = end(algorithm, federation, 1)
        assert_trees_close(state.server.params, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["perturbation"], 0.3, rtol=1e-5)
        step = optax.tree.norm(jax.tree.map(lambda g: 0.2 * g, seen))
        np.testing.assert_allclose(metrics["change"][0], step, rtol=1e-4)


def test_the_attacked_model_is_the_current_one_or_the_round_s_first():
    """With two local steps the two differ."""
    current, received = (
        end(fal(softmax_loss, optax.sgd(0.5), STRONG, attacked=attacked), rounds=1)[0]
        for attacked in Attacked
    )
    assert np.abs(np.asarray(current.server.params["w"] - received.server.params["w"])).max() > 1e-4


def test_identical_clients_are_one_client():
    still = dx.local.projected_gradient(softmax_loss, 0.3, 2, random_start=False)
    algorithm = fal(softmax_loss, optax.sgd(0.2), still)

    def alike(clients):
        rows = [np.arange(40)] * clients
        return dx.Federation(TASK.data, dx.data.from_indices(rows), batch_size=40, local_steps=3)

    one, _ = end(algorithm, alike(1))
    five, _ = end(algorithm, alike(5))
    assert_trees_close(one.server.params, five.server.params, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_on_the_theorys_network_no_unit_drifts_further_than_its_bound():
    """|grad_{u_r}| <= width^(-1/3) |x~| for absolute loss, so |dU_r| <= eta K times that."""
    net = dx.models.TwoLayer(32)
    points = dx.data.separated(KEY, 4, 5, 6, 0.3)
    federation = dx.Federation(points.data, points.partition, batch_size=5, local_steps=4)
    loss = dx.losses.absolute_error(net.apply)
    attack = dx.local.projected_gradient(loss, 0.1, 3)
    params = net.init(KEY, points.data.example)["params"]
    state, _ = end(fal(loss, optax.sgd(0.1), attack), federation, 1, params)
    drift = jax.tree.map(jnp.subtract, state.server.params, params)
    bound = 0.1 * 4 * 32 ** (-1 / 3) * 1.1
    lengths = np.linalg.norm(drift["hidden"], axis=1)
    assert lengths.max() <= bound * (1 + 1e-5)
    assert lengths.max() > 0.05 * bound
    np.testing.assert_array_equal(state.server.params["signs"], params["signs"])
    np.testing.assert_array_equal(state.server.params["bias"], params["bias"])


@pytest.mark.slow
def test_clients_are_dealt_over_devices():
    rule = participation.dropout(participation.everyone(), 0.3)
    federation = dx.Federation(
        TASK.data, TASK.partition, batch_size=6, local_steps=2, participation=rule
    )
    algorithm = fal(softmax_loss, optax.sgd(0.2), STRONG, attacked=Attacked.RECEIVED)
    start = algorithm.init(KEY, START)
    plain, _ = dx.run(algorithm, start, federation, rounds=3, key=KEY)
    dealt, _ = dx.run(algorithm, start, federation, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(plain, dealt, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_radius_rates_and_share_can_be_swept_in_one_program():
    def swept(radius, rate, share):
        attack = dx.local.projected_gradient(softmax_loss, radius, 2, bounds=(-3.0, 3.0))
        algorithm = fal(softmax_loss, optax.sgd(0.2), attack, server_rate=rate, share=share)
        return end(algorithm, rounds=2)[0].server.params["w"]

    points = jnp.asarray([[0.0, 1.0, 1.0], [0.3, 0.5, 0.5], [0.6, 0.5, 0.0], [0.3, 0.0, 1.0]])
    found = jax.jit(jax.vmap(swept))(*points.T)
    alone = jax.jit(swept)
    for point, params in zip(points, found, strict=True):
        np.testing.assert_allclose(params, alone(*point), rtol=1e-4, atol=1e-6)
    # A server that does not move keeps its model.
    np.testing.assert_array_equal(found[3], START["w"])


@pytest.mark.slow
def test_digits_trained_under_attack_resist_it():
    """Robust accuracy at radius 0.5 of FAL beats FedAvg's by 4 points, clean within 5."""
    data = dx.data.digits(test_fraction=0.25)
    partition = dx.data.dirichlet(np.asarray(data.labels), 10, 1.0, seed=0)
    federation = dx.Federation(data, partition, local_steps=5, batch_size=32)
    model = dx.models.MLP((32,), classes=10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    judge = dx.local.projected_gradient(loss, 0.5, 10)

    def trained(radius):
        attack = dx.local.projected_gradient(loss, radius, 5)
        state, _ = end(fal(loss, optax.sgd(0.2), attack), federation, 60, params)
        measures = evaluation.together(
            evaluation.server_model(evaluation.on(loss, data.test)),
            evaluation.server_model(evaluation.attacked(loss, judge, data.test, jax.random.key(7))),
        )
        return measures(state)

    found = jax.jit(jax.vmap(trained))(jnp.asarray([0.0, 0.5]))
    clean, robust = found["accuracy"], found["robust_accuracy"]
    assert clean[0] > 0.9
    assert clean[1] > clean[0] - 0.05
    assert robust[1] > robust[0] + 0.04
    assert found["robust_loss"][1] < 0.85 * found["robust_loss"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_rate": -1.0}, "server_rate must be a finite number"),
        ({"attacked": "current"}, "attacked must be of type Attacked"),
        ({"share": 2.0}, "share must be a finite number"),
        ({"attack": 3}, "attack must be a function"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    attack = options.pop("attack", STRONG)
    with pytest.raises((ValueError, TypeError), match=message):
        fal(softmax_loss, optax.sgd(0.2), attack, **options)
