"""How far a local optimiser goes when all gradients are 1: the length that FedNova divides by."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dflax.local.solver import Optimizer, optimizer_at


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
        that are not linear (Adam, clipping) it is only a scale.
      steps: K, static, the most steps that are done.
      done: tau in [0, K].
      pull: mu of the proximal term; None for none.
      index: number of the round.
    """
    descent, start = optimizer_at(optimizer, jnp.asarray(index)), jnp.zeros(())

    def one_step(carry: Any, k: Array) -> tuple[Any, None]:
        def advance(carry: Any) -> Any:
            y, state = carry
            slope = jnp.ones(()) if pull is None else 1.0 + pull * y
            updates, state = descent.update(slope, state, y)
            return optax.apply_updates(y, updates), state

        return jax.lax.cond(k < done, advance, lambda c: c, carry), None

    (y, _), _ = jax.lax.scan(one_step, (start, descent.init(start)), jnp.arange(steps))
    return -y
