"""SPES: mixtures of experts trained by nodes that each keep gradients and moments of a few of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import select
from dflax.data.dataset import AnyArray, Batch, Dataset
from dflax.experts.spes_merging import Merging, compared, mean_cosine, merged
from dflax.experts.spes_ownership import Ownership, Upload, collected, ownership, size_of
from dflax.local.oracle import Loss
from dflax.local.solver import Optimizer, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem
from dflax.models.moe.products import placed
from dflax.parts import Chooser
from dflax.parts import joined as put_together
from dflax.population import Assignment
from dflax.server.framework.averaging import descent
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


def spes(
    loss: Loss,
    optimizer: Optimizer,
    *,
    experts: int,
    nodes: int,
    slices: Int[AnyArray, "N 2"] | None = None,
    where: Chooser | None = None,
    merging: Merging | None = None,
    server_optimizer: Optimizer | None = None,
    as_seen: Callable[[Array, Array, Array], Any] = placed,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Sparse expert synchronisation: every node trains the shared weights and the experts that it owns.

    With shared weights phi (embeddings, attention, routers, head) and experts w_e, node i owning the
    experts O_i, a round t = 1, 2, ...:

        phi_i, w_i = K steps of `optimizer` on f_i from (phi, w_e, e in O_i)       i in S, in parallel
        phi        = mean over i in S of phi_i                                     uniform
        w_e        = w_i,e  of its owner i, if i is in S; else as it was
        phi, w     = server_optimizer on the changes of both; SGD(1) adds them     w_e of i in S alone
        w          = merging(w)                                                    see `merging`

    Tokens are routed over all experts. Those of other nodes stand still during the steps: gradients
    flow through them and not into them, so that gradients, the optimiser's state and uploads are of
    |phi| + q |w_e| numbers, where training everything takes |phi| + E |w_e|. A node keeps its
    optimiser's state from round to round. With one node it is training on one machine.

    Args:
      loss: of the whole model, `(params, batch, key) -> (loss, metrics)`, for example
        `dflax.experts.routed_language_modelling`.
      optimizer: an optax optimiser of `(phi, own experts)`, which keeps its state; or a function of the
        round's number that returns one.
      experts: E, the first axis of the experts' leaves.
      nodes: N, the number of clients of the federation; divides E.
      slices: `[N, 2]`, first expert and end of each node; None deals them out in order. Together they
        hold every expert once.
      where: whether a leaf holds experts, by its path, names joined by "/"; default the matrices of
        `dflax.models.MoE`.
      merging: the warm-up; None for none.
      server_optimizer: applied to the negative changes of a round, as DiLoCo does with
        `optax.sgd(0.7, 0.9, nesterov=True)`; an expert is moved by its owner's change. None, as in the
        paper, takes over what the nodes found.
      as_seen: `(all experts, own, first) -> ` a leaf of experts as the loss gets it. By default one
        array, which any model takes; gradients of all experts of a layer are formed on the way. With
        `dflax.models.Owned`, which a `dflax.models.MoE` takes, none of the others' are.
      channel: between nodes and server; default perfect. It carries values, not changes.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`, the nodes' optimisers
      `state.clients.memory`. Metrics: the loss's own, `clients_reporting`, `merging_strength`,
      `expert_cosine` (the mean cosine of two experts of a layer; only with merging), `numbers_up` and
      `numbers_down` (what uploads, and the broadcast of the whole model to every node, come to).

    Raises:
      TypeError, ValueError: naming the argument; from `init`, a model without such experts.

    References:
      Zhang et al., Pretraining A Large Language Model using Distributed GPUs: A Memory-Efficient
      Decentralized Paradigm, arXiv 2602.11543.
    """
    validation.function(
        "loss", loss, "For example dflax.experts.routed_language_modelling.", takes=3
    )
    check_optimizer("optimizer", optimizer)
    validation.function("as_seen", as_seen, "For example dflax.models.Owned.", takes=3)
    if channel is not None:
        validation.instance("channel", channel, Channel, "Make one with dflax.channel.")
    owns = ownership(experts, nodes, slices, where)
    check_merging(merging, experts)
    local = local_steps(loss, optimizer, owns, as_seen)
    begin, follow = descent(server_optimizer)

    def start(key: Key[Array, ""], params: Params) -> tuple[tuple[()], PyTree[Array]]:
        if merging is not None:
            compared(owns.divide(params)[1], merging.like)
        memory = begin(key, params)[0] if server_optimizer is not None else ()
        return memory, first_optimizers(optimizer, owns, params)

    def message(params: Params) -> Upload:
        shared, all_experts = owns.divide(params)
        return Upload(shared, owns.own(all_experts, jnp.int32(0)))

    def work(
        assignment: Assignment, own: Any, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        trained, memory, metrics = local(server.params, own, assignment, data, index)
        return Report(Upload(*trained), memory, metrics)

    def update(server: Server, received: Received) -> tuple[Params, PyTree[Array], Metrics]:
        known = owns.divide(server.params)[1]
        sent = received.message
        shared, after, memory = sent.shared, select(sent.there, sent.experts, known), server.memory
        if server_optimizer is not None:
            change = jax.tree.map(jnp.subtract, put_together(shared, after), server.params)
            moved, memory, _ = follow(server, received._replace(message=change))
            shared, new = owns.divide(moved)
            # Momentum would move an expert whose owner is absent, too.
            after = select(sent.there, new, known)
        after, metrics = warmed_up(merging, after, received.number + 1)
        own = sum(leaf.size for leaf in jax.tree.leaves(after)) * owns.held / owns.experts
        count = received.reporting
        metrics |= {
            "numbers_up": count * (size_of(shared) + own),
            "numbers_down": count * size_of(server.params),
        }
        return put_together(shared, after), memory, metrics

    return with_server(
        start,
        work,
        update,
        aggregator=collected(owns),
        message=message,
        channel=channel,
        clients=nodes,
        equal=True,
        at_once=at_once,
    )


def check_merging(merging: Merging | None, experts: int) -> None:
    """Refuse what is no `Merging`, or one with more donors than there are other experts."""
    if merging is None:
        return
    validation.instance("merging", merging, Merging, "Make one with dflax.experts.merging.")
    if merging.donors > experts - 1:
        raise ValueError(
            f"donors of merging must be at most the other experts, {experts - 1}, got {merging.donors}."
        )


def first_optimizers(optimizer: Optimizer, owns: Ownership, params: Params) -> PyTree[Array]:
    """Every node's optimiser before its first step, leaves `[N, ...]`."""
    shared, experts = owns.divide(params)
    descent = optimizer_at(optimizer, jnp.int32(0))
    return jax.vmap(lambda first: descent.init((shared, owns.own(experts, first))))(
        jnp.asarray(owns.first)
    )


def local_steps(
    loss: Loss, optimizer: Optimizer, owns: Ownership, as_seen: Callable[[Array, Array, Array], Any]
) -> Callable[..., tuple[tuple[PyTree[Array], PyTree[Array]], Any, Metrics]]:
    """A node's work, `(params, optimiser, assignment, data, index) -> (trained, optimiser, metrics)`.

    `trained` is the pair of the shared weights and the own experts, leaves `[q, ...]`.
    """

    def work(
        params: Params, own: Any, assignment: Assignment, data: Dataset, index: Int[Array, ""]
    ) -> tuple[tuple[PyTree[Array], PyTree[Array]], Any, Metrics]:
        shared, experts = owns.divide(params)
        first = jnp.asarray(owns.first)[assignment.client]

        def seen(trained: Any, batch: Batch, key: Key[Array, ""] | None) -> Any:
            return loss(owns.whole(trained[0], experts, trained[1], first, as_seen), batch, key)

        solution = solver(seen, optimizer)(
            Subproblem(),
            (shared, owns.own(experts, first)),
            assignment,
            data,
            index=index,
            optimizer_state=own,
        )
        return solution.params, solution.optimizer, solution.metrics

    return work


def warmed_up(
    merging: Merging | None, experts: PyTree[Array], rounds: Int[Array, ""]
) -> tuple[PyTree[Array], Metrics]:
    """The experts after the merge of this round, if there is one, and what was measured."""
    if merging is None:
        return experts, {}
    alpha = merging.at(rounds)
    after = jax.lax.cond(
        alpha > 0,
        lambda tree: merged(tree, alpha, merging.donors, merging.like),
        lambda tree: tree,
        experts,
    )
    cosine = mean_cosine(after, merging.like)
    return after, {"merging_strength": alpha, "expert_cosine": cosine}
