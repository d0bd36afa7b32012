"""What it costs to enter a swarm, what taking part earns, and when many identities do not pay."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy.special
from jaxtyping import Array, Bool, Float

from dflax import validation
from dflax.data.dataset import AnyArray


class CapabilityTest(NamedTuple):
    """Calibration questions with known answers, which admit a node.

    Attributes:
      threshold: share of right answers that passes, theta.
      stake: that who passes locks, c_stake.
    """

    threshold: Float[Array, ""]
    stake: Float[Array, ""]


class RoundRewards(NamedTuple):
    """What a round pays and costs.

    Attributes:
      pool: Q, of each query.
      winner: share of the pool for the node whose answer is given; the rest is split by reputation.
      cost: c_inf of a round, and of each calibration question.
    """

    pool: Float[Array, ""]
    winner: Float[Array, ""]
    cost: Float[Array, ""]


def capability_test(
    threshold: float | Float[Array, ""] = 0.6, *, stake: float | Float[Array, ""] = 0.1
) -> CapabilityTest:
    """A node that is not active answers the round's calibration questions, and pays for each.

    It is admitted if its share of right answers is at least the threshold. A candidate that fails
    locks no stake, and tries again in the next round. Who is tested again, since its reputation fell
    below `dual_track(least=)`, keeps the stake that it has locked, and begins with `start` again.

    Args:
      threshold: theta in [0, 1]; traceable.
      stake: c_stake >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("threshold", threshold)
    validation.real("stake", stake, low=0.0, scalar=True)
    return CapabilityTest(jnp.asarray(threshold, jnp.float32), jnp.asarray(stake, jnp.float32))


def round_rewards(
    pool: float | Float[Array, ""] = 30.0,
    *,
    winner: float | Float[Array, ""] = 0.6,
    cost: float | Float[Array, ""] = 1.0,
) -> RoundRewards:
    """A pool for each query: a share for the winner, the rest in proportion to reputation.

        balance += winner pool [won] + (1 - winner) pool R_i / sum of R over who took part - cost

    Args:
      pool: Q >= 0, in units of a computation; traceable.
      winner: in [0, 1]; traceable.
      cost: c_inf >= 0, of a round and of each calibration question; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("pool", pool, low=0.0, scalar=True)
    validation.probability("winner", winner)
    validation.real("cost", cost, low=0.0, scalar=True)
    return RoundRewards(*(jnp.asarray(value, jnp.float32) for value in (pool, winner, cost)))


def earned(
    pay: RoundRewards,
    winner: Array,
    reputation: Float[Array, " n"],
    present: Bool[Array, " n"],
) -> Float[Array, " n"]:
    """What a round adds to balances; the pool is paid whole where anybody is there."""
    own = jnp.where(present, reputation, 0.0)
    total = jnp.sum(own)
    even = present / jnp.maximum(jnp.sum(present), 1)
    split = jnp.where(total > 0, own / jnp.where(total > 0, total, 1.0), even)
    won = (jnp.arange(present.shape[0]) == winner) & present
    return pay.pool * (pay.winner * won + (1.0 - pay.winner) * split) - pay.cost * present


def pass_probability(
    questions: int,
    threshold: float | Float[Array, "..."],
    capability: float | Float[AnyArray, "..."],
) -> Float[Array, "..."]:
    """`P[Bin(M, p) >= theta M]`: who answers rightly with probability p passes.

    With M = 20 and theta = 0.6: 0.0051, 0.2517, 0.5956, 0.9900 at p = 0.3, 0.5, 0.6, 0.8.

    Args:
      questions: M >= 1, an integer.
      threshold: theta in [0, 1]; traceable.
      capability: p in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("questions", questions, low=1)
    validation.real("threshold", threshold, low=0.0, high=1.0)
    validation.real("capability", capability, low=0.0, high=1.0)
    p = jnp.asarray(capability, float)
    least = needed(questions, threshold)
    # A Beta's tail with no failures, or no successes, to wait for is no proper one.
    inner = jnp.clip(least, 1.0, questions)
    tail = jax.scipy.special.betainc(inner, questions - inner + 1.0, p)
    return jnp.where(least <= 0, jnp.ones_like(p), tail)


