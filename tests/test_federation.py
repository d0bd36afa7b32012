import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal, half_square, quadratics, regression, softmax_loss

import dflax as dx
from dflax import participation
from dflax.data.dataset import Batch, Dataset
from dflax.data.partition import from_indices

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def task():
    return regression()


def test_a_round_has_the_shapes_it_promises(task):
    federation = dx.Federation(
        task.data,
        task.partition,
        batch_size=4,
        local_steps=3,
        participation=participation.uniform(5),
    )
    drawn = federation.draw(KEY, 7)
    assert drawn.cohort.shape == drawn.weights.shape == (5,)
    assert drawn.assignments.minibatches.shape == (5, 3, 4)
    assert drawn.assignments.key.shape == (5,)
    np.testing.assert_array_equal(drawn.assignments.client, drawn.cohort)
    np.testing.assert_array_equal(drawn.assignments.local_steps, 3)
    sizes = np.asarray(task.partition.sizes)
    np.testing.assert_array_equal(drawn.weights, sizes[np.asarray(drawn.cohort)])
    assert repr(federation) == "Federation(data, clients=8, cohort=5, local_steps=3, batch_size=4)"


@pytest.mark.parametrize("replacement", [True, False])
def test_clients_see_their_own_examples_only(task, replacement):
    federation = dx.Federation(
        task.data, task.partition, batch_size=6, local_steps=5, replacement=replacement
    )
    owned = [set(rows.tolist()) for rows in task.partition.as_lists()]
    for t in (0, 1, 50):
        minibatches = np.asarray(federation.draw(KEY, t).assignments.minibatches)
        for client, rows in enumerate(minibatches):
            assert set(rows.ravel().tolist()) <= owned[client]


def test_epochs_go_on_from_round_to_round():
    partition = from_indices([np.arange(12), np.arange(12, 18)])
    data = Dataset(jnp.zeros((18, 1)), jnp.zeros(18, jnp.int32))
    federation = dx.Federation(data, partition, batch_size=2, local_steps=3)
    rounds = [np.asarray(federation.draw(KEY, t).assignments.minibatches) for t in range(4)]
    first = np.concatenate([r[0].ravel() for r in rounds])
    assert sorted(first[:12]) == sorted(first[12:]) == list(range(12))
    assert all(sorted(r[1].ravel()) == list(range(12, 18)) for r in rounds)
    assert len({tuple(r[1].ravel()) for r in rounds}) > 1


def test_a_clients_draws_do_not_depend_on_who_else_is_invited(task):
    everyone = dx.Federation(task.data, task.partition, batch_size=4, local_steps=2)
    some = dx.Federation(
        task.data,
        task.partition,
        batch_size=4,
        local_steps=2,
        participation=participation.uniform(3),
    )
    drawn, whole = some.draw(KEY, 3), everyone.draw(KEY, 3)
    np.testing.assert_array_equal(whole.assignments.client, np.arange(8))
    for place, client in enumerate(np.asarray(drawn.cohort)):
        np.testing.assert_array_equal(
            drawn.assignments.minibatches[place], whole.assignments.minibatches[client]
        )
        assert drawn.assignments.key[place] == whole.assignments.key[client]


def test_local_epochs_give_every_client_its_own_number_of_steps():
    partition = from_indices([np.arange(10), np.arange(10, 35), np.arange(35, 36)])
    data = Dataset(jnp.zeros((36, 1)), jnp.zeros(36, jnp.int32))
    federation = dx.Federation(data, partition, batch_size=5, local_epochs=2)
    assert federation.local_steps == 10
    np.testing.assert_array_equal(federation.draw(KEY, 0).assignments.local_steps, [4, 10, 1])


def test_local_epochs_show_every_example_once_an_epoch_in_every_round():
    sizes = (15, 10, 35, 4)
    owned = np.split(np.arange(64), np.cumsum(sizes)[:-1])
    data = Dataset(jnp.zeros((64, 1)), jnp.zeros(64, jnp.int32))
    federation = dx.Federation(data, from_indices(owned), batch_size=5, local_epochs=1)
    for t in range(4):
        work = federation.draw(KEY, t).assignments
        for client, size in enumerate(sizes):
            seen = np.asarray(work.minibatches)[client, : int(work.local_steps[client])].ravel()
            assert len(set(seen[:size])) == size


