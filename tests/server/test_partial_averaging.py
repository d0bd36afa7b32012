import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import evaluation, participation
from dflax.server import layers, normalization, own_models, partial_averaging

KEY = jax.random.key(0)
TASK = regression()
PLAIN = dx.Federation(TASK.data, TASK.partition, batch_size=6, local_steps=2)


def personal(**options):
    return partial_averaging(softmax_loss, optax.sgd(0.2), local=layers("b"), clients=8, **options)


def end(algorithm, federation, rounds=3, params=TASK.params):
    return dx.rollout(algorithm, algorithm.init(KEY, params), federation, KEY, rounds)[0]


def test_shared_leaves_are_averaged_and_local_ones_stay_with_their_clients():
    rule = participation.dropout(participation.uniform(4), 0.3)
    federation = dx.Federation(
        TASK.data, TASK.partition, batch_size=6, local_steps=2, participation=rule
    )
    algorithm = personal()
    solve = jax.jit(dx.local.solver(softmax_loss, optax.sgd(0.2)))
    state, step = algorithm.init(KEY, TASK.params), jax.jit(algorithm.step)
    shared = TASK.params["w"]
    own = [TASK.params["b"]] * 8
    for t in range(3):
        drawn = federation.draw(KEY, t)
        state, _ = step(state, drawn)
        weights, models = [], []
        for place, client in enumerate(np.asarray(drawn.cohort)):
            if drawn.weights[place] > 0:
                assignment = jax.tree.map(lambda leaf, i=place: leaf[i], drawn.assignments)
                params = {"w": shared, "b": own[client]}
                solved = solve(dx.local.Subproblem(), params, assignment, TASK.data).params
                own[client] = solved["b"]
                weights.append(drawn.weights[place])
                models.append(solved["w"])
        if models:
            shared = np.average(np.stack(models), axis=0, weights=np.asarray(weights))
        np.testing.assert_allclose(state.server.params["w"], shared, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.clients.memory["b"], np.stack(own), rtol=1e-4, atol=1e-5)
    assert state.clients.memory["w"] is None
    np.testing.assert_array_equal(state.server.params["b"], TASK.params["b"])
    models = own_models(state)
    np.testing.assert_array_equal(models["b"], state.clients.memory["b"])
    np.testing.assert_array_equal(models["w"][3], state.server.params["w"])


def test_with_nothing_learnt_locally_it_is_fedavg():
    """A local leaf that the loss does not read changes nothing for the others."""
    extra = TASK.params | {"unused": jnp.ones(3)}
    algorithm = partial_averaging(
        softmax_loss, optax.sgd(0.2), optax.adam(0.1), local=layers("unused"), clients=8
    )
    ours = end(algorithm, PLAIN, params=extra).server.params
    theirs = end(dx.server.fedavg(softmax_loss, optax.sgd(0.2), optax.adam(0.1)), PLAIN)
    assert_trees_close(
        {name: ours[name] for name in "wb"}, theirs.server.params, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_clients_are_dealt_over_devices_and_rates_can_be_swept():
    algorithm = personal()
    start = algorithm.init(KEY, TASK.params)
    dealt, _ = dx.run(algorithm, start, PLAIN, rounds=3, key=KEY, mesh=dx.client_mesh())

    def swept(rate):
        return end(
            partial_averaging(softmax_loss, optax.sgd(rate), local=layers("b"), clients=8), PLAIN
        )

    found = jax.jit(jax.vmap(swept))(jnp.asarray([0.1, 0.2]))
    assert_trees_close(jax.tree.map(lambda leaf: leaf[1], found), dealt, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fedbn_keeps_scales_shifts_and_statistics():
    """Clients whose inputs differ in scale are told apart by their own normalisation."""
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x.reshape(len(x), -1))
            return nn.Dense(10)(x)

    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 6, 100.0, seed=0)
    factors = np.array([1.0, 2.0, 0.3, 3.0, 1.5, 0.5])
    inputs = np.asarray(data.train.inputs, np.float32) / 16
    for client, rows in enumerate(partition.as_lists()):
        inputs[rows] *= factors[client]
        inputs[rows] += client
    train = dx.data.Dataset(jnp.asarray(inputs), data.train.labels, classes=10)
    kept, held_out = dx.data.train_test_per_client(partition, 0.25)
    federation = dx.Federation(train, kept, batch_size=32, local_steps=5)
    model = Net()
    variables = model.init(KEY, train.example)
    loss = dx.losses.classification(model)
    descent = dx.models.with_statistics(optax.sgd(0.1))
    fedbn = partial_averaging(loss, descent, local=normalization, clients=6)
    state = end(fedbn, federation, 20, variables)
    assert state.clients.memory["batch_stats"]["BatchNorm_0"]["mean"].shape == (6, 64)
    assert_trees_equal(state.server.params["batch_stats"], variables["batch_stats"])
    ours = evaluation.on_own_data(loss, train, held_out, models=own_models)(state)
    with pytest.warns(dx.models.AveragedStatistics, match="partial_averaging, local=normalization"):
        plain = end(dx.server.fedavg(loss, descent), federation, 20, variables)
    theirs = evaluation.on_own_data(loss, train, held_out)(plain)
    assert ours["own_accuracy"] > 0.85
    assert ours["own_accuracy"] > theirs["own_accuracy"] + 0.2


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="names must be strings"):
        layers()
    with pytest.raises(TypeError, match="local must be a function"):
        partial_averaging(softmax_loss, optax.sgd(0.1), local="b", clients=8)
    for chooser, fault in ((lambda path: False, "none"), (lambda path: True, "all")):
        algorithm = partial_averaging(softmax_loss, optax.sgd(0.1), local=chooser, clients=8)
        with pytest.raises(ValueError, match=f"local must choose some leaves .* got {fault}"):
            algorithm.init(KEY, TASK.params)
    assert normalization("params/BatchNorm_0/scale")
    assert normalization("batch_stats/norm/mean")
    assert not normalization("params/Dense_0/kernel")
