"""Which input brings an agent to its target: linear-quadratic, iterated, or straight there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.robots.coverage.dynamics import Dynamics

# Of the way to the best plan for the linearised model.
SHARES = (1.0, 0.5, 0.25, 0.0625, 0.0)


class Controller(NamedTuple):
    """A law from an agent's state and target to its input.

    Attributes:
      gains: `alpha -> gains`, what is known before the mission of an agent whose points weigh alpha.
      start: `x -> memory` of an agent: its plan; () for none.
      input: `(gains, memory, x, target, alpha) -> (u, memory)`.
    """

    gains: Callable[[Array], Any]
    start: Callable[[Array], Any]
    input: Callable[[Any, Any, Array, Array, Array], tuple[Array, Any]]


class Feedback(NamedTuple):
    """Gains of the first input of a horizon: `u = of_state x + of_target y`.

    Attributes:
      of_state: `[m, d]`.
      of_target: `[m, 2]`.
    """

    of_state: Float[Array, "m d"]
    of_target: Float[Array, "m 2"]


def linear_quadratic(
    dynamics: Dynamics,
    horizon: int,
    *,
    input_cost: float | Float[Array, ""],
    state_cost: Float[Array, " d"] | None = None,
) -> Controller:
    """The first input of the best H for a linear model, as two small products.

        min over u_0 .. u_{H-1} of   sum_{k=1..H} (alpha / 2) |C x_k - y|^2 + (1/2) x_k^T Q x_k
                                   + sum_{k<H} (1/2) R |u_k|^2,          x_{k+1} = A x_k + B u_k

    The state equations are put in, so that one system of H m unknowns is solved before the mission.
    Costs count against alpha, the mass of an agent's point, which is small: an R of 0.01 alpha moves.

    Args:
      dynamics: with matrices.
      horizon: H >= 1.
      input_cost: R > 0, of all inputs alike; traceable.
      state_cost: the diagonal of Q, `[d]`, >= 0; default 0; traceable.

    Returns:
      A `Controller` without memory.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    Q = _costs(dynamics, horizon, input_cost, state_cost)
    if dynamics.matrices is None:
        raise ValueError(
            "dynamics must have matrices, got a model that is not linear. Use "
            "dflax.robots.iterated(dynamics, horizon, ...)."
        )
    A, B = dynamics.matrices
    C = dynamics.position
    powers = [np.linalg.matrix_power(A, k) for k in range(horizon + 1)]
    free = np.concatenate(powers[1:])
    forced = np.block(
        [
            [powers[k - j] @ B if j <= k else np.zeros_like(B) for j in range(horizon)]
            for k in range(horizon)
        ]
    )

    def gains(alpha: Array) -> Feedback:
        kind = jnp.result_type(float)
        Gamma, Phi = jnp.asarray(forced, kind), jnp.asarray(free, kind)
        # In units of alpha, which is small.
        weight = jnp.asarray(C.T @ C, kind) + jnp.diag(jnp.asarray(Q, kind) / alpha)
        blocks = jnp.kron(jnp.eye(horizon, dtype=kind), weight)
        normal = Gamma.T @ blocks @ Gamma
        normal = normal + input_cost / alpha * jnp.eye(normal.shape[0], dtype=kind)
        pull = jnp.tile(jnp.asarray(C.T, kind), (horizon, 1))
        right = jnp.concatenate([-blocks @ Phi, pull], axis=1)
        first = jnp.linalg.solve(normal, Gamma.T @ right)[: dynamics.inputs]
        return Feedback(first[:, : A.shape[0]], first[:, A.shape[0] :])

    def law(
        gains: Feedback, memory: tuple[()], x: Array, target: Array, alpha: Array
    ) -> tuple[Array, tuple[()]]:
        return (gains.of_state @ x + gains.of_target @ target).astype(x.dtype), memory

    return Controller(gains, lambda x: (), law)


