"""Distributed stochastic gradient tracking (DSGT)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import select
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, combine_then_adapt
from dflax.gossip.mixer import (
    PLAIN_AND_AFRESH,
    Mixer,
    Uncorrected,
    require_any_tree,
    require_mean_kept,
)
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import require_weights_alone
from dflax.population import Assignment

Rate = float | Array | Callable[[Int[Array, ""]], float | Float[Array, ""]]


class Tracking(NamedTuple):
    """A client's memory.

    Attributes:
      tracker: y_i, an estimate of the mean gradient of all clients.
      gradient: g_i, the client's own gradient of the last round it took part in.
    """

    tracker: Params
    gradient: Params


def dsgt(
    loss: Loss | Oracle,
    rate: Rate,
    mixer: Mixer,
    *,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Gradient tracking: every client follows an estimate of the mean gradient, not its own gradient.

    A round, with two mixed trees:

        x_i = sum_j W_ij (x_j - eta y_j)
        y_i = sum_j W_ij y_j + grad f_i(x_i) - g_i           then g_i = grad f_i(x_i)

    y and g start at 0, which from a common model is the published start y_i = grad f_i(x_i). In every
    round mean y = mean g, whoever takes part, so with full gradients and a constant rate all models
    reach the minimum of the mean objective, which D-PSGD and DFedAvg miss by O(eta). The gradient is
    the mean over a round's K minibatches, all at the same model.

    With `gossip.variance_corrected`, for models from draws of their own, the models are corrected
    and the trackers only mixed: x_i = VC(sum_j W_ij (x_j - eta y_j)). mean y = mean g holds as before,
    and equal models are not changed, so the minimum of the mean objective is still a fixed point;
    the mean of the models is not kept on the way there. Its target `Target.ALL` is the published one.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      rate: eta >= 0, traceable; or a function of the round's number.
      mixer: the gossip, see `dflax.gossip`; it must keep the mean, but for a correction of the
        models. Twice a model's size is mixed.
      channel: what happens to the messages on the way; see `adapt_then_combine`. One that changes
        them (noise, compression) breaks mean y = mean g.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, trackers and gradients
      `state.clients.memory`, a `Tracking`. Its `init` is that of `dfedavg`. Metrics: the loss's own,
      `tracker_norm`, mean |y_i|, `clients_active`, and the mixer's; a message counts two models.

    Raises:
      TypeError, ValueError: naming the argument; a mixer that is known to move the mean, or mixes
        whole models alone (`gossip.recalibrated`).

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> problem = dx.data.quadratics(
      ...     jax.random.key(0), 4, 3, curvature_heterogeneity=1.0, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.decentralized.dsgt(dx.data.quadratic_loss, 0.2, dx.gossip.ring(4))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=150, key=jax.random.key(1))
      >>> bool(jnp.allclose(state.clients.params, problem.optimum, atol=1e-3))  # every client's
      True

    References:
      Pu and Nedic, Distributed Stochastic Gradient Tracking Methods, arXiv 1805.11454;
      Nedic, Olshevsky and Shi, arXiv 1607.03218; Tian et al., arXiv 2404.04616 (correction).
    """
    require_mean_kept(mixer, "gradient tracking")
    require_any_tree(mixer, "gradient tracking", "trackers", PLAIN_AND_AFRESH)
    if not callable(rate):
        validation.real("rate", rate, low=0.0, scalar=True)
    # A solver that stays where it is sees all minibatches at one model.
    look = solver(loss, optax.set_to_zero(), mean_gradient=True)

    def start(key: Key[Array, ""], models: Params) -> Tracking:
        require_weights_alone(models, "gradient tracking")
        zeros = jax.tree.map(jnp.zeros_like, models)
        return Tracking(zeros, zeros)

    def descend(own: Client, index: Array) -> dict[str, Any]:
        eta = rate(index) if callable(rate) else rate
        moved = jax.tree.map(
            lambda x, y: x - jnp.asarray(eta, x.dtype) * y, own.params, own.memory.tracker
        )
        return {"params": moved, "tracker": Uncorrected(own.memory.tracker)}

    def track(
        assignment: Assignment,
        own: Client,
        heard: dict[str, Any],
        data: Dataset,
        index: Array,
    ) -> tuple[Client, Metrics]:
        seen = look(Subproblem(), heard["params"], assignment, data, index=index)
        # Who has no time for a gradient goes on with the old one.
        fresh = select(assignment.local_steps > 0, seen.gradient, own.memory.gradient)
        tracker = jax.tree.map(
            lambda y, g, old: y + (g - old), heard["tracker"].part, fresh, own.memory.gradient
        )
        measured = {"tracker_norm": optax.tree.norm(tracker)}
        return Client(heard["params"], Tracking(tracker, fresh)), seen.metrics | measured

    return combine_then_adapt(
        track, mixer, start=start, message=descend, channel=channel, at_once=at_once
    )
