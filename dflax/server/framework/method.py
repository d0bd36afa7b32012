"""What a method with a server states, checked at the door."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, mean
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel, perfect

# How many arguments each function of a method gets; `start` gets what a user passes to `init`, too.
TAKES = {
    "start": None,
    "work": 5,
    "update": 2,
    "message": 1,
    "assign": 2,
    "publish": 1,
    "read": 2,
    "receive": 4,
    "answer": 1,
    "rest": 2,
}


class Method(NamedTuple):
    """What a method states, see `with_server`, whose arguments these are. None: not stated.

    Attributes:
      in_turn: whether messages are added up as they come, clients one after another, and no two of them
        are ever held: nothing but their sum is wanted, with factors that are known before.
    """

    start: Callable[..., Any]
    work: Callable[..., Any]
    update: Callable[..., Any]
    message: Callable[..., Any]
    assign: Callable[..., Any] | None
    publish: Callable[..., Any] | None
    read: Callable[..., Any] | None
    receive: Callable[..., Any] | None
    answer: Callable[..., Any] | None
    rest: Callable[..., Any] | None
    aggregator: Aggregator
    channel: Channel
    downlink: Channel
    kinds: tuple[str, ...]
    clients: int | None
    equal: bool
    at_once: int | None
    in_turn: bool


def stated(aggregator: Aggregator | None, channel: Channel | None, **given: Any) -> Method:
    """The arguments of `with_server` as a `Method`, with defaults filled in.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, takes in TAKES.items():
        if given[name] is not None or name in ("start", "work", "update", "message"):
            validation.function(name, given[name], takes=takes)
    for place, kind in enumerate(validation.sequence("kinds", given["kinds"], "names", least=0)):
        validation.text(f"kinds[{place}]", kind)
    aggregator = mean() if aggregator is None else aggregator
    each_is_wanted = (channel, given["read"], given["receive"]) != (None, None, None)
    channel = perfect() if channel is None else channel
    validation.instance(
        "aggregator", aggregator, Aggregator, "For example dflax.aggregation.mean()."
    )
    validation.instance("channel", channel, Channel, "For example dflax.channel.finite_only().")
    validation.flag("equal", given["equal"])
    if given["clients"] is not None:
        validation.integer("clients", given["clients"], low=1)
    validation.at_once(given["at_once"])
    for name in ("publish", "receive"):
        if given["answer"] is not None and given[name] is None:
            raise ValueError(f"{name} must be given with an answer, got None.")
    if given["downlink"] is not None and given["publish"] is None:
        raise ValueError(
            "publish must be given with a downlink, to say what is sent over it, got None and "
            f"downlink={validation.shown(given['downlink'])}."
        )
    given["downlink"] = without_memory("downlink", given["downlink"])
    summed = aggregator.linear is not None and not each_is_wanted and not given["kinds"]
    in_turn = given["at_once"] == 1 and summed
    return Method(aggregator=aggregator, channel=channel, in_turn=in_turn, **given)
