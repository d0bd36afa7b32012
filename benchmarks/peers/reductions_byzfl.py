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

from byzfl.aggregators import aggregators  # noqa: E402


def measure(rule: str, arguments: dict, rows: int, columns: int) -> dict[str, float]:
    """Milliseconds of one aggregation, of a torch tensor."""
    values = torch.from_numpy(messages(rows, columns))
    aggregate = getattr(aggregators, rule)(**arguments)
    return {"ms": milliseconds(lambda: aggregate(values), repeats=3)}
