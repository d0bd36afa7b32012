"""Recursive gradient estimates: a known direction, carried along by differences on minibatches."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient


class Estimate(NamedTuple):
    """What a recursive oracle carries from step to step.

    Attributes:
      params: the model at which the estimate was taken.
      direction: the estimate, like the model.
    """

    params: Params
    direction: Params


def recursive(loss: Loss | Oracle) -> Oracle:
    """The oracle of SARAH and SPIDER, which walks a gradient along with the model.

    On one minibatch and with one key for both gradients:

        g <- g + grad f(y) - grad f(y_before),    y_before <- y

    It starts from an `Estimate(y_before, g)` of the caller's; with y_before = y the first step goes
    along g itself. Costs two gradients a step; metrics are those at y. The loss must be the same
    function both times: normalise by groups or layers, not by running statistics.

    Args:
      loss: a loss, or an `Oracle`.

    Returns:
      An `Oracle` that remembers, for `dflax.local.solver`, whose memory is an `Estimate` that holds only
      as long as the client works.

    References:
      Nguyen et al., SARAH, arXiv 1703.00102; Fang et al., SPIDER, arXiv 1807.01695.
    """
    oracle = gradient(loss)

    def evaluate(
        params: Params, batch: Batch, key: Key[Array, ""], memory: Estimate
    ) -> tuple[tuple[Params, Params], Metrics, tuple[()]]:
        now, metrics = oracle(params, batch, key)
        before, _ = oracle(memory.params, batch, key)
        return (now, before), metrics, ()

    def conclude(
        seen: tuple[Params, Params], noted: tuple[()], params: Params, memory: Estimate
    ) -> tuple[Params, Estimate]:
        now, before = seen
        direction = jax.tree.map(lambda g, b, a: g - b + a, memory.direction, before, now)
        return direction, Estimate(params, direction)

    return Oracle(evaluate, conclude=conclude, lasting=False)
