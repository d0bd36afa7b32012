"""Local steps and gossip: D-PSGD, DFedAvg and DFedAvgM, which differ in when they mix."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import gather, map_clients, mean_metrics, replicate, scatter, select
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.gossip.mixer import Mixer
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem


class Order(enum.Enum):
    """When a round mixes: W the mixing, y_i(x) the model after the local steps from x.

    Attributes:
      ADAPT_THEN_COMBINE: x+ = W y(x). Models are evaluated right after mixing.
      COMBINE_THEN_ADAPT: x+ = y(W x). Models are evaluated right after training.
      PARALLEL: x+ = W x + (y(x) - x). Mixing and training start from the same models.
    """

    ADAPT_THEN_COMBINE = "adapt then combine"
    COMBINE_THEN_ADAPT = "combine then adapt"
    PARALLEL = "parallel"


class Server(NamedTuple):
    """Nobody's state: what the mixer carries (tables, push-sum weights)."""

    mixer: PyTree[Array]


class Clients(NamedTuple):
    """What every client carries.

    Attributes:
      params: its model, leaves `[n, ...]`.
      optimizer: its optimiser's state, leaves `[n, ...]`; None when it is fresh in every round.
      channel: its channel's memory, leaves `[n, ...]`; None without a channel.
    """

    params: Params
    optimizer: PyTree[Array] | None
    channel: PyTree[Array] | None = None


