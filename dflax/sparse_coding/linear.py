"""Discrete latents whose columns add up: binary, ternary and other values (BSC, TSC, DSC)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.sparse_coding.expectation_truncation import Joints, Model
from dflax.sparse_coding.states import mass_within, truncation

LEAST, RIDGE = 1e-6, 1e-9


class Discrete(NamedTuple):
    """A dictionary, a discrete prior and noise.

    Attributes:
      dictionary: W, `[D, H]`.
      prior: `[V + 1]`, the probabilities of 0 and of the V other values; of sum 1.
      noise: sigma, `[]`.
    """

    dictionary: Float[Array, "D H"]
    prior: Float[Array, " V+1"]
    noise: Float[Array, ""]


class Sums(NamedTuple):
    """Sums over examples under their posteriors.

    Attributes:
      cross: `[D, H]`, of y s'.
      second: `[H, H]`, of s s'.
      counts: `[V]`, of how many latents have each value other than 0.
      error: `[]`, of |y - W s|^2.
    """

    cross: Float[Array, "D H"]
    second: Float[Array, "H H"]
    counts: Float[Array, " V"]
    error: Float[Array, ""]


def bsc(latents: int, candidates: int, most: int) -> Model:
    """Binary sparse coding: `y = W s + noise`, each s_h 1 with probability pi and else 0.

    Args:
      latents: H.
      candidates: H' in [1, H], latents of an example that may be active together.
      most: gamma in [1, H'], how many of them.

    Returns:
      A `Model` whose coding is a `Discrete`; start one with `discrete_start`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Henniges et al., Binary Sparse Coding, 2010.
    """
    return _linear(latents, candidates, most, np.array([1.0]), tied=True)


def tsc(latents: int, candidates: int, most: int) -> Model:
    """Ternary sparse coding: s_h in {-1, 0, 1}, both signs with probability pi / 2.

    Args and returns as `bsc`.

    References:
      Exarchakis et al., Ternary Sparse Coding, 2012.
    """
    return _linear(latents, candidates, most, np.array([-1.0, 1.0]), tied=True)


def dsc(latents: int, candidates: int, most: int, values: Sequence[float]) -> Model:
    """Discrete sparse coding: s_h in {0, phi_1, .., phi_V}, each with a probability of its own.

    Args:
      latents: as in `bsc`.
      candidates: as in `bsc`.
      most: as in `bsc`.
      values: phi, distinct and other than 0.

    Returns:
      As `bsc`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Exarchakis and Luecke, Discrete Sparse Coding, Neural Computation 29, 2017.
    """
    given = np.asarray(validation.array("values", values, kind="real", shape=("V",)), float)
    if given.size < 1 or (given == 0).any() or len(np.unique(given)) < given.size:
        raise ValueError(
            f"values must be distinct and other than 0, which is always one, got {given.tolist()}."
        )
    return _linear(latents, candidates, most, given, tied=False)


def discrete_start(key: Key[Array, ""], data: Float[AnyArray, "N D"], model: Model) -> Discrete:
    """The usual start: the data's mean with noise of a quarter of their deviation in every column.

    The prior gives 1 / H to all values other than 0 together, and sigma is the mean deviation of a
    dimension. Constant dimensions get none.

    Args:
      key: a typed key.
      data: examples to take mean and deviation from.
      model: of `bsc`, `tsc`, `dsc`, `mca` or `mmca`.
    """
    y = examples_of(key, data, model)
    H = model.truncation.latents
    values = max(int(model.truncation.patterns.max(initial=1)), 1)
    deviation = jnp.std(y, 0).mean()
    columns = y.mean(0)[:, None] + deviation / 4 * jax.random.normal(key, (y.shape[1], H), y.dtype)
    prior = jnp.concatenate([jnp.array([1 - 1 / H]), jnp.full(values, 1 / H / values)])
    return Discrete(columns, prior.astype(y.dtype), deviation)


def examples_of(
    key: Key[Array, ""], data: Float[AnyArray, "N D"], model: Model
) -> Float[Array, "N D"]:
    """The examples that a start is made from, after all checks."""
    validation.typed_key("key", key)
    validation.instance("model", model, Model, "For example dflax.sparse_coding.bsc(10, 8, 5).")
    y = jnp.asarray(validation.array("data", data, kind="real", shape=("N", "D")))
    y = y.astype(jnp.result_type(float))
    if y.shape[0] < 2 or not float(jnp.max(jnp.std(y, 0))) > 0:
        raise ValueError(
            f"data must hold at least 2 examples that differ, got {y.shape[0]} of deviation 0."
        )
    return y


def _linear(latents: int, candidates: int, most: int, values: np.ndarray, *, tied: bool) -> Model:
    kept = truncation(latents, candidates, most, len(values))
    H, V = latents, len(values)
    table = np.concatenate([[0.0], values])[kept.patterns]
    squares = (table[:, :, None] * table[:, None]).reshape(len(table), candidates**2)
    # How often each value occurs in a pattern.
    of_value = np.stack([(kept.patterns == v + 1).sum(1) for v in range(V)], 1)

    def singles(coding: Discrete, y: Array, temperature: Array) -> Array:
        """Log-joints of each latent alone, `[B, V, H]`, without |y|^2."""
        W, prior, sigma = coding
        phi = jnp.asarray(values, y.dtype)[:, None]
        logs = jnp.log(prior)
        apart = -2 * phi * (y @ W)[:, None] + phi**2 * jnp.sum(W * W, 0)
        return logs[1:, None] + (H - 1) * logs[0] - apart / (2 * temperature * sigma**2)

    def best(coding: Discrete, y: Array) -> Array:
        W = coding.dictionary
        if V == 1:
            lengths = jnp.sqrt(jnp.sum(W * W, 0))
            scores = (y @ W) / jnp.where(lengths > 0, lengths, 1) * jnp.sign(values[0])
        else:
            scores = singles(coding, y, jnp.ones(())).max(1)
        return jax.lax.top_k(scores, candidates)[1]

    def joints(coding: Discrete, y: Array, chosen: Array, temperature: Array) -> Joints:
        W, prior, sigma = coding
        beta = 1 / (2 * temperature * sigma**2)
        logs = jnp.log(prior)
        length = jnp.sum(y * y, 1)
        gram = (W.T @ W)[chosen[:, :, None], chosen[:, None]].reshape(len(y), -1)
        along = jnp.take_along_axis(y @ W, chosen, 1)
        T, TT = (jnp.asarray(x, y.dtype) for x in (table, squares))
        apart = -2 * along @ T.T + gram @ TT.T
        counts = jnp.asarray(of_value, y.dtype)
        weighed = counts @ logs[1:] + (H - counts.sum(1)) * logs[0]
        common = -beta * length
        return Joints(
            H * logs[0] + common,
            singles(coding, y, temperature) + common[:, None, None],
            weighed - beta * apart + common[:, None],
        )

    def nothing(coding: Discrete) -> Sums:
        D = coding.dictionary.shape[0]
        kind = jnp.promote_types(coding.dictionary.dtype, jnp.float32)
        return Sums(
            jnp.zeros((D, H), kind),
            jnp.zeros((H, H), kind),
            jnp.zeros(V, kind),
            jnp.zeros((), kind),
        )

    def statistics(
        coding: Discrete, y: Array, chosen: Array, found: Joints, temperature: Array
    ) -> Sums:
        W = coding.dictionary
        phi = jnp.asarray(values, y.dtype)
        T, TT = (jnp.asarray(x, y.dtype) for x in (table, squares))
        rows = jnp.arange(len(y))[:, None]
        mean = jnp.einsum("v,bvh->bh", phi, found.alone)
        mean = mean.at[rows, chosen].add(found.together @ T, unique_indices=True)
        pairs = (found.together @ TT).reshape(len(y), candidates, candidates)
        second = jnp.zeros((H, H), y.dtype).at[chosen[:, :, None], chosen[:, None]].add(pairs)
        second = second + jnp.diag(jnp.einsum("v,bvh->h", phi**2, found.alone))
        counts = found.alone.sum((0, 2)) + (found.together @ jnp.asarray(of_value, y.dtype)).sum(0)
        weight = found.none + found.alone.sum((1, 2)) + found.together.sum(1)
        cross = y.T @ mean
        error = jnp.sum(weight * jnp.sum(y * y, 1)) - 2 * jnp.sum(W * cross)
        return Sums(cross, second, counts, error + jnp.sum((W.T @ W) * second))

    def maximise(coding: Discrete, sums: Sums, examples: Array) -> Discrete:
        D = coding.dictionary.shape[0]
        ridge = RIDGE * jnp.trace(sums.second) / H + jnp.finfo(sums.second.dtype).tiny
        W = jnp.linalg.solve(sums.second + ridge * jnp.eye(H), sums.cross.T).T
        share = sums.counts / (examples * H)
        if tied:
            within, causes = mass_within(kept, 1 - coding.prior[0])
            # Within the kept states latents are less often active than in the prior.
            active = (1 - coding.prior[0]) * within / causes * share.sum() * H
            share = jnp.full(V, jnp.clip(active, 1e-5, 1 - 1e-5) / V)
        share = jnp.maximum(share, LEAST)
        prior = jnp.concatenate([jnp.maximum(1 - share.sum(), LEAST)[None], share])
        sigma = jnp.sqrt(jnp.maximum(sums.error / (D * examples), 1e-12))
        return Discrete(W, prior / prior.sum(), sigma)

    def normaliser(coding: Discrete) -> Array:
        D = coding.dictionary.shape[0]
        return -D / 2 * jnp.log(2 * jnp.pi * coding.noise**2)

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
