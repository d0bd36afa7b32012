"""A small system for tests of imaging, and the same in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dflax import imaging
from dflax.imaging.geometry import LIGHT
from experiments.tasks.scenes import Imaged, imaged

KEY = jax.random.key(3)
GEOMETRY = imaging.crossed_diagonals((5, 6, 7), transmitters=2, receivers=4, frequencies=3)
SCENES = 3


@functools.cache
def operator() -> imaging.Operator:
    return imaging.dense(GEOMETRY)


@functools.cache
def measured() -> Imaged:
    return imaged(KEY, operator(), SCENES, 20.0)


@functools.cache
def matrix() -> np.ndarray:
    """A, `[M, N]` in complex128, entry by entry from its definition."""
    t, r, f = (np.asarray(a, np.float64) for a in GEOMETRY[:3])
    places = np.stack(
        np.meshgrid(*(np.asarray(a, np.float64) for a in GEOMETRY.axes), indexing="ij"), -1
    )
    to = np.linalg.norm(places - t[:, None, None, None], axis=-1)[None, :, None]
    back = np.linalg.norm(places - r[:, None, None, None], axis=-1)[None, None]
    k = 2 * np.pi * f[:, None, None, None, None, None] / LIGHT
    A = np.exp(-1j * k * (to + back)) / (4 * np.pi * to * back)
    return A.reshape(np.prod(GEOMETRY.measured), -1)


def random_complex(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    real, imaginary = jax.random.normal(key, (2, *shape))
    return real + 1j * imaginary


def shrunk(z: np.ndarray, alpha: float) -> np.ndarray:
    """The prox of alpha sum |z|, in NumPy."""
    size = np.abs(z)
    return z * np.maximum(size - alpha, 0) / np.where(size > 0, size, 1)


def numpy_run(
    y: np.ndarray,
    eps: float,
    kappa: float | None,
    alpha: float | None,
    steps: int,
    tolerance: float = 0.0,
    changing: list[tuple[float, float]] | None = None,
) -> tuple[list[np.ndarray], int]:
    """PnP-ADMM of one scene with the l1 prior, as the paper states it: every x, and how many."""
    A = matrix()
    x = A.conj().T @ y
    x = x / np.abs(x).max()
    v1, v2, d1, d2 = x, A @ x, 0 * x, 0 * y
    path = []
    for step in range(steps):
        before = x
        if changing is not None:
            kappa, alpha = changing[step]
        normal = A.conj().T @ A + kappa * np.eye(A.shape[1])
        x = np.linalg.solve(normal, kappa * (v1 + d1) + A.conj().T @ (v2 + d2))
        v1 = shrunk(x - d1, alpha)
        e = A @ x - d2 - y
        v2 = y + e * min(1.0, eps / np.linalg.norm(e)) if np.linalg.norm(e) else y
        d1, d2 = d1 - (x - v1), d2 - (A @ x - v2)
        path.append(x)
        change = np.linalg.norm(np.abs(x) - np.abs(before)) / np.linalg.norm(before)
        if step and change < tolerance:
            break
    return path, len(path)


def flat(x: jax.Array) -> np.ndarray:
    """Scenes or measurements as rows of NumPy's."""
    return np.asarray(jnp.asarray(x)).reshape(x.shape[0], -1)
