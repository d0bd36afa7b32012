"""A client's work done on a data set of its own: what a server that trusts itself would send."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dflax import counter, validation
from dflax.aggregation.aggregator import Combining
from dflax.algorithm import Params
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment


def change_on(
    loss: Loss | Oracle, optimizer: Optimizer, *, local_steps: int, batch_size: int
) -> Callable[[Params, Dataset, Combining], Params]:
    """What a client of fedavg would send that owned a data set: `y - x`, y after K steps from x.

    With one step of `optax.sgd(r)` on as many examples as there are it is -r times the gradient.

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: an optax optimiser, fresh in every round; or a function of the round's number that
        returns one.
      local_steps: K >= 1.
      batch_size: B >= 1, examples in a minibatch. They are drawn without replacement until there are no
        more, in a new order in every round.

    Returns:
      `(params, data, combining) -> change`, for `aggregation.fltrust`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_optimizer("optimizer", optimizer)
    validation.integer("local_steps", local_steps, low=1)
    validation.integer("batch_size", batch_size, low=1)
    solve: Any = solver(loss, optimizer)

    def change(params: Params, data: Dataset, combining: Combining) -> Params:
        draw, own = jax.random.split(jax.random.fold_in(combining.key, counter.OF_TRUST))
        order = jax.random.permutation(draw, len(data)).astype(jnp.int32)
        minibatches = jnp.resize(order, (local_steps, batch_size))
        task = Assignment(minibatches, jnp.int32(local_steps), own)
        after = solve(Subproblem(), params, task, data, index=combining.index).params
        return jax.tree.map(jnp.subtract, after, params)

    return change
