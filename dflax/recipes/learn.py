"""LEARN: peers that agree on gradients, then on models."""

import jax
import jax.numpy as jnp
import optax

from dflax.algorithm import Algorithm
from dflax.channel import Channel
from dflax.clients import select
from dflax.decentralized import Client, adapt_then_combine
from dflax.gossip import Mixer
from dflax.local import LargeBatch, Loss, Oracle, gradient, large_gradient
from dflax.local.polyak import Rate, rate_at, require_rate
from dflax.models.averaged import require_weights_alone


def learn(
    loss: Loss | Oracle, rate: Rate, mixer: Mixer, channel: Channel | None = None
) -> Algorithm:
    """LEARN: without momentum, on batches that grow by one example a step; it mixes twice in a step.

        g_i = gradient at x_i over the first s + 1 examples, mixed      round 2 s
        x_i = x_i - rate g_i, mixed                                     round 2 s + 1

    T steps are 2 T rounds and cost T (T + 1) / 2 gradients of a client.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      rate: > 0, traceable; or a function of the step's number s.
      mixer: of gradients and of models, such as `gossip.by_rule(topology,
        gossip.aggregating(aggregation.trimmed_mean(f)))`.
      channel: what happens to both on the way.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, the gradients
      `state.clients.memory`. The batches are a round's minibatches: K of B hold K B examples, and a
      step that asks for more takes these. Of the loss's metrics there are none.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      El-Mhamdi et al., Collaborative Learning in the Jungle (Decentralized, Byzantine, Heterogeneous,
      Asynchronous and Nonconvex Learning), NeurIPS 2021, arXiv 2008.00742.
    """
    require_rate("rate", rate)
    oracle = gradient(loss)

    def start(key, models):
        require_weights_alone(models, "LEARN")
        return optax.tree.zeros_like(models)

    def work(assignment, own, data, index):
        size = jnp.minimum(index // 2 + 1, assignment.minibatches.size)
        given = own.params, LargeBatch(assignment.minibatches, size), data, assignment.key
        new = jax.lax.cond(index % 2, lambda: own.memory, lambda: large_gradient(oracle, *given))
        return Client(own.params, new), {}

    def message(before, after, index):
        step = optax.tree.add_scale(after.params, -rate_at(rate, index // 2), after.memory)
        return select(index % 2 == 0, after.memory, step)

    def hear(before, after, heard, index):
        return select(index % 2 == 0, Client(after.params, heard), Client(heard, after.memory))

    return adapt_then_combine(work, mixer, start=start, message=message, hear=hear, channel=channel)
