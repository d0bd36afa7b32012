"""A population: rounds without data, and events that travel with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import participation
from dflax.server import Report, with_server

KEY = jax.random.key(0)
N = 6
RULE = participation.stragglers(participation.dropout(participation.uniform(4), 0.3), 0.5)


def test_a_round_is_that_of_a_federation_but_for_the_data():
    federation = quadratics(clients=N).federation(local_steps=3, participation=RULE)
    population = dx.Population(N, participation=RULE, local_steps=3)
    draw = jax.jit(lambda source, t: source.draw(KEY, t))
    for t in range(3):
        ours, theirs = draw(population, t), draw(federation, t)
        keys = (ours.key, ours.assignments.key), (theirs.key, theirs.assignments.key)
        assert_trees_equal(*jax.tree.map(jax.random.key_data, keys))
        assert_trees_equal(
            (ours.cohort, ours.weights, ours.reports, ours.assignments.local_steps),
            (theirs.cohort, theirs.weights, theirs.reports, theirs.assignments.local_steps),
        )
        assert jax.tree.leaves((ours.data, ours.partition, ours.assignments.minibatches)) == []
    assert repr(population) == "Population(clients=6, cohort=4, local_steps=3)"


def test_everybody_may_have_steps_and_a_weight_of_its_own():
    steps = np.arange(1, N + 1)
    population = dx.Population(N, local_steps=steps, weights=jnp.arange(N))
    drawn = population.draw(KEY, 0)
    np.testing.assert_array_equal(drawn.assignments.local_steps, steps)
    np.testing.assert_array_equal(drawn.weights, np.arange(N))
    np.testing.assert_array_equal(drawn.members, np.arange(N))
    assert population.local_steps == N


def test_replace_keeps_what_is_not_named():
    steps = np.arange(1, N + 1)
    population = dx.Population(N, local_steps=steps, weights=jnp.arange(N))
    fewer = population.replace(participation=participation.uniform(2))
    assert fewer.cohort_size == 2
    assert_trees_equal((fewer.steps, fewer.weights), (population.steps, population.weights))
    assert dx.Population(N, local_steps=2).replace(clients=9).draw(KEY, 0).weights.shape == (9,)
    with pytest.raises(
        TypeError, match="batch_size is no argument of Population, got batch_size=3"
    ):
        population.replace(batch_size=3)
    with pytest.raises(ValueError, match="weights must have a leading axis of length 7"):
        population.replace(clients=7, local_steps=1)


def guessing():
    """Clients that make their own experience: the mean of their numbers plus noise of their own."""

    def work(assignment, memory, server, data, index):
        noise = jax.random.normal(assignment.key)
        return Report(assignment.client + noise, memory, {"noise": noise})

    def update(server, received):
        return received.message, (), {}

    return with_server(lambda key, params: ((), ()), work, update)


def test_work_that_reads_no_data_runs_without():
    algorithm, population = guessing(), dx.Population(N, participation=participation.uniform(3))
    start = algorithm.init(KEY, jnp.zeros(()))
    state, history = dx.run(algorithm, start, population, rounds=4, key=KEY)
    drawn = population.draw(KEY, 3)
    noise = jax.vmap(jax.random.normal)(drawn.assignments.key)
    expected = np.asarray(drawn.cohort + noise).mean()
    np.testing.assert_allclose(state.server.params, expected, rtol=1e-6)
    np.testing.assert_allclose(history.metrics["noise"][3], noise.mean(), rtol=1e-5)


SGD = optax.sgd(0.1)
READERS = {
    "fedavg": lambda: dx.server.fedavg(half_square, SGD),
    "fednova": lambda: dx.server.fednova(half_square, SGD),
    "fedpage": lambda: dx.server.fedpage(half_square, 0.1, 0.5),
    "mimelite": lambda: dx.server.mimelite(half_square, SGD),
    "consensus_admm": lambda: dx.server.consensus_admm(1.0),
    "dpsgd": lambda: dx.decentralized.dpsgd(half_square, SGD, dx.gossip.ring(N)),
    "dispfl": lambda: dx.decentralized.dispfl(half_square, SGD, dx.gossip.ring(N), rounds=9),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", READERS)
def test_work_that_reads_data_says_so(name):
    algorithm = READERS[name]()
    given = ()
    if name == "consensus_admm":
        eyes = jnp.broadcast_to(jnp.eye(3), (N, 3, 3))
        given = (dx.local.Quadratic(eyes, jnp.ones((N, 3)), jnp.ones((N, 3))),)
    state = algorithm.init(KEY, jnp.zeros(3), *given)
    fix = (
        "quadratic_federation" if name == "consensus_admm" else "must have data.*a dflax.Federation"
    )
    with pytest.raises(TypeError, match=fix):
        dx.run(algorithm, state, dx.Population(N), rounds=1, key=KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dx.Population(0), "clients must be an integer >= 1, got 0"),
        (lambda: dx.Population(3, local_steps=0), "local_steps must be an integer >= 1, got 0"),
        (lambda: dx.Population(3, local_steps=[1, 0, 1]), "local_steps must be finite numbers"),
        (lambda: dx.Population(3, local_steps=[1, 1]), r"local_steps must be .*got shape \(2,\)"),
        (lambda: dx.Population(3, weights=jnp.zeros(3)), "weights must be positive"),
        (lambda: dx.Population(3, weights=jnp.ones(4)), "weights must have a leading axis"),
        (lambda: dx.Population(3, participation=3), "participation must be a function"),
        (lambda: dx.Population(3, participation=participation.uniform(4)), "cohort must be"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


TABLE = {
    "clients": np.array([[0, 3], [5, 1], [2, 4]]),
    "reports": np.array([[1, 0], [1, 1], [0, 1]]),
    "effort": np.array([[1.0, 0.5], [0.25, 1.0], [1.0, 1.0]]),
    "time": np.array([0.5, 1.5, 4.0]),
    "speed": {"up": np.arange(6).reshape(3, 2)},
}


def test_a_table_says_who_comes_and_what_else_is_true_of_a_round():
    population = dx.Population(N, participation=participation.from_table(**TABLE), local_steps=4)
    for t in range(5):
        drawn = population.draw(KEY, t)
        row = jax.tree.map(lambda column, t=t: column[t % 3], TABLE)
        np.testing.assert_array_equal(drawn.cohort, row["clients"])
        np.testing.assert_array_equal(drawn.weights, row["reports"])
        steps = np.ceil(4 * row["effort"]) * row["reports"]
        np.testing.assert_array_equal(drawn.assignments.local_steps, steps)
        np.testing.assert_allclose(drawn.event["time"], row["time"])
        np.testing.assert_array_equal(drawn.event["speed"]["up"], row["speed"]["up"])
    assert dx.Population(N).draw(KEY, 0).event is None


def test_tables_are_data_of_the_program():
    @jax.jit
    def draw(source, t):
        return source.draw(KEY, t).event["time"]

    rule = participation.from_table(TABLE["clients"], time=np.arange(3.0))
    later = participation.from_table(TABLE["clients"], time=np.arange(3.0) + 10)
    first = draw(dx.Population(N, participation=rule), 1)
    text = draw.lower(dx.Population(N, participation=rule), 1).as_text()
    assert (first, draw(dx.Population(N, participation=later), 1)) == (1.0, 11.0)
    assert draw._cache_size() == 1
    assert "dense<[0.000000e+00, 1.000000e+00, 2.000000e+00]>" not in text


def test_events_reach_work_and_server():
    """Clients send who they are times the speed that the table gives them; the server notes the time."""

    def assign(round, key):
        return round.assignments, round.event["speed"]["up"]

    def work(task, memory, server, data, index):
        assignment, speed = task
        return Report(1.0 * assignment.client * speed, memory, {})

    def update(server, received):
        return received.message, received.event["time"], {}

    rule = participation.from_table(**{k: TABLE[k] for k in ("clients", "time", "speed")})
    algorithm = with_server(lambda key, params: (jnp.zeros(()), ()), work, update, assign=assign)
    start = algorithm.init(KEY, jnp.zeros(()))
    population = dx.Population(N, participation=rule)
    state, _ = jax.jit(functools.partial(dx.rollout, algorithm, rounds=2))(start, population, KEY)
    assert state.server.params == (5 * 2 + 1 * 3) / 2
    assert state.server.memory == 1.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: participation.from_table([0, 1]), "clients must be integers"),
        (lambda: participation.from_table([[0.5]]), "clients must be integers"),
        (lambda: participation.from_table([[-1]]), "clients must be finite numbers"),
        (lambda: participation.from_table([[1, 1]]), "clients must be distinct within each row"),
        (lambda: participation.from_table([[0]], reports=[[2]]), "reports must be finite numbers"),
        (lambda: participation.from_table([[0]], effort=[0.5]), "effort must be real numbers"),
        (lambda: participation.from_table([[0]], time=np.ones(2)), "time must have a leading axis"),
        (lambda: participation.from_table([[0]], time="late"), "time must be an array"),
        (
            lambda: dx.Population(3, participation=participation.from_table([[3]])),
            r"clients of the table must be numbers in \[0, 3\), got up to 3",
        ),
    ],
)
def test_bad_tables_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
