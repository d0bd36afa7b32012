"""Local minimisations over non-negative weights: majorisation with closed forms, and block DSCA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.gaussian_processes.likelihood import Evidence

Weights = Float[Array, " A"]
Solver = Callable[[Callable[[Weights], Evidence], Weights, Weights, Float[Array, ""]], Weights]
"""`(evidence, start, center, rho) -> weights` that nearly minimise l(t) + (rho / 2) |t - center|^2."""

# A weight of 0 would stay 0 for ever, also where it was rounded to it.
LEAST = 1e-12
# From twice the root at most, Newton's method on a convex function doubles its digits each time.
NEWTON_STEPS = 8


def positive_root(
    p: Float[Array, "..."], b: Float[Array, "..."], rho: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """The t > 0 that minimises p / t + b t + (rho / 2) t^2: the root of rho t^3 + b t^2 = p.

    The unknown is scaled by a bound on it, min(sqrt(p / b), (p / rho)^(1/3)) for b > 0 and
    max(-b / rho, (p / rho)^(1/3)) otherwise, so that no number of the iteration is beyond 8, however
    small rho is. rho = 0 gives sqrt(p / b).

    Args:
      p: >= 0; for p = 0 the root is max(-b / rho, 0).
      b: any; > 0 where rho is 0.
      rho: >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("p", p, low=0.0)
    validation.real("b", b)
    validation.real("rho", rho, low=0.0)
    p, b, rho = (jnp.asarray(one) for one in (p, b, rho))
    kind = jnp.result_type(p, b, rho, jnp.float32)
    p, b, rho = (one.astype(kind) for one in (p, b, rho))
    pulled = rho > 0
    cubic = jnp.where(pulled, jnp.cbrt(p / jnp.where(pulled, rho, 1)), jnp.inf)
    square = jnp.where(b > 0, jnp.sqrt(p / jnp.where(b > 0, b, 1)), jnp.inf)
    away = jnp.where(pulled, -b / jnp.where(pulled, rho, 1), 0)
    size = jnp.where(b > 0, jnp.minimum(square, cubic), jnp.maximum(away, cubic))
    scale = jnp.where(size > 0, size, 1)
    # Divided by the largest term: third u^3 + second u^2 = first.
    third, second, first = rho * scale, b, p / (scale * scale)
    largest = jnp.maximum(jnp.maximum(third, jnp.abs(second)), first)
    whole = jnp.where(largest > 0, largest, 1)
    third, second, first = third / whole, second / whole, first / whole

    def newton(u: Array, _: None) -> tuple[Array, None]:
        value = (third * u + second) * u * u - first
        slope = (3 * third * u + 2 * second) * u
        return u - value / jnp.where(slope > 0, slope, 1), None

    start = jnp.where(b > 0, 1.0, 2.0).astype(kind) * jnp.ones_like(first)
    return scale * jax.lax.scan(newton, start, None, NEWTON_STEPS)[0] * (size > 0)


def mm(steps: int = 10) -> Solver:
    """Majorisation and minimisation: all weights at once, each by the root of a cubic.

    At weights z, y' C^-1 y <= sum_a z_a^2 q_a / t_a + constant and log det C <= sum_a g_a t_a +
    constant, with equality at t = z. Each step minimises the bound with the pull towards the center c,

        t_a = argmin of z_a^2 q_a / t + g_a t + (rho / 2) (t - c_a)^2

    so that none raises the objective. Without a pull t_a = z_a sqrt(q_a / g_a).

    Args:
      steps: >= 1, a Cholesky factor each.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("steps", steps, low=1)

    def solve(
        evidence: Callable[[Weights], Evidence], start: Weights, center: Weights, rho: Array
    ) -> Weights:
        def step(z: Weights, _: None) -> tuple[Weights, None]:
            z = jnp.maximum(z, LEAST)
            found = evidence(z)
            t = positive_root(z * z * found.q, found.g - rho * center, rho)
            return t.astype(z.dtype), None

        return jax.lax.scan(step, start, None, steps)[0]

    return solve


def dsca(blocks: int = 4, steps: int = 3, inner: int = 5, damping: float = 1.0) -> Solver:
    """Distributed successive convex approximation: blocks of weights that are updated in parallel.

    log det C is replaced by its tangent at z, and each of S blocks minimises

        y' C^-1 y + sum over a in the block of g_a t_a + (rho / 2) |t - center|^2

    over its own weights, the others held at z, by `inner` closed-form steps of `mm` with g held fixed.
    Then z moves by `damping` towards all blocks' results together. With one block it is SCA, which
    lowers the objective; with more, 1 / S does so as well and 1, the published choice, usually.

    Args:
      blocks: S >= 1, contiguous.
      steps: >= 1, of approximations.
      inner: >= 1, within each.
      damping: in (0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Suwandi et al., Sparsity-Aware Distributed Learning for Gaussian Processes with Linear Multiple
      Kernel, arXiv 2309.08201.
    """
    for name, value in (("blocks", blocks), ("steps", steps), ("inner", inner)):
        validation.integer(name, value, low=1)
    validation.real("damping", damping, low=0.0, high=1.0, low_open=True, scalar=True)

    def solve(
        evidence: Callable[[Weights], Evidence], start: Weights, center: Weights, rho: Array
    ) -> Weights:
        block = jnp.arange(len(start)) * blocks // len(start)

        def approximation(z: Weights, _: None) -> tuple[Weights, None]:
            z = jnp.maximum(z, LEAST)
            tangent = evidence(z).g - rho * center

            def minimised(own: Array) -> Weights:
                def step(t: Weights, _: None) -> tuple[Weights, None]:
                    moved = positive_root(t * t * evidence(t).q, tangent, rho)
                    return jnp.where(own, jnp.maximum(moved, LEAST), t).astype(t.dtype), None

                return jax.lax.scan(step, z, None, inner)[0]

            members = block == jnp.arange(blocks)[:, None]
            found = jnp.sum(jnp.where(members, jax.vmap(minimised)(members), 0), axis=0)
            return (z + damping * (found - z)).astype(z.dtype), None

        return jax.lax.scan(approximation, start, None, steps)[0]

    return solve
