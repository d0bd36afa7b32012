"""RERCE-Fed with continual local updates: clients move on between their turns, the server remembers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.clients import map_clients, replicate
from dflax.data.dataset import Dataset
from dflax.local.convex.quadratic import Quadratic, objective_of, objectives_of, proximal_points
from dflax.population import Assignment, Round
from dflax.server.framework.asked import either, everyone
from dflax.server.framework.protocol import Arrived, Heard, Received, Report, Server
from dflax.server.framework.with_server import with_server


class Started(NamedTuple):
    """What the server remembers.

    Attributes:
      started: `[]`, whether anybody has sent anything yet.
    """

    started: Bool[Array, ""]


class Continual(NamedTuple):
    """What exists per client.

    Attributes:
      params: `[n, d]`, the models.
      heard: `[n, d]`, what each received last.
      has_heard: `[n]`, whether it received anything yet.
      sent: `[n, d]`, what the server received from each last.
    """

    params: Float[Array, "n d"]
    heard: Float[Array, "n d"]
    has_heard: Bool[Array, " n"]
    sent: Float[Array, "n d"]


def rerce_fed_continual(
    penalty: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    aggregator: Aggregator | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """RERCE-Fed with continual local updates on quadratic objectives, over noisy links.

    With P_k = rho (G_k + rho I)^-1, for the cohort S of a round:

        heard_k <- downlink(s)                                                   k in S
        x_k <- (I - P_k) x_k + P_k heard_k,  s_k = 2 x_k - x_k before            all k
        sent_k <- uplink(s_k)                                                    k in S
        s <- mean over all n of sent_k

    Clients extrapolate, and the mean is over all of them, old messages of those outside of S
    included. So the floor under noise hardly depends on how few are in S; that of `rerce_fed` rises,
    as its mean is over fewer. In the first round all n clients send s_k = 2 x_k - z_0 and none moves.
    With everyone in S and perfect links the models are those of `rerce_fed`, and of ADMM.

    Args:
      penalty: rho > 0; traceable.
      uplink: from clients to server, without memory; default perfect. For example
        `dflax.channel.gaussian_noise(0.1)`. In place of a lost message the server keeps the one
        before, at first z_0; its sender goes on as if it had not been in S.
      downlink: from server to each client, without memory; default perfect. Whose copy is lost goes on
        with the one before; a client that has heard nothing yet stays where it is.
      aggregator: of how the messages of S differ from those before; default the mean. s moves by it
        times |S| / n.
      at_once: see `dflax.map_clients`. All n clients work in every round.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params, objectives)`: z_0 `[d]`, usually
      zeros, and the clients' `Quadratic`. Its rounds are of `dflax.local.quadratic_federation`. s is
      `state.server.params`, the x_k `state.clients.params`. The schedule S is the federation's
      participation; in the first round clients answer who were not invited, but not those who are
      known to be absent. Rounds count as first until a message has arrived. Metrics:
      `clients_reporting`, `numbers_up`, `numbers_down`, and what the links measure.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lari et al., Noise-Robust and Resource-Efficient ADMM-based Federated Learning, arXiv 2409.13451.
    """
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)

    def start(
        key: Key[Array, ""], params: Float[Array, " d"], objectives: Quadratic
    ) -> tuple[Started, Continual]:
        models = proximal_points(objectives, params, penalty)
        z = replicate(params, len(models))
        silent = jnp.zeros(len(models), bool)
        return Started(jnp.bool_(False)), Continual(models, z, silent, z)

    def publish(server: Server) -> tuple[Array, Array]:
        return server.params, server.memory.started

    def move(memory: Continual, objective: Quadratic) -> Continual:
        x = objective.toward(memory.params, memory.heard, penalty).astype(memory.params.dtype)
        return memory._replace(params=jnp.where(memory.has_heard, x, memory.params))

    def rest(memories: Continual, round: Round) -> Continual:
        return map_clients(move, memories, objectives_of(round), at_once=at_once)

    def first(
        assignment: Assignment, memory: Continual, heard: Heard, data: Dataset, index: Array
    ) -> Report:
        # Before anything is heard, that is z_0.
        return Report(2 * memory.params - memory.heard, memory, {})

    def work(
        assignment: Assignment, memory: Continual, heard: Heard, data: Dataset, index: Array
    ) -> Report:
        memory = memory._replace(
            heard=jnp.where(heard.arrived, heard.message, memory.heard),
            has_heard=memory.has_heard | heard.arrived,
        )
        moved = move(memory, objective_of(assignment, data))
        return Report(2 * moved.params - memory.params, moved, {})

    def news(memory: Continual, arrived: Arrived) -> Array:
        return arrived.message - memory.sent

    def update(server: Server, received: Received) -> tuple[Array, Started, Metrics]:
        share = received.share.astype(server.params.dtype)
        return server.params + share * received.message, Started(jnp.bool_(True)), {}

    def note(memory: Continual, arrived: Arrived, server: Server, index: Array) -> Continual:
        return memory._replace(sent=arrived.message)

    def rounds(work) -> Algorithm:
        return with_server(
            start,
            work,
            update,
            aggregator=aggregator,
            channel=without_memory("uplink", uplink),
            publish=publish,
            downlink=without_memory("downlink", downlink),
            read=news,
            receive=note,
            rest=rest,
            equal=True,
            at_once=at_once,
        )

    opening, later = rounds(first), rounds(work)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        key, _ = jax.random.split(round.key)
        return either(
            state.server.memory.started,
            lambda: later.step(state, round),
            lambda: opening.step(state, everyone(round, key)),
        )

    return Algorithm(later.init, step)
