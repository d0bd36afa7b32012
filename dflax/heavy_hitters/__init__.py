"""The most frequent items of many users, found by their prefixes without seeing anybody's."""

from dflax.heavy_hitters.extension import Extension, adaptive, fixed
from dflax.heavy_hitters.groups import Group, equal_groups, grouped, growing_groups
from dflax.heavy_hitters.gtf import gtf
from dflax.heavy_hitters.levels import Found, Party, by_own_share, by_population, prefix_tree
from dflax.heavy_hitters.pruning import Known, Pruning, prior, validated
from dflax.heavy_hitters.scores import f1, frequency_error, most_frequent, ncr
from dflax.heavy_hitters.tap import direct, fedpem, tap, taps
from dflax.heavy_hitters.triehh import triehh, triehh_batch, triehh_threshold
from dflax.heavy_hitters.words import as_numbers, as_words

__all__ = [
    "Extension",
    "Found",
    "Group",
    "Known",
    "Party",
    "Pruning",
    "adaptive",
    "as_numbers",
    "as_words",
    "by_own_share",
    "by_population",
    "direct",
    "equal_groups",
    "f1",
    "fedpem",
    "fixed",
    "frequency_error",
    "grouped",
    "growing_groups",
    "gtf",
    "most_frequent",
    "ncr",
    "prefix_tree",
    "prior",
    "tap",
    "taps",
    "triehh",
    "triehh_batch",
    "triehh_threshold",
    "validated",
]


def __dir__() -> list[str]:
    return __all__
