"""Right calls of sparse coding, and of expectation-maximisation over clients."""

import numpy as np

import dflax as dx
from doors.things import KEY

CODES = dx.sparse_coding
KEPT = {"latents": 4, "candidates": 3, "most": 2}
BINARY = CODES.bsc(**KEPT)
EXAMPLES = np.arange(12.0).reshape(4, 3)

CALLS = {
    "server.expectation_maximisation": {
        "nothing": lambda model: model,
        "expect": lambda model, batch, threshold, number: model,
        "maximise": lambda model, statistics, number: (model, {}),
    },
    "sparse_coding.annealing": {"steps": 3},
    "sparse_coding.bsc": KEPT,
    "sparse_coding.discrete_start": {"key": KEY, "data": EXAMPLES, "model": BINARY},
    "sparse_coding.dsc": {**KEPT, "values": (1.0, 2.0)},
    "sparse_coding.expectation_truncation": {"model": BINARY, "annealing": CODES.annealing(3)},
    "sparse_coding.gsc": KEPT,
    "sparse_coding.mass_within": {"truncation": BINARY.truncation, "active": 0.2},
    "sparse_coding.mca": KEPT,
    "sparse_coding.mmca": KEPT,
    "sparse_coding.slab_start": {"key": KEY, "data": EXAMPLES, "model": CODES.gsc(**KEPT)},
    "sparse_coding.truncation": KEPT,
    "sparse_coding.tsc": KEPT,
}
