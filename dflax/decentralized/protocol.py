"""A round without a server, from what a paper states: a client's work, its message, what it hears."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import gather, map_cohort, mean_metrics, replicate, scatter, select
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.gossip.mixer import Mixer, deal, join, require_mixer
from dflax.models.averaged import warn_of_averaging

Message = PyTree[Array]
Number = Int[Array, ""]


class Client(NamedTuple):
    """One client, as a method sees it.

    Attributes:
      params: its model.
      memory: the method's own: duals, trackers, masks, an optimiser's state; () for none.
    """

    params: Params
    memory: Any = ()


class Server(NamedTuple):
    """Nobody's state: what the mixer carries and every client reads (tables, push-sum weights)."""

    mixer: PyTree[Array] = ()


class Clients(NamedTuple):
    """What the n clients carry.

    Attributes:
      params: their models, leaves `[n, ...]`.
      memory: the method's own, leaves `[n, ...]`; () or None for none.
      channel: the channel's memory, leaves `[n, ...]`; None without a channel.
      mixer: what the mixer carries for each client, leaves `[n, ...]`, often none.
    """

    params: Params
    memory: Any = ()
    channel: PyTree[Array] | None = None
    mixer: PyTree[Array] = ()

    @property
    def optimizer(self) -> Any:
        """The memory, as methods call it that keep nothing in it but their optimiser's state."""
        return self.memory


