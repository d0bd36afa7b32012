"""Right calls of data sets and partitions."""

import jax.numpy as jnp
import numpy as np

import dflax as dx
from doors.things import DATA, FEDERATION, KEY, LABELS, PARTITION, N

BATCH = DATA.fetch(jnp.arange(2))
POINT = np.zeros(2, np.float32)
ROWS = dx.data.Batch(np.ones((3, 2), np.float32), np.ones(3, np.float32))
BOWL = dx.data.Batch(
    {"A": np.ones((1, 2, 2), np.float32), "b": np.ones((1, 2), np.float32)}, np.zeros(1, np.int32)
)
LOGITS = np.zeros((5, 3), np.float32)

CALLS = {
    "data.budgets": {"partition": PARTITION, "share": 0.5},
    "data.by_group": {"groups": LABELS},
    "data.cifar10": {"folder": "nowhere"},
    "data.cifar100": {"folder": "nowhere"},
    "data.class_counts": {"partition": PARTITION, "labels": LABELS},
    "data.deal": {"federation": FEDERATION, "mesh": dx.client_mesh()},
    "data.digits": {},
    "data.dirichlet": {"labels": LABELS, "clients": N, "alpha": 1.0},
    "data.dirichlet_laws": {"seed": 0, "clients": N, "classes": 3, "alpha": 1.0},
    "data.fashion_mnist": {"folder": "nowhere"},
    "data.from_arrays": {
        "inputs": np.ones((40, 2)),
        "labels": LABELS,
        "test_fraction": 0.5,
        "scale": 1.0,
    },
    "data.from_huggingface": {"dataset": None, "inputs": "x", "labels": "y"},
    "data.from_indices": {"owned": [[0, 1], [2]]},
    "data.from_pandas": {"frame": None, "inputs": "x", "labels": "y"},
    "data.from_torch": {"dataset": None},
    "data.iid": {"examples": 40, "clients": N},
    "data.label_distribution": {"owned": PARTITION, "labels": LABELS},
    "data.label_shards": {"labels": LABELS, "clients": N},
    "data.least_squares": {"key": KEY, "clients": N, "dimension": 2, "samples": 3},
    "data.least_squares_loss": {"params": POINT, "batch": ROWS},
    "data.logistic": {"key": KEY, "clients": N, "dimension": 2, "samples": 3, "classes": 3},
    "data.logistic_loss": {"l2": 0.1},
    "data.mnist": {"folder": "nowhere"},
    "data.partition_figure": {"partition": PARTITION, "labels": LABELS},
    "data.pools": {"partition": PARTITION, "labelled": 1},
    "data.quadratic_loss": {"params": POINT, "batch": BOWL},
    "data.quadratics": {"key": KEY, "clients": N, "dimension": 2},
    "data.quantity_skew": {"examples": 40, "clients": N, "alpha": 1.0},
    "data.read_idx": {"path": "nowhere"},
    "data.resample": {"labels": LABELS, "laws": np.full((N, 3), 1 / 3)},
    "data.separated": {"key": KEY, "clients": 2, "samples": 2, "dimension": 3, "separation": 0.1},
    "data.split": {"data": DATA, "test_fraction": 0.5},
    "data.train_test_per_client": {"partition": PARTITION, "test_fraction": 0.5},
    "data.weighted_least_squares": {"key": KEY, "clients": N, "dimension": 2, "samples": (2, 3)},
}
