"""Weighted least squares over clients who see less than the model: together they determine it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.data.dataset import AnyArray, Dataset
from dflax.data.partition import Partition, from_indices
from dflax.data.problems.synthetic import seeded


class WeightedLeastSquares(NamedTuple):
    """f(x) = sum_k (1/2) (y_k - H_k x)^T Sigma_k^-1 (y_k - H_k x), Sigma_k = deviation_k^2 I.

    Parameters are one array x `[d]`. The data are whitened: a client's rows and labels are divided by
    its deviation, so that `least_squares_loss` on a client's examples is f_k / n_k, and clients weighed
    by their numbers of examples (a federation's default) minimise f.

    Attributes:
      data: rows H_k / deviation_k as inputs `[N, d]`, y_k / deviation_k as labels `[N]`.
      partition: the rows of each client, n_k of them.
      optimum: `[d]` float64, the best linear unbiased estimate (sum_k G_k)^-1 sum_k h_k with
        G_k = H_k^T Sigma_k^-1 H_k and h_k = H_k^T Sigma_k^-1 y_k.
      truth: `[d]` float64, the model that made the labels.
      information: `[d, d]` float64, sum_k G_k.
    """

    data: Dataset
    partition: Partition
    optimum: Float[np.ndarray, " d"]
    truth: Float[np.ndarray, " d"]
    information: Float[np.ndarray, "d d"]

    def mean_square_deviation(self, models: Float[Array, "*n d"]) -> Float[Array, ""]:
        """Normalised mean square deviation: the mean over models of |x - optimum|^2 / |optimum|^2."""
        best = jnp.asarray(self.optimum, models.dtype)
        squares = jnp.sum(jnp.square(models - best), axis=-1)
        return jnp.mean(squares) / jnp.sum(jnp.square(best))


def weighted_least_squares(
    key: Key[Array, ""],
    clients: int,
    dimension: int,
    samples: tuple[int, int],
    noise: float | Float[AnyArray, " n"] = 0.01,
) -> WeightedLeastSquares:
    """Linear regression of clients with differing inputs and, if wanted, differing noise.

    The true x is N(0, I), centred and scaled to mean square 1. The entries of H_k are
    N(mu_k, s_k^2) with mu_k uniform in [-0.5, 0.5] and s_k^2 uniform in [0.5, 1.5]; labels are
    H_k x plus noise of deviation `noise`, centred and scaled to that mean square within each client.

    Args:
      key: typed key.
      clients: n >= 1.
      dimension: d >= 2.
      samples: smallest and largest n_k, which are uniform in between, all >= 2, with sum n_k >= d. With
        n_k < d no client determines the model on its own.
      noise: > 0; one for all clients or `[n]`.

    Returns:
      A `WeightedLeastSquares`; its optimum is that of the drawn float32 data, solved in float64.

    Raises:
      ValueError, TypeError: an argument out of range, or too few rows for a unique optimum.

    References:
      Lari et al., Noise-Robust and Resource-Efficient ADMM-based Federated Learning, arXiv 2409.13451.
    """
    generator = seeded(key)
    validation.integer("clients", clients, low=1)
    validation.integer("dimension", dimension, low=2)
    if not isinstance(samples, (tuple, list)) or len(samples) != 2:
        raise TypeError(
            f"samples must be a pair, smallest and largest, got {validation.shown(samples)}."
        )
    validation.integer("samples[0]", samples[0], low=2)
    validation.integer("samples[1]", samples[1], low=samples[0])
    validation.real("noise", noise, low=0.0, low_open=True)
    if np.ndim(noise) > 1 or np.size(noise) not in (1, clients):
        raise ValueError(
            f"noise must be one number or have shape ({clients},), got shape {np.shape(noise)}."
        )
    deviations = np.broadcast_to(np.asarray(noise, np.float64), (clients,))
    sizes = generator.integers(samples[0], samples[1] + 1, size=clients)
    if sizes.sum() < dimension:
        raise ValueError(
            f"samples must give at least dimension={dimension} rows in all for a unique optimum, got "
            f"{int(sizes.sum())}. Raise samples or clients."
        )
    truth = _standardised(generator.normal(size=dimension))
    means = generator.uniform(-0.5, 0.5, size=clients)
    spreads = np.sqrt(generator.uniform(0.5, 1.5, size=clients))
    rows, labels = [], []
    for size, mean, spread, deviation in zip(sizes, means, spreads, deviations, strict=True):
        inputs = mean + spread * generator.normal(size=(size, dimension))
        errors = deviation * _standardised(generator.normal(size=size))
        rows.append((inputs / deviation).astype(np.float32))
        labels.append(((inputs @ truth + errors) / deviation).astype(np.float32))
    A, b = np.concatenate(rows).astype(np.float64), np.concatenate(labels).astype(np.float64)
    return WeightedLeastSquares(
        Dataset(
            jnp.asarray(A, jnp.float32), jnp.asarray(b, jnp.float32), name="weighted-least-squares"
        ),
        from_indices(np.split(np.arange(len(A)), np.cumsum(sizes)[:-1])),
        np.linalg.lstsq(A, b, rcond=None)[0],
        truth,
        A.T @ A,
    )


def _standardised(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    centred = values - values.mean()
    return centred / np.sqrt(np.mean(centred**2))
