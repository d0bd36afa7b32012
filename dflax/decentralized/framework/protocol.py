"""A round without a server, from what a paper states: a client's work, its message, what it hears."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import counter, returned, validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import gather, map_cohort, mean_metrics, replicate, scatter, select
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.exchange import Exchange, Message, Size, exchange, taking_part
from dflax.decentralized.framework.rows import starts
from dflax.gossip.mixer import Mixer, deal, require_mixer, reunited
from dflax.metrics import disjoint
from dflax.models.averaged import warn_of_averaging
from dflax.population import Assignment, Round

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
    size: Size | None = None,
    assign: Callable[[Round], PyTree[Array]] | None = None,
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
    What the four functions return is looked at while the step is traced: the client that comes back
    has the form of the one that went in.

    Args:
      work: `(assignment, client, data, index) -> (client, metrics)` for one client.
      mixer: the gossip, see `dflax.gossip`; its number of clients must be the federation's.
      start: `(key, models, *given) -> memory` with leaves `[n, ...]`, or () for none. `given` is what
        a user passes to `init` after the model.
      message: what is mixed, a tree of real numbers: `(before, after, index) -> message`; default the
        model after the work. Mixed trees may be several: a dict of the model and a tracker, ...
      hear: `(before, after, heard, index) -> client`; default: the model becomes what is heard.
      size: `(message, model) -> float`, how many models' worth of numbers one message is, from their
        shapes, for `models_sent`; default the ratio of their numbers: two trees of the model's size
        count 2. For messages that are sent in another form than they are mixed, such as masks.
      assign: `round -> tasks` with leaves `[m, ...]`, in place of the assignments, for work that needs
        more of the round: its event, for example.
      channel: what happens to messages on the way; default nothing. Everyone, the sender too, mixes
        what was sent.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on `FederatedState(round, Server, Clients)`; models are `state.clients.params`,
      leaves `[n, ...]`. Its `init` takes one model, which every client starts from, or a function
      `key -> model` for independent starts. Metrics: the work's own, averaged over the clients that
      take part, `clients_active`, and those of mixer and channel.

    Raises:
      TypeError, ValueError: naming the argument; from the step, naming the function that returned what
        it may not.

    Warns:
      dflax.models.AveragedStatistics: from `init`, models with "batch_stats" that the mixer averages.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> def work(assignment, client, data, index):
      ...     return client._replace(params=client.params + 1), {}
      >>> algorithm = dx.decentralized.adapt_then_combine(work, dx.gossip.ring(4))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, _ = dx.run(algorithm, state, federation, rounds=2, key=jax.random.key(1))
      >>> state.clients.params.round(3).tolist()[0]
      [2.0, 2.0, 2.0]
    """
    given = {
        "work": (work, 4),
        "message": (message, 3),
        "hear": (hear, 4),
        "size": (size, 2),
        "assign": (assign, 1),
    }
    _require_functions(start=(start, None), **given)

    def send(before: Client, after: Client, index: Number) -> Message:
        return _message(message(before, after, index), "message(before, after, index)")

    def take(before: Client, after: Client, heard: Message, index: Number) -> Client:
        return _client(
            hear(before, after, heard, index), "hear(before, after, heard, index)", before
        )

    def one_round(state: FederatedState, round: Round) -> tuple[Client, Metrics, Exchange]:
        before = Client(state.clients.params, state.clients.memory)

        def one(own: Client, assignment: Assignment, data: Dataset, index: Array) -> Any:
            name = "work(assignment, client, data, index)"
            return _worked(work(assignment, own, data, index), name, own)

        rows, measured = map_cohort(
            one,
            before,
            round.cohort,
            round.assignments if assign is None else assign(round),
            shared=(round.data, round.number),
            at_once=at_once,
        )
        after = scatter(before, round.cohort, rows)
        messages = jax.vmap(send, in_axes=(0, 0, None))(before, after, round.number)
        mixed = _exchange(mixer, channel, state, round, messages, size)
        clients = jax.vmap(take, in_axes=(0, 0, 0, None))(before, after, mixed.heard, round.number)
        active = taking_part(round, mixer.clients)
        clients = clients if active is None else select(active > 0, clients, before)
        return clients, measured, mixed

    def first_message(client: Client) -> Message:
        return send(client, client, jnp.int32(0))

    return _algorithm(one_round, first_message, mixer, start, channel, at_once)


