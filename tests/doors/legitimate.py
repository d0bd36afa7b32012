"""Values that look wrong and are right: what no door has to refuse, with the reason."""

import fnmatch

# Types of values: made by the functions that are checked, or as plain as a tuple; no doors of theirs.
RECORDS = {
    "data.ClassLaws",
    "data.Dataset",
    "data.Dealt",
    "data.Partition",
    "gossip.Models",
    "models.AveragedStatistics",
    "topology.GossipRates",
    "topology.Graph",
    "topology.MixingMatrix",
}

NUMBERS = "None True complex nan inf -1 0.5 3 [] {} array[0] array[2,3,4] array-of-NaN rows"

# "callable(argument)" with wildcards, the kinds of `walk.WRONG`, and why these are right.
LEGITIMATE = [
    ("*(name)", "word digit", "any text is a name"),
    ("*(seed)", "2^40", "a seed of the host's generators may have 63 bits"),
    ("topology.intensity.*", "3", "r, and a share of the run, have no upper bound"),
    ("topology.*(rates)", "3", "rates have no upper bound"),
    ("topology.*(dwell)", "3", "times have no upper bound"),
    ("topology.random_neighbours(r)", "3 function", "at most all others; or r of the round"),
    ("topology.random_neighbours(most)", "3", "an integer, None by default"),
    ("topology.random_matching(probability)", "function", "a probability of the round"),
    ("data.*(alpha)", "3", "concentrations have no upper bound"),
    ("data.*(heterogeneity)", "3", "deviations have no upper bound"),
    ("data.*(noise)", "3", "deviations have no upper bound"),
    ("data.*(condition)", "3", "condition numbers have no upper bound"),
    (
        "data.*(folder)",
        "word digit",
        "a folder may have any name; a FileNotFoundError says the rest",
    ),
    ("data.*(classes)", "3", "an integer, None by default"),
    ("data.from_indices(examples)", "3", "an integer, None by default"),
    ("data.*(examples)", "rows", "labels of any shape, of which the number is read"),
    ("data.by_group(groups)", "array-of-words", "groups may be named by words"),
    ("data.*_loss(*)", "any", "arrays of a compiled round: JAX's errors tell of shapes"),
    ("mesh.*(tree)", NUMBERS, "any pytree of arrays and numbers"),
    ("mesh.*(state)", NUMBERS, "any pytree of arrays and numbers"),
    ("mesh.*(source)", NUMBERS, "any pytree of arrays and numbers"),
]


def passes(name: str, argument: str, kind: str) -> bool:
    """Whether the list above lets this value pass."""
    return any(
        matches(f"{name}({argument})", pattern) and (kinds == "any" or kind in kinds.split())
        for pattern, kinds, _ in LEGITIMATE
    )


def matches(argument: str, pattern: str) -> bool:
    """Whether an entry speaks of "callable(argument)"; in brackets it means brackets."""
    return fnmatch.fnmatchcase(argument, pattern)