def test_effort_and_dropout_reach_the_round(task):
    tired = dx.Federation(
        task.data,
        task.partition,
        batch_size=2,
        local_steps=10,
        participation=participation.dropout(
            participation.stragglers(participation.everyone(), 1.0, 0.0), 0.5
        ),
    )
    drawn = tired.draw(KEY, 0)
    steps, weights = np.asarray(drawn.assignments.local_steps), np.asarray(drawn.weights)
    assert 0 < (weights == 0).sum() < 8
    assert (steps[weights == 0] == 0).all()
    assert (steps[weights > 0] >= 1).all()
    assert (steps < 10).any()


def test_stored_bytes_are_decoded_when_a_minibatch_is_fetched():
    stored = jnp.arange(24, dtype=jnp.uint8).reshape(6, 2, 2)
    data = Dataset(stored, jnp.arange(6), jnp.float32(0.5), jnp.float32(1.0))
    batch = data.fetch(jnp.array([5, 0]))
    assert batch.inputs.dtype == jnp.float32
    np.testing.assert_array_equal(batch.inputs, np.asarray(stored)[[5, 0]] * 0.5 + 1)
    np.testing.assert_array_equal(batch.labels, [5, 0])
    assert data.example.shape == (1, 2, 2)


def test_a_transform_sees_the_training_batches_only():
    def flip(batch: Batch, key):
        return batch._replace(inputs=-batch.inputs)

    data = Dataset(jnp.ones((4, 2)), jnp.zeros(4, jnp.int32), transform=flip)
    indices = jnp.arange(2)
    np.testing.assert_array_equal(data.fetch(indices, KEY).inputs, -1)
    np.testing.assert_array_equal(data.fetch(indices).inputs, 1)