def needed(questions: int, threshold: float | Float[Array, "..."]) -> Float[Array, "..."]:
    """How many right answers are a share of them: `ceil(theta M)`, and 0.6 of 20 are 12."""
    share = jnp.asarray(threshold, float) * questions
    return jnp.ceil(share - 1e-4)


def entry_cost(
    questions: int,
    threshold: float | Float[Array, "..."],
    capability: float | Float[AnyArray, "..."],
    *,
    cost: float | Float[Array, "..."] = 1.0,
    stake: float | Float[Array, "..."] = 0.1,
) -> Float[Array, "..."]:
    """Expected cost of an admitted identity: `M c_inf / P_pass + c_stake`.

    Tests are paid whether passed or not, the stake is locked by who passes.

    Args:
      questions: M >= 1.
      threshold: theta in [0, 1]; traceable, as all that follow.
      capability: p in [0, 1]; infinite where it never passes.
      cost: c_inf >= 0, of a question.
      stake: c_stake >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    passes = pass_probability(questions, threshold, capability)
    validation.real("cost", cost, low=0.0)
    validation.real("stake", stake, low=0.0)
    return questions * jnp.asarray(cost, float) / passes + jnp.asarray(stake, float)


def rounds_to_reputation(
    signal: float | Float[AnyArray, "..."],
    target: float | Float[AnyArray, "..."],
    *,
    start: float | Float[Array, "..."] = 0.0,
    rate: float | Float[Array, "..."] = 0.15,
) -> Float[Array, "..."]:
    """Rounds in which a constant signal lifts a reputation: `ln((g - R_0) / (g - R_t)) / -ln(1 - eta)`.

    From 0 a signal of 0.8 reaches 0.5 in 6.04 rounds. 0 where the start is no lower than the target,
    infinite where the signal is not above it.

    Args:
      signal: g in [0, 1]; traceable, as all.
      target: R_t in [0, 1].
      start: R_0 in [0, 1].
      rate: eta in (0, 1).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("signal", signal, low=0.0, high=1.0)
    validation.real("target", target, low=0.0, high=1.0)
    validation.real("start", start, low=0.0, high=1.0)
    validation.real("rate", rate, low=0.0, high=1.0, low_open=True, high_open=True)
    g, goal, begun, eta = (jnp.asarray(value, float) for value in (signal, target, start, rate))
    rises = (g > goal) & (begun < goal)
    ratio = jnp.where(rises, g - begun, 1.0) / jnp.where(rises, g - goal, 1.0)
    rounds = jnp.log(ratio) / -jnp.log1p(-eta)
    return jnp.where(begun >= goal, 0.0, jnp.where(rises, rounds, jnp.inf))


def sybil_profit(
    identities: float | Float[AnyArray, "..."],
    reward: float | Float[AnyArray, "..."],
    entry: float | Float[AnyArray, "..."],
    *,
    cost: float | Float[Array, "..."] = 1.0,
    discount: float | Float[Array, "..."] = 0.99,
    warm_up: float | Float[Array, "..."] = 0.0,
) -> Float[Array, "..."]:
    """Discounted profit of an attacker with s admitted identities; the attack does not pay where < 0.

        s (rho^t reward / (1 - rho) - cost / (1 - rho) - entry)

    Rewards begin after t rounds of earning weight, costs at once.

    Args:
      identities: s >= 0, admitted.
      reward: of each identity in a round, >= 0.
      entry: of each identity, >= 0, see `entry_cost`.
      cost: c_inf of a round, >= 0: real inference is needed.
      discount: rho in [0, 1), of a round.
      warm_up: t >= 0, see `rounds_to_reputation`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    named = {
        "identities": identities,
        "reward": reward,
        "entry": entry,
        "cost": cost,
        "warm_up": warm_up,
    }
    for name, value in named.items():
        validation.real(name, value, low=0.0)
    validation.real("discount", discount, low=0.0, high=1.0, high_open=True)
    s, r, first, c, t = (jnp.asarray(value, float) for value in named.values())
    later = jnp.asarray(discount, float)
    return s * ((later**t * r - c) / (1.0 - later) - first)
