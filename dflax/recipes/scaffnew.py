"""Scaffnew: local steps that provably save communication, by a coin that says when to average."""

import optax
from jaxtyping import Array

from dflax import gossip, validation
from dflax.algorithm import Algorithm
from dflax.decentralized import Client, adapt_then_combine
from dflax.local import Loss, Oracle, Subproblem, solver
from dflax.models.averaged import require_weights_alone


def scaffnew(
    loss: Loss | Oracle, rate: float | Array, clients: int, probability: float | Array
) -> Algorithm:
    """Scaffnew (ProxSkip): a gradient step each round, an average in a fraction p of the rounds.

        y_i = x_i - rate (grad f_i(x_i) - h_i)                      for all i, one local step a round
        x_i = mean of y_j with probability p, else y_i              one coin for everybody
        h_i = h_i + (p / rate) (x_i - y_i)

    The h_i sum to 0 and become the gradients at the minimum, so that with full gradients every model
    reaches it. With rate 1 / L and p = sqrt(mu / L) it takes O(sqrt(L / mu)) averages instead of the
    O(L / mu) of gradient descent.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      rate: of the local steps > 0, traceable.
      clients: n. All of them take part in every round: the h_i are those of a mean over everyone.
      probability: p in (0, 1], traceable.

    Returns:
      An `Algorithm` on a `FederatedState` for a federation with `local_steps=1`; models are
      `state.clients.params`, the h_i `state.clients.memory`. `models_sent` is 0 without an average.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Mishchenko et al., ProxSkip: Yes! Local Gradient Steps Provably Lead to Communication
      Acceleration! Finally!, arXiv 2202.09357.
    """
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
    validation.real("probability", probability, low=0.0, low_open=True, high=1.0, scalar=True)
    solve = solver(loss, optax.sgd(rate))

    def start(key, models):
        require_weights_alone(models, "Scaffnew")
        return optax.tree.zeros_like(models)

    def work(assignment, own, data, index):
        problem = Subproblem(shift=optax.tree.scale(-1, own.memory))
        solution = solve(problem, own.params, assignment, data, index=index)
        return Client(solution.params, own.memory), solution.metrics

    def hear(before, after, heard, index):
        moved = optax.tree.sub(heard, after.params)
        return Client(heard, optax.tree.add_scale(after.memory, probability / rate, moved))

    mixer = gossip.sometimes(gossip.complete(clients), probability)
    return adapt_then_combine(work, mixer, start=start, hear=hear)