def adapt_then_combine(
    work: Callable[[Assignment, Client, Dataset, Number], tuple[Client, Metrics]],
    mixer: Mixer,
    *,
    start: Callable[..., Any] = lambda key, models: (),
    message: Callable[[Client, Client, Number], Message] = lambda before, after, t: after.params,
    hear: Callable[[Client, Client, Message, Number], Client] = (
        lambda before, after, heard, t: after._replace(params=heard)
    ),
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """The algorithm of a method whose clients work on their data before they mix.

    A round t, for the clients i that take part:

        after_i   = work(assignment_i, before_i, data, t)         in parallel
        message_i = message(before_i, after_i, t)
        heard_i   = sum_j W_ij channel(message_j)                 the mixer
        client_i  = hear(before_i, after_i, heard_i, t)

    Whoever is not invited, or does not report, keeps model and memory bit for bit, and its weight at
    a neighbour goes to the neighbour's own message. A client whose message is lost hears itself.
    Everything else of a round (cohorts, meshes, channels' memories, metrics) is done here, once for
    all methods. `work` alone reads data; `message` and `hear` are arithmetic of one client's rows.

    Args:
      work: `(assignment, client, data, index) -> (client, metrics)` for one client.
      mixer: the gossip, see `dflax.gossip`; its number of clients must be the federation's.
      start: `(key, models, *given) -> memory` with leaves `[n, ...]`, or () for none. `given` is what
        a user passes to `init` after the model.
      message: what is mixed, a tree of real numbers: `(before, after, index) -> message`; default the
        model after the work. Mixed trees may be several: a dict of the model and a tracker, ...
      hear: `(before, after, heard, index) -> client`; default: the model becomes what is heard.
      channel: what happens to messages on the way; default nothing. Everyone, the sender too, mixes
        what was sent.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on `FederatedState(round, Server, Clients)`; models are `state.clients.params`,
      leaves `[n, ...]`. Its `init` takes one model, which every client starts from, or a function
      `key -> model` for independent starts. Metrics: the work's own, averaged over the clients that
      take part, `clients_active`, and those of mixer and channel.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      dflax.models.AveragedStatistics: from `init`, models with "batch_stats" that the mixer averages.
    """

    def one_round(state: FederatedState, round: Round, active: Any) -> tuple[Any, ...]:
        before = Client(state.clients.params, state.clients.memory)

        def one(own: Client, assignment: Assignment, data: Dataset, index: Array) -> Any:
            return work(assignment, own, data, index)

        rows, measured = map_cohort(
            one,
            before,
            round.cohort,
            round.assignments,
            shared=(round.data, round.number),
            at_once=at_once,
        )
        after = scatter(before, round.cohort, rows)
        messages = jax.vmap(message, in_axes=(0, 0, None))(before, after, round.number)
        heard, *carried = _mix(mixer, channel, state, round, messages, active)
        clients = jax.vmap(hear, in_axes=(0, 0, 0, None))(before, after, heard, round.number)
        return (
            clients if active is None else select(active > 0, clients, before),
            measured,
            *carried,
        )

    def first_message(client: Client) -> Message:
        return message(client, client, jnp.int32(0))

    return _algorithm(one_round, first_message, mixer, start, channel, at_once)


def combine_then_adapt(
    work: Callable[[Assignment, Client, Message, Dataset, Number], tuple[Client, Metrics]],
    mixer: Mixer,
    *,
    start: Callable[..., Any] = lambda key, models: (),
    message: Callable[[Client, Number], Message] = lambda own, t: own.params,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """The algorithm of a method whose clients mix before they work on their data.

    A round t, for the clients i that take part:

        message_i = message(client_i, t)
        heard_i   = sum_j W_ij channel(message_j)                 the mixer
        client_i  = work(assignment_i, client_i, heard_i, data, t)

    Args:
      work: `(assignment, client, heard, data, index) -> (client, metrics)` for one client.
      mixer: as in `adapt_then_combine`.
      start: as there.
      message: what is mixed: `(client, index) -> message`; default the model.
      channel: as there.
      at_once: as there.

    Returns:
      As `adapt_then_combine`, models as they are after the work.

    Raises:
      TypeError, ValueError: naming the argument. Warnings are those of `adapt_then_combine`.
    """

    def one_round(state: FederatedState, round: Round, active: Any) -> tuple[Any, ...]:
        before = Client(state.clients.params, state.clients.memory)
        messages = jax.vmap(message, in_axes=(0, None))(before, round.number)
        heard, *carried = _mix(mixer, channel, state, round, messages, active)

        def one(
            held: tuple[Client, Message], assignment: Assignment, data: Dataset, index: Array
        ) -> Any:
            return work(assignment, *held, data, index)

        rows, measured = map_cohort(
            one,
            (before, heard),
            round.cohort,
            round.assignments,
            shared=(round.data, round.number),
            at_once=at_once,
        )
        return scatter(before, round.cohort, rows, round.reports), measured, *carried

    def first_message(client: Client) -> Message:
        return message(client, jnp.int32(0))

    return _algorithm(one_round, first_message, mixer, start, channel, at_once)


def mixed(mixer: Mixer, state: FederatedState, round: Round) -> Params:
    """The models as the mixing of this round will make them, for evaluation; the state stays as it is.

    Of an algorithm that combines before it adapts, without a channel, and whose messages are its models:
    what its clients will start their local steps from.

    Args:
      mixer: the algorithm's.
      state: before the round.
      round: that the algorithm's step is about to get.

    Returns:
      Leaves `[n, ...]`.
    """
    require_mixer(mixer)
    return _mix(mixer, None, state, round, state.clients.params, _active(round, mixer.clients))[0]


def _algorithm(
    one_round: Callable[..., tuple[Any, ...]],
    first_message: Callable[[Client], Message],
    mixer: Mixer,
    start: Callable[..., Any],
    channel: Channel | None,
    at_once: int | None,
) -> Algorithm:
    """Start, checks and metrics, which do not depend on what comes first in a round."""
    require_mixer(mixer)
    if channel is not None:
        validation.instance("channel", channel, Channel, "Make one with dflax.channel.")
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    n = mixer.clients

    def init(
        key: Key[Array, ""], params: Params | Callable[..., Params], *given: Any
    ) -> FederatedState:
        validation.typed_key("key", key)
        # The rounds of a run with the same key fold in small numbers: no start shares a key with one.
        own = jax.random.fold_in(key, 0xFFFFFFFF)
        # A function is a leaf of its own; a model that can be called (equinox) has arrays for leaves.
        if callable(params) and jax.tree_util.all_leaves([params]):
            models = jax.vmap(params)(jax.random.split(own, n))
            validation.model("params", models)
        else:
            validation.model("params", params)
            models = replicate(params, n)
        memory = start(jax.random.fold_in(own, n), models, *given)
        if jax.tree.leaves(memory):
            validation.leading_axis("the clients' memory", memory, n)
        messages = jax.vmap(first_message)(Client(models, memory))
        sent = None
        if channel is not None:
            sent = replicate(channel.init(jax.tree.map(lambda leaf: leaf[0], messages)), n)
        once, rows = deal(mixer, mixer.init(messages))
        if mixer.averages_statistics:
            warn_of_averaging(messages, remedies=_remedies(messages))
        return FederatedState(jnp.int32(0), Server(once), Clients(models, memory, sent, rows))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != n:
            raise ValueError(
                f"mixer must mix the federation's {round.clients} clients, got one for {n}. Make it "
                "with as many clients as the partition has."
            )
        active = _active(round, n)
        after, measured, mixing, memory, arrived, sent = one_round(state, round, active)
        present = jnp.ones_like(round.weights) if round.reports is None else round.reports
        counted = jnp.where(round.assignments.local_steps > 0, present, 0)
        if arrived is not None:
            counted = jnp.where(gather(arrived, round.cohort) > 0, counted, 0)
        metrics = mean_metrics(measured, counted) | {"clients_active": present.sum()}
        once, rows = deal(mixer, mixing)
        clients = Clients(after.params, after.memory, memory, rows)
        return FederatedState(state.round + 1, Server(once), clients), metrics | sent

    return Algorithm(init, step)


def _remedies(messages: Any) -> tuple[str, ...]:
    """What mixes running statistics well: of messages that are models alone."""
    alone = isinstance(messages, dict) and "batch_stats" in messages
    fix = "give the method, if it takes a mixer, dflax.gossip.recalibrated(mixer, module)"
    return (fix,) if alone else ()


def _mix(
    mixer: Mixer,
    channel: Channel | None,
    state: FederatedState,
    round: Round,
    messages: Message,
    active: Float[Array, " n"] | None,
) -> tuple[Message, Any, Any, Array | None, Metrics]:
    """What everyone hears; then the mixer's state, the channel's, whose messages came, and metrics."""
    mixing = join(state.server.mixer, state.clients.mixer)
    given: dict[str, Any] = {"round": round} if mixer.informed else {}
    if channel is None:
        key, index = round.key, round.number
        heard, mixing, metrics = mixer.apply(messages, mixing, key, index, active, **given)
        return heard, mixing, None, None, metrics
    channel_key, mixer_key = jax.random.split(round.key)
    weights = jnp.ones(mixer.clients) if active is None else active
    sent, weights, memory, counted = channel.apply(
        messages, weights, state.clients.channel, channel_key
    )
    heard, mixing, metrics = mixer.apply(sent, mixing, mixer_key, round.number, weights, **given)
    memory = memory if active is None else select(active > 0, memory, state.clients.channel)
    # A client whose own message is lost still has it.
    heard = select(weights > 0, heard, messages)
    return heard, mixing, memory, weights, metrics | counted


def _active(round: Round, clients: int) -> Float[Array, " n"] | None:
    """The mask of clients that take part in this round; None when all do, whatever is drawn."""
    if round.cohort is None:
        return round.reports
    reports = jnp.ones(round.cohort.shape) if round.reports is None else round.reports
    return jnp.zeros(clients, jnp.float32).at[round.cohort].set(reports, unique_indices=True)
