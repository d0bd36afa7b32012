"""Binary latents of which the strongest shows in each dimension: MCA and MMCA."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.sparse_coding.expectation_truncation import Joints, Model
from dflax.sparse_coding.linear import Discrete
from dflax.sparse_coding.powers import positive_log, positive_power
from dflax.sparse_coding.states import mass_within, truncation

# Columns are kept away from 0, where their logarithm is needed.
LEAST = 1e-4


class MaximalSums(NamedTuple):
    """Sums over examples under their posteriors.

    Attributes:
      pulled: `[D, H]`, of a_dh y_d, a_dh the share that latent h has in what shows in dimension d.
      shares: `[D, H]`, of a_dh.
      causes: `[]`, of the number of active latents.
      error: `[]`, of |y - f|^2.
    """

    pulled: Float[Array, "D H"]
    shares: Float[Array, "D H"]
    causes: Float[Array, ""]
    error: Float[Array, ""]


def mca(latents: int, candidates: int, most: int, *, sharpest: float = 1.05) -> Model:
    """Maximal causes analysis: `y_d = max_h s_h W_dh + noise`, W > 0, s binary.

    While it cools the maximum is soft, `f_d = (sum_h s_h W_dh^rho)^(1 / rho)`, rho = T / (T - 1), at a
    temperature T of at least `sharpest`.

    Args:
      latents: H.
      candidates: H' in [1, H].
      most: gamma in [1, H'].
      sharpest: the temperature at which the maximum stays, > 1: 1.05 is rho = 21.

    Returns:
      A `Model` whose coding is a `Discrete`; start one with `discrete_start`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Luecke and Sahani, Maximal Causes for Non-linear Component Extraction, JMLR 9, 2008.
    """
    return _maximal(latents, candidates, most, sharpest, signed=False)


def mmca(latents: int, candidates: int, most: int, *, sharpest: float = 1.2) -> Model:
    """Maximum magnitude causes analysis: in each dimension the s_h W_dh of largest magnitude shows.

        t = sum_h s_h sign(W_dh) |W_dh|^rho,   f_d = sign(t) |t|^(1 / rho)

    The M step keeps a part of the old columns where few examples say anything of a latent.

    Args:
      latents: as in `mca`.
      candidates: as in `mca`.
      most: as in `mca`.
      sharpest: as in `mca`; 1.2 is rho = 6, a soft maximum.

    Returns:
      As `mca`.

    References:
      Bornschein, Henniges and Luecke, PLoS Computational Biology 9, 2013.
    """
    return _maximal(latents, candidates, most, sharpest, signed=True)


def _maximal(latents: int, candidates: int, most: int, sharpest: float, *, signed: bool) -> Model:
    validation.real("sharpest", sharpest, low=1.0, low_open=True, scalar=True)
    kept = truncation(latents, candidates, most)
    patterns, H = kept.patterns, latents

    def columns(coding: Discrete) -> Array:
        W = coding.dictionary
        if not signed:
            return jnp.maximum(W, LEAST)
        return jnp.where(W < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(W), LEAST)

    def power(temperature: Array) -> Array:
        return 1 / (1 - 1 / jnp.maximum(temperature, sharpest))

    def best(coding: Discrete, y: Array) -> Array:
        W = columns(coding)
        if signed:
            apart = jnp.sum(W * W, 0) - 2 * y @ W
        else:
            apart = jnp.maximum(W.T[None] - y[:, None], 0).sum(-1)
        return jax.lax.top_k(-apart, candidates)[1]

    def shown(own: Array, rho: Array) -> tuple[Array, Array]:
        """F of every pattern, `[S, B, D]`, of the candidates' columns, and |t|^(1 / rho - 1).

        Both in units of the largest candidate, so that powers stay in range.
        """
        T = jnp.asarray(patterns, own.dtype)
        unit, powers = scaled(own, rho)
        if not signed:
            total = jnp.maximum(jnp.einsum("sc,bcd->sbd", T, powers), jnp.finfo(own.dtype).tiny)
            found = unit[:, 0] * positive_power(total, 1 / rho)
        else:
            t = jnp.einsum("sc,bcd->sbd", T, jnp.sign(own) * powers)
            total = jnp.maximum(jnp.abs(t), 1e-30)
            found = unit[:, 0] * jnp.sign(t) * positive_power(total, 1 / rho)
        return found, positive_power(total, 1 / rho - 1)

    def scaled(own: Array, power: Array) -> tuple[Array, Array]:
        """The largest candidate in each dimension, and powers of the others in its unit."""
        unit = jnp.abs(own).max(1, keepdims=True)
        return unit, jnp.exp(power * positive_log(jnp.abs(own) / unit))

    def distances(y: Array, f: Array) -> Array:
        """|y - f|^2, `[B, S]`, as a product: a sum would compute f's powers one by one."""
        ones = jnp.ones(y.shape[1], y.dtype)
        return jnp.matmul(jnp.square(y - f), ones, precision="highest").T

    def joints(coding: Discrete, y: Array, chosen: Array, temperature: Array) -> Joints:
        W, sigma = columns(coding), coding.noise
        odds = jnp.log((1 - coding.prior[0]) / coding.prior[0])
        length = jnp.sum(y * y, 1)
        alone = length[:, None] - 2 * y @ W + jnp.sum(W * W, 0)
        f, _ = shown(W.T[chosen], power(temperature))
        apart = distances(y, f)
        active = jnp.asarray(patterns.sum(1), y.dtype)
        scale = 1 / (2 * sigma**2)
        return Joints(
            -scale * length / temperature,
            ((odds - scale * alone) / temperature)[:, None],
            (active * odds - scale * apart) / temperature,
        )

    def nothing(coding: Discrete) -> MaximalSums:
        kind = jnp.promote_types(coding.dictionary.dtype, jnp.float32)
        zeros = jnp.zeros((coding.dictionary.shape[0], H), kind)
        return MaximalSums(zeros, zeros, jnp.zeros((), kind), jnp.zeros((), kind))

    def parts(own: Array, inverse: Array, q: Array, rho: Array) -> Array:
        """Sums over patterns of q a, `[B, C, D]`, a = |W|^(rho - 1) |t|^(1 / rho - 1)."""
        T = jnp.asarray(patterns, own.dtype)
        _, each = scaled(own, rho - 1)
        if not signed:
            # Of patterns, which come first: as an einsum they would be put last before.
            weighted = (q.T[:, :, None] * inverse).reshape(len(patterns), -1)
            products = jnp.matmul(T.T, weighted, precision="highest")
            return each * products.reshape(candidates, len(own), -1).swapaxes(0, 1)

        def add(total: Array, own: tuple[Array, Array, Array]) -> tuple[Array, None]:
            weight, power, pattern = own
            a = jnp.minimum(power[:, None] * each, 1)
            return total + (weight[:, None] * pattern)[..., None] * a, None

        # Pattern by pattern: all at once they would be written down, or summed one by one.
        by_pattern = q.T, inverse, T
        return jax.lax.scan(add, jnp.zeros_like(each), by_pattern)[0]

    def statistics(
        coding: Discrete, y: Array, chosen: Array, found: Joints, temperature: Array
    ) -> MaximalSums:
        W, rho = columns(coding), power(temperature)
        own = W.T[chosen]
        f, inverse = shown(own, rho)
        alone = found.alone[:, 0]
        shares = parts(own, inverse, found.together, rho)
        D = W.shape[0]
        together = jnp.zeros((H, D), y.dtype).at[chosen].add(shares)
        pulled = jnp.zeros((H, D), y.dtype).at[chosen].add(shares * y[:, None])
        length = jnp.sum(y * y, 1)
        each = length[:, None] - 2 * y @ W + jnp.sum(W * W, 0)
        apart = distances(y, f)
        error = jnp.sum(found.none * length) + jnp.sum(alone * each)
        causes = alone.sum() + found.together.sum(0) @ jnp.asarray(patterns.sum(1), y.dtype)
        return MaximalSums(
            pulled.T + y.T @ alone,
            together.T + alone.sum(0),
            causes,
            error + jnp.sum(found.together * apart),
        )

    def maximise(coding: Discrete, sums: MaximalSums, examples: Array) -> Discrete:
        W = columns(coding)
        known = sums.shares > 1e-10
        means = jnp.where(known, sums.pulled / jnp.where(known, sums.shares, 1), W)
        if signed:
            trust = jnp.maximum(1 - jnp.exp(-sums.shares / 2.5), 0.2)
            means = jnp.where(known, trust * means + (1 - trust) * W, W)
        active = 1 - coding.prior[0]
        within, causes = mass_within(kept, active)
        active = jnp.clip(active * within / causes * sums.causes / examples, 1e-5, 1 - 1e-5)
        sigma = jnp.sqrt(jnp.maximum(sums.error / (W.shape[0] * examples), 1e-12))
        after = Discrete(means, jnp.stack([1 - active, active]), sigma)
        return after._replace(dictionary=columns(after))

    def normaliser(coding: Discrete) -> Array:
        D = coding.dictionary.shape[0]
        return H * jnp.log(coding.prior[0]) - D / 2 * jnp.log(2 * jnp.pi * coding.noise**2)

    return Model(
        kept,
        best,
        joints,
        statistics,
        nothing,
        maximise,
        lambda coding: 1 - coding.prior[0],
        normaliser,
    )
