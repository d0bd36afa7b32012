"""Federated least squares and quadratics whose optimum is known and whose clients differ at will."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.data.dataset import Batch, Dataset, Split
from dflax.data.partition import Partition, from_indices


class LeastSquares(NamedTuple):
    """Clients with f_i(x) = (1/(2 n_i)) |A_i x - b_i|^2 of equal n_i; f = (1/n) sum_i f_i.

    Parameters are one array x `[d]`. Train with `least_squares_loss`.

    Attributes:
      data: rows of A as inputs `[N, d]`, entries of b as labels `[N]`; the test part is drawn anew
        from the same clients.
      partition: the rows of each client.
      optimum: `[d]` float64, the minimiser of f.
      value: f(optimum).
      client_optima: `[n, d]` float64, the minimiser of each f_i (of least norm, if not unique).
      models: `[n, d]` float64, the models that made each client's b.
      hessian: `[d, d]` of f.
      smoothness: L, the largest eigenvalue of any client's Hessian.
      strong_convexity: mu, the smallest eigenvalue of the Hessian of f.
    """

    data: Split
    partition: Partition
    optimum: Float[np.ndarray, " d"]
    value: float
    client_optima: Float[np.ndarray, "n d"]
    models: Float[np.ndarray, "n d"]
    hessian: Float[Array, "d d"]
    smoothness: float
    strong_convexity: float

    def objective(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x)."""
        return self.value + self.suboptimality(x)

    def suboptimality(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x) - f(optimum) = (1/2) (x - optimum)^T H (x - optimum), free of cancellation."""
        return _gap(self.hessian, x - self.optimum)

    def gradient_norm(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """|grad f(x)|."""
        return jnp.linalg.norm(self.hessian @ (x - self.optimum))


class Quadratics(NamedTuple):
    """Clients with f_i(x) = (1/2) (x - b_i)^T A_i (x - b_i); f = (1/n) sum_i f_i.

    Parameters are one array x `[d]`. Each client owns one example, itself, so a minibatch gradient is
    the exact one. Train with `quadratic_loss`.

    Attributes:
      data: inputs {"A": `[n, d, d]`, "b": `[n, d]`}, labels the clients' numbers; test is training.
      partition: example i belongs to client i.
      optimum: `[d]` float64, (sum_i A_i)^-1 sum_i A_i b_i. A client's own optimum is b_i.
      value: f(optimum).
      hessian: `[d, d]` of f, the mean of A_i.
      smoothness: L, the largest eigenvalue of any A_i.
      strong_convexity: mu, the smallest eigenvalue of any A_i.
    """

    data: Split
    partition: Partition
    optimum: Float[np.ndarray, " d"]
    value: float
    hessian: Float[Array, "d d"]
    smoothness: float
    strong_convexity: float

    @property
    def hessians(self) -> Float[Array, "n d d"]:
        """A, the clients' Hessians."""
        return self.data.train.inputs["A"]

    @property
    def client_optima(self) -> Float[Array, "n d"]:
        """b, the clients' optima."""
        return self.data.train.inputs["b"]

    def objective(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x)."""
        return self.value + self.suboptimality(x)

    def suboptimality(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x) - f(optimum) = (1/2) (x - optimum)^T H (x - optimum), free of cancellation."""
        return _gap(self.hessian, x - self.optimum)

    def gradient_norm(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """|grad f(x)|."""
        return jnp.linalg.norm(self.hessian @ (x - self.optimum))


def least_squares(
    key: Key[Array, ""],
    clients: int,
    dimension: int,
    samples: int,
    heterogeneity: float = 1.0,
    noise: float = 0.1,
    condition: float = 10.0,
) -> LeastSquares:
    """Linear regression with a model of its own at each client.

    x_0 ~ N(0, I), client models x_i = x_0 + heterogeneity N(0, I), rows a ~ N(0, diag(s)) with s from
    1 down to 1/condition in a geometric row, and b = a x_i + noise N(0, 1). With heterogeneity 0 all
    clients have the same law; with noise 0 as well (and samples >= dimension) the same optimum x_0.

    Args:
      key: typed key.
      clients: n >= 1.
      dimension: d >= 1.
      samples: training rows of each client, >= 1, with n samples >= d. As many are drawn for testing.
      heterogeneity: >= 0.
      noise: >= 0, standard deviation.
      condition: >= 1, condition number of the rows' covariance.

    Returns:
      A `LeastSquares`; its closed forms are those of the drawn float32 data, solved in float64.

    Raises:
      ValueError, TypeError: an argument out of range, or too few rows for a unique optimum.

    Examples:
      >>> import jax, dflax as dx
      >>> problem = dx.data.least_squares(jax.random.key(0), clients=4, dimension=3, samples=20)
      >>> problem.partition.sizes.tolist(), problem.optimum.shape
      ([20, 20, 20, 20], (3,))
    """
    generator = seeded(key)
    counts = {"clients": clients, "dimension": dimension, "samples": samples}
    for name, count in counts.items():
        validation.integer(name, count, low=1)
    if clients * samples < dimension:
        raise ValueError(
            f"samples must give clients * samples >= dimension for a unique optimum, got {clients} * "
            f"{samples} < {dimension}."
        )
    validation.real("heterogeneity", heterogeneity, low=0.0, scalar=True)
    validation.real("noise", noise, low=0.0, scalar=True)
    validation.real("condition", condition, low=1.0, scalar=True)
    common = generator.normal(size=dimension)
    models = common + heterogeneity * generator.normal(size=(clients, dimension))
    deviations = np.sqrt(_spectrum(dimension, condition))

    def draw() -> tuple[np.ndarray, np.ndarray]:
        rows = generator.normal(size=(clients, samples, dimension)) * deviations
        errors = noise * generator.normal(size=(clients, samples))
        return rows.astype(np.float32), (np.einsum("nsd,nd->ns", rows, models) + errors).astype(
            np.float32
        )

    train, test = draw(), draw()
    A, b = (part.astype(np.float64) for part in train)
    hessians = np.einsum("nsd,nse->nde", A, A) / samples
    hessian = hessians.mean(0)
    optimum = np.linalg.lstsq(A.reshape(-1, dimension), b.reshape(-1), rcond=None)[0]
    client_optima = np.stack(
        [np.linalg.lstsq(rows, targets, rcond=None)[0] for rows, targets in zip(A, b, strict=True)]
    )
    return LeastSquares(
        Split(*(_regression(rows, targets) for rows, targets in (train, test))),
        equal_clients(clients, samples),
        optimum,
        float(0.5 * np.mean((A @ optimum - b) ** 2)),
        client_optima,
        models,
        jnp.asarray(hessian, jnp.float32),
        float(np.linalg.eigvalsh(hessians).max()),
        float(np.linalg.eigvalsh(hessian).min()),
    )


def quadratics(
    key: Key[Array, ""],
    clients: int,
    dimension: int,
    heterogeneity: float = 1.0,
    curvature_heterogeneity: float = 0.0,
    condition: float = 10.0,
) -> Quadratics:
    """Quadratics with optima, and if wanted curvatures, of their own at each client.

    b_i = b_0 + heterogeneity N(0, I) with b_0 ~ N(0, I), and A_i = (1 - c) S_0 + c S_i with c the
    curvature_heterogeneity, where each S is diag(1, ..., 1/condition) in a random basis of its own.

    Args:
      key: typed key.
      clients: n >= 1.
      dimension: d >= 1.
      heterogeneity: >= 0; 0 for the same optimum at all clients.
      curvature_heterogeneity: in [0, 1]; 0 for the same Hessian at all clients.
      condition: >= 1, an upper bound on the condition number of every A_i.

    Returns:
      A `Quadratics`; its closed forms are those of the drawn float32 arrays, solved in float64.

    Raises:
      ValueError, TypeError: an argument out of range.

    Examples:
      >>> import jax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3)
      >>> len(problem.data.train), problem.optimum.shape
      (4, (3,))
    """
    generator = seeded(key)
    validation.integer("clients", clients, low=1)
    validation.integer("dimension", dimension, low=1)
    validation.real("heterogeneity", heterogeneity, low=0.0, scalar=True)
    validation.probability("curvature_heterogeneity", curvature_heterogeneity)
    validation.real("condition", condition, low=1.0, scalar=True)
    common = generator.normal(size=dimension)
    offsets = heterogeneity * generator.normal(size=(clients, dimension))
    bases = np.linalg.qr(generator.normal(size=(clients + 1, dimension, dimension)))[0]
    hessians = (bases * _spectrum(dimension, condition)) @ bases.swapaxes(1, 2)
    mixed = hessians[:1] + curvature_heterogeneity * (hessians[1:] - hessians[:1])
    A32 = (0.5 * (mixed + mixed.swapaxes(1, 2))).astype(np.float32)
    b32 = (common + offsets).astype(np.float32)

    A, b = A32.astype(np.float64), b32.astype(np.float64)
    hessian = A.mean(0)
    optimum = np.linalg.solve(hessian, np.einsum("nde,ne->d", A, b) / clients)
    residuals = optimum - b
    eigenvalues = np.linalg.eigvalsh(A)
    data = Dataset(
        {"A": jnp.asarray(A32), "b": jnp.asarray(b32)},
        jnp.arange(clients, dtype=jnp.int32),
        name="quadratics",
    )
    return Quadratics(
        Split(data, data),
        equal_clients(clients, 1),
        optimum,
        float(0.5 * np.einsum("nd,nde,ne->", residuals, A, residuals) / clients),
        jnp.asarray(hessian, jnp.float32),
        float(eigenvalues.max()),
        float(eigenvalues.min()),
    )


def least_squares_loss(
    params: Float[Array, " d"], batch: Batch, key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over the batch of (1/2) (a x - b)^2."""
    loss = masked_mean(0.5 * jnp.square(batch.inputs @ params - batch.labels), batch.mask)
    return loss, {"loss": loss}


def quadratic_loss(
    params: Float[Array, " d"], batch: Batch, key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over the batch of (1/2) (x - b)^T A (x - b)."""
    difference = params - batch.inputs["b"]
    losses = 0.5 * jnp.einsum("bd,bde,be->b", difference, batch.inputs["A"], difference)
    loss = masked_mean(losses, batch.mask)
    return loss, {"loss": loss}


def masked_mean(losses: Float[Array, " B"], mask: Float[Array, " B"] | None) -> Float[Array, ""]:
    """The mean of the losses that the mask lets through."""
    if mask is None:
        return jnp.mean(losses)
    return losses @ mask / jnp.maximum(jnp.sum(mask), jnp.finfo(losses.dtype).tiny)


def seeded(key: Key[Array, ""]) -> np.random.Generator:
    """A NumPy generator for draws in float64, seeded by a typed JAX key."""
    validation.typed_key("key", key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def equal_clients(clients: int, samples: int) -> Partition:
    """Client i owns the examples from i samples up to (i + 1) samples."""
    return from_indices(list(np.arange(clients * samples).reshape(clients, samples)))


def _regression(rows: np.ndarray, targets: np.ndarray) -> Dataset:
    return Dataset(
        jnp.asarray(rows.reshape(-1, rows.shape[-1])),
        jnp.asarray(targets.reshape(-1)),
        name="least-squares",
    )


def _spectrum(dimension: int, condition: float) -> Float[np.ndarray, " d"]:
    return np.geomspace(1.0, 1.0 / condition, dimension)


def _gap(hessian: Float[Array, "d d"], difference: Float[Array, " d"]) -> Float[Array, ""]:
    return 0.5 * difference @ (hessian @ difference)
