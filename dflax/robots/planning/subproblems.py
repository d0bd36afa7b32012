"""The convex parts of a plan in closed form: quadratics with first and last coefficients given."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.robots.planning.bernstein import Curves
from dflax.robots.planning.scene import Costs, Limits, Start


class Quadratic(NamedTuple):
    """min over c of c^T Q c / 2 - q^T c with some of c given, as maps of q and of what is given.

    Attributes:
      of_gradient: `[n+1, n+1]`, the inverse of Q's free part, 0 elsewhere.
      of_given: `[n+1, n+1]`, the identity on the given part; -(Q_ff)^-1 Q_fg off it.
    """

    of_gradient: Float[Array, "n+1 n+1"]
    of_given: Float[Array, "n+1 n+1"]

    def minimum(
        self, gradient: Float[Array, "... n+1"], given: Float[Array, "... n+1"]
    ) -> Float[Array, "... n+1"]:
        """c, for a given part whose free entries are 0."""
        return gradient @ self.of_gradient + given @ self.of_given.T


class Parts(NamedTuple):
    """The three quadratics of an iteration."""

    heading: Quadratic
    x: Quadratic
    y: Quadratic


def quadratic(Q: Any, given: list[int]) -> Quadratic:
    """The minimum of a quadratic with the coefficients `given` fixed, by elimination.

    End points and their derivatives are single Bernstein coefficients, so that equality constraints
    leave the others free, and the KKT system is the inverse of their block of Q. Numbers are worked on
    in float64, traced ones in their own type.
    """
    own = jnp if validation.is_traced(Q) else np
    places = np.eye(Q.shape[0])
    free = np.delete(places, given, axis=0)
    # Scaled to a diagonal of 1, which is better conditioned.
    scale = 1 / own.sqrt(own.diagonal(Q))
    block = free @ (Q * scale[:, None] * scale) @ free.T
    inverse = free.T @ own.linalg.inv(block) @ free * scale[:, None] * scale
    inverse = (inverse + inverse.T) / 2
    kept = np.diag(1 - free.sum(0))
    of_given = kept - inverse @ Q @ kept
    kind = jnp.result_type(float)
    return Quadratic(jnp.asarray(inverse, kind), jnp.asarray(of_given, kind))


def parts(curves: Curves, obstacles: int, shared: int, rho: float | Array, costs: Costs) -> Parts:
    """The quadratics of the heading and of x and y, the same in all iterations and hypotheses.

        Q_psi = w_psi P2' P2 + rho (P' P + C' C)
        Q_x   = w_s P2' P2 + w_v P1' P1 + rho (P1' P1 + 2 sum_j Pj' Pj + M P' P + A' A)
        Q_y   = w_s P2' P2 + w_y T' T   + rho (the same)

    with Pj the matrices of derivatives, A those of the first three at the first Nc times, C = P there
    and T = P at the times from Nc + 2 on.
    """
    P = curves.values
    n = curves.degree
    grams = np.einsum("jki,jkl->jil", P, P)
    early = np.einsum("jki,jkl->jil", P[:, :shared], P[:, :shared])
    late = P[0, shared + 2 :].T @ P[0, shared + 2 :]
    heading = costs.turning * grams[2] + rho * (grams[0] + early[0])
    boxes = 2 * grams.sum(0) + grams[1] + obstacles * grams[0] + early[:3].sum(0)
    both = costs.acceleration * grams[2] + rho * boxes
    return Parts(
        quadratic(heading, [0, 1, n - 1, n]),
        quadratic(both + costs.speed * grams[1], [0, 1]),
        quadratic(both + costs.lateral * late, [0, 1, n]),
    )


class Given(NamedTuple):
    """Coefficients that the ends of a plan fix, `[n+1]` each, 0 elsewhere."""

    x: Float[Array, " n+1"]
    y: Float[Array, " n+1"]
    heading: Float[Array, " n+1"]


def given_by(curves: Curves, start: Start, lateral: Float[Array, ""]) -> Given:
    """Those of a start and an end at y = lateral with heading and turning 0."""
    n = curves.degree
    lift = curves.duration / n
    zeros = jnp.zeros(n + 1, start.position.dtype)

    def begun(value: Array, rate: Array) -> Array:
        return zeros.at[0].set(value).at[1].set(value + lift * rate)

    return Given(
        begun(start.position[0], start.velocity[0]),
        begun(start.position[1], start.velocity[1]).at[n].set(lateral),
        begun(start.heading, start.turning),
    )


class Boxes(NamedTuple):
    """Bounds on x or y and derivatives, `[4, 1]` each."""

    low: Float[Array, "4 1"]
    high: Float[Array, "4 1"]


def boxes_of(limits: Limits) -> tuple[Boxes, Boxes]:
    """Those of x and of y."""
    kind = jnp.result_type(float)
    x, y = (jnp.asarray(one, kind) for one in (limits.x, limits.y))
    return Boxes(x[:, :1], x[:, 1:]), Boxes(y[:, :1], y[:, 1:])
