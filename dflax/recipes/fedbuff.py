"""FedBuff: a server that steps when enough changes have come in, whoever made them and when."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.clients import replicate, select
from dflax.local import Loss, Optimizer, Oracle
from dflax.server import local_change, with_server


def fedbuff(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    buffer: int,
    server_rate: float | Array = 1.0,
) -> Algorithm:
    """FedBuff: the server steps along the mean of K changes, each made from a model of its own age.

        y = local steps from x_i, the model that client i was sent last
        g = g + (y - x_i) / sqrt(1 + staleness);    after every K changes x = x + server_rate g / K
        x_i = x                                                           the client starts anew

    A round is one arrival. Who arrives when is a table, drawn beforehand:
    `participation.from_table(ids, staleness=ages)` with ids `[T, 1]` and ages `[T]`, how many times
    the server stepped since the client was sent its model.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: an optax optimiser; or a function of the round's number that returns one.
      clients: n, the number of clients of the federation; each keeps the model that it was sent.
      buffer: K >= 1, changes per step of the server; static.
      server_rate: > 0, traceable.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`, the sum g and the
      number of changes in it `state.server.memory`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, arXiv 2106.06639.
    """
    validation.integer("clients", clients, low=1)
    validation.integer("buffer", buffer, low=1)
    validation.real("server_rate", server_rate, low=0.0, low_open=True, scalar=True)
    change = local_change(loss, optimizer)

    def start(key, params):
        return (optax.tree.zeros_like(params), jnp.int32(0)), replicate(params, clients)

    def work(assignment, sent, server, data, index):
        report = change(assignment, (), server._replace(params=sent), data, index)
        return report._replace(memory=sent)

    def update(server, received):
        share = jax.lax.rsqrt(1.0 + received.event["staleness"]) / buffer
        total = optax.tree.add_scale(server.memory[0], share, received.message)
        count, left = server.memory[1] + 1, optax.tree.zeros_like(total)
        stepped = optax.tree.add_scale(server.params, server_rate, total), (left, jnp.int32(0))
        return *select(count == buffer, stepped, (server.params, (total, count))), {}

    def receive(sent, arrived, server, index):
        return server.params

    return with_server(start, work, update, receive=receive, clients=clients)
