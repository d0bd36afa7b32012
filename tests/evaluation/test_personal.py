import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import regression, softmax_loss

import dflax as dx
from dflax import evaluation

KEY = jax.random.key(0)
TASK = regression(clients=11, examples=200)
TRAIN, HELD_OUT = dx.data.train_test_per_client(TASK.partition, 0.4)
PARAMS = {"w": jax.random.normal(KEY, (5, 3)), "b": jnp.zeros(3)}
STATE = dx.FederatedState(
    jnp.int32(0),
    dx.server.Server(PARAMS),
    jax.tree.map(lambda leaf: jnp.stack([leaf * (1 + i) for i in range(11)]), PARAMS),
)


def on_rows(params, rows):
    return {
        name: float(value)
        for name, value in softmax_loss(params, TASK.data.fetch(jnp.asarray(rows)), None)[1].items()
    }


def assert_distribution(found, prefix, values):
    low = np.sort(values)
    expected = {
        "": values.mean(),
        "_std": values.std(),
        "_min": low[0],
        "_max": low[-1],
        "_lowest_tenth": low[:2].mean(),
        "_highest_tenth": low[-2:].mean(),
    }
    for ending, value in expected.items():
        np.testing.assert_allclose(found[prefix + ending], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_every_client_measures_on_its_own_held_out_examples(own):
    models = (lambda state: state.clients) if own else None
    measure = evaluation.on_own_data(softmax_loss, TASK.data, HELD_OUT, models=models, batch_size=3)
    found = jax.jit(lambda state: measure(state))(STATE)
    values = [
        on_rows(jax.tree.map(lambda leaf, i=i: leaf * (1 + i * own), PARAMS), rows)
        for i, rows in enumerate(HELD_OUT.as_lists())
    ]
    for name in ("loss", "accuracy"):
        assert_distribution(found, f"own_{name}", np.array([v[name] for v in values]))


def test_fine_tuning_takes_steps_on_the_clients_own_training_examples():
    """With as many examples in a step as the largest client's epochs: full-batch descent, twice."""
    owned = [rows[:6] for rows in TRAIN.as_lists() if len(rows) >= 6]
    held = [
        rows
        for rows, own in zip(HELD_OUT.as_lists(), TRAIN.as_lists(), strict=True)
        if len(own) >= 6
    ]
    measure = evaluation.personalized(
        softmax_loss,
        optax.sgd(0.5),
        TASK.data,
        dx.data.from_indices(owned),
        dx.data.from_indices(held),
        KEY,
        local_steps=2,
        tuning_batch_size=6,
    )
    found = jax.jit(lambda state: measure(state))(STATE)
    slope = jax.jit(jax.grad(lambda p, b: softmax_loss(p, b, None)[0]))
    values = []
    for rows, test in zip(owned, held, strict=True):
        params = PARAMS
        for _ in range(2):
            seen = slope(params, TASK.data.fetch(jnp.asarray(rows)))
            params = jax.tree.map(lambda x, g: x - 0.5 * g, params, seen)
        values.append(on_rows(params, test)["loss"])
    np.testing.assert_allclose(found["tuned_loss"], np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(found["tuned_loss_std"], np.std(values), rtol=1e-3)


@pytest.mark.slow
def test_it_is_part_of_a_run_and_tuning_helps_clients_that_differ():
    data = dx.data.digits()
    partition = dx.data.dirichlet(np.asarray(data.labels), 8, 0.1, seed=0, min_size=20)
    train, held_out = dx.data.train_test_per_client(partition, 0.3)
    federation = dx.Federation(data, train, local_steps=5, batch_size=16)
    model = dx.models.Linear(10)
    loss = dx.losses.classification(model.apply)
    algorithm = dx.server.fedavg(loss, optax.sgd(0.2))
    measure = evaluation.together(
        evaluation.on_own_data(loss, data.train, held_out),
        evaluation.personalized(
            loss, optax.sgd(0.2), data.train, train, held_out, jax.random.key(1), local_steps=10
        ),
    )
    _, history = dx.run(
        algorithm,
        algorithm.init(KEY, model.init(KEY, data.example)["params"]),
        federation,
        rounds=20,
        key=KEY,
        evaluate=measure,
        mesh=dx.client_mesh(),
    )
    last = {name: values[-1] for name, values in history.evaluations.items()}
    assert last["tuned_accuracy"] > last["own_accuracy"] + 0.02
    assert last["tuned_accuracy"] > 0.9
    assert last["tuned_accuracy_min"] <= last["tuned_accuracy_lowest_tenth"]
    assert last["tuned_accuracy_lowest_tenth"] <= last["tuned_accuracy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 0}, "local_steps must be an integer >= 1"),
        ({"key": 0}, "key must be one typed JAX key"),
        ({"train": [[1]]}, "train must be of type Partition"),
        ({"held_out": 3}, "held_out must be of type Partition"),
        ({"train": dx.data.from_indices([[0]])}, "train must have the 11 clients"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"train": TRAIN, "held_out": HELD_OUT, "key": KEY, "local_steps": 1} | options
    with pytest.raises((ValueError, TypeError), match=message):
        evaluation.personalized(softmax_loss, optax.sgd(0.1), TASK.data, **arguments)
