"""What is remembered of nodes: reputation, a sequential test, what they earn and lose."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation

START = 0.5
NEVER = -1


class SequentialTest(NamedTuple):
    """Wald's test of a node's rate of failed audits, p0 against p1; what each outcome adds.

    Attributes:
      failure: ln(p1 / p0), > 0.
      passed: ln((1 - p1) / (1 - p0)), < 0.
      upper: where a node is removed.
      lower: where its statistic starts from 0 again.
    """

    failure: Float[Array, ""]
    passed: Float[Array, ""]
    upper: Float[Array, ""]
    lower: Float[Array, ""]


class Incentives(NamedTuple):
    """What a node earns and loses, in any unit.

    Attributes:
      reward: for each answer that is taken.
      cost: of an execution.
      saved: of that, by who does not run the model.
      fine: for each failed audit.
      slash: of the stake, when it is removed.
    """

    reward: Float[Array, ""]
    cost: Float[Array, ""]
    saved: Float[Array, ""]
    fine: Float[Array, ""]
    slash: Float[Array, ""]


class Ledger(NamedTuple):
    """What is known of each of n nodes.

    Attributes:
      reputation: `[n]` moving average of agreeing, from 0.5.
      stake: `[n]` from 1.
      statistic: `[n]` of the sequential test.
      active: `[n]` bool, not removed.
      balance: `[n]` earned so far.
      executions: `[n]` int32, done so far.
      audits: `[n]` int32, whose outcome is known.
      failures: `[n]` int32 among them.
      removed: `[n]` int32, the query at which it was removed; -1 for who was not.
    """

    reputation: Float[Array, " n"]
    stake: Float[Array, " n"]
    statistic: Float[Array, " n"]
    active: Bool[Array, " n"]
    balance: Float[Array, " n"]
    executions: Int[Array, " n"]
    audits: Int[Array, " n"]
    failures: Int[Array, " n"]
    removed: Int[Array, " n"]


def sequential_test(
    p0: float | Float[Array, ""] = 0.01,
    p1: float | Float[Array, ""] = 0.3,
    *,
    error: float | Float[Array, ""] = 1e-3,
) -> SequentialTest:
    """Wald's sequential test whether a node fails audits at rate p1 rather than p0.

        statistic += ln(p1 / p0)              on a failure
        statistic += ln((1 - p1) / (1 - p0))  on a pass
        removed at >= ln((1 - error) / error), from 0 again at <= -that

    With p0 = 0.01, p1 = 0.3 and errors of 0.001: 3.401, -0.347 and 6.907; three straight failures
    remove.

    Args:
      p0: rate of failures of an honest node, in (0, 1); traceable.
      p1: of a bad one, above p0.
      error: of both kinds, in (0, 1/2).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wald, Sequential tests of statistical hypotheses, Annals of Mathematical Statistics 16 (1945).
    """
    validation.probability("p0", p0, low_open=True, high_open=True)
    validation.probability("p1", p1, low_open=True, high_open=True)
    validation.real("error", error, low=0.0, high=0.5, low_open=True, high_open=True, scalar=True)
    if not any(map(validation.is_traced, (p0, p1))) and not float(p0) < float(p1):
        raise ValueError(f"p1 must be above p0, got p0 = {p0} and p1 = {p1}.")
    upper = _log((1 - error) / error)
    return SequentialTest(_log(p1 / p0), _log((1 - p1) / (1 - p0)), upper, -upper)


def never_removed() -> SequentialTest:
    """A test that removes nobody: its statistic stays at 0."""
    zero = jnp.float32(0)
    return SequentialTest(zero, zero, jnp.float32(jnp.inf), jnp.float32(-jnp.inf))


def incentives(
    reward: float | Float[Array, ""] = 1.0,
    *,
    cost: float | Float[Array, ""] = 0.5,
    saved: float | Float[Array, ""] = 0.4,
    fine: float | Float[Array, ""] = 0.0,
    slash: float | Float[Array, ""] = 1.0,
) -> Incentives:
    """What nodes are paid.

    A node that cheats saves `saved` in each execution. If a share a of its executions is audited and
    it is always found, cheating does not pay where

        a (fine + reward) > saved         each failed audit is fined
        a (slash / 3 + reward) > saved    three of them remove it, and cost `slash` once

    With a committee of k and audits of a share p of the queries `a = p k / (1 + p (k - 1))`: auditors
    run the model, too, and are judged. Where others audit, a = p.

    Args:
      reward: for each answer that is taken, >= 0; traceable, as all.
      cost: of an execution, >= 0.
      saved: in [0, cost].
      fine: for each failed audit, >= 0.
      slash: of the stake when a node is removed, >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    values = {"reward": reward, "cost": cost, "saved": saved, "fine": fine, "slash": slash}
    for name, value in values.items():
        validation.real(name, value, low=0.0, scalar=True)
    if not any(map(validation.is_traced, (cost, saved))) and float(saved) > float(cost):
        raise ValueError(f"saved must be at most the cost of an execution, {cost}, got {saved}.")
    return Incentives(*(jnp.asarray(value, jnp.float32) for value in values.values()))


