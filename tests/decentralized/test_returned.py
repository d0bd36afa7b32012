"""What a user's functions return to the frameworks is refused by name while the step is traced."""

import jax
import jax.numpy as jnp
import optax
import pytest
from tasks import quadratics

import dflax as dx
from dflax import channel, gossip
from dflax.decentralized import Client, adapt_then_combine, combine_then_adapt

KEY = jax.random.key(0)
N = 4
TASK = quadratics(N)
FEDERATION = TASK.federation()
ONES = jnp.ones(3)


def start(key, models):
    return {"count": jnp.zeros(N, jnp.int32)}


def work(assignment, own, data, index):
    return Client(0.5 * own.params, {"count": own.memory["count"] + 1}), {"loss": 1.0}


def traced(make=adapt_then_combine, work=work, **options):
    algorithm = make(work, gossip.ring(N), start=options.pop("start", start), **options)
    state = algorithm.init(KEY, ONES)
    return jax.eval_shape(algorithm.step, state, FEDERATION.draw(KEY, 0))


def working(change):
    """A `work` whose client, or all of whose result, is changed."""
    return lambda a, own, data, t: change(*work(a, own, data, t))


WORK = {
    "client alone": (
        working(lambda client, metrics: client),
        "must return .client, metrics., got Cl",
    ),
    "nothing": (working(lambda client, metrics: None), "must return .client, metrics., got None"),
    "a model": (working(lambda c, metrics: (c.params, metrics)), "client of work.*type Client"),
    "no dict": (working(lambda client, metrics: (client, 3.0)), "metrics of work.*must be a dict"),
    "shape": (
        working(lambda c, m: (c._replace(params=c.params.sum()), m)),
        r"client of work.*\.params must have the shape of the model before, \(3,\), got \(\)",
    ),
    "type": (
        working(lambda c, m: (c._replace(memory={"count": c.memory["count"] + 0.5}), m)),
        r"memory\['count'\] must have the dtype of the memory before, int32, got float32",
    ),
    "structure": (
        working(lambda c, m: (c._replace(memory=()), m)),
        r"client of work.*\.memory must have the structure of the memory before",
    ),
}


@pytest.mark.parametrize("case", WORK)
def test_what_work_returns(case):
    broken, message = WORK[case]
    with pytest.raises((TypeError, ValueError), match=message):
        traced(work=broken)
    heard = lambda a, own, heard, data, t: broken(a, own, data, t)  # noqa: E731
    with pytest.raises((TypeError, ValueError), match=message):
        traced(combine_then_adapt, heard)


OTHERS = {
    "no message": (
        {"message": lambda before, after, t: ()},
        "message.* must return a tree of arrays",
    ),
    "a mask": (
        {"message": lambda before, after, t: after.params > 0},
        "must hold real numbers, got bool.*out of its message",
    ),
    "a counter": (
        {"message": lambda before, after, t: (after.params, after.memory["count"])},
        "must hold real numbers, got int32.*Of counters, masks and keys there is no mean",
    ),
    "hears a model": ({"hear": lambda b, a, heard, t: heard}, "hear.*must be of type Client"),
    "hears a sum": (
        {"hear": lambda b, a, heard, t: a._replace(params=heard.sum())},
        r"hear.*\.params must have the shape of .*\(3,\)",
    ),
    "short start": (
        {"start": lambda key, models: {"count": jnp.zeros(N - 1, jnp.int32)}},
        "what start returns, the clients' memory, must have a leading axis of length 4",
    ),
    "channel": (
        {"channel": channel.Channel(lambda message: (), lambda *a: a[:3])},
        "Channel.apply must return .messages, weights, state, metrics., got a tuple of 3",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_the_other_functions_return(case):
    options, message = OTHERS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        traced(**options)


@pytest.mark.parametrize("make", [adapt_then_combine, combine_then_adapt])
@pytest.mark.parametrize("name", ["work", "start", "message", "size", "hear"])
def test_what_is_no_function_is_refused_at_the_door(make, name):
    if (make, name) == (combine_then_adapt, "hear"):
        make = adapt_then_combine
    right = {"work": lambda *given: work(*given), "mixer": gossip.ring(N)}
    with pytest.raises(TypeError, match=rf"^{name} must be a function"):
        make(**(right | {name: 3}))


def test_work_that_hears_nothing_is_refused_where_clients_mix_first():
    with pytest.raises(TypeError, match=r"work must be a function of 5 arguments.*Its own are"):
        combine_then_adapt(work, gossip.ring(N))


def test_a_users_own_exception_passes_as_it_is():
    def broken(*given):
        raise LookupError("mine")

    for options in ({"work": broken}, {"message": broken}, {"hear": broken}, {"start": broken}):
        with pytest.raises(LookupError, match=r"^mine"):
            traced(**options)


def test_messages_of_several_trees_count_as_several_models():
    def sent(algorithm):
        step = jax.jit(algorithm.step)
        state = algorithm.init(KEY, ONES)
        return float(step(state, FEDERATION.draw(KEY, 0))[1]["models_sent"])

    edges = 2 * N
    one = dx.decentralized.dfedavg(lambda p, b, k: (p.sum(), {}), optax.sgd(0.1), gossip.ring(N))
    two = dx.decentralized.dsgt(lambda p, b, k: (p.sum(), {}), 0.1, gossip.ring(N))
    said = adapt_then_combine(work, gossip.ring(N), start=start, size=lambda message, model: 0.25)
    assert sent(one) == edges
    assert sent(two) == 2 * edges
    assert sent(said) == edges / 4


def test_no_metric_of_a_round_hides_another():
    broken = working(lambda client, metrics: (client, {"models_sent": 1.0}))
    with pytest.raises(ValueError, match=r"names of their own, got 'models_sent' from both work"):
        traced(work=broken)