def dpsgd(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    order: Order = Order.PARALLEL,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized parallel SGD: each client takes its step while it averages with its neighbours.

    A round, with the optimiser's state (momentum) kept by each client:

        x_i = sum_j W_ij x_j - eta grad f_i(x_i)         order = PARALLEL, K = 1, SGD

    The published method has one local step per round (a federation with `local_steps=1`); with K > 1
    the gradient step is replaced by the change of K local steps.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      mixer: the gossip, see `dflax.gossip`; its number of clients must be the federation's.
      order: `PARALLEL` as published; `ADAPT_THEN_COMBINE` or `COMBINE_THEN_ADAPT`.
      channel: what happens to the models on the way; default nothing. Everyone, the sender too, mixes
        what was sent; a model that is lost or dropped is mixed by nobody, and its owner keeps it.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, leaves `[n, ...]`. Its
      `init` takes one model, which every client starts from, or a function `key -> model` for
      independent starts. Metrics: the loss's own, `clients_active`, and the mixer's.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, arXiv 1705.09056.
    """
    return gossip_averaging(
        loss,
        optimizer,
        mixer,
        order=order,
        keep_optimizer=True,
        channel=channel,
        at_once=at_once,
    )


def dfedavg(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    order: Order = Order.ADAPT_THEN_COMBINE,
    keep_optimizer: bool = False,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized federated averaging (DFedAvg): K local steps, then gossip.

    A round, with a fresh local optimiser:

        y_i = K steps of `optimizer` on f_i from x_i     momentum here: DFedAvgM
        x_i = sum_j W_ij y_j                             once, or as often as the mixer says

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      mixer: the gossip, see `dflax.gossip`; give it `steps=Q` for several gossip steps a round.
      order: see `Order`.
      keep_optimizer: keep each client's optimiser state from round to round instead of a fresh one.
      channel: as in `dpsgd`.
      at_once: see `dflax.map_clients`.

    Returns:
      As `dpsgd`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Sun, Li and Wang, Decentralized Federated Averaging, arXiv 2104.11375.
    """
    return gossip_averaging(
        loss,
        optimizer,
        mixer,
        order=order,
        keep_optimizer=keep_optimizer,
        channel=channel,
        at_once=at_once,
    )


def gossip_averaging(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    order: Order,
    keep_optimizer: bool,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Local steps and gossip in a given order: what `dpsgd` and `dfedavg` have in common.

    Clients that are not in the cohort, or do not report, neither train nor mix: they keep model and
    optimiser state bit for bit, and their weight at a neighbour goes to the neighbour's own model.

    Args and returns are those of `dfedavg`, without defaults.
    """
    check_optimizer("optimizer", optimizer)
    if not isinstance(mixer, Mixer):
        raise TypeError(
            f"mixer must be a Mixer, got {type(mixer).__name__}. Make one with dflax.gossip, for "
            "example dflax.gossip.ring(n) or dflax.gossip.mixer(W)."
        )
    validation.flag("keep_optimizer", keep_optimizer)
    if channel is not None:
        validation.instance("channel", channel, Channel, "Make one with dflax.channel.")
    if not isinstance(order, Order):
        raise TypeError(f"order must be one of {[str(o) for o in Order]}, got {order!r}.")
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    solve = solver(loss, optimizer)

    def init(key: Key[Array, ""], params: Params | Callable[..., Params]) -> FederatedState:
        validation.typed_key("key", key)
        # The rounds of a run with the same key fold in small numbers: no start shares a key with one.
        own = jax.random.fold_in(key, 0xFFFFFFFF)
        # A function is a leaf of its own; a model that can be called (equinox) has arrays for leaves.
        if callable(params) and jax.tree_util.all_leaves([params]):
            models = jax.vmap(params)(jax.random.split(own, mixer.clients))
            validation.model("params", models)
        else:
            validation.model("params", params)
            models = replicate(params, mixer.clients)
        memory = sent = None
        if keep_optimizer:
            memory = jax.vmap(optimizer_at(optimizer, jnp.int32(0)).init)(models)
        if channel is not None:
            one = jax.tree.map(lambda leaf: leaf[0], models)
            sent = replicate(channel.init(one), mixer.clients)
        return FederatedState(
            jnp.int32(0), Server(mixer.init(models)), Clients(models, memory, sent)
        )

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != mixer.clients:
            raise ValueError(
                f"mixer must mix the federation's {round.clients} clients, got one for "
                f"{mixer.clients}. Make it with as many clients as the partition has."
            )
        active = _active(round, mixer.clients)
        models, mixing = state.clients.params, state.server.mixer

        def train(models: Params) -> tuple[Clients, Metrics]:
            def local_work(
                assignment: Assignment, params: Params, memory: Any, data: Dataset, index: Array
            ) -> tuple[Clients, Metrics]:
                solution = solve(
                    Subproblem(), params, assignment, data, index=index, optimizer_state=memory
                )
                kept = solution.optimizer if keep_optimizer else None
                return Clients(solution.params, kept), solution.metrics

            before = Clients(models, state.clients.optimizer)
            rows = gather(before, round.cohort)
            rows, measured = map_clients(
                local_work,
                round.assignments,
                rows.params,
                rows.optimizer,
                shared=(round.data, round.number),
                at_once=at_once,
            )
            return scatter(before, round.cohort, rows), measured

        def mix(models: Params) -> tuple[Params, Any, Any, Any, Metrics]:
            if channel is None:
                mixed, tables, metrics = mixer.apply(
                    models, mixing, round.key, round.number, active
                )
                return mixed, tables, None, None, metrics
            channel_key, mixer_key = jax.random.split(round.key)
            weights = jnp.ones(mixer.clients) if active is None else active
            sent, weights, memory, counted = channel.apply(
                models, weights, state.clients.channel, channel_key
            )
            mixed, tables, metrics = mixer.apply(sent, mixing, mixer_key, round.number, weights)
            memory = memory if active is None else select(active > 0, memory, state.clients.channel)
            mixed = select(weights > 0, mixed, models)
            return mixed, tables, memory, weights, metrics | counted

        if order is Order.ADAPT_THEN_COMBINE:
            after, measured = train(models)
            mixed, mixing, memory, arrived, sent = mix(after.params)
        elif order is Order.COMBINE_THEN_ADAPT:
            mixed, mixing, memory, arrived, sent = mix(models)
            after, measured = train(mixed)
            mixed = after.params
        else:
            after, measured = train(models)
            mixed, mixing, memory, arrived, sent = mix(models)
            mixed = jax.tree.map(lambda w, y, x: w + (y - x), mixed, after.params, models)
            if active is not None:
                mixed = select(active > 0, mixed, models)
        present = jnp.ones_like(round.weights) if round.reports is None else round.reports
        counted = present * (round.assignments.local_steps > 0)
        if arrived is not None:
            counted *= gather(arrived, round.cohort) > 0
        metrics = mean_metrics(measured, counted)
        metrics |= {"clients_active": present.sum()}
        clients = Clients(mixed, after.optimizer, memory)
        return FederatedState(state.round + 1, Server(mixing), clients), metrics | sent

    return Algorithm(init, step)


def _active(round: Round, clients: int) -> Float[Array, " n"] | None:
    """The mask of clients that take part in this round; None when all do, whatever is drawn."""
    if round.cohort is None:
        return round.reports
    reports = jnp.ones(round.cohort.shape) if round.reports is None else round.reports
    return jnp.zeros(clients, jnp.float32).at[round.cohort].set(reports, unique_indices=True)
