"""Clients that send the momentum of their gradients, and a server that steps along a rule of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.local.oracle import Oracle
from dflax.population import Assignment, Round
from dflax.privacy.poisson import PoissonSampled
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


class Task(NamedTuple):
    """One client's work.

    Attributes:
      assignment: its minibatch and key.
      expected: `[]` b_i, the expected number of examples in its minibatch.
    """

    assignment: Assignment
    expected: Float[Array, ""]

    @property
    def local_steps(self) -> Int[Array, ""]:
        """Of the assignment."""
        return self.assignment.local_steps


Seen = Callable[[Int[Array, ""], Float[Array, ""]], Oracle]


def client_momentum(
    seen: Seen,
    clients: int,
    *,
    rate: Rate,
    beta: float | Float[Array, ""] = 0.9,
    aggregator: Aggregator,
    **options: Any,
) -> Algorithm:
    """Client momentum: each client averages its gradients over rounds, the server combines the averages.

        g_i   = gradient of client i on its minibatch
        phi_i <- (1 - beta) g_i + beta phi_i                           phi_i = 0 at first, and is sent
        phi   <- aggregator(phi_i)
        x     <- x - rate(t) phi

    Args:
      seen: `(t, b_i) -> Oracle`: how a client sees its objective in round t, with b_i the expected
        number of examples in its minibatch: p_i n_i under `privacy.poisson_sampled`, else its places.
      clients: n.
      rate: > 0, traceable; or a function of the round's number that returns one.
      beta: in [0, 1), traceable.
      aggregator: of the momenta; clients count the same.
      **options: `channel`, where hostile clients lie, and `at_once`, as for `with_server`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, phi `state.server.memory`, the phi_i
      `state.clients.memory`. Metrics: the oracle's own, `momentum_norm` (|phi|), `distance` (mean over
      clients of |phi_i - phi| before the update, as they mean to send it) and the aggregator's.

    Raises:
      TypeError, ValueError: naming the argument; and, while a round is traced, more than one local step.

    References:
      Karimireddy, He and Jaggi, Learning from History for Byzantine Robust Optimization,
      arXiv 2012.10333.
    """
    validation.function("seen", seen, "It gets the round's number and b_i.", takes=2)
    validation.integer("clients", clients, low=1)
    check_rate("rate", rate, low=0.0, low_open=True)
    validation.real("beta", beta, low=0.0, high=1.0, high_open=True, scalar=True)
    validation.instance("aggregator", aggregator, Aggregator, "For example aggregation.mean().")

    def start(key: Key[Array, ""], params: Params) -> tuple[Params, Params]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, replicate(zeros, clients)

    def work(
        task: Task, momentum: Params, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        fetch_key, own_key = jax.random.split(task.assignment.key)
        batch = data.fetch(task.assignment.minibatches[0], fetch_key)
        gradient, metrics = seen(index, task.expected)(server.params, batch, own_key)
        momentum = jax.tree.map(
            lambda g, m: ((1 - beta) * g + beta * m).astype(m.dtype), gradient, momentum
        )
        away = optax.tree.norm(optax.tree.sub(momentum, server.memory))
        return Report(momentum, momentum, metrics | {"distance": away})

    def update(server: Server, received: Received) -> tuple[Params, Params, Metrics]:
        momentum = received.message
        step = rate_at(rate, received.number)
        params = jax.tree.map(lambda x, m: (x - step * m).astype(x.dtype), server.params, momentum)
        return params, momentum, {"momentum_norm": optax.tree.norm(momentum)}

    return with_server(
        start,
        work,
        update,
        aggregator=aggregator,
        clients=clients,
        equal=True,
        assign=expecting,
        **options,
    )


def expecting(round: Round, key: Key[Array, ""]) -> Task:
    """The cohort's work, with the expected sizes of minibatches."""
    minibatches = round.assignments.minibatches
    steps, places = minibatches.shape[1:]
    if steps != 1:
        raise ValueError(
            f"local_steps must be 1, one minibatch a round, in the federation of a method with client "
            f"momentum, got {steps}."
        )
    if isinstance(round.partition, PoissonSampled):
        return Task(round.assignments, round.partition.expected[round.members])
    return Task(round.assignments, jnp.full(len(minibatches), places, jnp.float32))
