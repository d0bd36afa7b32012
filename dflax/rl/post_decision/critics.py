"""What critics of states and of post-decision states learn, and the advantages that follow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics
from dflax.rl.advantages import discounted_returns, standardised


class Record(NamedTuple):
    """Steps in the order of time, `[T, E]` each: s, then the decision's sx, then chance, then s'.

    Attributes:
      decided: rx, the reward of the decision.
      chance: rs, the reward of what came after it.
      value: V(s).
      post_value: Vx(sx).
      end: whether an episode ended, or was broken off, with this step.
      beyond: V of where a time limit broke an episode off, else 0.
      counted: 1 for steps that count, else 0.
      last: `[E]`, V of where the last step led.
    """

    decided: Float[Array, "T E"]
    chance: Float[Array, "T E"]
    value: Float[Array, "T E"]
    post_value: Float[Array, "T E"]
    end: Float[Array, "T E"]
    beyond: Float[Array, "T E"]
    counted: Float[Array, "T E"]
    last: Float[Array, " E"]


class Estimated(NamedTuple):
    """What follows from a record.

    Attributes:
      advantage: `[T, E]`.
      target: `[T, E]`, what V learns; None: it learns nothing.
      post_target: `[T, E]`, what Vx learns; None: it learns nothing.
      metrics: of the rule.
    """

    advantage: Float[Array, "T E"]
    target: Float[Array, "T E"] | None
    post_target: Float[Array, "T E"] | None
    metrics: Metrics


class Critics(NamedTuple):
    """A rule of what the critics learn and of what the actor is told.

    Attributes:
      estimate: `(record, discount) -> Estimated`.
      fresh: whether values are those of the critics as they are; else those noted with the actions.
      bootstrap: whether an episode that a time limit broke off is worth what its last state is, by
        the critic of the window in which that was.
    """

    estimate: Callable[[Record, Any], Estimated]
    fresh: bool = False
    bootstrap: bool = False


def larger_part(*, use_post: bool = True) -> Critics:
    """PDPPO as published: each critic learns one part of the return, and the larger surprise counts.

        G_t  = rs_t + gamma G_{t+1}       what chance brings: V(s) learns it
        Gx_t = rx_t + gamma Gx_{t+1}      what decisions bring: Vx(sx) learns it
        A_t  = max(G_t - V(s_t), Gx_t - Vx(sx_t))

    Returns end with an episode, and with the newest step. The maximum is optimistic: of two
    independent standard normal parts its mean is 1/sqrt(pi).

    Args:
      use_post: whether the second part counts; without it, and without rewards of decisions, this is
        `state_critic`.

    Returns:
      The rule, with the metric `post_share`: of steps, how often the second part is the larger.

    Raises:
      TypeError: naming the argument.

    References:
      Felizardo et al., A Reinforcement Learning Method for Environments with Stochastic Variables:
      Post-Decision Proximal Policy Optimization with Dual Critic Networks, arXiv 2504.05150.
    """
    validation.flag("use_post", use_post)

    def estimate(record: Record, discount: Float[Array, ""]) -> Estimated:
        chance = discounted_returns(record.chance, record.end, discount)
        decided = discounted_returns(record.decided, record.end, discount)
        pre, post = chance - record.value, decided - record.post_value
        if not use_post:
            return Estimated(pre, chance, None, {"post_share": jnp.float32(0.0)})
        share = _mean((post > pre).astype(pre.dtype), record.counted)
        return Estimated(jnp.maximum(pre, post), chance, decided, {"post_share": share})

    return Critics(estimate)


def state_critic() -> Critics:
    """PPO with Monte-Carlo returns: `A_t = R_t - V(s_t)`, R the discounted sum of whole rewards."""

    def estimate(record: Record, discount: Float[Array, ""]) -> Estimated:
        whole = discounted_returns(record.decided + record.chance, record.end, discount)
        return Estimated(whole - record.value, whole, None, {})

    return Critics(estimate)


def post_critic() -> Critics:
    """One critic, of post-decision states: `A_t = R_t - Vx(sx_t)`, with standardised returns R."""

    def estimate(record: Record, discount: Float[Array, ""]) -> Estimated:
        whole = discounted_returns(record.decided + record.chance, record.end, discount)
        whole = standardised(whole, record.counted)
        return Estimated(whole - record.post_value, None, whole, {})

    return Critics(estimate)


def noiseless(decay: float | Float[Array, ""] = 0.95) -> Critics:
    """Both critics learn the whole return, and the advantage of a decision is free of chance.

        Vx(sx_t) ~ Tx_t = rs_t + gamma (lambda T_{t+1} + (1 - lambda) V(s_{t+1}))
        V(s_t)   ~ T_t  = rx_t + lambda Tx_t + (1 - lambda) Vx(sx_t)
        A_t = rx_t + Vx(sx_t) - V(s_t)

    With exact critics A is Q(s, a) - V(s) whatever chance does, where the advantage of one step of
    PPO, `rx + rs + gamma V(s') - V(s)`, has it as its mean alone.

    Args:
      decay: lambda in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("decay", decay)

    def estimate(record: Record, discount: Float[Array, ""]) -> Estimated:
        going = discount * (1.0 - record.end)

        def one(later: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple, tuple]:
            decided, chance, value, post_value, going, beyond = row
            following = decay * later[0] + (1.0 - decay) * later[1]
            post_target = chance + going * following + discount * beyond
            target = decided + decay * post_target + (1.0 - decay) * post_value
            return (target, value), (target, post_target)

        rows = (record.decided, record.chance, record.value, record.post_value, going)
        start = (record.last, record.last)
        _, (target, post_target) = jax.lax.scan(one, start, (*rows, record.beyond), reverse=True)
        advantage = record.decided + record.post_value - record.value
        return Estimated(advantage, target, post_target, {})

    return Critics(estimate, fresh=True, bootstrap=True)


def _mean(values: Array, counted: Array) -> Float[Array, ""]:
    return jnp.sum(counted * values) / jnp.maximum(jnp.sum(counted), 1.0)
