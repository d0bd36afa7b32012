"""Local steps and gossip: D-PSGD, DFedAvg, DFedAvgM and DFedSAM; when they mix, and what they see."""

import enum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, adapt_then_combine, combine_then_adapt
from dflax.gossip.mixer import Mixer, require_mixer
from dflax.gossip.repeat import repeat
from dflax.local.oracle import Loss, Oracle
from dflax.local.sam import sam
from dflax.local.solver import Optimizer, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment


class Order(enum.Enum):
    """When a round mixes: W the mixing, y_i(x) the model after the local steps from x.

    Attributes:
      ADAPT_THEN_COMBINE: x+ = W y(x). Models are evaluated right after mixing.
      COMBINE_THEN_ADAPT: x+ = y(W x). Models are evaluated right after training.
      PARALLEL: x+ = W x + (y(x) - x). Mixing and training start from the same models.
    """

    ADAPT_THEN_COMBINE = "adapt then combine"
    COMBINE_THEN_ADAPT = "combine then adapt"
    PARALLEL = "parallel"


def dpsgd(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    order: Order = Order.PARALLEL,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized parallel SGD: each client takes its step while it averages with its neighbours.

    A round, with the optimiser's state (momentum) kept by each client:

        x_i = sum_j W_ij x_j - eta grad f_i(x_i)         order = PARALLEL, K = 1, SGD

    The published method has one local step per round (a federation with `local_steps=1`); with K > 1
    the gradient step is replaced by the change of K local steps. With SGD this is the consensus-based
    CDSGD, and with momentum CDMSGD, too.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      mixer: the gossip, see `dflax.gossip`; its number of clients must be the federation's.
      order: `PARALLEL` as published; `ADAPT_THEN_COMBINE` or `COMBINE_THEN_ADAPT`.
      channel: what happens to the models on the way; default nothing. Everyone, the sender too, mixes
        what was sent; a model that is lost or dropped is mixed by nobody, and its owner keeps it.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, leaves `[n, ...]`. Its
      `init` takes one model, which every client starts from, or a function `key -> model` for
      independent starts. Metrics: the loss's own, `clients_active`, and the mixer's.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.decentralized.dpsgd(dx.data.quadratic_loss, optax.sgd(0.1), dx.gossip.ring(4))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=100, key=jax.random.key(1))
      >>> mean = state.clients.params.mean(0)
      >>> bool(jnp.allclose(mean, problem.optimum, atol=1e-3))
      True

    References:
      Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, arXiv 1705.09056.
      Jiang et al., Collaborative Deep Learning in Fixed Topology Networks, arXiv 1706.07880 (CDSGD).
    """
    return gossip_averaging(
        loss,
        optimizer,
        mixer,
        order=order,
        keep_optimizer=True,
        channel=channel,
        at_once=at_once,
    )


def dfedavg(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    order: Order = Order.ADAPT_THEN_COMBINE,
    keep_optimizer: bool = False,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized federated averaging (DFedAvg): K local steps, then gossip.

    A round, with a fresh local optimiser:

        y_i = K steps of `optimizer` on f_i from x_i     momentum here: DFedAvgM
        x_i = sum_j W_ij y_j                             once, or as often as the mixer says

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      mixer: the gossip, see `dflax.gossip`; give it `steps=Q` for several gossip steps a round.
      order: see `Order`.
      keep_optimizer: keep each client's optimiser state from round to round instead of a fresh one.
      channel: as in `dpsgd`.
      at_once: see `dflax.map_clients`.

    Returns:
      As `dpsgd`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.decentralized.dfedavg(dx.data.quadratic_loss, optax.sgd(0.5), dx.gossip.ring(4))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=50, key=jax.random.key(1))
      >>> mean = state.clients.params.mean(0)
      >>> bool(jnp.allclose(mean, problem.optimum, atol=1e-3))
      True

    References:
      Sun, Li and Wang, Decentralized Federated Averaging, arXiv 2104.11375.
    """
    return gossip_averaging(
        loss,
        optimizer,
        mixer,
        order=order,
        keep_optimizer=keep_optimizer,
        channel=channel,
        at_once=at_once,
    )


