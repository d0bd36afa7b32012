"""MoNNA: momentum, and averages of the nearest."""

from jaxtyping import Array

from dflax.algorithm import Algorithm
from dflax.decentralized import Order, dpsgd
from dflax.gossip import Mixer
from dflax.local import Loss, Oracle, polyak
from dflax.local.polyak import Rate


def monna(
    loss: Loss | Oracle,
    rate: Rate,
    mixer: Mixer,
    beta: float | Array = 0.99,
    decay: float | Array = 0.0,
    **options,
) -> Algorithm:
    """MoNNA: learning among peers of which f are arbitrary, by momentum and nearest neighbours.

        m_i <- beta m_i + (1 - beta) (grad f_i(x_i) + decay x_i)
        y_i  = x_i - rate(t) m_i
        x_i <- mean of the m - f of y_i and the y_j heard that are nearest to y_i        the mixer

    Everyone waits for n - f models of n, the f arbitrary ones at worst among them:

        heard = topology.random_neighbours(n, n - f - 1, first=hostile)
        mixer = gossip.by_rule(heard, gossip.nna(f), watched=hostile)

    and on `topology.complete(n)` for all of them. The momentum makes honest models so like each other
    that who is kept must be near them; without it (beta 0) the noise of single gradients hides the
    hostile. Other rules in the place of `nna` are what the paper compares with: the mean, MoCWTM and
    BRIDGE (`gossip.aggregating(aggregation.trimmed_mean(f))` with momentum and without), the geometric
    median, `gossip.self_centred_clipping`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      rate: > 0, traceable; or a function of the round's number.
      mixer: as above; a round has one local step (a federation with `local_steps=1`).
      beta: in [0, 1), traceable; it remembers about 1 / (1 - beta) rounds.
      decay: of the weights, >= 0, traceable.
      **options: `channel`, where hostile clients lie (`dflax.attacks`), and `at_once`, as for
        `decentralized.dpsgd`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, momenta in
      `state.clients.memory`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Farhadkhani et al., Robust Collaborative Learning with Linear Gradient Overhead, ICML 2023,
      arXiv 2209.10931.
    """
    optimizer = polyak(rate, beta, decay=decay)
    return dpsgd(loss, optimizer, mixer, order=Order.ADAPT_THEN_COMBINE, **options)
