"""Streams of events drawn beforehand, and the sources that join them to data."""

from dflax.events.law import Law
from dflax.events.node_events import NodeEvent, NodeEvents
from dflax.events.stream import Groups, Stream, independent_groups, poisson_stream
from dflax.events.thinned import thinned

__all__ = [
    "Groups",
    "Law",
    "NodeEvent",
    "NodeEvents",
    "Stream",
    "independent_groups",
    "poisson_stream",
    "thinned",
]


def __dir__() -> list[str]:
    return __all__