def combine_then_adapt(
    work: Callable[[Assignment, Client, Message, Dataset, Number], tuple[Client, Metrics]],
    mixer: Mixer,
    *,
    start: Callable[..., Any] = lambda key, models: (),
    message: Callable[[Client, Number], Message] = lambda own, t: own.params,
    size: Size | None = None,
    assign: Callable[[Round], PyTree[Array]] | None = None,
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
      size: as there.
      assign: as there.
      channel: as there.
      at_once: as there.

    Returns:
      As `adapt_then_combine`, models as they are after the work.

    Raises:
      TypeError, ValueError: as there, and so are the warnings.
    """
    given = {"work": (work, 5), "message": (message, 2), "size": (size, 2), "assign": (assign, 1)}
    _require_functions(start=(start, None), **given)

    def send(own: Client, index: Number) -> Message:
        return _message(message(own, index), "message(client, index)")

    def one_round(state: FederatedState, round: Round) -> tuple[Client, Metrics, Exchange]:
        before = Client(state.clients.params, state.clients.memory)
        messages = jax.vmap(send, in_axes=(0, None))(before, round.number)
        mixed = _exchange(mixer, channel, state, round, messages, size)

        def one(
            held: tuple[Client, Message], assignment: Assignment, data: Dataset, index: Array
        ) -> Any:
            name = "work(assignment, client, heard, data, index)"
            return _worked(work(assignment, *held, data, index), name, held[0])

        rows, measured = map_cohort(
            one,
            (before, mixed.heard),
            round.cohort,
            round.assignments if assign is None else assign(round),
            shared=(round.data, round.number),
            at_once=at_once,
        )
        return scatter(before, round.cohort, rows, round.reports), measured, mixed

    def first_message(client: Client) -> Message:
        return send(client, jnp.int32(0))

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
    validation.instance("state", state, FederatedState, "Pass what the algorithm's init returns.")
    validation.instance("round", round, Round, "Pass what the federation's draw returns.")
    return _exchange(mixer, None, state, round, state.clients.params).heard


def _algorithm(
    one_round: Callable[[FederatedState, Round], tuple[Client, Metrics, Exchange]],
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
    validation.at_once(at_once)
    n = mixer.clients

    def init(
        key: Key[Array, ""], params: Params | Callable[..., Params], *given: Any
    ) -> FederatedState:
        models = starts(key, params, n)
        # Number n of the keys by which the models are drawn.
        own = jax.random.fold_in(jax.random.fold_in(key, counter.OF_STARTS), n)
        memory = start(own, models, *given)
        if jax.tree.leaves(memory):
            validation.leading_axis("what start returns, the clients' memory,", memory, n)
        messages = jax.vmap(first_message)(Client(models, memory))
        sent = None
        if channel is not None:
            sent = replicate(channel.init(jax.tree.map(lambda leaf: leaf[0], messages)), n)
        once, rows = deal(mixer.init(messages))
        if mixer.known.averages_statistics:
            warn_of_averaging(messages, remedies=_remedies(messages))
        return FederatedState(jnp.int32(0), Server(once), Clients(models, memory, sent, rows))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != n:
            raise ValueError(
                f"mixer must mix the federation's {round.clients} clients, got one for {n}. Make it, or "
                "the graph that it is made of, with as many clients as the partition has."
            )
        after, measured, mixed = one_round(state, round)
        present = jnp.ones_like(round.weights) if round.reports is None else round.reports
        counted = jnp.where(round.assignments.local_steps > 0, present, 0)
        if mixed.arrived is not None:
            counted = jnp.where(gather(mixed.arrived, round.cohort) > 0, counted, 0)
        metrics = disjoint(
            work=mean_metrics(measured, counted),
            round={"clients_active": present.sum()},
            exchange=mixed.metrics,
        )
        once, rows = deal(mixed.mixer)
        clients = Clients(after.params, after.memory, mixed.channel, rows)
        return FederatedState(state.round + 1, Server(once), clients), metrics

    return Algorithm(init, step)


def _remedies(messages: Any) -> tuple[str, ...]:
    """What mixes running statistics well: of messages that are models alone."""
    alone = isinstance(messages, dict) and "batch_stats" in messages
    fix = "give the method, if it takes a mixer, dflax.gossip.recalibrated(mixer, module)"
    return (fix,) if alone else ()


def of_type(tree: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """The tree in the types of another: constants of float64 widen what they multiply."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def _exchange(
    mixer: Mixer,
    channel: Channel | None,
    state: FederatedState,
    round: Round,
    messages: Message,
    size: Size | None = None,
) -> Exchange:
    """What everyone hears, by the mixer's and the channel's parts of a state."""
    clients = state.clients
    mixing = reunited(state.server.mixer, clients.mixer)
    return exchange(mixer, channel, mixing, clients.channel, round, messages, clients.params, size)


def _require_functions(**given: tuple[Any, int | None]) -> None:
    """Refuse what cannot be called with so many arguments; None is the default of some."""
    for name, (value, takes) in given.items():
        if not (name in ("size", "assign") and value is None):
            validation.function(name, value, takes=takes)


def _worked(value: Any, name: str, before: Client) -> tuple[Client, Metrics]:
    """What `work` returned: the client in the form it had, and a dict of metrics."""
    client, metrics = returned.parts(name, value, ("client", "metrics"))
    returned.metrics(f"the metrics of {name}", metrics)
    return _client(client, f"the client of {name}", before), metrics


def _client(value: Any, name: str, before: Client) -> Client:
    validation.instance(name, value, Client, "Make one with Client(params, memory).")
    returned.alike(f"{name}.params", value.params, before.params, "the model before")
    returned.alike(f"{name}.memory", value.memory, before.memory, "the memory before")
    return value


def _message(value: Any, name: str) -> Message:
    if not jax.tree.leaves(value):
        given = validation.shown(value)
        raise TypeError(f"{name} must return a tree of arrays to be mixed, got {given}.")
    return value
