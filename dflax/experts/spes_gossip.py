"""SPES without a server: neighbours average what they share and pass on the newest experts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import gossip, validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import AnyArray, Dataset
from dflax.decentralized.framework.protocol import Client, adapt_then_combine
from dflax.experts.spes import check_merging, first_optimizers, local_steps
from dflax.experts.spes_merging import Merging, compared, merged
from dflax.experts.spes_ownership import ownership
from dflax.local.oracle import Loss
from dflax.local.solver import Optimizer, check_optimizer
from dflax.models.moe.products import placed
from dflax.parts import Chooser
from dflax.parts import joined as put_together
from dflax.population import Assignment
from dflax.topology import Graph


class Node(NamedTuple):
    """What a node remembers beside its model.

    Attributes:
      optimizer: of the shared weights and its own experts.
      version: `[E]` int32, the round in which each expert, as the node has it, was last trained.
    """

    optimizer: PyTree[Array]
    version: Int[Array, " E"]


def spes_gossip(
    loss: Loss,
    optimizer: Optimizer,
    graph: Graph,
    *,
    experts: int,
    slices: Int[AnyArray, "N 2"] | None = None,
    where: Chooser | None = None,
    merging: Merging | None = None,
    as_seen: Callable[[Array, Array, Array], Any] = placed,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Sparse expert synchronisation over a graph in place of a server.

        phi_i, w_i = local steps of node i on the shared weights and its own experts, as in `spes`
        phi_i      = sum_j W_ij phi_j                       Metropolis weights of the graph
        w_i,e      = the newest of w_j,e                    over i and its neighbours, for every expert e

    An expert travels one edge a round, so that a node at distance d of its owner uses it as it was d
    rounds ago. On the complete graph it is `spes` without merging.

    Args:
      loss: as for `dflax.experts.spes`.
      optimizer: as there.
      graph: of the nodes, connected.
      experts: as there.
      slices: as there.
      where: as there.
      merging: as there, but every node moves its own experts only, towards those that it has.
      as_seen: as there.
      channel: between neighbours; default perfect.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the nodes' models are `state.clients.params`, leaves
      `[N, ...]`, their `Node`s `state.clients.memory`. Metrics: the loss's own, `clients_active`, those
      of the mixing, and `age`, the mean over nodes and experts of how many rounds an expert that a
      node trains with is old.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function(
        "loss", loss, "For example dflax.experts.routed_language_modelling.", takes=3
    )
    check_optimizer("optimizer", optimizer)
    validation.instance("graph", graph, Graph, "For example dflax.topology.ring(4).")
    validation.function("as_seen", as_seen, "For example dflax.models.Owned.", takes=3)
    owns = ownership(experts, graph.nodes, slices, where)
    check_merging(merging, experts)
    local = local_steps(loss, optimizer, owns, as_seen)
    mixer = gossip.by_part(
        {
            "shared": gossip.mixer(graph),
            "experts": gossip.by_rule(graph, gossip.join(_newest)),
        },
        lambda path: path.split("/")[0],
    )

    def start(key: Key[Array, ""], models: Params) -> Node:
        one = jax.tree.map(lambda leaf: leaf[0], models)
        if merging is not None:
            compared(owns.divide(one)[1], merging.like)
        version = jnp.zeros((graph.nodes, experts), jnp.int32)
        return Node(first_optimizers(optimizer, owns, one), version)

    def work(
        assignment: Assignment, own: Client, data: Dataset, index: Int[Array, ""]
    ) -> tuple[Client, Metrics]:
        memory = own.memory
        age = jnp.mean((index - memory.version).astype(jnp.float32))
        trained, moments, metrics = local(own.params, memory.optimizer, assignment, data, index)
        _, known = owns.divide(own.params)
        first = jnp.asarray(owns.first)[assignment.client]
        place = jnp.arange(experts)
        mine = (place >= first) & (place < first + owns.held)
        version = jnp.where(mine, index + 1, memory.version)
        after = jax.tree.map(lambda leaf, new: placed(leaf, new, first), known, trained[1])
        if merging is not None:
            after = moved(after, mine, index + 1)
        params = put_together(trained[0], after)
        return Client(params, Node(moments, version)), metrics | {"age": age}

    def moved(known: PyTree[Array], mine: Array, rounds: Array) -> PyTree[Array]:
        """The node's own experts after a merge with those that it has."""
        assert merging is not None, "called with one"
        alpha = merging.at(rounds)
        new = merged(known, alpha, merging.donors, merging.like)
        there = mine & (alpha > 0)
        return jax.tree.map(
            lambda leaf, other: jnp.where(there.reshape(-1, *[1] * (leaf.ndim - 1)), other, leaf),
            known,
            new,
        )

    def message(before: Client, after: Client, index: Int[Array, ""]) -> dict[str, Any]:
        shared, known = owns.divide(after.params)
        return {"shared": shared, "experts": gossip.Stamped(after.memory.version, known)}

    def hear(before: Client, after: Client, heard: Any, index: Int[Array, ""]) -> Client:
        newest = heard["experts"]
        params = put_together(heard["shared"], newest.value)
        return Client(params, after.memory._replace(version=newest.stamp))

    return adapt_then_combine(
        work, mixer, start=start, message=message, hear=hear, channel=channel, at_once=at_once
    )


def _newest(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return one | {"experts": gossip.newest(one["experts"], other["experts"])}
