"""Which acceleration of inference a task should have, chosen without trying the candidates."""

from dflax.inference.selection.budget import Choice, Placed, on_nodes, within_budget
from dflax.inference.selection.estimators import (
    Estimated,
    alors,
    classified,
    lightgbm_estimator,
    regressed,
)
from dflax.inference.selection.factors import Factors, factorised
from dflax.inference.selection.files import Measurements, read_measurements, write_measurements
from dflax.inference.selection.judging import Judged, judged
from dflax.inference.selection.losses import (
    Summed,
    centred_squared_error,
    pairwise_logistic,
    softmax_of_best,
    squared_error,
)
from dflax.inference.selection.meta_learned import Fitted, Scale, meta_learned
from dflax.inference.selection.neighbours import Clustered, Remembered, isac, nearest
from dflax.inference.selection.online import (
    Arrivals,
    Online,
    OnlineState,
    Trial,
    deployed,
    online,
)
from dflax.inference.selection.performance import (
    Centred,
    Performance,
    best_method,
    centred,
    performance,
)
from dflax.inference.selection.selector import (
    Selector,
    Standard,
    always,
    by_rule,
    choose,
    global_best,
    random_choice,
)
from dflax.inference.selection.simulator import latencies, simulated
from dflax.inference.selection.tasks import (
    Tasks,
    Workload,
    descriptors,
    expert_rule,
    held_out,
    random_tasks,
    studied_accelerators,
    studied_networks,
    workload,
)

__all__ = [
    "Arrivals",
    "Centred",
    "Choice",
    "Clustered",
    "Estimated",
    "Factors",
    "Fitted",
    "Judged",
    "Measurements",
    "Online",
    "OnlineState",
    "Performance",
    "Placed",
    "Remembered",
    "Scale",
    "Selector",
    "Standard",
    "Summed",
    "Tasks",
    "Trial",
    "Workload",
    "alors",
    "always",
    "best_method",
    "by_rule",
    "centred",
    "centred_squared_error",
    "choose",
    "classified",
    "deployed",
    "descriptors",
    "expert_rule",
    "factorised",
    "global_best",
    "held_out",
    "isac",
    "judged",
    "latencies",
    "lightgbm_estimator",
    "meta_learned",
    "nearest",
    "on_nodes",
    "online",
    "pairwise_logistic",
    "performance",
    "random_choice",
    "random_tasks",
    "read_measurements",
    "regressed",
    "simulated",
    "softmax_of_best",
    "squared_error",
    "studied_accelerators",
    "studied_networks",
    "within_budget",
    "workload",
    "write_measurements",
]


def __dir__() -> list[str]:
    return __all__
