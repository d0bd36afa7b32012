"""K-GT: gradient tracking over local steps."""

import optax
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.channel import Channel
from dflax.decentralized import Client, adapt_then_combine
from dflax.gossip import Mixer
from dflax.local import Loss, Oracle, Subproblem, solver
from dflax.models.averaged import require_weights_alone


def k_gt(
    loss: Loss | Oracle,
    rate: float | Array,
    mixer: Mixer,
    local_steps: int,
    mixing_rate: float | Array = 1.0,
    channel: Channel | None = None,
) -> Algorithm:
    """K-GT: local steps along corrected gradients; the corrections track the others' directions.

        y_i = K steps x <- x - rate (grad f_i(x) + c_i) from x_i
        d_i = x_i - y_i
        c_i = c_i - (d_i - sum_j W_ij d_j) / (K rate)
        x_i = sum_j W_ij (x_j - mixing_rate d_j)

    The c_i start at 0 and sum to 0. With full gradients all models reach the minimum of the mean
    objective, whatever K is.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      rate: of the local steps > 0, traceable.
      mixer: symmetric and doubly stochastic. Twice a model's size is mixed.
      local_steps: K >= 1, the federation's, the same for every client.
      mixing_rate: eta_s > 0 of the paper, how far models go along their directions; traceable.
      channel: what happens to the messages on the way. One that changes them breaks the sum of the c_i.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, the c_i
      `state.clients.memory`. A message counts two models.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Liu et al., Decentralized Gradient Tracking with Local Steps, arXiv 2301.01313.
    """
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
    validation.integer("local_steps", local_steps, low=1)
    validation.real("mixing_rate", mixing_rate, low=0.0, low_open=True, scalar=True)
    solve = solver(loss, optax.sgd(rate))

    def start(key, models):
        require_weights_alone(models, "K-GT")
        return optax.tree.zeros_like(models)

    def work(assignment, own, data, index):
        solution = solve(Subproblem(shift=own.memory), own.params, assignment, data, index=index)
        return Client(solution.params, own.memory), solution.metrics

    def message(before, after, index):
        went = optax.tree.sub(before.params, after.params)
        return {"model": optax.tree.add_scale(before.params, -mixing_rate, went), "went": went}

    def hear(before, after, heard, index):
        apart = optax.tree.sub(heard["went"], optax.tree.sub(before.params, after.params))
        risen = optax.tree.add_scale(before.memory, 1 / (local_steps * rate), apart)
        return Client(heard["model"], risen)

    return adapt_then_combine(work, mixer, start=start, message=message, hear=hear, channel=channel)
