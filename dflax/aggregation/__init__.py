"""How a server combines its clients' messages."""

from dflax.aggregation.aggregator import Aggregator, mean
