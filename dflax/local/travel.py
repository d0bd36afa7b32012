"""How far a local optimiser goes when all gradients are 1: the length that FedNova divides by."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.local.solver import (
    Optimizer,
    check_no_value,
    check_optimizer,
    model_of_one,
    optimizer_at,
)


def travel(
    optimizer: Optimizer,
    steps: int,
    done: Int[Array, ""] | int,
    *,
    pull: float | Array | None = None,
    index: Int[Array, ""] | int = 0,
) -> Float[Array, ""]:
    """The distance -y after some steps on f(y) = y + (pull / 2) y^2 from y = 0.

    An optimiser that is linear in its gradients g_k moves a model by -sum_k a_k g_k, with weights a_k
    that do not depend on the gradients, so this is `sum_k a_k`. Local rate eta, tau steps:

        SGD                    eta tau
        SGD with momentum m    eta (tau - m (1 - m^tau) / (1 - m)) / (1 - m)
        SGD and a pull mu      (1 - (1 - eta mu)^tau) / mu

    and as well for decaying rates or Nesterov's momentum.

    Args:
      optimizer: an optax optimiser, or a function of the round's number that returns one. Of optimisers
        that are not linear (Adam, clipping) it is only a scale: see `check_linear`.
      steps: K >= 0, static, the most steps that are done.
      done: tau in [0, K].
      pull: mu >= 0 of the proximal term; None for none.
      index: number of the round.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_optimizer("optimizer", optimizer)
    check_no_value("optimizer", optimizer)
    validation.integer("steps", steps, low=0)
    validation.array("done", done, kind="integer", shape=(), low=0, high=steps)
    validation.array("index", index, kind="integer", shape=(), low=0, high=validation.LARGEST_COUNT)
    if pull is not None:
        validation.real("pull", pull, low=0.0, scalar=True)
    descent, start = optimizer_at(optimizer, jnp.asarray(index)), model_of_one(jnp.zeros(()))

    def one_step(carry: Any, k: Array) -> tuple[Any, None]:
        def advance(carry: Any) -> Any:
            y, state = carry
            slope = model_of_one(jnp.ones(()) if pull is None else 1.0 + pull * y["params"])
            updates, state = descent.update(slope, state, y)
            return optax.apply_updates(y, updates), state

        return jax.lax.cond(k < done, advance, lambda c: c, carry), None

    (y, _), _ = jax.lax.scan(one_step, (start, descent.init(start)), jnp.arange(steps))
    return -y["params"]


def check_linear(name: str, optimizer: Optimizer) -> None:
    """Refuse an optimiser that answers larger gradients with other than proportionally larger moves.

    Looked at are three steps of round 0 on a scalar, with gradients 1, -1/2, 2 and ten thousand times as
    much; rates that are traced are not looked at.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_no_value(name, optimizer)
    gradients = jnp.array([1.0, -0.5, 2.0])

    def moved(scale: float) -> Any:
        descent, y = optimizer_at(optimizer, jnp.int32(0)), model_of_one(jnp.zeros(()))
        state = descent.init(y)
        for gradient in scale * gradients:
            updates, state = descent.update(model_of_one(gradient), state, y)
            y = optax.apply_updates(y, updates)
        return y["params"]

    once, scaled = moved(1.0), moved(1e4)
    if validation.is_traced(once) or validation.is_traced(scaled):
        return
    if not jnp.allclose(scaled, 1e4 * once, rtol=1e-3):
        raise ValueError(
            f"{name} must be linear in its gradients, got one that moves {float(once):g} and, for "
            f"gradients 10,000 times as large, {float(scaled):g}. Use plain or momentum SGD with any "
            "schedule: how far Adam, sign descent or clipping goes depends on what it sees."
        )
