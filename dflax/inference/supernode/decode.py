"""Decoding in closed form: an iteration's time by batch and context, and guessed tokens."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.costs import Costs, affine_costs
from dflax.inference.supernode.numbers import Real, numbers

NPUS, TOKENS_PER_SECOND, PROMPT = 16, 6688.0, 4096.0


class Speculation(NamedTuple):
    """Multi-token prediction with one guessed token. From `speculation`.

    Attributes:
      acceptance: share of the guesses that are right.
      slowdown: an iteration with a guess over one without.
      on: whether tokens are guessed.
    """

    acceptance: Real
    slowdown: Real
    on: bool | Real


def speculation(
    acceptance: Real = 0.7, slowdown: Real = 1260.0 / 874.0, *, on: bool = True
) -> Speculation:
    """One guessed token an iteration; defaults are the paper's, 874 and 1260 us a layer.

    Args:
      acceptance: share of the guesses that are right, in [0, 1]; traceable.
      slowdown: an iteration with a guess over one without, >= 1; traceable.
      on: whether tokens are guessed.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.flag("on", on)
    return Speculation(
        numbers("acceptance", acceptance, low=0.0, high=1.0),
        numbers("slowdown", slowdown, low=1.0),
        on,
    )


def speculation_gain(speculation: Speculation) -> Float[Array, "..."]:
    """Throughput with a guess over that without: (1 + acceptance) / slowdown.

    It is 1 where acceptance = slowdown - 1.

    Args:
      speculation: see `Speculation`.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("speculation", speculation, Speculation)
    return jnp.asarray((1.0 + speculation.acceptance) / speculation.slowdown)


def cloudmatrix_costs(*, imbalance: Real = 1.0, attention: Real = 0.12) -> Costs:
    """DeepSeek-R1 in INT8 on a CloudMatrix384: prefill of 16 NPUs, decoding of one of 160.

        prefill(l)   = lambda sum_i l_i (1 - s + s l_i / 4096) / (16 * 6688)
        decode(b, C) = 22.98 ms + 0.3399 ms b + 7.268e-5 ms C

    An iteration of decoding includes a guessed token; b counts sequences of an NPU, that is of two
    dies, and C their contexts. It is the least-squares plane through five published points, which it
    meets within -8 and +11 %.

    Args:
      imbalance: lambda of the experts in prefill, >= 1; traceable.
      attention: s, share of a prompt of 4096 tokens that attention takes, in [0, 1]; traceable. The
        default counts the operations of the published sizes.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zuo et al., arXiv 2506.12708.
    """
    validation.real("imbalance", imbalance, low=1.0, scalar=True)
    validation.probability("attention", attention)
    token: Any = imbalance / (NPUS * TOKENS_PER_SECOND)
    return affine_costs(
        (0.0, token * (1.0 - attention), token * attention / PROMPT),
        (22.98e-3, 7.268e-8, 0.3399e-3),
    )


def time_per_token(
    costs: Costs, batch: Real, context: Real, speculation: Speculation
) -> Float[Array, "..."]:
    """TPOT of one NPU, in seconds: an iteration over the tokens that a sequence gets in it.

        TPOT = decode(b, b c) / (1 + acceptance),   without guesses   decode(b, b c) / slowdown

    Throughput is b / TPOT.

    Args:
      costs: whose `decode` is of an iteration with a guess.
      batch: b, sequences of an NPU, > 0; traceable.
      context: c, their mean length, >= 0; traceable.
      speculation: see `Speculation`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("costs", costs, Costs)
    batch = numbers("batch", batch, low=0.0, low_open=True)
    context = numbers("context", context, low=0.0)
    validation.instance("speculation", speculation, Speculation)
    tokens = jnp.where(speculation.on, 1.0 + speculation.acceptance, speculation.slowdown)
    return costs.decode(batch, batch * context) / tokens


class Points(NamedTuple):
    """Published operating points of decoding, `[p]` each.

    Attributes:
      level: s that a token may take.
      prompt: tokens.
      output: tokens.
      batch: sequences of an NPU.
      tpot: s.
      throughput: tokens a second of an NPU.
    """

    level: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    batch: np.ndarray
    tpot: np.ndarray
    throughput: np.ndarray

    @property
    def context(self) -> np.ndarray:
        """Mean length of a sequence while it is decoded."""
        return self.prompt + self.output / 2


def published_points() -> Points:
    """DeepSeek-R1 on a CloudMatrix384, arXiv 2506.12708."""
    return Points(
        np.array([0.05, 0.05, 0.05, 0.03, 0.015]),
        np.array([1024.0, 2048.0, 4096.0, 4096.0, 4096.0]),
        np.array([1024.0, 256.0, 256.0, 256.0, 256.0]),
        np.array([128.0, 112.0, 96.0, 24.0, 8.0]),
        np.array([46.8e-3, 47.4e-3, 49.4e-3, 24.6e-3, 14.9e-3]),
        np.array([2733.0, 2360.0, 1943.0, 974.0, 538.0]),
    )


def fitted_decode(batch: Array, context: Array, iteration: Array) -> Float[Array, "3"]:
    """The least-squares plane u + v b c + w b through measured iterations, for `affine_costs`.

    Args:
      batch: `[p]` sequences, > 0.
      context: `[p]` their mean lengths, >= 0.
      iteration: `[p]` s, > 0.

    Returns:
      (u, v, w). Each is what the points say; with too little data one may be negative.

    Raises:
      TypeError, ValueError: naming the argument; fewer than three points.
    """
    b = validation.array("batch", batch, kind="real", shape=("p",), low=1e-9)
    if b.shape[0] < 3:
        raise ValueError(f"batch must hold at least three points for three numbers, got {len(b)}.")
    c = validation.array("context", context, kind="real", shape=b.shape, low=0.0)
    t = validation.array("iteration", iteration, kind="real", shape=b.shape, low=1e-12)
    plane = jnp.stack([jnp.ones(b.shape), b * c, b], axis=1)
    size = jnp.max(plane, axis=0)
    return jnp.linalg.lstsq(plane / size, jnp.asarray(t))[0] / size