def iterated(
    dynamics: Dynamics,
    horizon: int,
    *,
    input_cost: float | Float[Array, ""],
    state_cost: Float[Array, " d"] | None = None,
    sweeps: int = 3,
) -> Controller:
    """The objective of `linear_quadratic` for any model, by sweeps of iterated linear regulators.

    A sweep linearises the model along the plan, finds the best feedback backwards in time, and goes as
    far towards it as is cheapest of 1, 1/2, 1/4, 1/16 and 0 of the way, within the model's limits. The
    plan is kept, a step later, for the next time. For a linear model without limits a sweep is exact.

    Args:
      dynamics: any; derivatives are JAX's.
      horizon: H >= 1.
      input_cost: R > 0; traceable.
      state_cost: the diagonal of Q, `[d]`, >= 0; default 0; traceable.
      sweeps: >= 1.

    Returns:
      A `Controller` whose memory is the plan, `[H, m]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    Q = _costs(dynamics, horizon, input_cost, state_cost)
    validation.integer("sweeps", sweeps, low=1)
    C, model = dynamics.position, dynamics.step

    def flown(x: Array, gains: tuple[Array, Array, Array], share: Array) -> tuple[Array, Array]:
        """States and inputs within all limits, so far along the way from the old plan to the new one."""

        def one(x: Array, gain: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            K, begun, change = gain
            u = jnp.clip(begun + share * change + K @ x, -dynamics.bound, dynamics.bound)
            return dynamics.limited(model(x, u)), (x, u)

        last, (xs, us) = jax.lax.scan(one, x, gains)
        return jnp.concatenate([xs, last[None]]), us

    def cost(xs: Array, us: Array, target: Array, alpha: Array) -> Array:
        away = xs[1:] @ jnp.asarray(C.T, xs.dtype) - target
        states = jnp.sum(jnp.square(xs[1:]) * (jnp.asarray(Q, xs.dtype) / alpha))
        total = jnp.sum(jnp.square(away)) + states + input_cost / alpha * jnp.sum(jnp.square(us))
        return jnp.where(jnp.isfinite(total), total, jnp.inf)

    def sweep(x: Array, plan: Array, target: Array, alpha: Array) -> Array:
        open_loop = jnp.zeros((horizon, dynamics.inputs, x.shape[0]), x.dtype)
        xs, us = flown(x, (open_loop, plan, jnp.zeros_like(plan)), jnp.zeros((), x.dtype))
        along = xs[:-1]
        As, Bs = jax.vmap(jax.jacfwd(model, (0, 1)))(along, us)
        offsets = jax.vmap(model)(along, us) - (
            jnp.einsum("hij,hj->hi", As, along) + jnp.einsum("hij,hj->hi", Bs, us)
        )
        weight = jnp.asarray(C.T @ C, x.dtype) + jnp.diag(jnp.asarray(Q, x.dtype) / alpha)
        pull = jnp.asarray(C.T, x.dtype) @ target
        price = jnp.asarray(input_cost / alpha, x.dtype) * jnp.eye(us.shape[1], dtype=x.dtype)

        def backward(value: tuple[Array, Array], at: tuple[Array, Array, Array]) -> Any:
            # The cost to go from the next state on: x' P x / 2 - p' x.
            P, p = value
            A, B, c = at
            P, p = P + weight, p + pull
            inner = B.T @ P @ B + price
            K = -jnp.linalg.solve(inner, B.T @ P @ A)
            k = jnp.linalg.solve(inner, B.T @ (p - P @ c))
            closed = A + B @ K
            return (A.T @ P @ closed, closed.T @ (p - P @ c)), (K, k)

        last = jnp.zeros_like(weight), jnp.zeros_like(x)
        _, (Ks, ks) = jax.lax.scan(backward, last, (As, Bs, offsets), reverse=True)
        begun = us - jnp.einsum("hij,hj->hi", Ks, along)
        shares = jnp.asarray(SHARES, x.dtype)
        tried = jax.vmap(lambda share: flown(x, (Ks, begun, ks - begun), share))(shares)
        costs = jax.vmap(lambda xs, us: cost(xs, us, target, alpha))(*tried)
        return tried[1][jnp.argmin(costs)]

    def law(
        gains: tuple[()], plan: Array, x: Array, target: Array, alpha: Array
    ) -> tuple[Array, Array]:
        plan = jax.lax.fori_loop(0, sweeps, lambda _, plan: sweep(x, plan, target, alpha), plan)
        return plan[0], jnp.concatenate([plan[1:], plan[-1:]])

    def start(x: Array) -> Array:
        return jnp.zeros((horizon, dynamics.inputs), x.dtype)

    return Controller(lambda alpha: (), start, law)


def straight(dynamics: Dynamics, speed: float | Float[Array, ""]) -> Controller:
    """The earlier law D2C: the input under which the next velocity points to the target.

        u = (v* - v) / T,   v* = (y - p) / T, cut to the speed

    Args:
      dynamics: `double_integrator`.
      speed: greatest |v*|, > 0; traceable.

    Returns:
      A `Controller` without memory.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance(
        "dynamics", dynamics, Dynamics, "For example dflax.robots.double_integrator()."
    )
    validation.real("speed", speed, low=0.0, low_open=True, scalar=True)
    if dynamics.matrices is None or dynamics.matrices[0].shape != (4, 4):
        raise ValueError(
            "dynamics must be a double_integrator, got a model of another state. Use "
            "dflax.robots.linear_quadratic or iterated."
        )
    interval = float(dynamics.matrices[0][0, 2])

    def law(
        gains: tuple[()], memory: tuple[()], x: Array, target: Array, alpha: Array
    ) -> tuple[Array, tuple[()]]:
        way = (target - x[:2]) / interval
        fast = jnp.sqrt(jnp.sum(jnp.square(way)))
        way = way * jnp.where(fast > speed, speed / jnp.maximum(fast, 1e-30), 1)
        return (way - x[2:]) / interval, memory

    return Controller(lambda alpha: (), lambda x: (), law)


def _costs(
    dynamics: Dynamics, horizon: int, input_cost: Any, state_cost: Any
) -> np.ndarray | Array:
    """The diagonal of Q, after all checks."""
    validation.instance(
        "dynamics", dynamics, Dynamics, "For example dflax.robots.double_integrator()."
    )
    validation.integer("horizon", horizon, low=1)
    validation.real("input_cost", input_cost, low=0.0, low_open=True, scalar=True)
    states = dynamics.position.shape[1]
    if state_cost is None:
        return np.zeros(states)
    return validation.array("state_cost", state_cost, kind="real", shape=(states,), low=0.0)
