import functools
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import channel, participation
from dflax.server import anchors, fedamd

KEY = jax.random.key(0)
QUADRATICS = dx.data.quadratics(KEY, 6, 4, heterogeneity=1.0, curvature_heterogeneity=0.8)
HESSIANS = np.asarray(QUADRATICS.hessians, np.float64)
CENTERS = np.asarray(QUADRATICS.client_optima, np.float64)
LOGISTIC = regression()


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def quadratic_federation(rule=None, local_steps=3, dtype=np.float32):
    data = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf,
        QUADRATICS.data.train,
    )
    return dx.Federation(
        data, QUADRATICS.partition, batch_size=1, local_steps=local_steps, participation=rule
    )


def slopes(x):
    return np.einsum("kij,kj->ki", HESSIANS, x - CENTERS)


def federation(rule=None, local_steps=3, **options):
    return dx.Federation(
        LOGISTIC.data,
        LOGISTIC.partition,
        batch_size=8,
        local_steps=local_steps,
        participation=rule,
        **options,
    )


@functools.cache
def gradients():
    return dx.local.client_gradients(softmax_loss, federation(), LOGISTIC.params)


@jax.jit
def masked(params, mask):
    """The gradient over some examples of all, by hand."""
    batch = LOGISTIC.data.fetch(jnp.arange(len(LOGISTIC.data)))._replace(mask=mask)
    return jax.grad(softmax_loss, has_aux=True)(params, batch, None)[0]


def pooled(params, rows):
    mask = np.zeros(len(LOGISTIC.data), np.float32)
    mask[rows] = 1.0
    return masked(params, mask)


def one_round(algorithm, state, source, number, key=KEY):
    return jax.jit(lambda state, source: algorithm.step(state, source.draw(key, number)))(
        state, source
    )


OWNED = LOGISTIC.partition.as_lists()


def test_the_hand_example():
    data = dx.data.Dataset(jnp.zeros((1, 1)), jnp.zeros(1))
    source = dx.Federation(data, dx.data.from_indices([[0]]), batch_size=1, local_steps=2)

    def half_square(params, batch, key):
        return 0.5 * jnp.mean(params**2), {}

    algorithm = fedamd(half_square, optax.sgd(0.1), anchors.periodic(2))
    state = algorithm.init(KEY, jnp.ones(1), jnp.ones((1, 1)))
    state, metrics = one_round(algorithm, state, source, 1)
    np.testing.assert_allclose(state.server.params, 0.81, rtol=1e-6)
    np.testing.assert_array_equal([metrics["miners"], metrics["anchors"]], [1, 0])


def test_a_miners_first_step_goes_along_the_mean_of_cached_gradients():
    """With K = 1 the round is x - server_rate rate gbar, whoever mines on whatever minibatch."""
    algorithm = fedamd(softmax_loss, optax.sgd(0.2), anchors.periodic(3), server_rate=0.7)
    start = algorithm.init(KEY, LOGISTIC.params, gradients())
    mean = jax.tree.map(lambda g: g.mean(0), gradients())
    expected = jax.tree.map(lambda x, g: x - 0.7 * 0.2 * g, LOGISTIC.params, mean)
    source = federation(participation.uniform(3), 1)
    step = jax.jit(lambda key, source: algorithm.step(start, source.draw(key, 1))[0])
    for seed in range(2):
        state = step(jax.random.key(seed), source)
        assert_trees_close(state.server.params, expected, rtol=1e-5, atol=1e-6)


def test_with_full_batches_the_recursion_telescopes_to_svrg(float64):
    algorithm = fedamd(dx.data.quadratic_loss, optax.sgd(0.1), anchors.periodic(2))
    x0 = np.array([1.0, -2.0, 0.5, 3.0])
    algorithm_state = algorithm.init(KEY, jnp.asarray(x0), jnp.asarray(slopes(x0)))
    source = quadratic_federation(local_steps=4, dtype=np.float64)
    state, _ = one_round(algorithm, algorithm_state, source, 1)
    y = np.tile(x0, (6, 1))
    for _ in range(4):
        y = y - 0.1 * (slopes(x0).mean(0) - slopes(x0) + slopes(y))
    np.testing.assert_allclose(state.server.params, y.mean(0), atol=1e-12)


