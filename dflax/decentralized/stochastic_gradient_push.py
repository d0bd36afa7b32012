"""Stochastic gradient push: local steps on directed graphs whose weights keep only the sum."""

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.channel.channel import Channel
from dflax.decentralized.gossip_averaging import Order, gossip_averaging
from dflax.gossip.push_sum import push_sum
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer
from dflax.topology import Graph, MixingMatrix


def sgp(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    topology: Graph | MixingMatrix,
    *,
    gossip_steps: int = 1,
    disconnected: bool = False,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Stochastic gradient push (SGP): gradients at unbiased models, pushed through any directed graph.

    A round, with the optimiser's state kept by each client and A column-stochastic:

        x_i = x_i - eta grad f_i(z_i)
        x_i = sum_j A_ij x_j,    w_i = sum_j A_ij w_j,    z_i = x_i / w_i

    On regular graphs all weights w stay 1. One local step per round is the published method.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      topology: a strongly connected graph, or a column-stochastic matrix; see `gossip.push_sum`.
      gossip_steps: Q >= 1 mixings a round.
      disconnected: as in `gossip.push_sum`.
      channel: as in `dpsgd`.
      at_once: see `dflax.map_clients`.

    Returns:
      As `dpsgd`; the models are the z.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Assran et al., Stochastic Gradient Push for Distributed Deep Learning, arXiv 1811.10792.
    """
    validation.integer("gossip_steps", gossip_steps, low=1)
    return gossip_averaging(
        loss,
        optimizer,
        push_sum(topology, steps=gossip_steps, disconnected=disconnected),
        order=Order.ADAPT_THEN_COMBINE,
        keep_optimizer=True,
        channel=channel,
        at_once=at_once,
    )
