"""How a server combines its clients' messages."""

from dflax.aggregation.aggregator import Aggregator, mean
from dflax.aggregation.coordinates import gram, map_coordinates
from dflax.aggregation.majority_vote import majority_vote
from dflax.aggregation.variance import kernels, rescaled, variance_corrected, variances
