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

    def slabs(coding: SpikeAndSlab, y: Array, members: Array, there: Array) -> Slabs:
        """The slabs of one example and one support `[g]`."""
        W = jnp.where(there, coding.dictionary[:, members], 0)
        mu = jnp.where(there, coding.mean[members], 0)
        both = there[:, None] & there
        eye = jnp.eye(len(members), dtype=y.dtype)
        Psi = jnp.where(both, coding.covariance[members[:, None], members], eye)
        away = y - W @ mu
        precision = W.T @ W / coding.variance + jnp.linalg.inv(Psi)
        precision = jnp.where(both, precision, eye)
        along = W.T @ away / coding.variance
        covariance = jnp.where(both, jnp.linalg.inv(precision), 0)
        fit = away @ away / coding.variance - along @ covariance @ along
        logs = jnp.linalg.slogdet(Psi)[1] + jnp.linalg.slogdet(precision)[1]
        return Slabs(mu + covariance @ along, covariance, -0.5 * (logs + fit))

    def of_supports(coding: SpikeAndSlab, y: Array, chosen: Array) -> tuple[Slabs, Slabs]:
        """Those of each latent alone, `[B, H, 1]`, and of the patterns, `[B, S, g]`."""
        single = jnp.arange(H)[:, None]
        truth = jnp.ones((H, 1), bool)
        alone = jax.vmap(lambda y: jax.vmap(lambda m, t: slabs(coding, y, m, t))(single, truth))(y)
        supports = chosen[:, jnp.asarray(places)]
        together = jax.vmap(
            lambda y, rows: jax.vmap(lambda m, t: slabs(coding, y, m, t))(rows, jnp.asarray(real))
        )(y, supports)
        return alone, together

    def odds(coding: SpikeAndSlab) -> Array:
        return jnp.log(coding.prior) - jnp.log1p(-coding.prior)

    def best(coding: SpikeAndSlab, y: Array) -> Array:
        single, truth = jnp.arange(H)[:, None], jnp.ones((H, 1), bool)
        scores = jax.vmap(
            lambda y: jax.vmap(lambda m, t: slabs(coding, y, m, t).evidence)(single, truth)
        )(y)
        return jax.lax.top_k(scores, C)[1]

    def joints(coding: SpikeAndSlab, y: Array, chosen: Array, temperature: Array) -> Joints:
        alone, together = of_supports(coding, y, chosen)
        none = -0.5 * jnp.sum(y * y, 1) / coding.variance
        active = odds(coding)[chosen] @ jnp.asarray(kept.patterns, y.dtype).T
        return Joints(
            none / temperature,
            ((odds(coding) + alone.evidence) / temperature)[:, None],
            (active + together.evidence) / temperature,
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
        alone, together = of_supports(coding, y, chosen)
        weight = found.none + found.alone.sum((1, 2)) + found.together.sum(1)
        q = found.alone[:, 0]
        first = q * alone.mean[..., 0]
        first_sum = first.sum(0)
        second = jnp.einsum("bh,bh->h", q, alone.covariance[..., 0, 0] + alone.mean[..., 0] ** 2)
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
