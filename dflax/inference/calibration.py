"""Cost models from measured times of a real engine."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.inference.costs import Costs, affine_costs

Coefficients = tuple[float, float, float]


class Measured(NamedTuple):
    """Times of an engine: m batches of prompts and k iterations of decoding.

    Attributes:
      tokens: `[m]`, sum of the prompts' lengths.
      squares: `[m]`, sum of the squares of their lengths.
      prefill: `[m]` s, > 0.
      batch: `[k]`, sequences that get a token.
      context: `[k]`, sum of their lengths so far.
      decode: `[k]` s, > 0.
    """

    tokens: Float[np.ndarray, " m"]
    squares: Float[np.ndarray, " m"]
    prefill: Float[np.ndarray, " m"]
    batch: Float[np.ndarray, " k"]
    context: Float[np.ndarray, " k"]
    decode: Float[np.ndarray, " k"]


def fitted_coefficients(measured: Measured) -> tuple[Coefficients, Coefficients]:
    """The coefficients of `affine_costs` that are nearest to what was measured.

    (a, b, c) and (u, v, w), none negative, minimise the sums of squares of relative errors

        (a + b tokens + c squares) / prefill - 1
        (u + v context + w batch) / decode - 1

    so that a short batch counts as much as a long one. On the host, in float64.

    Args:
      measured: at least three different rows of each kind.

    Raises:
      TypeError, ValueError: naming the argument; rows that do not tell coefficients apart.
    """
    validation.instance(
        "measured", measured, Measured, "Times of dflax.inference.decoding's calls."
    )
    columns = {}
    for first, names in (("tokens", ("squares", "prefill")), ("batch", ("context", "decode"))):
        columns[first] = _column(first, getattr(measured, first), ("m",))
        shape = columns[first].shape
        columns |= {name: _column(name, getattr(measured, name), shape) for name in names}
    ones = np.ones_like
    return (
        _fit("prefill", columns, ("tokens", "squares"), ones(columns["tokens"])),
        _fit("decode", columns, ("context", "batch"), ones(columns["batch"])),
    )


def fitted_costs(measured: Measured) -> Costs:
    """Costs with `fitted_coefficients`.

    Args:
      measured: at least three different rows of each kind.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    return affine_costs(*fitted_coefficients(measured))


def _column(name: str, value: np.ndarray, shape: tuple) -> np.ndarray:
    found = validation.array(name, value, kind="real", shape=shape, low=0.0)
    if name in ("prefill", "decode") and found.min() <= 0:
        raise ValueError(f"{name} must be times > 0 s, got {found.min():g}. Measure again.")
    return np.asarray(found, np.float64)


def _fit(
    name: str, columns: dict[str, np.ndarray], features: tuple[str, str], ones: np.ndarray
) -> Coefficients:
    """Least squares without negative coefficients: the best of all subsets that have none."""
    seconds = columns[name]
    design = np.stack([ones, *(columns[f] for f in features)], axis=1)
    scale = design.max(0)
    scale[scale == 0] = 1.0
    rows = design / scale / seconds[:, None]
    if np.linalg.matrix_rank(rows) < 3:
        raise ValueError(
            f"{name} must be measured at three points or more that tell {features[0]} and "
            f"{features[1]} apart, got {len(seconds)} rows that do not."
        )
    best, least = np.zeros(3), np.inf
    for some in itertools.chain.from_iterable(
        itertools.combinations(range(3), size) for size in (1, 2, 3)
    ):
        found = np.linalg.lstsq(rows[:, some], np.ones(len(rows)), rcond=None)[0]
        error = np.square(rows[:, some] @ found - 1.0).sum()
        if found.min() >= 0 and error < least:
            best, least = np.zeros(3), error
            best[list(some)] = found
    a, b, c = (best / scale).tolist()
    return a, b, c
