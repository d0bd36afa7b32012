"""How an agent moves: linear models as matrices, others as a function of state and input."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation

GRAVITY = 9.81
INERTIA = 0.0075


class Dynamics(NamedTuple):
    """A step of an agent with a state x `[d]` and an input u `[m]`.

    Attributes:
      step: `(x, u) -> x`, without limits.
      limited: `x -> x`, a state within the limits of speed and angles.
      start: `position [2] -> x`, at rest.
      position: `[2, d]`, C: the position is C x.
      inputs: m, static.
      bound: greatest input, of each component; infinite for none.
      matrices: `(A, B)` of `step`, where it is linear; None for others.
    """

    step: Callable[[Array, Array], Array]
    limited: Callable[[Array], Array]
    start: Callable[[Array], Array]
    position: Float[np.ndarray, "2 d"]
    inputs: int
    bound: float | Float[Array, ""]
    matrices: tuple[np.ndarray, np.ndarray] | None


def double_integrator(
    interval: float = 0.1,
    *,
    bound: float | Float[Array, ""] = jnp.inf,
    speed: float | Float[Array, ""] = jnp.inf,
) -> Dynamics:
    """A point mass in the plane: `p + T v`, `v + T u`, with x = (p_1, p_2, v_1, v_2).

    Args:
      interval: T > 0, of a step, in seconds.
      bound: greatest acceleration of each axis, > 0; infinite by default; traceable.
      speed: greatest |v|, > 0, cut with the direction kept; infinite by default; traceable.

    Returns:
      A `Dynamics`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("interval", interval, low=0.0, low_open=True, scalar=True)
    _limit("bound", bound)
    _limit("speed", speed)
    step = np.eye(2), np.zeros((2, 2))
    A = np.block([[step[0], interval * np.eye(2)], [step[1], np.eye(2)]])
    B = np.concatenate([np.zeros((2, 2)), interval * np.eye(2)])

    def limited(x: Array) -> Array:
        fast = jnp.sqrt(jnp.sum(jnp.square(x[2:])))
        return x.at[2:].multiply(jnp.where(fast > speed, speed / jnp.maximum(fast, 1e-30), 1))

    return _linear(A, B, np.eye(2, 4), limited, bound)


def quadrotor(
    interval: float = 0.1,
    *,
    linear: bool = True,
    bound: float | Float[Array, ""] = jnp.inf,
    speed: float | Float[Array, ""] = jnp.inf,
    angle: float | Float[Array, ""] = jnp.inf,
    rate: float | Float[Array, ""] = jnp.inf,
) -> Dynamics:
    """A quadrotor at one height, tilted by torques: x = (p_x, v_x, a, a', p_y, v_y, b, b').

        v_x + T (-g tan a),   a' + (T / I) u_2,   v_y + T g tan(b) / cos(a),   b' + (T / I) u_1

    with g = 9.81 and I = 0.0075; linear: tan a = a, cos a = 1.

    Args:
      interval: T > 0, in seconds.
      linear: whether angles are taken for small.
      bound: greatest torque of each axis; infinite by default; traceable.
      speed: greatest of |v_x| and |v_y|, in metres a second, cut with the direction kept.
      angle: greatest tilt, in radians.
      rate: greatest angular rate, in radians a second.

    Returns:
      A `Dynamics`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("interval", interval, low=0.0, low_open=True, scalar=True)
    validation.flag("linear", linear)
    for name, value in (("bound", bound), ("speed", speed), ("angle", angle), ("rate", rate)):
        _limit(name, value)
    T = interval

    def limited(x: Array) -> Array:
        fast = jnp.maximum(jnp.abs(x[1]), jnp.abs(x[5]))
        cut = jnp.where(fast > speed, speed / jnp.maximum(fast, 1e-30), 1)
        x = x.at[jnp.array([1, 5])].multiply(cut)
        x = x.at[jnp.array([2, 6])].set(jnp.clip(x[jnp.array([2, 6])], -angle, angle))
        return x.at[jnp.array([3, 7])].set(jnp.clip(x[jnp.array([3, 7])], -rate, rate))

    A, B = np.eye(8), np.zeros((8, 2))
    for row, column, value in (
        *((0, 1, T), (1, 2, -T * GRAVITY), (2, 3, T)),
        *((4, 5, T), (5, 6, T * GRAVITY), (6, 7, T)),
    ):
        A[row, column] = value
    B[3, 1] = B[7, 0] = T / INERTIA
    C = np.zeros((2, 8))
    C[0, 0] = C[1, 4] = 1.0
    if linear:
        return _linear(A, B, C, limited, bound)

    def step(x: Array, u: Array) -> Array:
        px, vx, a, da, py, vy, b, db = x
        return jnp.stack(
            [
                px + T * vx,
                vx - T * GRAVITY * jnp.tan(a),
                a + T * da,
                da + T / INERTIA * u[1],
                py + T * vy,
                vy + T * GRAVITY * jnp.tan(b) / jnp.cos(a),
                b + T * db,
                db + T / INERTIA * u[0],
            ]
        )

    return _linear(A, B, C, limited, bound)._replace(step=step, matrices=None)


def _linear(A: np.ndarray, B: np.ndarray, C: np.ndarray, limited: Callable, bound) -> Dynamics:
    """The dynamics A x + B u."""

    def step(x: Array, u: Array) -> Array:
        return jnp.asarray(A, x.dtype) @ x + jnp.asarray(B, x.dtype) @ u

    def start(position: Array) -> Array:
        return jnp.asarray(C.T, position.dtype) @ position

    return Dynamics(step, limited, start, C, B.shape[1], bound, (A, B))


def _limit(name: str, value: float | Array) -> None:
    """Refuses a limit that is not positive; infinite is none."""
    if isinstance(value, float) and value == float("inf"):
        return
    validation.real(name, value, low=0.0, low_open=True, scalar=True)
