"""FedAMD: some participants refresh large-batch gradients, the others move along their mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.broadcast import both_ways
from dflax.channel.channel import Channel
from dflax.clients import gather, map_clients, mean_metrics, scatter, select, weighted_mean
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.recursive import Estimate, recursive
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import warn_of_averaging
from dflax.server.anchors import Anchors


class AmdServer(NamedTuple):
    """What the server carries.

    Attributes:
      params: x, the global model.
      direction: the mean over all n clients of their cached gradients, like the model.
    """

    params: Params
    direction: Params


class AmdClients(NamedTuple):
    """What is kept per client.

    Attributes:
      gradients: v_i, the large-batch gradient each sent last, leaves `[n, ...]`.
      age: `[n]` int32, rounds since then.
    """

    gradients: Params
    age: Int[Array, " n"]


def fedamd(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    anchors: Anchors,
    *,
    server_rate: float | Array = 1.0,
    examples: int | None = None,
    batch_size: int = 500,
    uplink: Channel | None = None,
    at_once: int | None = 1,
) -> Algorithm:
    """FedAMD: anchors and miners among the participants of a round.

    With gbar the mean over all n clients of cached gradients v_i, each member of the cohort S is an
    anchor by the law `anchors`, else a miner:

        anchor:  v_i <- (1/B) sum over a large batch of grad f_i(x; example)
        miner:   y = y_before = x, g = gbar; K times, on minibatches:
                     g <- g - grad f_i(y_before) + grad f_i(y),  y_before <- y,  y <- optimizer(y, g)
                 sends x - y
        server:  x <- x - server_rate (mean over miners of x - y),  gbar anew for the next round

    A round without miners leaves x. A miner's first step goes along gbar whatever its minibatch. A
    client is an anchor every n / (p m) rounds, and until then its part of gbar goes stale: where the
    path rate K n / (p m) in between is long the iteration collapses (in the study `fedamd` a
    perceptron does at 10 and holds at 2, softmax regression holds at 10). `anchors.periodic` is the
    safest law. The authors' option to send (x - y) / K is a `server_rate` divided by K.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` that respects `batch.mask`, or an `Oracle`.
      optimizer: of the miners, an optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      anchors: `dflax.server.anchors.constant(p)`, `periodic(tau)` or `decaying()`.
      server_rate: > 0; traceable.
      examples: of an anchor's large batch, each at most once; None: all that the client owns.
      batch_size: an anchor's examples at a time, >= 1.
      uplink: from clients to server, without memory; default perfect.
      at_once: participants that one device computes at the same time, see `dflax.map_clients`. With 1
        each does its own role's work and no other, and a round costs what its members cost; with more,
        both roles' work is done for each and one result taken, which pays on accelerators and under
        `jax.vmap`. Rounds of one role (`periodic`) cost that role's work in any case.

    Returns:
      An `Algorithm` on `FederatedState(round, AmdServer, AmdClients)` with
      `init(key, params, gradients)`: the clients' gradients at `params` `[n, ...]`, from
      `dflax.local.client_gradients`. Reporting clients count the same. Metrics: the loss's own over
      miners (NaN without any), `clients_reporting`, `anchors`, `miners`, `staleness` (mean age of v_i),
      `gradients` (examples differentiated) and `numbers_up`, `numbers_down`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wu et al., Anchor Sampling for Federated Learning with Partial Client Participation,
      arXiv 2206.05891.
    """
    oracle = gradient(loss)
    solve = solver(recursive(oracle), optimizer)
    validation.instance(
        "anchors", anchors, Anchors, "For example dflax.server.anchors.constant(0.5)."
    )
    validation.real("server_rate", server_rate, low=0.0, low_open=True, scalar=True)
    uplink, _ = both_ways(uplink, None)
    if examples is not None:
        validation.integer("examples", examples, low=1, fix="Or None for all of them.")
    validation.integer("batch_size", batch_size, low=1)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)

    def init(key: Key[Array, ""], params: Params, gradients: Params) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        warn_of_averaging(params)
        clients = check_gradients(params, gradients)
        server = AmdServer(params, weighted_mean(gradients))
        return FederatedState(
            jnp.int32(0), server, AmdClients(gradients, jnp.zeros(clients, jnp.int32))
        )

    def mine(
        assignment: Assignment, large: LargeBatch, server: AmdServer, data: Dataset, number: Array
    ) -> tuple[Params, Metrics]:
        memory = Estimate(server.params, server.direction)
        solution = solve(Subproblem(), server.params, assignment, data, index=number, memory=memory)
        return jax.tree.map(jnp.subtract, server.params, solution.params), solution.metrics

    def refresh(
        assignment: Assignment, large: LargeBatch, server: AmdServer, data: Dataset, number: Array
    ) -> tuple[Params, Metrics]:
        seen = large_gradient(oracle, server.params, large, data, assignment.key)
        _, shapes = jax.eval_shape(mine, assignment, large, server, data, number)
        return seen, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        server, clients = state.server, state.clients
        validation.leading_axis("the clients' gradients", clients.gradients, round.clients)
        role_key, batch_key, up_key = jax.random.split(round.key, 3)
        chance = anchors.probability(round.number)
        is_anchor = jax.random.bernoulli(role_key, chance, round.weights.shape)
        batches = large_batches(round, batch_key, examples=examples, batch_size=batch_size)
        messages, measured = _by_role(
            (refresh, mine), is_anchor, anchors.shared, round, batches, server, at_once
        )
        equal = (round.weights > 0).astype(jnp.float32)
        # Who does not count sends zeros: in a mean, 0 times NaN would be NaN.
        messages = select(equal > 0, messages, jax.tree.map(jnp.zeros_like, messages))
        messages, weights, _, sent = uplink.apply(messages, equal, (), up_key)
        mines, refreshes = weights * ~is_anchor, weights * is_anchor

        change = weighted_mean(messages, mines)
        params = jax.tree.map(lambda x, d: x - server_rate * d, server.params, change)
        old = gather(clients.gradients, round.cohort)
        news = weighted_mean(jax.tree.map(jnp.subtract, messages, old), refreshes)
        share = refreshes.sum() / round.clients
        direction = jax.tree.map(lambda g, d: g + share.astype(g.dtype) * d, server.direction, news)
        fresh = jnp.zeros_like(is_anchor, clients.age.dtype)
        kept = AmdClients(
            scatter(clients.gradients, round.cohort, messages, refreshes),
            scatter(clients.age + 1, round.cohort, fresh, refreshes),
        )
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        minibatch = 2 * round.assignments.minibatches.shape[2]
        seen = jnp.where(is_anchor, batches.examples, minibatch * round.assignments.local_steps)
        metrics = mean_metrics(measured, mines * (round.assignments.local_steps > 0)) | {
            "clients_reporting": weights.sum(),
            "anchors": refreshes.sum(),
            "miners": mines.sum(),
            "staleness": kept.age.astype(jnp.float32).mean(),
            "gradients": jnp.sum(equal * seen),
            "numbers_up": equal.sum() * size,
            "numbers_down": jnp.sum(equal * jnp.where(is_anchor, 1, 2)) * size,
        }
        state = FederatedState(state.round + 1, AmdServer(params, direction), kept)
        return state, metrics | sent

    return Algorithm(init, step)


def check_gradients(params: Params, gradients: Params) -> int:
    """Refuse gradients that are not the clients' of this model; returns n."""
    wanted = (
        "The clients' gradients at params: dflax.local.client_gradients(loss, federation, params)."
    )
    given: Any = jax.tree.structure(gradients)
    if given != jax.tree.structure(params):
        raise ValueError(
            f"gradients must have the structure of params, {jax.tree.structure(params)}, got {given}. "
            f"{wanted}"
        )
    count = validation.leading_axis("gradients", gradients)
    for (path, leaf), one in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(leaf)[1:] != jnp.shape(one):
            raise ValueError(
                f"gradients{jax.tree_util.keystr(path)} must have shape (n, *{jnp.shape(one)}), got "
                f"{jnp.shape(leaf)}. {wanted}"
            )
    return count


def _by_role(
    work: tuple[Callable[..., Any], Callable[..., Any]],
    is_anchor: Bool[Array, " m"],
    shared: bool,
    round: Round,
    batches: LargeBatch,
    server: AmdServer,
    at_once: int | None,
) -> tuple[Params, Metrics]:
    """Every member's message and metrics, at the price of its own role's work where that can be."""
    anchor, miner = work
    stacked, given = (round.assignments, batches), (server, round.data, round.number)
    if shared:
        width = None if at_once == 1 else at_once
        return jax.lax.cond(
            is_anchor[0],
            lambda: map_clients(anchor, *stacked, shared=given, at_once=width),
            lambda: map_clients(miner, *stacked, shared=given, at_once=width),
        )

    def alone(role: Array, *arguments: Any) -> Any:
        return jax.lax.cond(role, anchor, miner, *arguments)

    def both(role: Array, *arguments: Any) -> Any:
        return select(role, anchor(*arguments), miner(*arguments))

    one = alone if at_once == 1 else both
    return map_clients(one, is_anchor, *stacked, shared=given, at_once=at_once)
