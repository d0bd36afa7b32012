"""What ByzFL's rules, pre-aggregators and attacks make of given rows."""

import importlib.util
import sys
import types

import numpy as np

from benchmarks.tasks import unlike_messages

# The package itself imports its training programs and with them torchvision; the rules need neither.
spec = importlib.util.find_spec("byzfl")
package = types.ModuleType("byzfl")
package.__path__ = list((spec and spec.submodule_search_locations) or ())
sys.modules["byzfl"] = package

from byzfl.aggregators import aggregators, preaggregators  # noqa: E402

# The package of attacks wants these by their short names.
vars(sys.modules["byzfl.aggregators"]).update(
    Average=aggregators.Average, Clipping=preaggregators.Clipping
)

from byzfl.attacks import attacks  # noqa: E402

ROOMS = (aggregators, preaggregators, attacks)


def measure(cases: list) -> dict[str, list]:
    """What each of `(class, arguments, kind, rows, hidden, after)` gives.

    The rows are those of `benchmarks.tasks.unlike_messages`, without the first few, which are hidden;
    of what a pre-aggregator makes, `after` is the mean or the median.
    """
    found = []
    for name, arguments, kind, rows, hidden, after in cases:
        kind_of = next(getattr(room, name) for room in ROOMS if hasattr(room, name))
        out = np.asarray(kind_of(**arguments)(unlike_messages(kind, rows)[hidden:]))
        if after:
            out = out.mean(0) if after == "mean" else np.median(out, axis=0)
        found.append(out.tolist())
    return {"found": found}
