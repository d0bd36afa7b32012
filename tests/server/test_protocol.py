import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import channel, participation

KEY = jax.random.key(0)
TASK = quadratics()
ONES = jnp.ones(3)
SOLVE = dx.local.solver(half_square, optax.sgd(0.5))


class Total(NamedTuple):
    """What the server of `counting` has heard, the sum over all rounds."""

    heard: jax.Array


def counting(**options):
    """Every client counts its rounds and remembers its model; the server takes the mean change."""

    def start(key, params):
        return Total(jnp.zeros(())), (jnp.zeros(6), dx.replicate(params, 6))

    def work(assignment, memory, server, data, index):
        count, _ = memory
        model = SOLVE(dx.local.Subproblem(), server.params, assignment, data, index=index).params
        sent = {"change": model - server.params, "one": jnp.ones(())}
        return dx.server.Report(sent, (count + 1, model), {"count": count})

    def update(server, received):
        heard = server.memory.heard + received.reporting * received.message["one"]
        params = server.params + received.message["change"]
        return params, Total(heard), {"share": received.share}

    return dx.server.with_server(
        start,
        work,
        update,
        message=lambda params: {"change": params, "one": jnp.zeros(())},
        clients=6,
        **options,
    )


def test_memories_of_those_who_report_are_written_and_no_other():
    rule = participation.dropout(participation.uniform(3), 0.4)
    federation = TASK.federation(participation=rule)
    algorithm = counting()
    state = algorithm.init(KEY, ONES)
    step = jax.jit(algorithm.step)
    counts, models, heard = np.zeros(6), np.ones((6, 3), np.float32), 0
    for t in range(6):
        drawn = federation.draw(KEY, t)
        ids = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
        before = np.asarray(state.server.params)
        state, metrics = step(state, drawn)
        if len(ids):
            np.testing.assert_allclose(metrics["count"], counts[ids].mean(), rtol=1e-6)
        counts[ids] += 1
        models[ids] = before + 0.5 * (TASK.centers[ids] - before)
        heard += len(ids)
        # An update that did not take place has measured nothing.
        expected = len(ids) / 6 if len(ids) else np.nan
        np.testing.assert_allclose(metrics["share"], expected, rtol=1e-6)
        np.testing.assert_array_equal(state.clients.memory[0], counts)
        np.testing.assert_allclose(state.clients.memory[1], models, rtol=1e-5, atol=1e-6)
        others = np.setdiff1d(np.arange(6), ids)
        np.testing.assert_array_equal(np.asarray(state.clients.memory[1])[others], models[others])
        assert state.server.memory.heard == heard


def test_a_lost_message_leaves_its_senders_memory_as_it_was():
    state, _ = counting(channel=channel.lossy(1.0)).step(
        counting().init(KEY, ONES), TASK.federation().draw(KEY, 0)
    )
    assert_trees_equal(state.clients.memory, counting().init(KEY, ONES).clients.memory)
    assert_trees_equal(state.server, counting().init(KEY, ONES).server)


def test_equal_counts_every_reporting_client_the_same():
    federation = TASK.federation(weights=jnp.arange(6.0))
    state, _ = counting(equal=True).step(counting().init(KEY, ONES), federation.draw(KEY, 0))
    # Weight 0 says that client 0 did not report; the other five are averaged plainly.
    expected = 0.5 * (1 + TASK.centers[1:].mean(0))
    np.testing.assert_allclose(state.server.params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.some(1)
@pytest.mark.parametrize("rule", [participation.everyone(), participation.uniform(3)])
def test_memories_are_dealt_over_devices(rule):
    federation = TASK.federation(participation=rule)
    algorithm = counting()
    plain, _ = dx.run(algorithm, algorithm.init(KEY, ONES), federation, rounds=4, key=KEY)
    dealt, _ = dx.run(
        algorithm,
        algorithm.init(KEY, ONES),
        federation,
        rounds=4,
        key=KEY,
        mesh=dx.client_mesh(),
    )
    assert_trees_close(plain, dealt, rtol=1e-6, atol=1e-6)


def test_memories_can_be_swept():
    def end(scale):
        algorithm = counting()
        state = algorithm.init(KEY, scale * ONES)
        return dx.rollout(algorithm, state, TASK.federation(), KEY, 2)[0].clients.memory[1]

    swept = jax.jit(jax.vmap(end))(jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(swept[1], jax.jit(functools.partial(end, 2.0))(), rtol=1e-6)


def test_what_is_given_to_init_reaches_the_start():
    def start(key, params, extra):
        return extra, ()

    algorithm = dx.server.with_server(start, lambda *a: None, lambda *a: None)
    assert algorithm.init(KEY, ONES, jnp.float32(7)).server.memory == 7


def test_whose_message_arrived_receives_the_new_model():
    def start(key, params):
        return (), dx.replicate(params, 6)

    def work(assignment, memory, server, data, index):
        return dx.server.Report(jnp.ones(3), memory, {})

    def update(server, received):
        return server.params + received.message, (), {}

    def receive(memory, arrived, server, index):
        return server.params + index + arrived.message

    algorithm = dx.server.with_server(start, work, update, clients=6, receive=receive)
    rule = participation.dropout(participation.uniform(3), 0.5)
    drawn = TASK.federation(participation=rule).draw(KEY, 2)
    state, _ = jax.jit(algorithm.step)(algorithm.init(KEY, ONES), drawn)
    expected = np.ones((6, 3))
    reporting = np.asarray(drawn.cohort)[np.asarray(drawn.weights) > 0]
    expected[reporting] = 2 + 2 + 1
    assert 0 < len(reporting) < 3
    np.testing.assert_array_equal(state.clients.memory, expected)


def test_no_two_parts_of_a_round_draw_from_the_same_key():
    """Noise that comes from the key of another part would not be independent of it."""

    def bits(key):
        return jax.random.key_data(key)[-1]

    def work(assignment, memory, server, data, index):
        return dx.server.Report(server.params, memory, {})

    def update(server, received):
        return server.params, (), {"server": bits(received.key)}

    def sent(messages, weights, state, sending):
        return messages, weights, state, {"channel": bits(sending.key)}

    def combined(messages, weights, state, combining):
        return dx.weighted_mean(messages, weights), state, {"aggregator": bits(combining.key)}

    algorithm = dx.server.with_server(
        lambda key, params: ((), ()),
        work,
        update,
        channel=channel.Channel(lambda message: (), sent),
        aggregator=dx.aggregation.Aggregator(lambda message: (), combined),
    )
    drawn = TASK.federation().draw(KEY, 0)
    _, metrics = jax.jit(algorithm.step)(algorithm.init(KEY, ONES), drawn)
    keys = {int(metrics[name]) for name in ("channel", "aggregator", "server")}
    assert len(keys | {int(bits(drawn.key))}) == 4


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="aggregator must be of type Aggregator"):
        counting(aggregator=3)
    with pytest.raises(TypeError, match="channel must be of type Channel"):
        counting(channel=optax.sgd(1.0))
    with pytest.raises(TypeError, match="equal must be True or False"):
        counting(equal=1)
    data = dx.data.Dataset(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32))
    owned = dx.data.from_indices([np.array([i]) for i in range(4)])
    drawn = dx.Federation(data, owned, batch_size=1, local_steps=1).draw(KEY, 0)
    state = counting().init(KEY, ONES)
    with pytest.raises(ValueError, match="clients' memory must have a leading axis of length 4"):
        counting().step(state, drawn)