def test_period_two_refreshes_everyone_then_steps_along_the_exact_gradient():
    algorithm = fedamd(softmax_loss, optax.sgd(0.2), anchors.periodic(2))
    # Wrong gradients at the start: round 0 must replace all of them.
    wrong = jax.tree.map(lambda g: g + 5.0, gradients())
    start = algorithm.init(KEY, LOGISTIC.params, wrong)
    states, metrics = [], []
    state, source = start, federation(None, 1)
    step = jax.jit(lambda state, source, t: algorithm.step(state, source.draw(KEY, t)))
    for t in range(4):
        state, measured = step(state, source, t)
        states.append(state)
        metrics.append(measured)
    assert_trees_equal(states[0].server.params, start.server.params)
    assert_trees_equal(states[2].server.params, states[1].server.params)
    x = LOGISTIC.params
    for t in (1, 3):
        exact = jax.tree.map(lambda *g: sum(g) / 8, *(pooled(x, rows) for rows in OWNED))
        x = jax.tree.map(lambda a, g: a - 0.2 * g, x, exact)
        assert_trees_close(states[t].server.params, x, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal([m["anchors"] for m in metrics], [8, 0, 8, 0])
    np.testing.assert_array_equal([m["staleness"] for m in metrics], [0, 1, 0, 1])
    examples, size = len(LOGISTIC.data), 18
    np.testing.assert_array_equal([m["gradients"] for m in metrics], [examples, 128, examples, 128])
    np.testing.assert_array_equal(
        [m["numbers_down"] for m in metrics], np.array([8, 16] * 2) * size
    )
    np.testing.assert_array_equal([m["numbers_up"] for m in metrics], 8 * size)


@pytest.mark.some(1)
@pytest.mark.parametrize("scheme", [anchors.constant(0.3), anchors.periodic(5)])
def test_partial_participation_reaches_the_exact_optimum(float64, scheme):
    algorithm = fedamd(dx.data.quadratic_loss, optax.sgd(0.1), scheme, at_once=3)
    x0 = np.zeros(4)
    state = algorithm.init(KEY, jnp.asarray(x0), jnp.asarray(slopes(x0)))
    source = quadratic_federation(participation.uniform(3), 3, np.float64)
    state, metrics = jax.jit(functools.partial(dx.rollout, algorithm, rounds=6000))(
        state, source, KEY
    )
    np.testing.assert_allclose(state.server.params, QUADRATICS.optimum, atol=1e-8)
    np.testing.assert_allclose(metrics["anchors"] + metrics["miners"], 3.0)
    exact = slopes(QUADRATICS.optimum).mean(0)
    np.testing.assert_allclose(state.server.memory.direction, exact, atol=1e-7)


def test_the_direction_is_the_mean_of_what_is_cached_and_only_reporting_anchors_write():
    rule = participation.dropout(participation.uniform(4), 0.4)
    algorithm = fedamd(softmax_loss, optax.sgd(0.2), anchors.constant(0.5), server_rate=0.5)
    state = algorithm.init(KEY, LOGISTIC.params, gradients())
    source, refreshed = federation(rule), 0

    @jax.jit
    def step(state, source, t):
        drawn = source.draw(KEY, t)
        return *algorithm.step(state, drawn), drawn.cohort, drawn.weights

    for t in range(6):
        before = state
        state, metrics, cohort, weights = step(state, source, t)
        new = np.asarray(state.clients.memory.taken) == t
        reporting = set(np.asarray(cohort)[np.asarray(weights) > 0].tolist())
        assert set(np.flatnonzero(new)) <= reporting
        assert metrics["anchors"] == new.sum()
        assert metrics["miners"] == len(reporting) - new.sum()
        for client in range(8):
            own = jax.tree.map(itemgetter(client), state.clients.memory.gradient)
            if new[client]:
                exact = pooled(before.server.params, OWNED[client])
                assert_trees_close(own, exact, rtol=1e-4, atol=1e-5)
            else:
                old = jax.tree.map(itemgetter(client), before.clients.memory.gradient)
                assert_trees_equal(own, old)
        if metrics["miners"] == 0:
            assert_trees_equal(state.server.params, before.server.params)
        mean = jax.tree.map(lambda g: g.mean(0), state.clients.memory.gradient)
        assert_trees_close(state.server.memory.direction, mean, rtol=1e-4, atol=1e-6)
        refreshed += new.sum()
    assert refreshed > 3


@pytest.mark.slow
def test_one_by_one_on_devices_it_is_what_it_is_all_at_once_in_a_sweep():
    source, given = federation(participation.uniform(4)), gradients()

    def built(p, rate, at_once):
        law = anchors.constant(p)
        algorithm = fedamd(
            softmax_loss, optax.sgd(rate), law, server_rate=2 * rate, at_once=at_once
        )
        return algorithm, algorithm.init(KEY, LOGISTIC.params, given)

    def end(p, rate):
        algorithm, state = built(p, rate, 4)
        return dx.rollout(algorithm, state, source, KEY, 5)[0]

    swept = jax.jit(jax.vmap(end))(jnp.array([0.1, 0.5]), jnp.array([0.2, 0.3]))
    algorithm, state = built(0.5, 0.3, 1)
    dealt, _ = dx.run(algorithm, state, source, rounds=5, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(dealt, jax.tree.map(itemgetter(1), swept), rtol=1e-3, atol=1e-5)
    assert not np.allclose(swept.server.params["w"][0], swept.server.params["w"][1], atol=1e-2)


@pytest.mark.slow
def test_rounds_of_one_role_are_the_same_on_devices():
    algorithm = fedamd(softmax_loss, optax.sgd(0.2), anchors.periodic(2))
    state = algorithm.init(KEY, LOGISTIC.params, gradients())
    source = federation(participation.uniform(4))
    plain = jax.jit(functools.partial(dx.rollout, algorithm, rounds=4))(state, source, KEY)[0]
    dealt, _ = dx.run(algorithm, state, source, rounds=4, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(plain, dealt, rtol=1e-4, atol=1e-5)


def test_each_members_work_is_conditional_on_its_role():
    """One by one, and in whole rounds of one role also all at once, the other role's work is skipped."""

    def branches(scheme, at_once):
        algorithm = fedamd(softmax_loss, optax.sgd(0.2), scheme, at_once=at_once)
        state = algorithm.init(KEY, LOGISTIC.params, gradients())
        source = federation(participation.uniform(4))
        step = jax.jit(lambda state, source: algorithm.step(state, source.draw(KEY, 0)))
        return step.lower(state, source).as_text().count("stablehlo.case")

    assert branches(anchors.constant(0.5), 4) == 0
    # The role, and within each role the steps or pieces that a client has not got.
    assert branches(anchors.constant(0.5), 1) == 3
    assert branches(anchors.periodic(2), 4) == 1


def test_some_examples_of_unequal_clients():
    """B = 20 of clients who own 10 to 60: without replacement, all where there are fewer."""
    read = jax.jit(
        lambda source: dx.local.large_batches(source.draw(KEY, 0), KEY, examples=20, batch_size=8)
    )
    batches = read(federation())
    assert batches.minibatches.shape == (8, 3, 8)
    sizes = np.asarray(LOGISTIC.partition.sizes)
    assert sizes.min() < 24
    np.testing.assert_array_equal(batches.examples, np.minimum(sizes, 20))
    oracle = dx.local.gradient(softmax_loss)
    measure = jax.jit(lambda x, one: dx.local.large_gradient(oracle, x, one, LOGISTIC.data))
    params = jax.tree.map(lambda leaf: leaf + 0.3, LOGISTIC.params)
    for client, owned in enumerate(OWNED):
        rows = np.asarray(batches.minibatches[client]).ravel()[: int(batches.examples[client])]
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(owned.tolist())
        one = jax.tree.map(itemgetter(client), batches)
        ours = measure(params, one)
        assert_trees_close(ours, pooled(params, rows), rtol=1e-4, atol=1e-6)
    laws = dx.data.resample(LOGISTIC.data.labels, np.ones((8, 3)) / 3)
    other = dx.Federation(LOGISTIC.data, laws, batch_size=4, local_steps=1).draw(KEY, 0)
    drawn = jax.jit(functools.partial(dx.local.large_batches, examples=5))(other, KEY)
    assert drawn.examples.tolist() == [5] * 8
    with pytest.raises(ValueError, match="examples must be given, how many to draw"):
        dx.local.large_batches(other, KEY)


def test_the_published_probabilities():
    ours = [anchors.recommended(100, 20, rule) for rule in "abc"]
    np.testing.assert_allclose(ours, [0.8802, 0.4881, 0.8870], atol=5e-5)
    chances = [float(anchors.decaying().probability(jnp.int32(t))) for t in (0, 100, 10_000)]
    np.testing.assert_allclose(chances, 1 / np.log(np.array([14, 114, 10_014]) / 5), rtol=1e-5)


@pytest.mark.slow
def test_it_beats_a_bar_on_the_digits():
    data = dx.data.digits()
    source = dx.Federation(
        data,
        dx.data.label_shards(np.asarray(data.labels), 20, 2, seed=0),
        batch_size=8,
        local_steps=10,
        participation=participation.uniform(5),
    )
    model = dx.models.Linear(classes=10)
    loss = dx.losses.classification(model.apply)
    params = model.init(KEY, data.example)["params"]
    algorithm = fedamd(loss, optax.sgd(0.1), anchors.constant(0.5))
    start = algorithm.init(KEY, params, dx.local.client_gradients(loss, source, params))
    state, _ = dx.run(algorithm, start, source, rounds=120, key=KEY)
    assert dx.evaluation.on(loss, data.test)(state.server.params)["accuracy"] > 0.88


def made(scheme=None, **options):
    scheme = anchors.constant(0.5) if scheme is None else scheme
    return fedamd(softmax_loss, optax.sgd(0.1), scheme, **options)


def wrong_shape():
    return jax.tree.map(lambda g: g[..., None], gradients())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: anchors.constant(1.0), r"in \(0, 1\), got 1.0. With 1 there are only anchors"),
        (
            lambda: anchors.constant(0.0),
            "with 0 only miners and their direction is never refreshed",
        ),
        (lambda: anchors.periodic(1), "every round is of anchors alone and the model never moves"),
        (lambda: anchors.recommended(10, 20), r"cohort must be an integer in \[1, 10\], got 20"),
        (lambda: anchors.recommended(10, 5, "d"), "rule must be one of 'a', 'b', 'c', got 'd'"),
        (lambda: made(0.5), "anchors must be of type Anchors, not float"),
        (lambda: made(server_rate=0.0), "server_rate must be a finite number"),
        (lambda: made(examples=0), "examples must be an integer >= 1, got 0. Or None"),
        (lambda: made(batch_size=0), "batch_size must be an integer >= 1"),
        (lambda: made(at_once=0), "at_once must be an integer >= 1"),
        (lambda: made(channel=0.1), "channel must be of type Channel"),
        (lambda: made().init(0, LOGISTIC.params, gradients()), "one typed JAX key"),
        (
            lambda: made().init(KEY, LOGISTIC.params, jnp.zeros((8, 3))),
            "gradients must have the structure of params",
        ),
        (
            lambda: made().init(KEY, LOGISTIC.params, wrong_shape()),
            r"gradients\['b'\] must have shape",
        ),
        (
            lambda: made().step(
                made().init(KEY, LOGISTIC.params, jax.tree.map(lambda g: g[:5], gradients())),
                federation().draw(KEY, 0),
            ),
            "clients' memory must have a leading axis of length 8, got 5",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.slow
def test_noise_and_loss_on_the_way_act_on_the_one_message_of_each():
    silent = made(channel=channel.lossy(1.0))
    start = silent.init(KEY, LOGISTIC.params, gradients())
    state, metrics = one_round(silent, start, federation(), 1)
    assert_trees_equal(state.server, start.server)
    assert_trees_equal(state.clients.memory.gradient, start.clients.memory.gradient)
    assert metrics["messages_lost"] == 8
    noisy = made(channel=channel.gaussian_noise(1.0))
    state, _ = one_round(noisy, start, federation(), 1)
    mean = jax.tree.map(lambda g: g.mean(0), state.clients.memory.gradient)
    assert_trees_close(state.server.memory.direction, mean, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_all_clients_are_not_copied():
    """The server reads the cohort's old ones; read where they lie, all were copied twice a round."""
    clients, size = 400, 1000
    data = dx.data.Dataset(jnp.zeros((clients, size)), jnp.zeros(clients))
    source = dx.Federation(
        data,
        dx.data.from_indices([[client] for client in range(clients)]),
        local_steps=1,
        batch_size=1,
        participation=dx.participation.uniform(2),
    )

    def loss(params, batch, key):
        return jnp.sum((params - batch.inputs) ** 2), {}

    algorithm = fedamd(loss, optax.sgd(0.1), anchors.constant(0.5), examples=1, batch_size=1)
    state = algorithm.init(jax.random.key(0), jnp.zeros(size), jnp.zeros((clients, size)))
    advance = jax.jit(
        lambda state, source, key: dx.rollout(algorithm, state, source, key, 2), donate_argnums=0
    )
    memory = advance.lower(state, source, jax.random.key(1)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * clients * size / 4
