"""How a server combines its clients' messages."""

from dflax.aggregation.aggregator import Aggregator, mean
from dflax.aggregation.coordinates import gram, map_coordinates
