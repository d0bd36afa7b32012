"""ByzFL's robust aggregation rules on one matrix of messages."""

import importlib.util
import sys
import types

import torch

from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import messages

# The package itself imports its training programs and with them torchvision; the rules need neither.
spec = importlib.util.find_spec("byzfl")
package = types.ModuleType("byzfl")
package.__path__ = list((spec and spec.submodule_search_locations) or ())
sys.modules["byzfl"] = package

from byzfl.aggregators import aggregators, preaggregators  # noqa: E402


def measure(
    rule: str, arguments: dict, rows: int, columns: int, after: str = "", repeats: int = 3
) -> dict[str, float]:
    """Milliseconds of one aggregation, of a torch tensor.

    `after` is the rule behind a pre-aggregator. Rules that keep a state go on from call to call.
    """
    values = torch.from_numpy(messages(rows, columns))
    room = preaggregators if after else aggregators
    aggregate = getattr(room, rule)(**arguments)
    last = getattr(aggregators, after)() if after else lambda made: made
    # Its clipping overwrites the messages: a second call would find nothing to clip.
    fresh = values.clone if after else lambda: values
    took = milliseconds(
        lambda values: last(aggregate(values)), repeats=repeats, fresh=lambda: (fresh(),)
    )
    return {"ms": took}
