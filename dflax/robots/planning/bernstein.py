"""Trajectories as Bernstein polynomials: values and derivatives at the times of a plan."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation

DERIVATIVES = 4


class Curves(NamedTuple):
    """The curves of degree n on [0, T], at Nt times from 0 to T.

    Attributes:
      values: `[4, Nt, n+1]`, from coefficients to values and 1st to 3rd derivatives.
      fit: `[n+1, Nt]`, from values to the coefficients of the nearest curve (least squares).
      duration: T in seconds.
    """

    values: Float[np.ndarray, "4 Nt n+1"]
    fit: Float[np.ndarray, "n+1 Nt"]
    duration: float

    @property
    def steps(self) -> int:
        """Nt, how many times there are."""
        return self.values.shape[1]

    @property
    def degree(self) -> int:
        """The degree n."""
        return self.values.shape[2] - 1

    @property
    def interval(self) -> float:
        """Seconds from one time to the next."""
        return self.duration / (self.steps - 1)

    def at(self, coefficients: Float[Array, "... n+1"]) -> Float[Array, "... 4 Nt"]:
        """Values and derivatives of curves."""
        flat = jnp.asarray(self.values.reshape(-1, self.degree + 1), coefficients.dtype)
        moved = coefficients @ flat.T
        return moved.reshape(*moved.shape[:-1], DERIVATIVES, self.steps)

    def against(self, weights: Float[Array, "... 4 Nt"]) -> Float[Array, "... n+1"]:
        """The transpose of `at`: sum_jk weights_jk values_jk."""
        flat = jnp.asarray(self.values.reshape(-1, self.degree + 1), weights.dtype)
        return weights.reshape(*weights.shape[:-2], -1) @ flat


def bernstein(steps: int = 40, duration: float = 4.0, degree: int = 10) -> Curves:
    """Bernstein polynomials of degree n at Nt times t_k = k T / (Nt - 1).

        x(t) = sum_i c_i B_i(t / T),   B_i(u) = (n over i) u^i (1 - u)^(n - i)

    A derivative has the coefficients n (c_{i+1} - c_i) / T. The curve starts at c_0 and ends at c_n, and
    c_1 - c_0 and c_n - c_{n-1} set its first derivatives there.

    Args:
      steps: Nt > n, so that values determine coefficients.
      duration: T > 0, in seconds.
      degree: n >= 5: two ends with two derivatives each, and a coefficient to move.

    Returns:
      The matrices, in float64.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("degree", degree, low=5, high=40)
    fix = f"Take more times than the degree {degree}."
    validation.integer("steps", steps, low=degree + 1, fix=fix)
    validation.real("duration", duration, low=0.0, low_open=True, scalar=True)
    if validation.is_traced(duration):
        raise TypeError(
            "duration must be a number, not traced: the curves' matrices are constants."
        )
    duration = float(duration)
    u = np.linspace(0.0, 1.0, steps)

    def basis(n: int) -> np.ndarray:
        return np.stack([math.comb(n, i) * u**i * (1 - u) ** (n - i) for i in range(n + 1)], 1)

    rows, chain = [], np.eye(degree + 1)
    for order in range(DERIVATIVES):
        n = degree - order
        rows.append(basis(n) @ chain)
        chain = (np.eye(n, n + 1, 1) - np.eye(n, n + 1)) * (n / duration) @ chain
    return Curves(np.stack(rows), np.linalg.pinv(rows[0]), duration)
