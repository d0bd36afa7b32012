"""What a method's functions return is refused by name, and their own exceptions pass as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import half_square, quadratics

from dflax import channel
from dflax.aggregation import Aggregator
from dflax.server import Report, fedavg, with_server

KEY = jax.random.key(0)
TASK = quadratics()
ONES = jnp.ones(3)


def right_start(key, params):
    return {"steps": jnp.int32(0)}, jnp.zeros((6, 2))


def right_work(assignment, memory, server, data, index):
    return Report(server.params, memory, {})


def right_update(server, received):
    return server.params, server.memory, {}


def one_round(start=right_start, work=right_work, update=right_update, **options):
    algorithm = with_server(start, work, update, clients=6, **options)
    state = algorithm.init(KEY, ONES)
    return jax.eval_shape(algorithm.step, state, TASK.federation().draw(KEY, 0))


def test_what_is_right_passes():
    one_round()


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (lambda x, m: None, r"work must return a Report\(message, memory, metrics\), got"),
        (lambda x, m: (x, m, {}), r"work must return a Report.*got a value of type tuple"),
        (
            lambda x, m: Report({"x": x}, m, {}),
            "the message of work's Report must have the structure",
        ),
        (
            lambda x, m: Report(x[:2], m, {}),
            r"message of work's Report must have the shape.*\(2,\)",
        ),
        (lambda x, m: Report(x, (), {}), "the memory of work's Report must have the structure"),
        (lambda x, m: Report(x, m[:1], {}), r"memory of work's Report must have the shape.*\(1,\)"),
        (
            lambda x, m: Report(x, m.astype(jnp.bfloat16), {}),
            "memory of work's Report must have the dtype.*float32.*got bfloat16",
        ),
        (lambda x, m: Report(x, m, x), "the metrics of work's Report must be a dict"),
        (lambda x, m: Report(x, m, {}, totals=3), "the totals of work's Report must be a dict"),
        (lambda x, m: Report(x, m, {}, kinds={"a": True}), "the kinds of work's Report must say"),
    ],
)
def test_a_wrong_report_is_refused(report, message):
    def work(assignment, memory, server, data, index):
        return report(server.params, memory)

    with pytest.raises((TypeError, ValueError), match=message):
        one_round(work=work)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda s: s.params, r"update must return \(params, memory, metrics\), got"),
        (lambda s: (s.params, s.memory), r"update must return .*got a tuple of 2"),
        (
            lambda s: (s.params[:2], s.memory, {}),
            "the params that update returns must have the shape",
        ),
        (
            lambda s: (s.params.astype(jnp.float16), s.memory, {}),
            "the params that update returns must have the dtype",
        ),
        (lambda s: (s.params, {}, {}), "the memory that update returns must have the structure"),
        (lambda s: (s.params, s.memory, None), "the metrics that update returns must be a dict"),
    ],
)
def test_a_wrong_update_is_refused(made, message):
    with pytest.raises((TypeError, ValueError), match=message):
        one_round(update=lambda server, received: made(server))


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda m, w, s, k: m, r"Aggregator.apply must return \(message, state, metrics\), got"),
        (
            lambda m, w, s, k: (m, s, {}),
            "message of Aggregator.apply must have the shape of one",
        ),
        (
            lambda m, w, s, k: (m[0], 1.0, {}),
            "the state of Aggregator.apply must have the structure",
        ),
        (lambda m, w, s, k: (m[0], s, 0), "the metrics of Aggregator.apply must be a dict"),
    ],
)
def test_a_wrong_aggregator_is_refused(apply, message):
    with pytest.raises((TypeError, ValueError), match=message):
        one_round(aggregator=Aggregator(lambda one: (), apply))


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (
            lambda m, w, s, k: (m, w),
            r"Channel.apply must return \(messages, weights, state, metrics\)",
        ),
        (lambda m, w, s, k: (m[:2], w, s, {}), "the messages of Channel.apply must have the shape"),
        (lambda m, w, s, k: (m, w[0], s, {}), "the weights of Channel.apply must have the shape"),
        (lambda m, w, s, k: (m, w, w, {}), "the state of Channel.apply must have the structure"),
        (lambda m, w, s, k: (m, w, s, None), "the metrics of Channel.apply must be a dict"),
    ],
)
def test_a_wrong_channel_is_refused(apply, message):
    with pytest.raises((TypeError, ValueError), match=message):
        one_round(channel=channel.Channel(lambda one: (), apply))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_round(start=lambda key, params: None), "start must return"),
        (lambda: one_round(start=3), "start must be a function"),
        (lambda: one_round(work=3), "work must be a function"),
        (lambda: one_round(publish=3), "publish must be a function"),
        (lambda: one_round(downlink=channel.perfect()), "publish must be given with a downlink"),
        (
            lambda: one_round(answer=lambda server: (ONES, True)),
            "publish must be given with an answer",
        ),
        (
            lambda: one_round(rest=lambda memories, round: memories[:1]),
            "the memory that rest returns",
        ),
        (
            lambda: one_round(receive=lambda memory, arrived, server, index: ()),
            "the memory that receive returns",
        ),
        (lambda: one_round(read=lambda memory, arrived: memory), "what read returns must have"),
    ],
)
def test_other_functions_are_checked_too(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_users_own_exception_passes_as_it_is():
    class MineError(Exception):
        pass

    def fails(*given):
        raise MineError("as it is")

    for where in ({"start": fails}, {"work": fails}, {"update": fails}):
        with pytest.raises(MineError) as caught:
            one_round(**where)
        assert str(caught.value) == "as it is"


def test_whole_numbers_have_a_mean_and_a_loss_may_measure_nothing():
    def work(assignment, memory, server, data, index):
        count = jnp.int32(data.fetch(assignment.minibatches[0]).inputs[0, 0] > 0)
        return Report(server.params, memory, {"positive": count, "yes": count > 0})

    algorithm = with_server(right_start, work, right_update, clients=6)
    _, metrics = jax.jit(algorithm.step)(algorithm.init(KEY, ONES), TASK.federation().draw(KEY, 0))
    share = (TASK.centers[:, 0] > 0).mean()
    np.testing.assert_allclose([metrics["positive"], metrics["yes"]], share, rtol=1e-6)
    assert metrics["positive"].dtype == jnp.float32

    def counting(params, batch, key):
        return half_square(params, batch, key)[0], {"examples": batch.inputs.shape[0]}

    def silent(params, batch, key):
        return half_square(params, batch, key)[0], {}

    for loss, names in ((counting, {"examples"}), (silent, set())):
        algorithm = fedavg(loss, optax.sgd(0.1))
        state = algorithm.init(KEY, ONES)
        _, found = jax.eval_shape(algorithm.step, state, TASK.federation().draw(KEY, 0))
        assert set(found) == names | {"clients_reporting"}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {
                "update": lambda server, received: (
                    server.params,
                    server.memory,
                    {"messages_lost": 0.0},
                )
            },
            "channel and update",
        ),
        (
            {
                "work": lambda a, m, server, d, i: Report(
                    server.params, m, {"clients_reporting": 1.0}
                )
            },
            "the clients' work and aggregator",
        ),
    ],
)
def test_no_metric_of_a_round_hides_another(options, parts):
    with pytest.raises(ValueError, match=f"metrics must have names of their own.*{parts}"):
        one_round(channel=channel.lossy(0.5), **options)