def opened_ledger(count: int) -> Ledger:
    """Of nodes about which nothing is known."""
    zeros, none = jnp.zeros(count), jnp.zeros(count, jnp.int32)
    return Ledger(
        reputation=jnp.full(count, START),
        stake=jnp.ones(count),
        statistic=zeros,
        active=jnp.ones(count, bool),
        balance=zeros,
        executions=none,
        audits=none,
        failures=none,
        removed=jnp.full(count, NEVER, jnp.int32),
    )


class Outcome(NamedTuple):
    """What one query says of n nodes.

    Attributes:
      executed: `[n]` how often each ran the model.
      lied: `[n]` bool, who did not run it as it should.
      audited: `[n]` bool, whose answer was judged.
      agreed: `[n]` bool, and found right.
      paid: `[n]` bool, whose answer was taken.
    """

    executed: Int[Array, " n"]
    lied: Bool[Array, " n"]
    audited: Bool[Array, " n"]
    agreed: Bool[Array, " n"]
    paid: Bool[Array, " n"]


def entered(
    ledger: Ledger,
    outcome: Outcome,
    test: SequentialTest,
    pay: Incentives,
    eta: Array,
    number: Int[Array, ""],
) -> Ledger:
    """The ledger after a query."""
    failed, passed = outcome.audited & ~outcome.agreed, outcome.audited & outcome.agreed
    statistic = ledger.statistic + jnp.where(failed, test.failure, 0.0)
    statistic = statistic + jnp.where(passed, test.passed, 0.0)
    gone = ledger.active & (statistic >= test.upper)
    statistic = jnp.where(statistic <= test.lower, 0.0, statistic)
    moved = (1.0 - eta) * ledger.reputation + eta * outcome.agreed
    costs = outcome.executed * (pay.cost - jnp.where(outcome.lied, pay.saved, 0.0))
    earned = jnp.where(outcome.paid, pay.reward, 0.0) - costs - jnp.where(failed, pay.fine, 0.0)
    slashed = jnp.where(gone, jnp.minimum(pay.slash, ledger.stake), 0.0)
    return Ledger(
        reputation=jnp.where(outcome.audited, moved, ledger.reputation),
        stake=ledger.stake - slashed,
        statistic=statistic,
        active=ledger.active & ~gone,
        balance=ledger.balance + earned,
        executions=ledger.executions + outcome.executed,
        audits=ledger.audits + outcome.audited,
        failures=ledger.failures + failed,
        removed=jnp.where(gone, number, ledger.removed),
    )


def _log(value: Any) -> Any:
    return jnp.log(value) if validation.is_traced(value) else jnp.float32(math.log(float(value)))
