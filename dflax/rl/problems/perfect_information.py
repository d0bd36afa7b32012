"""What lot sizing costs at least, if all demand were known beforehand."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.rl.problems.lot_sizing import LotSizing, require_instance


class Plan(NamedTuple):
    """The best that a solver found, and what nothing can be better than.

    Attributes:
      bound: no sum of rewards over the periods is above it.
      reward: the plan's own sum of rewards, in the program; NaN without a plan.
      actions: `[T, J]` int32, the plan.
    """

    bound: float
    reward: float
    actions: Int[np.ndarray, "T J"]


def perfect_information(
    instance: LotSizing,
    inventory: Float[AnyArray, " I"],
    setup: Int[AnyArray, " J"],
    demand: Float[AnyArray, "T I"],
    *,
    seconds: float = 60.0,
) -> Plan:
    """The mixed-integer program of an episode whose demands are all known: a bound for every policy.

        minimise  sum c z + hc inventory + lc lost        over y in {0, 1}, the rest >= 0
        inventory_t = inventory_{t-1} + sum_j (P y_t - l z_t) - D_t + lost_t - spilt_t <= capacity
        z_t >= y_t - y_{t-1},   sum_i y_{t,j,i} <= 1

    y says what a machine makes, z whether it was set up for it. Spilling is free, where the environment
    spills at capacity alone: with holding costs the bound is a little above what can be reached.
    Solved by HiGHS (scipy), at set-up and not in a compiled program. When the time is up, `bound` is
    still one.

    Args:
      instance: see `LotSizing`.
      inventory: `[I]` at the beginning.
      setup: `[J]` at the beginning, 0 idle.
      demand: `[T, I]`, of T >= 1 periods.
      seconds: > 0, the time the solver has.

    Raises:
      TypeError, ValueError: naming the argument.
      RuntimeError: the solver found neither a plan nor a bound.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    require_instance(instance)
    machines, items = np.shape(instance.production)
    validation.array("inventory", inventory, shape=(items,), kind="real")
    validation.real("inventory", inventory, low=0.0)
    validation.array("setup", setup, shape=(machines,), kind="integer")
    validation.real("setup", setup, low=0, high=items)
    validation.array("demand", demand, shape=("T", items), kind="real")
    validation.real("demand", demand, low=0.0)
    validation.real("seconds", seconds, low=0.0, low_open=True, scalar=True)
    periods, pairs = len(np.asarray(demand)), machines * items
    own = LotSizing(*(np.asarray(leaf, float) for leaf in instance))
    matrix, low, high = _constraints(own, np.asarray(inventory), np.asarray(setup), demand)
    count = periods * pairs
    able = np.tile((own.production > 0).ravel(), periods).astype(float)
    rest = np.full(count + 2 * periods * items, np.inf)
    most = np.concatenate([able, rest[:count], np.tile(own.capacity, periods), rest[count:]])
    cost = np.concatenate(
        [
            np.zeros(count),
            np.tile(own.setup_cost.ravel(), periods),
            np.tile(own.holding_cost, periods),
            np.tile(own.lost_cost, periods),
            np.zeros(periods * items),
        ]
    )
    found = milp(
        cost,
        integrality=np.arange(cost.size) < count,
        bounds=Bounds(0.0, most),
        constraints=LinearConstraint(matrix, low, high),
        options={"time_limit": float(seconds)},
    )
    if found.mip_dual_bound is None:
        raise RuntimeError(
            f"The solver found neither a plan nor a bound in {seconds} s: {found.message} Give it more "
            "seconds."
        )
    if found.x is None:
        return Plan(-found.mip_dual_bound, float("nan"), np.zeros((periods, machines), np.int32))
    made = found.x[:count].reshape(periods, machines, items) > 0.5
    actions = np.where(made.any(-1), 1 + made.argmax(-1), 0).astype(np.int32)
    return Plan(-found.mip_dual_bound, -found.fun, actions)


def _constraints(
    instance: LotSizing, inventory: np.ndarray, setup: np.ndarray, demand: AnyArray
) -> tuple:
    """Rows of the program and their bounds; columns y, z, inventory, lost, spilt."""
    from scipy import sparse

    machines, items = instance.production.shape
    demand = np.asarray(demand, float)
    periods, pairs = len(demand), machines * items
    change = sparse.eye(periods) - sparse.eye(periods, k=-1)

    def each(values: AnyArray) -> sparse.spmatrix:
        row = sparse.hstack([sparse.diags(row) for row in values])
        return sparse.kron(sparse.eye(periods), row)

    unit = sparse.eye(periods * items)
    balance = [
        -each(instance.production),
        each(instance.setup_loss),
        sparse.kron(change, sparse.eye(items)),
        -unit,
        unit,
    ]
    stock = -demand
    stock[0] += inventory
    before = np.zeros((periods, machines, items))
    before[0] = setup[:, None] == 1 + np.arange(items)
    setups = [sparse.kron(change, sparse.eye(pairs)), -sparse.eye(periods * pairs)]
    one = sparse.kron(sparse.eye(periods * machines), np.ones((1, items)))
    # sparse.bmat fills the columns that a row does not have.
    matrix = sparse.bmat(
        [balance, [*setups, None, None, None], [one, None, None, None, None]], format="csr"
    )
    high = np.concatenate([stock.ravel(), before.ravel(), np.ones(periods * machines)])
    low = np.where(np.arange(high.size) < stock.size, high, -np.inf)
    return matrix, low, high