def dfedsam(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    radius: float = 0.05,
    gossip_steps: int = 1,
    order: Order = Order.ADAPT_THEN_COMBINE,
    keep_optimizer: bool = False,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """DFedSAM and DFedSAM-MGS: `dfedavg` on sharpness-aware gradients, with one or several gossip steps.

    A round, with a fresh local optimiser:

        y_i = K steps of `optimizer` from x_i on gradients q = grad f_i(y + rho g / |g|), g = grad f_i(y)
        x_i = sum_j (W^Q)_ij y_j

    Costs two gradients per local step, and Q times the traffic of one mixing.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      mixer: one gossip step, see `dflax.gossip`.
      radius: rho >= 0 of the perturbation, in units of the parameters, traceable; see
        `dflax.local.sam`. 0 is DFedAvg.
      gossip_steps: Q >= 1 gossip steps a round; 1 is DFedSAM, more are DFedSAM-MGS.
      order: see `Order`.
      keep_optimizer: as in `dfedavg`.
      channel: as in `dpsgd`.
      at_once: see `dflax.map_clients`.

    Returns:
      As `dpsgd`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Shi et al., Improving the Model Consistency of Decentralized Federated Learning,
      arXiv 2302.04083.
    """
    require_mixer(mixer)
    validation.integer("gossip_steps", gossip_steps, low=1)
    return gossip_averaging(
        sam(loss, radius),
        optimizer,
        repeat(mixer, gossip_steps),
        order=order,
        keep_optimizer=keep_optimizer,
        channel=channel,
        at_once=at_once,
    )


def gossip_averaging(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    order: Order,
    keep_optimizer: bool,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Local steps and gossip in a given order: what `dpsgd` and `dfedavg` have in common.

    Clients that are not in the cohort, or do not report, neither train nor mix: they keep model and
    optimiser state bit for bit, and their weight at a neighbour goes to the neighbour's own model.

    Args and returns are those of `dfedavg`, without defaults.
    """
    check_optimizer("optimizer", optimizer)
    validation.flag("keep_optimizer", keep_optimizer)
    if not isinstance(order, Order):
        raise TypeError(
            f"order must be one of {[str(o) for o in Order]}, got {validation.shown(order)}."
        )
    solve = solver(loss, optimizer)

    def start(key: Key[Array, ""], models: Params) -> Any:
        return (
            jax.vmap(optimizer_at(optimizer, jnp.int32(0)).init)(models) if keep_optimizer else None
        )

    def adapt(
        assignment: Assignment, own: Client, data: Dataset, index: Array
    ) -> tuple[Client, Metrics]:
        solution = solve(
            Subproblem(), own.params, assignment, data, index=index, optimizer_state=own.memory
        )
        kept = solution.optimizer if keep_optimizer else None
        return Client(solution.params, kept), solution.metrics

    def adapt_mixed(
        assignment: Assignment, own: Client, heard: Params, data: Dataset, index: Array
    ) -> tuple[Client, Metrics]:
        return adapt(assignment, Client(heard, own.memory), data, index)

    def own_model(before: Client, after: Client, index: Array) -> Params:
        return before.params

    def add_change(before: Client, after: Client, heard: Params, index: Array) -> Client:
        change = jax.tree.map(lambda w, y, x: w + (y - x), heard, after.params, before.params)
        return after._replace(params=change)

    common: dict[str, Any] = {"start": start, "channel": channel, "at_once": at_once}
    if order is Order.COMBINE_THEN_ADAPT:
        return combine_then_adapt(adapt_mixed, mixer, **common)
    if order is Order.PARALLEL:
        return adapt_then_combine(adapt, mixer, message=own_model, hear=add_change, **common)
    return adapt_then_combine(adapt, mixer, **common)
