"""Right calls of the selection of accelerations."""

import jax.numpy as jnp
import numpy as np

import dflax as dx
from doors.things import KEY

SEL = dx.inference.selection
SECONDS = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 2.5]])
TABLE = SEL.performance(SECONDS)
TASKS = SEL.random_tasks(KEY, 3)
ROWS = {
    "predicted": np.ones((2, 3)),
    "target": np.ones((2, 3)),
    "observed": np.ones((2, 3), bool),
}
COSTS = np.ones((2, 3))
MEASURED = SEL.Measurements(TASKS, TABLE, ("none", "all"), tuple("abcdef"), tuple("uvwxyz"))


class Constant:
    """The smallest estimator."""

    def fit(self, x, y):
        return self

    def predict(self, x):
        return jnp.zeros(len(x))


CALLS = {
    "inference.selection.alors": {"estimator": Constant()},
    "inference.selection.always": {"method": 0},
    "inference.selection.best_method": {"table": TABLE},
    "inference.selection.by_rule": {"rule": lambda x: x},
    "inference.selection.centred": {"table": TABLE},
    "inference.selection.centred_squared_error": ROWS,
    "inference.selection.choose": {"scores": COSTS},
    "inference.selection.classified": {"estimator": Constant()},
    "inference.selection.deployed": {"service": SEL.online(SEL.meta_learned())},
    "inference.selection.descriptors": {"tasks": TASKS},
    "inference.selection.expert_rule": {"x": np.ones((2, 12))},
    "inference.selection.factorised": {"table": TABLE, "rank": 1, "weights": np.ones(3)},
    "inference.selection.global_best": {},
    "inference.selection.held_out": {
        "tasks": TASKS,
        "models": np.array([1]),
        "devices": np.array([1]),
    },
    "inference.selection.isac": {},
    "inference.selection.judged": {
        "chosen": np.array([0, 1, 0]),
        "seconds": SECONDS,
        "weights": np.ones(3),
    },
    "inference.selection.latencies": {
        "network": TASKS.network,
        "accelerator": TASKS.accelerator,
        "workload": TASKS.workload,
    },
    "inference.selection.lightgbm_estimator": {"predicts": "method"},
    "inference.selection.meta_learned": {},
    "inference.selection.nearest": {},
    "inference.selection.on_nodes": {
        "log_seconds": np.ones((2, 3, 4)),
        "price": np.ones(3),
        "budget": 1.0,
        "available": np.ones((2, 3, 4), bool),
    },
    "inference.selection.online": {"selector": SEL.meta_learned()},
    "inference.selection.pairwise_logistic": ROWS,
    "inference.selection.performance": {"seconds": SECONDS, "observed": np.ones((3, 2), bool)},
    "inference.selection.random_choice": {},
    "inference.selection.random_tasks": {
        "key": KEY,
        "count": 2,
        "networks": SEL.studied_networks(),
        "accelerators": SEL.studied_accelerators(),
    },
    "inference.selection.read_measurements": {"path": "measured.csv"},
    "inference.selection.regressed": {"estimator": Constant()},
    "inference.selection.simulated": {"key": KEY, "tasks": TASKS},
    "inference.selection.softmax_of_best": ROWS,
    "inference.selection.squared_error": ROWS,
    "inference.selection.studied_accelerators": {},
    "inference.selection.studied_networks": {},
    "inference.selection.within_budget": {
        "score": COSTS,
        "cost": COSTS,
        "budget": 1.0,
        "available": COSTS > 0,
    },
    "inference.selection.workload": {
        "batch": 2.0,
        "prompt": 3.0,
        "output": 4.0,
        "shared": 0.5,
        "variation": 0.5,
    },
    "inference.selection.write_measurements": {"path": "measured.csv", "measured": MEASURED},
}
