"""How a server combines its clients' messages."""

from dflax.aggregation.aggregator import Aggregator, counted_mean, mean
from dflax.aggregation.by_leaf import Weighted, weighted_by_leaf
from dflax.aggregation.coordinates import gram, map_coordinates, sum_coordinates
from dflax.aggregation.coordinatewise import median, trimmed_mean
from dflax.aggregation.distances import (
    distances_of_mixtures,
    finite_rows,
    nearest,
    squared_distances,
)
from dflax.aggregation.geometric_median import geometric_median
from dflax.aggregation.majority_vote import majority_vote
from dflax.aggregation.order_statistics import median_rows, sorted_rows, trimmed_mean_rows
from dflax.aggregation.variance import kernels, rescaled, variance_corrected, variances
from dflax.aggregation.weighted_median import weighted_median_rows

__all__ = [
    "Aggregator",
    "Weighted",
    "counted_mean",
    "distances_of_mixtures",
    "finite_rows",
    "geometric_median",
    "gram",
    "kernels",
    "majority_vote",
    "map_coordinates",
    "mean",
    "median",
    "median_rows",
    "nearest",
    "rescaled",
    "sorted_rows",
    "squared_distances",
    "sum_coordinates",
    "trimmed_mean",
    "trimmed_mean_rows",
    "variance_corrected",
    "variances",
    "weighted_by_leaf",
    "weighted_median_rows",
]


def __dir__() -> list[str]:
    return __all__
