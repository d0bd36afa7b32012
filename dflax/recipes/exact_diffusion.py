"""Exact diffusion: adapt, correct, combine."""

import optax

from dflax.algorithm import Algorithm
from dflax.channel import Channel
from dflax.decentralized import Client, adapt_then_combine
from dflax.gossip import Mixer
from dflax.local import Loss, Optimizer, Oracle, Subproblem, solver
from dflax.models.averaged import require_weights_alone


def exact_diffusion(
    loss: Loss | Oracle, optimizer: Optimizer, mixer: Mixer, channel: Channel | None = None
) -> Algorithm:
    """Exact diffusion: D-PSGD with a correction that takes its bias away.

        psi_i = K steps of `optimizer` on f_i from x_i                               adapt
        phi_i = psi_i + x_i - (psi_i of the last round)                              correct
        x_i   = sum_j W_ij phi_j                                                     combine

    The first round corrects nothing. With full gradients, one local step a round and a constant rate
    all models reach the minimum of the mean objective, which D-PSGD misses by O(rate).

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: an optax optimiser, fresh in every round; or a function of the round's number that
        returns one. The theory is of plain SGD.
      mixer: symmetric, doubly stochastic and fixed, with eigenvalues in (0, 1]: the mean of such a
        matrix and the identity, as the paper takes it, e.g. `gossip.mixer((W + numpy.eye(n)) / 2)`.
      channel: what happens to the messages on the way.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, the psi_i
      `state.clients.memory`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yuan et al., Exact Diffusion for Distributed Optimization and Learning, arXiv 1702.05122.
    """
    solve = solver(loss, optimizer)

    def start(key, models):
        require_weights_alone(models, "exact diffusion")
        return models

    def work(assignment, own, data, index):
        solution = solve(Subproblem(), own.params, assignment, data, index=index)
        return Client(solution.params, own.memory), solution.metrics

    def message(before, after, index):
        return optax.tree.add(after.params, optax.tree.sub(before.params, before.memory))

    def hear(before, after, heard, index):
        return Client(heard, after.params)

    return adapt_then_combine(work, mixer, start=start, message=message, hear=hear, channel=channel)
