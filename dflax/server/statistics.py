"""Expectation-maximisation over clients: they send sums of statistics, the server maximises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import returned, validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import map_cohort
from dflax.data.dataset import Batch, Dataset
from dflax.local.large_batch import LargeBatch, large_batches
from dflax.population import Round
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server

Statistics = PyTree[Array]
Number = Int[Array, ""]


class Cut(NamedTuple):
    """Which examples count: those whose score is not below a threshold that all clients share.

    Attributes:
      score: `(model, batch, number) -> [B]`.
      threshold: `(scores [P], there [P], model, number) -> []`, from the scores of all examples of the
        round, of which those count that are there.
    """

    score: Callable[[Params, Batch, Number], Float[Array, " B"]]
    threshold: Callable[[Float[Array, " P"], Bool[Array, " P"], Params, Number], Float[Array, ""]]


def expectation_maximisation(
    nothing: Callable[[Params], Statistics],
    expect: Callable[[Params, Batch, Float[Array, ""], Number], Statistics],
    maximise: Callable[[Params, Statistics, Number], tuple[Params, Metrics]],
    *,
    cut: Cut | None = None,
    batch_size: int = 500,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Expectation-maximisation whose E step runs at the clients and whose M step at the server.

    A round, for the clients i of the cohort, who read all of their examples:

        S_i   = sum over own examples of expect(model, example)
        model = maximise(model, sum_i channel(S_i))

    Statistics add up, so the result does not depend on who owns which example, and what channels do to
    messages (compression, noise, loss) they do to statistics. With a `cut` clients send the scores of
    their examples first, and the server answers with the threshold: one number an example more.

    Args:
      nothing: `model -> statistics`, the statistics of no example: zeros.
      expect: `(model, batch, threshold, number) -> statistics`, sums over a batch weighted by
        `batch.mask`; `number` is the round's. Without a `cut` the threshold
        is the least number.
      maximise: `(model, statistics, number) -> (model, metrics)`; the statistics are the sum over the
        clients whose message arrived: the mean that the aggregator makes times their number.
      cut: which examples count.
      batch_size: examples that a client reads at once, >= 1.
      aggregator: of the statistics; default the mean. Clients count the same, whatever their sizes.
      channel: between clients and server, without memory; default perfect.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, the last threshold `state.server.memory`. Its
      federation owns examples; its minibatches are not read. Metrics: those of `maximise`,
      `clients_reporting`, and the channel's.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Dempster, Laird and Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977.
    """
    validation.function("nothing", nothing, takes=1)
    validation.function("expect", expect, takes=4)
    validation.function("maximise", maximise, takes=3)
    validation.integer("batch_size", batch_size, low=1)
    if cut is not None:
        validation.instance("cut", cut, Cut, "For example dflax.server.Cut(score, threshold).")

    def start(key: Key[Array, ""], params: Params) -> tuple[Float[Array, ""], tuple[()]]:
        kind = jnp.result_type(float)
        return jnp.asarray(jnp.finfo(kind).min, kind), ()

    def assign(round: Round, key: Key[Array, ""]) -> LargeBatch:
        return large_batches(round, round.key, batch_size=batch_size)

    def work(task: LargeBatch, own: Any, server: Server, data: Dataset, index: Array) -> Report:
        def piece(total: Statistics, number: Array) -> tuple[Statistics, None]:
            batch, _ = piece_of(task, data, number)
            found = expect(server.params, batch, server.memory, index)
            returned.alike("what expect returns", found, total, "nothing(model)", dtypes=False)
            return jax.tree.map(lambda t, s: t + s.astype(t.dtype), total, found), None

        pieces = jnp.arange(task.minibatches.shape[0], dtype=jnp.int32)
        total, _ = jax.lax.scan(piece, nothing(server.params), pieces)
        return Report(total, own, {}, measured=jnp.bool_(True))

    def update(server: Server, received: Received) -> tuple[Params, Array, Metrics]:
        sums = jax.tree.map(
            lambda leaf: leaf * received.reporting.astype(leaf.dtype), received.message
        )
        model, metrics = maximise(server.params, sums, received.number)
        return model, server.memory, metrics

    rounds = with_server(
        start,
        work,
        update,
        message=nothing,
        assign=assign,
        aggregator=aggregator,
        channel=channel,
        equal=True,
        at_once=at_once,
    )
    return rounds if cut is None else _cut(rounds, cut, assign)


def piece_of(task: LargeBatch, data: Dataset, piece: int | Array) -> tuple[Batch, Array]:
    """The examples of one piece of a large batch, those beyond its end masked; which count."""
    width = task.minibatches.shape[1]
    counted = jnp.arange(width) < task.examples - piece * width
    batch = data.fetch(task.minibatches[piece])._replace(mask=counted.astype(jnp.float32))
    return batch, counted


def _cut(
    rounds: Algorithm, cut: Cut, assign: Callable[[Round, Key[Array, ""]], LargeBatch]
) -> Algorithm:
    """The rounds after a first one in which scores are sent and the threshold comes back."""

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        tasks = assign(round, round.key)

        def scores(
            own: Any, task: LargeBatch, weight: Array, model: Params, data: Dataset, index: Array
        ) -> tuple[Array, Array]:
            def piece(number: Array) -> tuple[Array, Array]:
                batch, counted = piece_of(task, data, number)
                return cut.score(model, batch, index), counted & (weight > 0)

            pieces = jnp.arange(task.minibatches.shape[0], dtype=jnp.int32)
            return jax.lax.map(piece, pieces)

        found, there = map_cohort(
            scores,
            state.clients.memory,
            round.cohort,
            tasks,
            round.weights,
            shared=(state.server.params, round.data, round.number),
        )
        threshold = cut.threshold(
            found.reshape(-1), there.reshape(-1), state.server.params, round.number
        )
        told = state.server._replace(memory=threshold.astype(state.server.memory.dtype))
        after, metrics = rounds.step(state._replace(server=told), round)
        happened = metrics["clients_reporting"] > 0
        memory = jnp.where(happened, after.server.memory, state.server.memory)
        return after._replace(server=after.server._replace(memory=memory)), metrics

    return Algorithm(rounds.init, step)
