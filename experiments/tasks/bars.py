"""Images of bars, the standard test of sparse coding, and dictionaries held against the truth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

import dflax as dx

SIDE, SIZE, ACTIVE, NOISE = 5, 10.0, 0.2, 2.0


class Bars(NamedTuple):
    """Images and what they are made of.

    Attributes:
      dictionary: `[D, H]`, a bar a column.
      images: `[N, D]`.
    """

    dictionary: Float[np.ndarray, "D H"]
    images: Float[np.ndarray, "N D"]


def bars(seed: int, kind: str = "linear", count: int = 1000) -> Bars:
    """Horizontal and vertical bars of height 10, two of ten on average, noise of deviation 2.

    Args:
      seed: of the draw.
      kind: how bars meet: "linear" (they add up), "signed" (add up, of either sign each), "values" (add
        up, of once or twice the height), "max" (the brighter shows), "magnitude" (bars of one sign
        each, the larger magnitude shows), "slab" (add up, of Gaussian heights about 1).
      count: N.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros((SIDE, SIDE, 2 * SIDE))
    for i in range(SIDE):
        drawn[i, :, i] = drawn[:, i, SIDE + i] = SIZE
    W = drawn.reshape(SIDE * SIDE, -1)
    H = W.shape[1]
    s = (rng.random((count, H)) < ACTIVE).astype(float)
    if kind == "signed":
        s *= rng.choice([-1.0, 1.0], s.shape)
    elif kind == "values":
        s *= rng.choice([1.0, 2.0], s.shape, p=[0.75, 0.25])
    elif kind == "slab":
        s *= 1 + 0.5 * rng.normal(size=s.shape)
    elif kind == "magnitude":
        W = W * rng.choice([-1.0, 1.0], H)
    if kind == "max":
        clean = (s[:, None] * W).max(-1)
    elif kind == "magnitude":
        shown = s[:, None] * W
        clean = np.take_along_axis(shown, np.abs(shown).argmax(-1)[..., None], -1)[..., 0]
    else:
        clean = s @ W.T
    images = clean + NOISE * rng.normal(size=clean.shape)
    return Bars(W, images.astype(np.float32))


def errors(found: np.ndarray, truth: np.ndarray, *, signs: bool = False) -> np.ndarray:
    """The mean absolute error of every true column, after the best assignment; up to sign if asked."""
    apart = np.abs(found[:, :, None] - truth[:, None]).mean(0)
    if signs:
        apart = np.minimum(apart, np.abs(found[:, :, None] + truth[:, None]).mean(0))
    rows, columns = linear_sum_assignment(apart)
    return apart[rows, columns]


def owned(images: np.ndarray, clients: int) -> dx.Federation:
    """The images dealt to clients."""
    labels = np.zeros(len(images), np.int64)
    data = dx.data.Dataset(jnp.asarray(images), jnp.zeros(len(images), jnp.int32))
    return dx.Federation(data, dx.data.iid(labels, clients), batch_size=10, local_steps=1)


def patches(count: int, size: int, seed: int) -> Float[np.ndarray, "N D"]:
    """Patches of scikit-learn's sample photographs in their 40 % strongest directions, whitened."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photos = [np.log1p(np.asarray(p, float).mean(-1)) for p in load_sample_images().images]
    found = np.empty((count, size * size))
    for row in range(count):
        photo = photos[row % len(photos)]
        top, left = (int(rng.integers(0, side - size)) for side in photo.shape)
        found[row] = photo[top : top + size, left : left + size].ravel()
    found -= found.mean(1, keepdims=True)
    found -= found.mean(0)
    values, vectors = np.linalg.eigh(np.cov(found.T))
    # Of the weakest directions, the finest, whitening would make noise.
    kept = np.arange(size * size) >= round(0.6 * size * size)
    whitening = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    return (found @ whitening).astype(np.float32)


def key_of(seed: int, start: int) -> jax.Array:
    """The key of one of several starts."""
    return jax.random.fold_in(jax.random.key(seed), start)
