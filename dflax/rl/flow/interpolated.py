"""PolicyFlow's ratio of probabilities: interpolated along a path, and the exact one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.generative.path import Path, along, check_path
from dflax.generative.targets import solved
from dflax.generative.targets import velocity as flow_velocity
from dflax.rl.distributions import Gaussian


def log_shift_ratio(
    noise: Float[AnyArray, "... D"],
    shift: Float[AnyArray, "... D"],
    log_deviation: Float[AnyArray, " D"],
    old_log_deviation: Float[AnyArray, " D"],
) -> Float[Array, "..."]:
    """The log ratio of two Gaussians where one has moved: `log N(n; shift, sigma^2) / N(n; 0, old^2)`.

    The mean of the ratio over n ~ N(0, old^2) is 1 for every shift that does not depend on n.

    Args:
      noise: n, the action minus where the old flow led, `[..., D]`.
      shift: how much further the new flow leads, `[..., D]`.
      log_deviation: log sigma now, `[D]`.
      old_log_deviation: log sigma when the action was taken, `[D]`.

    Raises:
      TypeError, ValueError: naming the argument; deviations of 0, whose logarithm is infinite.
    """
    validation.array("noise", noise, kind="real")
    if not jnp.ndim(noise):
        raise ValueError(f"noise must have the shape [..., D], got {validation.shown(noise)}.")
    size = jnp.shape(noise)
    validation.array("shift", shift, kind="real", shape=size, fix="Like noise.")
    fix = "One number for each of an action's; deviations must be above 0, or it has no density."
    for name, value in (("log_deviation", log_deviation), ("old_log_deviation", old_log_deviation)):
        validation.array(name, value, kind="real", shape=size[-1:], fix=fix)
    noise, shift = jnp.asarray(noise), jnp.asarray(shift)
    now = Gaussian(shift, jnp.asarray(log_deviation)).log_prob(noise)
    return now - Gaussian(jnp.zeros_like(noise), jnp.asarray(old_log_deviation)).log_prob(noise)


def brownian_residual(
    path: Path,
    velocity: Float[Array, "B D"],
    reference: Float[Array, "B D"],
    x: Float[Array, "B D"],
    time: Float[Array, " B"],
) -> Float[Array, "B D"]:
    """What is left of Brownian motion: `s(t) u + eps`, eps the noise that the reference stands for.

    The density of Brownian motion flows with minus its score, towards the action with - u = eps / s.
    On the straight path eps = x + (1 - t) u_ref. Where it is 0 for u = u_ref, u = - x: the flow widens
    noise e times.

    Args:
      path: a and s.
      velocity: u(x, t), `[B, D]`; gradients flow through it.
      reference: u_ref(x, t), `[B, D]`; a constant to the gradient.
      x: where both were asked.
      time: t in [0, 1].

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yang et al., PolicyFlow, arXiv 2602.01156.
    """
    check_path(path)
    x = jnp.asarray(validation.array("x", x, kind="real", shape=("B", "D")))
    given = {"velocity": velocity, "reference": reference}
    for name, value in given.items():
        validation.array(name, value, kind="real", shape=x.shape, fix="Like x.")
    validation.array("time", time, kind="real", shape=x.shape[:1], low=0.0, high=1.0)
    t = jnp.asarray(time, x.dtype)
    u, frozen = jnp.asarray(velocity), jax.lax.stop_gradient(jnp.asarray(reference))
    _, eps = solved(flow_velocity, path, frozen, x, t)
    return along(path.noise(t), u) + eps


class RatioError(NamedTuple):
    """How far the interpolated ratio is from the exact one.

    Attributes:
      correlation: of the two log ratios.
      relative: |interpolated - exact| / |exact|, norms over samples of the log ratios.
      shift: the same of the shifts.
      interpolated: mean ratio.
      exact: mean ratio.
    """

    correlation: Float[Array, ""]
    relative: Float[Array, ""]
    shift: Float[Array, ""]
    interpolated: Float[Array, ""]
    exact: Float[Array, ""]


def ratio_error(
    noise: Float[Array, "B D"],
    interpolated: Float[Array, "B D"],
    exact: Float[Array, "B D"],
    log_deviation: Float[Array, " D"],
    old_log_deviation: Float[Array, " D"],
) -> RatioError:
    """Compares the ratio of an interpolated shift with that of the exact one.

    Args:
      noise: n, `[B, D]`.
      interpolated: the change of velocity on the path, `[B, D]`.
      exact: where the new flow carries the same start noise, minus where the old one did, `[B, D]`.
      log_deviation: log sigma now, `[D]`.
      old_log_deviation: log sigma then, `[D]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.array("noise", noise, kind="real", shape=("B", "D"))
    size = jnp.shape(noise)
    validation.array("interpolated", interpolated, kind="real", shape=size, fix="Like noise.")
    validation.array("exact", exact, kind="real", shape=size, fix="Like noise.")
    near = log_shift_ratio(noise, interpolated, log_deviation, old_log_deviation)
    true = log_shift_ratio(noise, exact, log_deviation, old_log_deviation)

    def apart(a: Array, b: Array) -> Array:
        return jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30)

    return RatioError(
        jnp.corrcoef(near, true)[0, 1],
        apart(near, true),
        apart(jnp.ravel(interpolated), jnp.ravel(exact)),
        jnp.mean(jnp.exp(near)),
        jnp.mean(jnp.exp(true)),
    )
