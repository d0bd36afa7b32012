"""Gaussian spike-and-slab latents whose columns add up: GSC."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.sparse_coding.expectation_truncation import Joints, Model
from dflax.sparse_coding.linear import examples_of
from dflax.sparse_coding.states import truncation

RIDGE, LEAST = 1e-9, 5e-5


class SpikeAndSlab(NamedTuple):
    """A dictionary, spikes, slabs and noise.

    Attributes:
      dictionary: W, `[D, H]`.
      prior: pi, `[H]`, each latent's probability of being active.
      mean: mu, `[H]`, of active latents.
      covariance: Psi, `[H, H]`, of active latents.
      variance: sigma^2, `[]`, of the noise.
    """

    dictionary: Float[Array, "D H"]
    prior: Float[Array, " H"]
    mean: Float[Array, " H"]
    covariance: Float[Array, "H H"]
    variance: Float[Array, ""]


class SlabSums(NamedTuple):
    """Sums over examples under their posteriors; v = s z.

    Attributes:
      cross: `[D, H]`, of y v'.
      second: `[H, H]`, of v v'.
      first: `[H]`, of v.
      mixed: `[H, H]`, of v s'.
      active: `[H, H]`, of s s'.
      length: `[]`, of |y|^2.
    """

    cross: Float[Array, "D H"]
    second: Float[Array, "H H"]
    first: Float[Array, " H"]
    mixed: Float[Array, "H H"]
    active: Float[Array, "H H"]
    length: Float[Array, ""]


class Slabs(NamedTuple):
    """The slabs of some supports: posterior means `[..., g]`, covariances, and log-evidences `[...]`."""

    mean: Array
    covariance: Array
    evidence: Array


def inverse(
    matrices: Float[Array, "... g g"],
) -> tuple[Float[Array, "... g g"], Float[Array, "..."]]:
    """Inverses of small positive definite matrices, and the logarithms of their determinants.

    By g sweeps over all of them at once, elementwise: a library call a matrix is many times slower.
    """
    logs = jnp.zeros(matrices.shape[:-2], matrices.dtype)
    swept = matrices
    for k in range(matrices.shape[-1]):
        pivot = swept[..., k, k]
        logs = logs + jnp.log(pivot)
        row = swept[..., k, :] / pivot[..., None]
        column = swept[..., :, k]
        swept = swept - column[..., :, None] * row[..., None, :]
        swept = swept.at[..., k, :].set(row).at[..., :, k].set(column / pivot[..., None])
        swept = swept.at[..., k, k].set(-1 / pivot)
    return -swept, logs


def gsc(latents: int, candidates: int, most: int, *, diagonal: bool = True) -> Model:
    """Gaussian sparse coding: `y = W (s z) + noise`, s_h 1 with probability pi_h, z ~ N(mu, Psi).

    Given which latents are active, the values of y and z are Gaussian, so their evidence and moments
    are known: with W_s the active columns and L = W_s^T W_s / sigma^2 + Psi_s^-1,

        z | s, y ~ N(mu_s + L^-1 W_s^T (y - W_s mu_s) / sigma^2, L^-1)

    Args:
      latents: H.
      candidates: H' in [1, H].
      most: gamma in [1, H'].
      diagonal: whether Psi is diagonal, as its M step is exact; otherwise its other entries are ratios
        of sums, which is an approximation.

    Returns:
      A `Model` whose coding is a `SpikeAndSlab`; start one with `slab_start`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Sheikh, Shelton and Luecke, A Truncated EM Approach for Spike-and-Slab Sparse Coding,
      JMLR 15, 2014.
    """
    kept = truncation(latents, candidates, most)
    validation.flag("diagonal", diagonal)
    H, C, S = latents, candidates, len(kept.patterns)
    # Places of the active candidates, filled up with the first place, and which of them are real.
    width = max(most, 1)
    places = np.zeros((S, width), int)
    real = np.zeros((S, width), bool)
    for row, pattern in enumerate(kept.patterns):
        active = np.flatnonzero(pattern)
        places[row, : len(active)] = active
        real[row, : len(active)] = True

    single = np.arange(H)[:, None]

    def slabs(coding: SpikeAndSlab, y: Array, members: Array, there: np.ndarray) -> Slabs:
        """The slabs of supports `[B, R, g]`, of which the places `there [R, g]` are real."""
        W, _, mean, covariance, variance = coding
        rows = jnp.arange(len(y))[:, None, None]
        both = there[:, :, None] & there[:, None]
        eye = jnp.eye(members.shape[-1], dtype=y.dtype)
        pairs = members[..., :, None], members[..., None, :]
        gram = jnp.where(both, (W.T @ W)[pairs], 0)
        mu = jnp.where(there, mean[members], 0)
        along = jnp.where(there, (y @ W)[rows, members], 0)
        prior, log_prior = inverse(jnp.where(both, covariance[pairs], eye))
        precision = jnp.where(both, gram / variance + prior, eye)
        posterior, log_precision = inverse(precision)
        posterior = jnp.where(both, posterior, 0)
        away = along - jnp.einsum("brij,brj->bri", gram, mu)
        gain = jnp.einsum("brij,brj->bri", posterior, away) / variance
        # |y - W mu|^2, of which the slabs explain a part.
        left = jnp.sum(y * y, 1)[:, None] - jnp.sum(mu * (along + away), -1)
        fit = (left - jnp.sum(away * gain, -1)) / variance
        return Slabs(mu + gain, posterior, -0.5 * (log_prior + log_precision + fit))

    def alone(coding: SpikeAndSlab, y: Array) -> Slabs:
        """Those of each latent alone, `[B, H, 1]`."""
        members = jnp.broadcast_to(jnp.asarray(single), (len(y), H, 1))
        return slabs(coding, y, members, np.ones((H, 1), bool))

    def of_patterns(coding: SpikeAndSlab, y: Array, chosen: Array) -> Slabs:
        """Those of the patterns of each example's candidates, `[B, S, g]`."""
        return slabs(coding, y, chosen[:, jnp.asarray(places)], real)

    def odds(coding: SpikeAndSlab) -> Array:
        return jnp.log(coding.prior) - jnp.log1p(-coding.prior)

    def best(coding: SpikeAndSlab, y: Array) -> Array:
        return jax.lax.top_k(alone(coding, y).evidence, C)[1]

    def joints(coding: SpikeAndSlab, y: Array, chosen: Array, temperature: Array) -> Joints:
        none = -0.5 * jnp.sum(y * y, 1) / coding.variance
        active = odds(coding)[chosen] @ jnp.asarray(kept.patterns, y.dtype).T
        return Joints(
            none / temperature,
            ((odds(coding) + alone(coding, y).evidence) / temperature)[:, None],
            (active + of_patterns(coding, y, chosen).evidence) / temperature,
        )

    def nothing(coding: SpikeAndSlab) -> SlabSums:
        kind = jnp.promote_types(coding.dictionary.dtype, jnp.float32)
        D = coding.dictionary.shape[0]
        square = jnp.zeros((H, H), kind)
        return SlabSums(
            jnp.zeros((D, H), kind),
            square,
            jnp.zeros(H, kind),
            square,
            square,
            jnp.zeros((), kind),
        )

    def statistics(
        coding: SpikeAndSlab, y: Array, chosen: Array, found: Joints, temperature: Array
    ) -> SlabSums:
        ones, together = alone(coding, y), of_patterns(coding, y, chosen)
        weight = found.none + found.alone.sum((1, 2)) + found.together.sum(1)
        q = found.alone[:, 0]
        first = q * ones.mean[..., 0]
        first_sum = first.sum(0)
        second = jnp.einsum("bh,bh->h", q, ones.covariance[..., 0, 0] + ones.mean[..., 0] ** 2)
        supports = chosen[:, jnp.asarray(places)]
        there = jnp.asarray(real, y.dtype)
        p = found.together
        rows = jnp.arange(len(y))[:, None, None]
        v = first.at[rows, supports].add(p[..., None] * together.mean * there)
        outer = together.covariance + together.mean[..., :, None] * together.mean[..., None, :]
        both = there[:, :, None] * there[:, None]
        pairs = supports[..., :, None], supports[..., None, :]
        square = jnp.zeros((H, H), y.dtype)
        vv = square.at[pairs].add(p[..., None, None] * outer * both) + jnp.diag(second)
        ss = square.at[pairs].add(p[..., None, None] * both) + jnp.diag(q.sum(0))
        halves = p[..., None, None] * together.mean[..., :, None] * both
        vs = square.at[pairs].add(halves) + jnp.diag(first_sum)
        return SlabSums(y.T @ v, vv, v.sum(0), vs, ss, jnp.sum(weight * jnp.sum(y * y, 1)))

    def maximise(coding: SpikeAndSlab, sums: SlabSums, examples: Array) -> SpikeAndSlab:
        ridge = RIDGE * jnp.trace(sums.second) / H + jnp.finfo(sums.second.dtype).tiny
        W = jnp.linalg.solve(sums.second + ridge * jnp.eye(H), sums.cross.T).T
        count = jnp.maximum(jnp.diagonal(sums.active), 1e-10)
        prior = jnp.clip(count / examples, LEAST, 1 - LEAST)
        mu = sums.first / count
        Psi = jnp.diag(jnp.maximum((jnp.diagonal(sums.second) - mu**2 * count) / count, 1e-6))
        if not diagonal:
            # Of pairs that are active together, (v_h - mu_h)(v_k - mu_k).
            across = mu[:, None] * sums.mixed.T
            spread = sums.second - across - across.T + mu[:, None] * mu * sums.active
            others = spread / jnp.maximum(sums.active, 1e-10) * (1 - jnp.eye(H))
            values, vectors = jnp.linalg.eigh(Psi + (others + others.T) / 2)
            Psi = (vectors * jnp.maximum(values, 1e-6)) @ vectors.T
        error = sums.length - 2 * jnp.sum(W * sums.cross) + jnp.sum((W.T @ W) * sums.second)
        variance = jnp.maximum(error / (W.shape[0] * examples), 1e-10)
        return SpikeAndSlab(W, prior, mu, Psi, variance)

    def normaliser(coding: SpikeAndSlab) -> Array:
        D = coding.dictionary.shape[0]
        none = jnp.log1p(-coding.prior).sum()
        return none - D / 2 * jnp.log(2 * jnp.pi * coding.variance)

    return Model(
        kept,
        best,
        joints,
        statistics,
        nothing,
        maximise,
        lambda coding: coding.prior.mean(),
        normaliser,
    )


def slab_start(key: Key[Array, ""], data: Float[AnyArray, "N D"], model: Model) -> SpikeAndSlab:
    """The usual start: columns near the data's mean, random spikes and slabs, their mean variance.

    Args:
      key: a typed key.
      data: examples to take mean and variance from.
      model: of `gsc`.
    """
    y = examples_of(key, data, model)
    H, D = model.truncation.latents, y.shape[1]
    columns, spikes, means, slabs = jax.random.split(key, 4)
    deviation = jnp.std(y, 0).mean()
    W = y.mean(0)[:, None] + deviation / 4 * jax.random.normal(columns, (D, H), y.dtype)
    prior = jnp.clip(0.95 * jax.random.uniform(spikes, (H,), y.dtype), 0.05)
    mu = jax.random.normal(means, (H,), y.dtype)
    Psi = jnp.diag(jnp.maximum(0.05, 2 * jax.random.uniform(slabs, (H,), y.dtype)))
    return SpikeAndSlab(W, prior, mu, Psi, jnp.var(y, 0).mean() + 0.001)
