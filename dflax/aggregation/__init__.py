"""How a server combines its clients' messages."""

from dflax.aggregation.aggregator import Aggregator, Combining, counted_mean, mean
from dflax.aggregation.bulyan import bulyan
from dflax.aggregation.by_leaf import Weighted, weighted_by_leaf
from dflax.aggregation.caf import caf
from dflax.aggregation.centred_clipping import centred_clipping
from dflax.aggregation.clipped import (
    arc,
    coordinate_clipping,
    norm_bounding,
    static_clipping,
)
from dflax.aggregation.combination import combination, distances_between
from dflax.aggregation.coordinatewise import median, trimmed_mean
from dflax.aggregation.dnc import dnc
from dflax.aggregation.flag import flag
from dflax.aggregation.fltrust import RootData, fltrust
from dflax.aggregation.foolsgold import FoolsGoldState, foolsgold
from dflax.aggregation.geometric_median import geometric_median
from dflax.aggregation.krum import krum, multi_krum
from dflax.aggregation.majority_vote import majority_vote
from dflax.aggregation.mixed import bucketing, nnm
from dflax.aggregation.near_the_middle import mea_med, phocas
from dflax.aggregation.normalised import mean_of_normalised
from dflax.aggregation.recentred import Recentred, recentred
from dflax.aggregation.rows.coordinates import gram, map_coordinates, mix_rows, sum_coordinates
from dflax.aggregation.rows.distances import (
    distances_of_mixtures,
    finite_rows,
    nearest,
    squared_distances,
)
from dflax.aggregation.rows.order_statistics import median_rows, sorted_rows, trimmed_mean_rows
from dflax.aggregation.rows.weighted_median import weighted_median_rows
from dflax.aggregation.sampled import sampled
from dflax.aggregation.scheduled import scheduled
from dflax.aggregation.subsets import mda, mva, smea
from dflax.aggregation.variance import kernels, rescaled, variance_corrected, variances

__all__ = [
    "Aggregator",
    "Combining",
    "FoolsGoldState",
    "Recentred",
    "RootData",
    "Weighted",
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centred_clipping",
    "combination",
    "coordinate_clipping",
    "counted_mean",
    "distances_between",
    "distances_of_mixtures",
    "dnc",
    "finite_rows",
    "flag",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "gram",
    "kernels",
    "krum",
    "majority_vote",
    "map_coordinates",
    "mda",
    "mea_med",
    "mean",
    "mean_of_normalised",
    "median",
    "median_rows",
    "mix_rows",
    "multi_krum",
    "mva",
    "nearest",
    "nnm",
    "norm_bounding",
    "phocas",
    "recentred",
    "rescaled",
    "sampled",
    "scheduled",
    "smea",
    "sorted_rows",
    "squared_distances",
    "static_clipping",
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
