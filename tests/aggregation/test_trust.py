"""FLTrust and FoolsGold: rules that know the model, the server's own data, and who sent what."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax import aggregation
from dflax.aggregation import Combining
from dflax.aggregation.rows.similarity import cosines_of, similarity_scores

KEY = jax.random.key(0)
N = 8


def here(senders=None, clients=None, params=None):
    return Combining(KEY, 0, senders, clients, params)


@jax.jit
def scores_of(rows, known, judged):
    return similarity_scores(cosines_of(rows @ rows.T), known, judged)


def scored(histories, known=None, judged=None):
    everyone = np.ones(len(histories), bool)
    known = everyone if known is None else known
    return scores_of(histories, known, everyone if judged is None else judged)


def reference(histories):
    """FoolsGold's scores as the paper's loops."""
    x = histories / np.linalg.norm(histories, axis=1, keepdims=True)
    c = x @ x.T
    np.fill_diagonal(c, 0)
    v = c.max(1) + 1e-5
    p = c.copy()
    for a in range(len(c)):
        for b in range(len(c)):
            if v[a] < v[b]:
                p[a, b] *= v[a] / v[b]
    y = np.clip(1 - p.max(1), 0, 1)
    y /= y.max()
    y[y == 1] = 0.99
    with np.errstate(divide="ignore"):
        return np.clip(np.log(y / (1 - y)) + 0.5, 0, 1)


def test_scores():
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            for histories, expected in (
                ([[0, 1], [1, 0], [1, -1]], [1, 0, 0]),
                ([[0, 1], [1, 0], [0, -1]], [1, 1, 1]),
                ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], [1, 1, 0, 0]),
                ([[1, 0.2, 0], [0.1, 1, 0.3], [0.2, 0, 1], [0.2, 0.05, 1]], [1, 1, 0, 0]),
                ([[0.3, 0.7], [0.3, 0.7]], [0, 0]),
                ([[0.3, 0.7]], [1]),
            ):
                np.testing.assert_allclose(
                    scored(np.asarray(histories, dtype)), expected, atol=1e-6
                )
    # The third disables the second, whether it is judged or not; who is not known disables nobody.
    rows = np.array([[0.0, 1], [1, 0], [1, -1]], np.float32)
    np.testing.assert_allclose(scored(rows, judged=np.array([1, 1, 0], bool)), [1, 0, 0])
    np.testing.assert_allclose(scored(rows, known=np.array([1, 1, 0], bool)), [1, 1, 0])


def test_scores_are_the_papers_and_lengths_do_not_matter():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for correlation in (0.2, 0.5, 1.0, 2.0):
            rows = rng.normal(size=(10, 6)) + correlation * rng.normal(size=6)
            found = scored(rows)
            np.testing.assert_allclose(found, reference(rows), atol=1e-9)
            scaled = scored(rows * rng.uniform(0.01, 100, (10, 1)))
            np.testing.assert_allclose(scaled, found, atol=1e-9)


def test_foolsgold_remembers_every_client_by_its_number():
    rng = np.random.default_rng(0)
    rule = aggregation.foolsgold(N)
    one = {"b": jnp.zeros(2), "w": jnp.zeros((3, 2))}
    state, histories = rule.init(one), np.zeros((N, 8))
    apply = jax.jit(rule.apply)
    for turn in range(4):
        senders = rng.permutation(N)[:5]
        tree = {"b": rng.normal(size=(5, 2)), "w": rng.normal(size=(5, 3, 2))}
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
        rows = np.concatenate([tree["b"], np.reshape(tree["w"], (5, 6))], 1)
        weights = np.ones(5, np.float32)
        weights[turn], tree["w"] = 0, tree["w"].at[turn].set(jnp.nan)
        there = np.arange(5) != turn
        if turn == 2:
            tree["b"] = tree["b"].at[0].set(jnp.inf)
            there[0] = False
        histories[senders[there]] += rows[there]
        out, state, metrics = apply(
            tree, weights, state, here(jnp.asarray(senders), dx.participation.Count(N))
        )
        known = np.abs(histories).sum(1) > 0
        exact = np.zeros(N)
        products = jnp.asarray(histories @ histories.T, jnp.float32)
        judged = np.zeros(N, bool)
        judged[senders[there]] = True
        exact = np.asarray(similarity_scores(cosines_of(products), jnp.asarray(known), judged))
        shares = np.where(there, exact[senders], 0)
        expected = shares[there] @ rows[there] / shares.sum()
        found = np.concatenate([out["b"], np.ravel(out["w"])])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert metrics["trusted"] == pytest.approx(shares.sum(), rel=1e-4)
        assert metrics["messages_dropped"] == (turn == 2)
    kept = np.concatenate([state.histories["b"], np.reshape(state.histories["w"], (N, 6))], 1)
    np.testing.assert_allclose(kept, histories, rtol=1e-5, atol=1e-6)


def test_foolsgold_of_few():
    rule = aggregation.foolsgold(3)
    rule = rule._replace(apply=jax.jit(rule.apply))
    rows = jnp.array([[0.0, 1], [1, 0], [1, -1]])
    out, _, _ = rule.apply(rows, jnp.ones(3), rule.init(rows[0]), here(jnp.arange(3)))
    np.testing.assert_allclose(out, [0, 1], atol=1e-6)
    alike = jnp.broadcast_to(rows[2], (3, 2))
    out, state, _ = rule.apply(alike, jnp.ones(3), rule.init(rows[0]), here(jnp.arange(3)))
    np.testing.assert_allclose(out, rows[2], atol=1e-6)
    nothing, after, _ = rule.apply(
        jnp.full((3, 2), jnp.nan), jnp.zeros(3), state, here(jnp.arange(3))
    )
    assert not np.any(nothing)
    assert_trees_close(after, state)
    # Whoever fills its memory beyond what a number can hold is not trusted again.
    huge = rows.at[0].set(3e38)
    for _ in range(2):
        out, state, _ = rule.apply(huge, jnp.ones(3), state, here(jnp.arange(3)))
    out, _, _ = rule.apply(rows, jnp.ones(3), state, here(jnp.arange(3)))
    assert np.isfinite(out).all()
    assert abs(out[1]) <= 1 + 1e-6 < abs(out[0]) + 1


@pytest.mark.parametrize("name", ["foolsgold", "fltrust"])
def test_on_eight_devices(name):
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(N, 5)), jnp.float32)
    rule = {
        "foolsgold": aggregation.foolsgold(N),
        "fltrust": aggregation.fltrust(lambda params, data, here: data, rows[0]),
    }[name]

    @jax.jit
    def apply(rows, weights):
        out, state, metrics = rule.apply(
            rows, weights, rule.init(rows[0]), here(jnp.arange(N), params=rows[0])
        )
        return out, state, metrics

    weights = jnp.ones(N).at[2].set(0)
    expected = apply(rows, weights)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        found = apply(jax.device_put(rows, NamedSharding(mesh, PartitionSpec("clients"))), weights)
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-5)


def trusting(rows, own, weights=None):
    rule = aggregation.fltrust(lambda params, data, here: data, jnp.asarray(own, jnp.float32))
    rows = jnp.asarray(rows, jnp.float32)
    weights = jnp.ones(len(rows)) if weights is None else jnp.asarray(weights)
    state = rule.init(rows[0])
    out, after, metrics = jax.jit(rule.apply)(rows, weights, state, here(params=rows[0]))
    assert_trees_close(after, state)
    return out, metrics


def test_fltrust():
    rows = np.array([[2.0, 0], [0, 3], [-1, 0], [1, 1]])
    out, metrics = trusting(rows, [1.0, 0])
    np.testing.assert_allclose(out, [0.87868, 0.29289], atol=1e-5)
    assert metrics["trusted"] == pytest.approx(1 + np.sqrt(0.5))
    # Any number of liars of any length, and those who are absent or broken.
    rows = np.concatenate([rows, [[-1e30, 1e25], [np.nan, 0], [5, 5]]])
    out, metrics = trusting(rows, [1.0, 0], [1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(out, [0.87868, 0.29289], atol=1e-5)
    assert metrics["messages_dropped"] == 1
    for nobody in (trusting(-rows[:1], [1.0, 0]), trusting(rows[:2], [0.0, 0])):
        np.testing.assert_array_equal(nobody[0], [0, 0])


@pytest.mark.slow
def test_fltrusts_server_works_as_its_clients_do():
    """All clients own the root data, take one full gradient, and one of them lies."""
    task = regression(clients=4, examples=40)
    loss, root = softmax_loss, task.data
    work = dx.local.change_on(loss, optax.sgd(0.3), local_steps=1, batch_size=len(root))
    algorithm = dx.server.fedavg(
        loss,
        optax.sgd(0.3),
        aggregator=aggregation.fltrust(work, root),
        channel=dx.attacks.inner_product(1, 100.0),
    )
    source = dx.Federation(
        root, dx.data.from_indices([np.arange(len(root))] * 4), batch_size=len(root), local_steps=1
    )
    state = algorithm.init(KEY, task.params)
    state, metrics = jax.jit(algorithm.step)(state, source.draw(KEY, 0))
    batch = root.fetch(jnp.arange(len(root)))
    gradient = jax.grad(lambda params: loss(params, batch, KEY)[0])(task.params)
    expected = jax.tree.map(lambda x, g: x - 0.3 * g, task.params, gradient)
    assert_trees_close(state.server.params, expected, rtol=1e-5, atol=1e-6)
    assert metrics["trusted"] == pytest.approx(3, rel=1e-5)
    # The data are the program's argument.
    closed = jax.make_jaxpr(algorithm.step)(state, source.draw(KEY, 0))
    assert all(np.size(value) < 40 for value in closed.consts)
    assert_trees_close(state.server.aggregator.data, root)


def test_drawn_examples_are_new_in_every_round_and_each_comes_once():
    data = dx.data.Dataset(jnp.arange(6.0)[:, None], jnp.zeros(6, jnp.int32))

    def loss(params, batch, key):
        # The gradient of the sum over a minibatch tells who is in it.
        return (params * (2.0 ** batch.inputs[:, 0]).sum()).sum(), {}

    work = jax.jit(dx.local.change_on(loss, optax.sgd(1.0), local_steps=2, batch_size=3))
    short = jax.jit(dx.local.change_on(loss, optax.sgd(1.0), local_steps=1, batch_size=3))
    found = [short(jnp.zeros(()), data, Combining(key)) for key in jax.random.split(KEY, 6)]
    assert len({float(one) for one in found}) > 2
    assert all(bin(int(-one)).count("1") == 3 for one in found)
    assert float(work(jnp.zeros(()), data, Combining(KEY))) == -63


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregation.foolsgold(0), "clients must be an integer >= 1"),
        (
            lambda: aggregation.foolsgold(2).apply(
                jnp.ones((2, 3)), jnp.ones(2), aggregation.foolsgold(2).init(jnp.ones(3)), here()
            ),
            "senders must be the clients' numbers for FoolsGold",
        ),
        (
            lambda: aggregation.bucketing(aggregation.foolsgold(2), 1).apply(
                jnp.ones((2, 3)),
                jnp.ones(2),
                aggregation.foolsgold(2).init(jnp.ones(3)),
                here(jnp.arange(2)),
            ),
            "senders must be the clients' numbers for FoolsGold",
        ),
        (
            lambda: aggregation.foolsgold(2).apply(
                jnp.ones((2, 3)),
                jnp.ones(2),
                aggregation.foolsgold(2).init(jnp.ones(3)),
                here(jnp.arange(2), 4),
            ),
            "clients must be the number of all clients, 4, got 2",
        ),
        (lambda: aggregation.fltrust(3, jnp.ones(1)), "work must be a function"),
        (lambda: aggregation.fltrust(lambda p, d, c: d, None), "data must"),
        (
            lambda: aggregation.fltrust(lambda p, d, c: d, jnp.ones(1)).apply(
                jnp.ones((2, 1)), jnp.ones(2), aggregation.RootData(jnp.ones(1)), here()
            ),
            "params must be the model that clients started from",
        ),
        (
            lambda: aggregation.fltrust(lambda p, d, c: d, jnp.ones(2)).apply(
                jnp.ones((2, 1)),
                jnp.ones(2),
                aggregation.RootData(jnp.ones(2)),
                here(params=jnp.ones(1)),
            ),
            "the message of work must have the shape",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
