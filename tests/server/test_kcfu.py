"""KCFU: hand values, a plain reference, and what it reduces to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax.server import Partner, kcfu
from dflax.server.kcfu import compensate, mixed, rarity

KEY = jax.random.key(0)
SGD = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.2, 0.9))


def model(params, inputs):
    return inputs @ params["w"] + params["b"]


def pooled(labels, labelled, *, same=True, size=6, batch=4, participation=None):
    """Clients of `size` examples, the first `labelled` with labels, the others of one input alike."""
    clients = len(labelled)
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(clients * size, 3)).astype(np.float32)
    mask = np.arange(size) < np.array(labelled)[:, None]
    owned = np.arange(clients * size).reshape(clients, size)
    if same:
        for rows, known in zip(owned, mask, strict=True):
            inputs[rows[~known]] = inputs[rows[-1]]
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), classes=3)
    pools = dx.data.pools(dx.data.from_indices(owned), 1)
    pools = dataclasses.replace(
        pools, owned=jnp.asarray(owned, jnp.int32), labelled=jnp.asarray(mask)
    )
    return dx.Federation(data, pools, batch_size=batch, local_steps=2, participation=participation)


LABELS = np.array([0, 0, 0, 1, 2, 2, 2, 2, 1, 1, 0, 0])
START = {
    "w": jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32),
    "b": jnp.zeros(3),
}


def end(algorithm, federation, rounds=2):
    state = algorithm.init(KEY, START)
    run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
    return run(state, federation, KEY)


def test_rare_classes_weigh_most():
    np.testing.assert_allclose(rarity(jnp.asarray([8, 2, 0])), [0.2, 0.8, 0.0], rtol=1e-6)
    np.testing.assert_allclose(rarity(jnp.asarray([3, 3, 3])), np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(rarity(jnp.zeros(3)), 0.0)


def softmax(values):
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


def test_compensation_against_numpy_and_at_the_teacher():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 5, 3))
    beta, partners = generator.uniform(size=5), np.array([1, 0, 3, 4, 2])
    counts = np.array([8, 2, 0])
    value = jax.jit(jax.value_and_grad(compensate))
    given = jnp.float32(teacher), jnp.asarray(counts), jnp.float32(beta), jnp.asarray(partners)
    rare = np.array([0.2, 0.8, 0.0])[teacher.argmax(1)]
    weights = beta * rare + (1 - beta) * rare[partners]
    p, q = softmax(teacher), softmax(student)
    expected = (weights * (p * np.log(p / q)).sum(1) / 3).mean()
    np.testing.assert_allclose(value(jnp.float32(student), *given)[0], expected, rtol=1e-5)
    nothing, slope = value(jnp.float32(teacher), *given)
    assert nothing == 0
    np.testing.assert_allclose(slope, 0.0, atol=1e-7)


@pytest.mark.parametrize(("mixing", "partner"), [((2, 2), Partner.PERMUTED), ((3, 1), Partner.ONE)])
def test_mixtures_are_of_two_examples_by_a_beta_law(mixing, partner):
    count = 4000
    inputs = {"x": jnp.arange(2.0 * count).reshape(count, 2)}
    found, beta, partners = jax.jit(lambda one, two: mixed(inputs, one, two, mixing, partner))(
        *jax.random.split(KEY)
    )
    x, share = np.asarray(inputs["x"]), np.asarray(beta)[:, None]
    np.testing.assert_allclose(found["x"], share * x + (1 - share) * x[partners], rtol=1e-4)
    a, b = mixing
    assert abs(beta.mean() - a / (a + b)) < 0.02
    assert abs(beta.var() - a * b / ((a + b) ** 2 * (a + b + 1))) < 0.005
    assert np.unique(partners).size == (count if partner is Partner.PERMUTED else 1)


def reference(federation, rounds, strength, weight):
    """Both clients in NumPy, float64, where every minibatch is all labelled examples."""
    inputs = np.asarray(federation.data.inputs, np.float64)
    mask, owned = np.asarray(federation.partition.labelled), np.asarray(federation.partition.owned)
    x = np.concatenate([np.asarray(START["w"], np.float64), np.zeros((1, 3))])
    velocity = np.zeros((2, 4, 3))
    for number in range(rounds):
        ends = []
        for client in range(2):
            rows, other = owned[client][mask[client]], owned[client][~mask[client]][0]
            known = np.append(inputs[rows], np.ones((len(rows), 1)), 1)
            u = np.append(inputs[other], 1.0)
            counts = np.bincount(LABELS[rows], minlength=3)
            able = counts > 0
            inverse = np.where(able, 1 / np.maximum(counts, 1), 0)
            p = softmax(u @ x)
            own_weight = (inverse / inverse.sum())[p.argmax()] / 3
            y = x.copy()
            for _ in range(2):
                moved = known @ y + strength * np.log(np.maximum(counts, 1))
                law = np.zeros((len(rows), 3))
                law[:, able] = softmax(moved[:, able])
                slope = known.T @ (law - np.eye(3)[LABELS[rows]]) / len(rows)
                if number > 0:
                    slope += weight * own_weight * np.outer(u, softmax(u @ y) - p)
                velocity[client] = 0.9 * velocity[client] + slope + 0.01 * y
                y -= 0.2 * velocity[client]
            ends.append(y)
        share = mask.sum(1) / mask.sum()
        x = np.tensordot(share, np.array(ends), 1)
    return x, np.array(ends)


@pytest.mark.some(1)
@pytest.mark.parametrize("partner", list(Partner))
def test_rounds_against_a_plain_reference(partner):
    """Unlabelled examples are alike, so that mixtures are what they mix."""
    federation = pooled(LABELS, [4, 4])
    algorithm = kcfu(model, SGD, 2, compensation=3.0, strength=0.7, partner=partner)
    state, metrics = end(algorithm, federation, 3)
    expected, ends = reference(federation, 3, 0.7, 3.0)
    found = np.concatenate([state.server.params["w"], state.server.params["b"][None]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.clients.params["w"], ends[:, :3], rtol=1e-4, atol=1e-5)
    assert metrics["compensation"][0] == 0
    assert (metrics["compensation"][1:] > 0).all()


def test_balanced_classes_without_compensation_are_fedavg_by_numbers_of_labels():
    labels = np.array([0, 1, 2, 0, 0, 0, 0, 1, 2, 0, 1, 2])
    federation = pooled(labels, [3, 6], batch=3)
    ours, _ = end(kcfu(model, SGD, 2, compensation=0.0), federation)
    loss = dx.losses.classification(model)
    average = dx.server.fedavg(loss, SGD, keep_optimizer=True, keep_model=True, clients=2)
    theirs, _ = end(average, federation)
    assert_trees_close(ours.server.params, theirs.server.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(ours.clients.params, theirs.clients.params, rtol=1e-5, atol=1e-6)
    # What clients keep changes nothing else.
    plain, _ = end(dx.server.fedavg(loss, SGD, keep_optimizer=True, clients=2), federation)
    assert_trees_equal(plain.server.params, theirs.server.params)
    np.testing.assert_array_equal(federation.weights, [3, 6])


def test_labels_that_were_not_bought_are_never_read():
    federation = pooled(LABELS, [4, 3], same=False)
    hidden = np.asarray(federation.partition.owned)[~np.asarray(federation.partition.labelled)]
    algorithm = kcfu(model, SGD, 2)
    garbled = dataclasses.replace(
        federation.data, labels=federation.data.labels.at[hidden].set(-1000)
    )
    run = jax.jit(lambda data: dx.rollout(algorithm, algorithm.init(KEY, START), data, KEY, 3))
    right, other = (run(f) for f in (federation, federation.replace(data=federation.data)))
    assert_trees_equal(right, other)
    federation.data = garbled
    assert_trees_equal(right, run(federation))


def test_who_is_absent_keeps_model_and_momentum():
    federation = pooled(LABELS, [4, 4], participation=dx.participation.uniform(1))
    algorithm = kcfu(model, SGD, 2)
    first, _ = end(algorithm, federation, 1)
    moved = [bool(np.any(first.clients.params["w"][i] != START["w"])) for i in range(2)]
    assert sorted(moved) == [False, True]
    there = moved.index(True)
    kept = jax.tree.map(lambda leaf: leaf[1 - there], first.clients.memory.optimizer)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(kept))
    # A mean of one model is that model.
    own = jax.tree.map(lambda leaf: leaf[there], first.clients.params)
    assert_trees_close(own, first.server.params, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_weights_are_swept_in_one_program_and_no_unlabelled_example_is_no_compensation():
    federation = pooled(LABELS, [4, 4])

    def swept(weight, strength, federation):
        algorithm = kcfu(model, SGD, 2, compensation=weight, strength=strength)
        state, metrics = dx.rollout(algorithm, algorithm.init(KEY, START), federation, KEY, 2)
        return state.server.params, metrics["compensation"]

    run = jax.jit(jax.vmap(swept, in_axes=(0, 0, None)))
    found, _ = run(jnp.asarray([0.0, 2.0]), jnp.asarray([1.0, 0.5]), federation)
    for place, (weight, strength) in enumerate([(0.0, 1.0), (2.0, 0.5)]):
        expected, _ = reference(federation, 2, strength, weight)
        np.testing.assert_allclose(found["w"][place], expected[:3], rtol=1e-4, atol=1e-5)
    everything = dataclasses.replace(federation.partition, labelled=federation.partition.valid)
    federation.partition = everything
    _, measured = run(jnp.asarray([0.0, 2.0]), jnp.asarray([1.0, 0.5]), federation)
    np.testing.assert_array_equal(measured, 0.0)


@pytest.mark.slow
def test_clients_are_dealt_over_devices():
    labels = np.arange(48) % 3
    federation = pooled(labels, [4] * 8, participation=dx.participation.uniform(6))
    algorithm = kcfu(model, SGD, 8)
    start = algorithm.init(KEY, START)
    plain, _ = dx.run(algorithm, start, federation, rounds=3, key=KEY)
    dealt, _ = dx.run(algorithm, start, federation, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(plain, dealt, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensation": -1.0}, "compensation must be"),
        ({"strength": -1.0}, "strength must be"),
        ({"mixing": (2, 0)}, r"mixing\[1\] must be"),
        ({"mixing": (2, 2, 2)}, "mixing must be the two"),
        ({"partner": "one"}, "partner must be of type Partner"),
        ({"clients": 0}, "clients must be"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        kcfu(model, SGD, **({"clients": 2} | options))


def test_rounds_without_pools_are_refused():
    federation = pooled(LABELS, [4, 4])
    algorithm = kcfu(model, SGD, 2)
    state = algorithm.init(KEY, START)
    plain = federation.replace(partition=dx.data.from_indices([np.arange(6), np.arange(6, 12)]))
    with pytest.raises(TypeError, match="partition must be of type Pools"):
        algorithm.step(state, plain.draw(KEY, 0))
    unknown = dataclasses.replace(federation.data, classes=None)
    with pytest.raises(ValueError, match="data must say how many classes"):
        algorithm.step(state, federation.replace(data=unknown).draw(KEY, 0))
