"""The linear flow between events of accelerated asynchronous gossip, in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Real = float | Float[Array, ""]


class Momenta(NamedTuple):
    """The constants of DADAO for mu-strongly convex, L-smooth functions, with s = sqrt(mu / (2 L)).

    Attributes:
      nu: mu / 2.
      root: s.
      eta: s / 8, x and x~ pull at each other.
      alpha: s / 4, y and z are pulled to y~ and z~.
      alpha_tilde: s / 8, z~ is pulled to z.
      theta: 1 / (2 s), drift of y~.
      gamma: 1 / (4 L), gradient jump of x.
      gamma_tilde: 1 / (4 sqrt(L nu)), of x~.
      delta: s / 4 + 1, of y~.
      beta: 1/2, communication jump of z.
    """

    nu: Float[Array, ""]
    root: Float[Array, ""]
    eta: Float[Array, ""]
    alpha: Float[Array, ""]
    alpha_tilde: Float[Array, ""]
    theta: Float[Array, ""]
    gamma: Float[Array, ""]
    gamma_tilde: Float[Array, ""]
    delta: Float[Array, ""]
    beta: float = 0.5

    def beta_tilde(self, chi_1: Real) -> Float[Array, ""]:
        """2 chi_1 / s, the communication jump of z~; chi_1 is that of the rates in use."""
        return 2.0 * chi_1 / self.root


def momenta(strong_convexity: Real, smoothness: Real) -> Momenta:
    """The constants for mu and L, both traceable."""
    mu, top = jnp.asarray(strong_convexity), jnp.asarray(smoothness)
    mu, top = (value.astype(jnp.result_type(float)) for value in (mu, top))
    nu = mu / 2.0
    s = jnp.sqrt(nu / top)
    gammas = 1.0 / (4.0 * top), 1.0 / (4.0 * jnp.sqrt(top * nu))
    return Momenta(nu, s, s / 8.0, s / 4.0, s / 8.0, 1.0 / (2.0 * s), *gammas, s / 4.0 + 1.0)


def generator(constants: Momenta) -> Float[Array, "6 6"]:
    """M of the flow d(x, x~, y, y~, z, z~)/dt = M (x, x~, y, y~, z, z~).

    x' = eta (x~ - x)        y' = alpha (y~ - y)                 z' = alpha (z~ - z)
    x~' = eta (x - x~)       y~' = -theta (y + z + nu x~)        z~' = alpha_tilde (z - z~)
    """
    k = constants
    o = jnp.zeros_like(k.eta)
    rows = [
        [-k.eta, k.eta, o, o, o, o],
        [k.eta, -k.eta, o, o, o, o],
        [o, o, -k.alpha, k.alpha, o, o],
        [o, -k.theta * k.nu, -k.theta, o, -k.theta, o],
        [o, o, o, o, -k.alpha, k.alpha],
        [o, o, o, o, k.alpha_tilde, -k.alpha_tilde],
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


class Propagator(NamedTuple):
    """`exp(M h) = sum_k c_k(h) P_k` with c = (1, e^-ah, e^-bh, e^-gh cos wh, e^-gh sin wh).

    M has the double eigenvalue 0, two real ones -a and -b, and the pair -g +- i w. They never meet, so
    the parts P_k are exact and of moderate size, where numerical eigenvectors of M are not.

    Attributes:
      parts: `[5, 6, 6]`, P.
      decays: `[3]`, a, b and g.
      frequency: w.
    """

    parts: Float[Array, "5 6 6"]
    decays: Float[Array, "3"]
    frequency: Float[Array, ""]

    def __call__(self, gap: Float[Array, "..."]) -> Float[Array, "... 6 6"]:
        """exp(M h) for times h >= 0 of any shape."""
        fall = jnp.exp(-self.decays * gap[..., None])
        turn = self.frequency * gap
        weights = [jnp.ones_like(gap), fall[..., 0], fall[..., 1]]
        weights += [fall[..., 2] * jnp.cos(turn), fall[..., 2] * jnp.sin(turn)]
        # Five terms, added up in place: a product with P would be a call of its own in every event.
        return sum(w[..., None, None] * part for w, part in zip(weights, self.parts, strict=True))


def propagator(constants: Momenta) -> Propagator:
    """The closed form of the flow.

    With S = (x + x~)/2 and W = (alpha_tilde z + alpha z~)/(alpha + alpha_tilde) constant,
    D = x - x~ decaying at a = 2 eta and V = z - z~ at b = alpha + alpha_tilde, (y, y~) minus its forced
    part `-(nu S + W) (1, 1) + p V (1, r) + (nu/2) D (1, 0)` turns by N = [[-alpha, alpha], [-theta, 0]].
    """
    k = constants
    a, b, g = 2.0 * k.eta, k.alpha + k.alpha_tilde, k.alpha / 2.0
    w = jnp.sqrt(k.alpha * k.theta - g * g)
    share, kept = k.alpha / b, k.alpha_tilde / b
    r = 1.0 - b / k.alpha
    p = -share * k.theta / (k.theta + b * b / k.alpha - b)
    o, i = jnp.zeros_like(a), jnp.ones_like(a)

    def vector(*entries: Array) -> Array:
        return jnp.stack(entries)

    # Modes as columns, then the linear forms that read their amplitudes.
    mean, mean_of = vector(i, i, -k.nu, -k.nu, o, o), vector(i / 2, i / 2, o, o, o, o)
    level, level_of = vector(o, o, -i, -i, i, i), vector(o, o, o, o, kept, share)
    apart, apart_of = vector(i / 2, -i / 2, k.nu / 2, o, o, o), vector(i, -i, o, o, o, o)
    split = vector(o, o, p, r * p, share, -kept)
    split_of = vector(o, o, o, o, i, -i)
    forced = sum(
        jnp.outer(mode[2:4], reading)
        for mode, reading in (
            (mean, mean_of),
            (level, level_of),
            (apart, apart_of),
            (split, split_of),
        )
    )
    free = jnp.eye(6, dtype=a.dtype)[2:4] - forced
    turning = jnp.stack([vector(-k.alpha + g, k.alpha), vector(-k.theta, g)]) / w
    into = jnp.eye(6, dtype=a.dtype)[:, 2:4]
    parts = [
        jnp.outer(mean, mean_of) + jnp.outer(level, level_of),
        jnp.outer(apart, apart_of),
        jnp.outer(split, split_of),
        into @ free,
        into @ turning @ free,
    ]
    return Propagator(jnp.stack(parts), vector(a, b, g), w)


def apply_flow(matrix: Float[Array, "6 6"], rows: Float[Array, "6 ..."]) -> Float[Array, "6 ..."]:
    """The six vectors of one node after a flow."""
    product = jnp.matmul(
        matrix.astype(rows.dtype),
        rows.reshape(rows.shape[0], -1),
        precision=jax.lax.Precision.HIGHEST,
    )
    return product.reshape(rows.shape)