def test_the_compiled_round_holds_no_data_set_and_no_stack_of_examples():
    clients, steps, size, width = 6, 5, 4, 37
    examples = 60 * clients
    inputs = np.random.default_rng(0).integers(0, 255, (examples, width)).astype(np.uint8)
    data = Dataset(
        jnp.asarray(inputs), jnp.zeros(examples, jnp.int32), jnp.float32(1 / 255), classes=3
    )
    federation = dx.Federation(
        data,
        from_indices(np.array_split(np.arange(examples), clients)),
        batch_size=size,
        local_steps=steps,
    )
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1))
    state = algorithm.init(KEY, {"w": jnp.zeros((width, 3)), "b": jnp.zeros(3)})

    def one_round(state, federation, key, t):
        return algorithm.step(state, federation.draw(key, t))

    text = jax.jit(one_round).lower(state, federation, KEY, jnp.int32(0)).compile().as_text()
    shapes = [
        [int(n) for n in shape.split(",") if n]
        for shape in re.findall(r"\b(?:u8|f32|s32)\[([\d,]*)\]", text)
    ]
    elements = [int(np.prod(shape)) for shape in shapes]
    assert clients * steps * size in elements, "the minibatches' indices are there"
    assert clients * size * width in elements, "a step's examples are there"
    whole = clients * steps * size * width
    assert not [s for s in shapes if np.prod(s) >= whole and s != [examples, width]]
    constants = re.findall(r"= \w+\[([\d,]*)\][^=]*? constant\(", text)
    largest = max(int(np.prod([int(n) for n in c.split(",") if n] or [1])) for c in constants)
    assert largest <= 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer >= 1, got 2.0"),
        ({"local_steps": 0}, "local_steps must be an integer >= 1, got 0"),
        ({"local_steps": None}, "exactly one of local_steps and local_epochs"),
        ({"local_epochs": 1.0}, "exactly one of local_steps and local_epochs"),
        ({"local_steps": None, "local_epochs": 0.0}, r"local_epochs must be .* in \(0, inf"),
        ({"weights": jnp.zeros(6)}, "weights must be positive for at least one client"),
        ({"weights": -jnp.ones(6)}, "weights must be a finite number"),
        ({"weights": jnp.ones(5)}, "weights must have a leading axis of length 6, got 5"),
        ({"weights": jnp.ones((6, 2))}, r"weights must have shape \(6,\), .* got \(6, 2\)"),
        ({"local_steps": None, "local_epochs": np.ones(6)}, "local_epochs must be a single real"),
        (
            {"local_steps": 2**31 - 1, "batch_size": 4},
            "local_steps .* batch_size must be at most 2.31 - 1",
        ),
        ({"local_steps": None, "local_epochs": 1e300}, "must be at most 2.31 - 1"),
        ({"replacement": "yes"}, "replacement must be True or False, got 'yes'"),
        ({"participation": "all"}, "participation must be a function, got 'all'.*uniform"),
        ({"participation": 3}, "participation must be a function, got 3"),
        ({"participation": lambda *_: 3}, "what participation returns must be of type Cohort"),
        (
            {"participation": lambda *_: participation.Cohort(jnp.zeros(0, jnp.int32))},
            "participation must invite at least one client, got a cohort of 0",
        ),
        (
            {"data": Dataset(jnp.ones((6, 2)), jnp.arange(7))},
            "data.inputs must have a leading axis of length 7, got 6",
        ),
        (
            {"data": Dataset(jnp.ones((6, 2)), jnp.arange(6) % 5, classes=2)},
            r"data.labels must lie in \[0, 2\).* got 0 to 4",
        ),
        ({"participation": participation.uniform(7)}, r"cohort must be .* in \[1, 6\].* got 7"),
        ({"data": np.ones(3)}, "data must be a Dataset or a Split"),
        ({"data": quadratics(5).data}, r"partition must hold indices in \[0, 5\)"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    task = quadratics(6)
    arguments = {"data": task.data, "batch_size": 1, "local_steps": 1} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        dx.Federation(arguments.pop("data"), task.partition, **arguments)


def test_a_raw_integer_is_no_key(task):
    federation = dx.Federation(task.data, task.partition, batch_size=1, local_steps=1)
    with pytest.raises(TypeError, match=r"key must be one typed JAX key, got 0.*jax.random.key"):
        federation.draw(0, 0)
    with pytest.raises(TypeError, match="key must be one typed JAX key"):
        federation.draw(jax.random.PRNGKey(0), 0)


def by_hand(sizes, indices=None):
    """A partition of 6 clients as a user may put it together, around the checks of `from_indices`."""
    numbers = jnp.arange(6) if indices is None else jnp.asarray(indices)
    return dx.data.Partition(
        numbers.astype(jnp.int32), jnp.arange(6), jnp.asarray(sizes), jnp.ones(1, jnp.uint32)
    )


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (3, "partition must have clients, sizes and minibatches, got a int"),
        (None, "got a NoneType without clients, sizes, minibatches.*from_indices"),
        ([[0, 1]], "partition must have clients"),
        (by_hand([1, 1, 0, 1, 1, 1]), "size >= 1, got sizes of shape .6,. from 0"),
        (by_hand([1] * 6, [0, 1, -1, 3, 4, 5]), r"indices in \[0, 6\).* got -1"),
        (by_hand([1, 1, 1, 1, 1, 2]), "offsets and sizes within its 6 indices"),
    ],
)
def test_bad_partitions_are_refused(partition, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dx.Federation(quadratics(6).data, partition, batch_size=1, local_steps=1)


def test_a_plain_function_is_a_participation():
    def first_two(key, index, clients):
        return participation.Cohort(jnp.arange(2, dtype=jnp.int32))

    federation = quadratics(6).federation(participation=first_two)
    drawn = jax.jit(lambda federation: federation.draw(KEY, 0))(federation)
    np.testing.assert_array_equal(drawn.cohort, [0, 1])


def drawn_of(round):
    """What is drawn of a round, keys as numbers."""
    work = round.assignments
    keys = jax.random.key_data(round.key), jax.random.key_data(work.key)
    shares = round.number, round.cohort, round.weights, round.reports
    return keys, shares, work.minibatches, work.local_steps, work.client


def test_a_draw_is_one_program_wherever_it_is_called(task):
    federation = dx.Federation(
        task.data,
        task.partition,
        batch_size=3,
        local_steps=2,
        participation=participation.dropout(participation.uniform(4), 0.2),
    )
    alone = [federation.draw(KEY, t) for t in range(3)]
    scanned = jax.lax.scan(lambda _, t: (None, federation.draw(KEY, t)), None, jnp.arange(3))[1]
    mapped = jax.vmap(federation.draw, in_axes=(None, 0))(KEY, jnp.arange(3))
    for number, one in enumerate(alone):
        for many in (scanned, mapped):
            picked = jax.tree.map(lambda leaf, number=number: leaf[number], drawn_of(many))
            assert_trees_equal(drawn_of(one), picked)
        assert one.data is federation.data
    # Nested, it leaves no call behind: what reads traced programs sees its operations.
    traced = jax.make_jaxpr(lambda t: federation.draw(KEY, t))(0)
    assert "_drawn" not in str(traced)


def test_an_eager_draw_compiles_one_program():
    federation, compiled = quadratics(7).federation(local_steps=3), []
    index = jnp.asarray(2, jnp.int32)

    def note(event, duration, **others):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(others)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        federation.draw(KEY, index)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(compiled) <= 1, compiled


def test_under_x64_weights_keep_their_digits(task):
    weights = np.random.default_rng(0).uniform(size=8)
    with jax.enable_x64(True):
        federation = dx.Federation(
            task.data, task.partition, batch_size=2, local_steps=1, weights=weights
        )
        drawn = federation.draw(KEY, 0)
    assert drawn.weights.dtype == np.float64
    np.testing.assert_array_equal(drawn.weights, weights)
    narrow = dx.Federation(task.data, task.partition, batch_size=2, local_steps=1, weights=weights)
    assert narrow.draw(KEY, 0).weights.dtype == np.float32


def test_what_a_refusal_advises_works():
    with pytest.raises(TypeError) as refused:
        dx.Federation(None, None, batch_size=1, local_steps=1)
    call = re.search(r"Make one with (dflax\S+\(.*\))\.", str(refused.value)).group(1)
    inputs, labels = np.ones((20, 2), np.float32), np.arange(20) % 2
    split = eval(call, {"dflax": dx, "inputs": inputs, "labels": labels})
    part = dx.data.iid(split.train.labels, 2)
    assert dx.Federation(split, part, batch_size=1, local_steps=1).clients == 2
    with pytest.raises(TypeError) as refused:
        dx.Federation(split, None, batch_size=1, local_steps=1)
    assert "iid(labels, 10)" in str(refused.value)


@pytest.mark.parametrize("kind", ["server", "gossip"])
def test_a_whole_round_runs_under_strict_dtype_promotion(kind):
    source = quadratics(6).federation(
        local_steps=2, participation=participation.dropout(participation.uniform(4), 0.3)
    )
    with jax.numpy_dtype_promotion("strict"):
        optimizer = optax.sgd(0.1, momentum=0.9)
        algorithm = (
            dx.server.fedprox(half_square, optimizer, pull=0.1)
            if kind == "server"
            else dx.decentralized.dfedavg(half_square, optimizer, dx.gossip.ring(6))
        )
        state = algorithm.init(KEY, jnp.ones(3))
        state, metrics = dx.rollout(algorithm, state, source, KEY, 2)
    again = dx.rollout(algorithm, algorithm.init(KEY, jnp.ones(3)), source, KEY, 2)
    assert_trees_equal((state, metrics), again)


def test_a_round_of_nobody_measures_nothing():
    source = quadratics(4).federation(
        participation=participation.dropout(participation.everyone(), 1.0)
    )
    for algorithm in (
        dx.server.fedavg(half_square, optax.sgd(0.1)),
        dx.decentralized.dfedavg(half_square, optax.sgd(0.1), dx.gossip.ring(4)),
    ):
        start = algorithm.init(KEY, jnp.ones(3))
        state, metrics = dx.rollout(algorithm, start, source, KEY, 1)
        assert np.isnan(metrics["loss"]).all()
        assert_trees_equal((state.server, state.clients), (start.server, start.clients))


@pytest.mark.parametrize("at_once", [1, None])
def test_a_clients_work_knows_whose_it_is(at_once):
    """Client 3 lies, whoever else is invited and in whatever order."""

    def lying(assignment, memory, server, data, index):
        change = data.inputs[assignment.client] - server.params
        return dx.server.Report(jnp.where(assignment.client == 3, -change, change), (), {})

    def update(server, received):
        return server.params + received.message, (), {}

    task = quadratics(6)
    algorithm = dx.server.with_server(lambda key, params: ((), ()), lying, update, at_once=at_once)
    source = task.federation(participation=participation.uniform(4))
    state, _ = dx.rollout(algorithm, algorithm.init(KEY, jnp.zeros(3)), source, KEY, 1)
    cohort = np.asarray(source.draw(KEY, 0).cohort)
    assert 3 in cohort
    signs = np.where(cohort == 3, -1.0, 1.0)[:, None]
    np.testing.assert_allclose(
        state.server.params, (signs * task.centers[cohort]).mean(0), rtol=1e-5, atol=1e-6
    )
