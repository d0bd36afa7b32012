"""Data sets on the device, and ways to deal them to clients."""

from dflax.data.adapters import from_huggingface, from_pandas, from_torch
from dflax.data.arrays import from_arrays, split
from dflax.data.cifar import cifar10, cifar100
from dflax.data.class_laws import ClassLaws, resample
from dflax.data.composition import class_counts, label_distribution
from dflax.data.dataset import Batch, Dataset, Split
from dflax.data.dealt import Dealt, deal
from dflax.data.figures import partition_figure
from dflax.data.idx import read_idx
from dflax.data.laws import dirichlet_laws
from dflax.data.partition import Partition, from_indices
from dflax.data.partitioners import (
    by_group,
    dirichlet,
    iid,
    label_shards,
    quantity_skew,
    train_test_per_client,
)
from dflax.data.pools import Pools, budgets, pools
from dflax.data.problems.logistic import Logistic, logistic, logistic_loss
from dflax.data.problems.separated import Separated, separated
from dflax.data.problems.synthetic import (
    LeastSquares,
    Quadratics,
    least_squares,
    least_squares_loss,
    quadratic_loss,
    quadratics,
)
from dflax.data.problems.weighted_least_squares import WeightedLeastSquares, weighted_least_squares
from dflax.data.sources import digits, fashion_mnist, mnist

__all__ = [
    "Batch",
    "ClassLaws",
    "Dataset",
    "Dealt",
    "LeastSquares",
    "Logistic",
    "Partition",
    "Pools",
    "Quadratics",
    "Separated",
    "Split",
    "WeightedLeastSquares",
    "budgets",
    "by_group",
    "cifar10",
    "cifar100",
    "class_counts",
    "deal",
    "digits",
    "dirichlet",
    "dirichlet_laws",
    "fashion_mnist",
    "from_arrays",
    "from_huggingface",
    "from_indices",
    "from_pandas",
    "from_torch",
    "iid",
    "label_distribution",
    "label_shards",
    "least_squares",
    "least_squares_loss",
    "logistic",
    "logistic_loss",
    "mnist",
    "partition_figure",
    "pools",
    "quadratic_loss",
    "quadratics",
    "quantity_skew",
    "read_idx",
    "resample",
    "separated",
    "split",
    "train_test_per_client",
    "weighted_least_squares",
]


def __dir__() -> list[str]:
    return __all__
