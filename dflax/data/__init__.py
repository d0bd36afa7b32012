"""Data."""
from dflax.data.partition import Partition
