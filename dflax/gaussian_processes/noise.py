"""The variance of noise, before any kernel is learned."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.data.dataset import AnyArray

# Degrees of freedom of the smoother, as shares of n, between which the best is looked for.
LEAST_SHARE, MOST_SHARE = 1e-3, 0.99
CANDIDATES = 400


def noise_variance(targets: Float[AnyArray, " n"]) -> Float[Array, ""]:
    """The noise's variance in an evenly spaced series, by a smoothing spline and cross-validation.

    The discrete smoothing spline has the cosine transform for its eigenvectors and leaves the share

        M_k = s e_k^2 / (1 + s e_k^2),  e_k = 2 - 2 cos(pi k / n)

    of the k-th coefficient of y as a residual. The smoothness s minimises the score of generalised
    cross-validation, |M y|^2 n / tr(M)^2, in the cosines' basis, and the estimate is |M y|^2 / tr(M^2).
    It has no bias where M leaves nothing of the function. Waves near the highest frequency count as
    noise.

    Args:
      targets: `[n]`, n >= 4, in the order of their inputs.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Garcia, Robust smoothing of gridded data in one and higher dimensions with missing values, 2010;
      Buckley, Eagleson and Silverman, The estimation of residual variance in nonparametric regression,
      1988.
    """
    y = jnp.asarray(validation.array("targets", targets, kind="real", shape=("n",)))
    n = len(y)
    if n < 4:
        raise ValueError(f"targets must be at least 4 numbers in a row, got {n}.")
    kind = jnp.result_type(y.dtype, float)
    energy = jnp.square(jax.scipy.fft.dct(y.astype(kind), norm="ortho"))
    square = jnp.square(2 - 2 * jnp.cos(jnp.pi * jnp.arange(n) / n)).astype(kind)
    # The mean of 1 / (1 + s e^2) over a cosine grid: where it is a share h, s is about
    # ((1 + sqrt(1 + 8 h) / (4 h))^2 - 1) / 16.
    low, high = (
        (((1 + (1 + 8 * share) ** 0.5) / (4 * share)) ** 2 - 1) / 16
        for share in (MOST_SHARE, LEAST_SHARE)
    )

    def score(log_smoothness: Array) -> tuple[Array, Array]:
        weighted = jnp.exp(log_smoothness) * square
        left = weighted / (1 + weighted)
        residual = jnp.sum(jnp.square(left) * energy)
        return residual * n / jnp.square(jnp.sum(left)), residual / jnp.sum(jnp.square(left))

    candidates = jnp.linspace(jnp.log(low), jnp.log(high), CANDIDATES).astype(kind)
    scores, variances = jax.vmap(score)(candidates)
    return variances[jnp.argmin(scores)]
