"""Exact fields: the prediction that no network beats, of Gaussian mixtures and of finite data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.generative.fields import Field, check_target
from dflax.generative.path import Path, check_path
from dflax.generative.targets import Target, value, velocity
from dflax.models.diffusion.noised import Noised


class Mixture(NamedTuple):
    """Data whose law is `sum_m w_m N(mean_m, variance_m I)`.

    Attributes:
      means: `[M, D]`.
      variances: `[M]`, >= 0; 0 for a point, so that M examples of a data set are a mixture, too.
      weights: `[M]`, >= 0, of any sum.
    """

    means: Float[Array, "M D"]
    variances: Float[Array, " M"]
    weights: Float[Array, " M"]


def mixture(
    means: Float[AnyArray, "M D"],
    variances: Float[AnyArray, " M"] | float = 0.0,
    weights: Float[AnyArray, " M"] | float = 1.0,
) -> Mixture:
    """A `Mixture`; of points, each as likely, where nothing else is said.

    Args:
      means: `[M, D]`.
      variances: `[M]` or one for all, >= 0.
      weights: `[M]` or one for all, >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    means = jnp.asarray(validation.array("means", means, kind="real", shape=("M", "D")))
    means = means.astype(jnp.promote_types(means.dtype, jnp.float32))
    each = []
    for name, given in (("variances", variances), ("weights", weights)):
        validation.real(name, given, low=0.0)
        if jnp.ndim(given):
            validation.array(name, given, kind="real", shape=means.shape[:1])
        each.append(jnp.broadcast_to(jnp.asarray(given, means.dtype), means.shape[:1]))
    if not validation.is_traced(each[1]) and not bool(jnp.any(each[1] > 0)):
        raise ValueError("weights must be positive for at least one component, got zeros only.")
    return Mixture(means, *each)


def exact(mixture: Mixture, path: Path, target: Target = velocity) -> Field:
    """The field that minimises the loss of `denoising` on a mixture: E[target | x_t].

        v_m      = a^2 variance_m + s^2
        r_m(x)   = softmax over m of log w_m - |x - a mean_m|^2 / (2 v_m) - D log(v_m) / 2
        E[x_0|x] = sum_m r_m (mean_m + a variance_m / v_m (x - a mean_m))
        E[eps|x] = sum_m r_m s / v_m (x - a mean_m)

    Args:
      mixture: of the data.
      path: a and s; t > 0, where points have no density at t = 0.
      target: what is predicted.

    Returns:
      A field of x `[B, D]`.

    Raises:
      TypeError: naming the argument.
    """
    _check(mixture, path)
    check_target(target)

    def predicted(noised: Noised, key: Key[Array, ""]) -> Float[Array, "B D"]:
        x, t = noised.x, noised.time
        a, s = path.signal(t)[:, None], path.noise(t)[:, None]
        share = jax.nn.softmax(_log_joint(mixture, path, noised), axis=1)
        spread = _spread(mixture, path, t)

        def away(c: Float[Array, "B M"]) -> Float[Array, "B D"]:
            """sum_m c_m (x - a mean_m), as a product."""
            return c.sum(1, keepdims=True) * x - a * (c @ mixture.means)

        found = share @ mixture.means + away(share * a * mixture.variances / spread)
        return value(target, path, found, away(share * s / spread), t)

    return predicted


def log_responsibilities(
    mixture: Mixture, labels: Int[AnyArray, " M"], groups: int, path: Path, noised: Noised
) -> Float[Array, "B K"]:
    """`log P(c = k | x_t)`, the group of the component that an example came from: the exact router.

    Args:
      mixture: of the data.
      labels: c, `[M]`, the group of each component, in [0, K).
      groups: K >= 1, static.
      path: from data to noise.
      noised: x `[B, D]` and t.

    Returns:
      `[B, K]`; minus infinity for a group without components.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check(mixture, path)
    validation.integer("groups", groups, low=1)
    shape = mixture.weights.shape
    validation.array("labels", labels, kind="integer", shape=shape, low=0, high=groups - 1)
    validation.instance("noised", noised, Noised, "Noised(x, time).")
    joint = _log_joint(mixture, path, noised)
    own = jnp.asarray(labels)[:, None] == jnp.arange(groups)
    masked = jnp.where(own, joint[:, :, None], -jnp.inf)
    return jax.nn.log_softmax(jax.nn.logsumexp(masked, axis=1), axis=1)


def _spread(mixture: Mixture, path: Path, t: Float[Array, " B"]) -> Float[Array, "B M"]:
    a, s = path.signal(t)[:, None], path.noise(t)[:, None]
    return jnp.square(a) * mixture.variances + jnp.square(s)


def _log_joint(mixture: Mixture, path: Path, noised: Noised) -> Float[Array, "B M"]:
    """`log w_m N(x; a mean_m, v_m I)` up to a constant."""
    x, a = noised.x, path.signal(noised.time)
    away = jnp.sum(jnp.square(x[:, None] - a[:, None, None] * mixture.means), axis=2)
    spread = _spread(mixture, path, noised.time)
    return jnp.log(mixture.weights) - away / (2 * spread) - 0.5 * x.shape[1] * jnp.log(spread)


def _check(mixture: Mixture, path: Path) -> None:
    fix = "Make one with dflax.generative.mixture(means, variances, weights)."
    validation.instance("mixture", mixture, Mixture, fix)
    check_path(path)
