"""What server, clients and messages are to a method with a server."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax.algorithm import Metrics, Params


class Server(NamedTuple):
    """What the server carries.

    Attributes:
      params: the global model.
      memory: the method's own: momentum, control variates, an optimiser's state; () for none.
      aggregator: state of the aggregator; a dict of them where messages are of several kinds.
    """

    params: Params
    memory: Any = ()
    aggregator: PyTree[Array] = ()


class Clients(NamedTuple):
    """What the n clients carry.

    Attributes:
      memory: the method's own, leaves `[n, ...]`: duals, control variates, local layers; () for none.
      channel: the channel's memory, leaves `[n, ...]`, often none.
    """

    memory: Any = ()
    channel: PyTree[Array] = ()

    @property
    def params(self) -> Params:
        """The clients' own models, of methods that remember them under this name."""
        return self.memory.params


class Heard(NamedTuple):
    """What a client has of the server where the server publishes a message.

    Attributes:
      message: the client's own copy, as it came through the downlink.
      arrived: `[]` whether there is one: False for a lost copy, and where nothing was published.
    """

    message: PyTree[Array]
    arrived: Bool[Array, ""]


class Report(NamedTuple):
    """What comes out of one client's local work.

    Attributes:
      message: what is sent to the server; a change or a sum, so that 0 says nothing.
      memory: what the client remembers, of the structure, shapes and dtypes it got; () for none.
      metrics: what it measured, real numbers, integers or booleans; the mean over reporting clients,
        in floating point.
      totals: what it counted; the sum over those who send. None for nothing.
      measured: `[]` whether the metrics are of anything. None: if the client did a local step.
      kinds: `{name: whether the message is of this kind}`, `[]` each, for messages of several kinds
        that are combined kind by kind. None: there is one kind.
    """

    message: PyTree[Array]
    memory: Any
    metrics: Metrics
    totals: Metrics | None = None
    measured: Bool[Array, ""] | None = None
    kinds: dict[str, Bool[Array, ""]] | None = None


class Arrived(NamedTuple):
    """One client's message as it reached the server.

    Attributes:
      message: what came through the channel.
      kinds: as the client's `Report` says; empty where there is one kind.
    """

    message: PyTree[Array]
    kinds: dict[str, Bool[Array, ""]]


class Received(NamedTuple):
    """What the server has in hand at the end of a round.

    Attributes:
      message: the combined messages, one message; a dict of one per kind where there are several. A
        kind that nobody sent is 0.
      reporting: `[]` number of clients whose message arrived, float32.
      share: `[]` the same divided by n: `share * mean over them` is the mean over all n clients of
        something that is 0 for those who are absent. A dict of one per kind where there are several.
      number: `[]` int32 number of the round.
      key: a typed key of the round for the server's own draws.
      metrics: what the clients measured, the mean over those who report.
      event: what the participation says of the round beside who takes part, see `Cohort.event`.
    """

    message: PyTree[Array]
    reporting: Float[Array, ""]
    share: Any
    number: Int[Array, ""]
    key: Key[Array, ""]
    metrics: Metrics
    event: Any = None
