"""DFedADMM and DFedADMM-SAM: gossip averaging whose local steps are held together by dual variables."""

import enum

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import weighted_mean
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, adapt_then_combine, of_type
from dflax.gossip.mixer import Mixer, require_mean_kept
from dflax.local.oracle import Loss, Oracle
from dflax.local.sam import sam
from dflax.local.solver import Optimizer, check_optimizer, check_pull, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment


class Dual(enum.Enum):
    """Which dual goes into the message `z_i = y_i - lambda g_i`; both have the same fixed points.

    Attributes:
      NEW: that after the round's ascent, as in the Douglas-Rachford order of ADMM.
      OLD: that before it; z_i is then `x_i - lambda g_i` with the new one.
    """

    NEW = "new"
    OLD = "old"


def dfedadmm(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    penalty: float = 3.0,
    message: Dual = Dual.NEW,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """DFedADMM: local steps on an augmented Lagrangian, dual ascent, then gossip.

    A round, with one dual variable g_i per client, which estimates its gradient at agreement:

        y_i = K steps of `optimizer` on f_i(y) - <g_i, y> + |y - x_i|^2 / (2 lambda) from x_i
        g_i = g_i - (y_i - x_i) / lambda
        x_i = sum_j W_ij (y_j - lambda g_j)                  g_j new, or the one before: `message`

    g_i is an exponential mean of the client's own gradients, and the round moves along it with step
    lambda: at a fixed point sum_i grad f_i(x_i) = 0, g_i = grad f_i(x_i) and, whatever K and the rate
    are, x = W (x - lambda g). Consensus is exact on the complete graph alone; on sparse graphs the
    models stay apart by O(lambda psi / (1 - psi)), psi the second eigenvalue of W. Running statistics
    ("batch_stats") have neither dual nor proximal term: they are mixed as in `dfedavg`.

    With `gossip.variance_corrected`, for models from draws of their own, the messages are corrected,
    and at a fixed point still g_i = grad f_i(x_i), but sum_i grad f_i(x_i) = 0 is lost: messages
    differ by their duals even when the models agree. Averaging takes that variance away, and the
    correction stretches the models to bring it back. On the complete graph, a corrected tensor's mean
    gradient at the fixed point is

        (1 / n) sum_i g_i = (1 - 1 / s) (x - mean x) / lambda        s > 1 the factor of the correction

    a decay of negative sign, whose weight is about lambda times the variance of the g_i between
    clients over twice the variance of x. It vanishes where the clients' gradients agree.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: plain SGD, such as `optax.sgd(0.1)`, or a function of the round's number that makes
        one; momentum and adaptive steps would change what the dual ascent assumes. Weight decay
        (`optax.add_decayed_weights` before it) counts as a part of f_i.
      mixer: the gossip, see `dflax.gossip`; it must keep the mean, but for a correction.
      penalty: lambda > 0 and above the learning rate; traceable. The weight of the proximal term is
        1 / lambda: a large lambda holds the local steps less and moves more in a round.
      message: see `Dual`.
      channel: what happens to the messages z_i on the way; see `adapt_then_combine`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, dual variables
      `state.clients.memory`, leaves `[n, ...]`. Clients that do not take part keep both. Its `init`
      is that of `dfedavg`. Metrics: the loss's own; `drift`, mean |y_i - x_i|; `dual_norm`, mean
      |g_i|; `clients_active`, and the mixer's.

    Raises:
      TypeError, ValueError: naming the argument; a mixer that is known to move the mean.

    References:
      Li et al., DFedADMM: Dual Constraints Controlled Model Inconsistency for Decentralized Federated
      Learning, arXiv 2308.08290.
    """
    require_mean_kept(mixer, "DFedADMM")
    check_optimizer("optimizer", optimizer)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    check_pull("1 / penalty", 1.0 / penalty, optimizer)
    validation.instance("message", message, Dual, "Dual.NEW or Dual.OLD.")
    solve = solver(loss, optimizer)

    def start(key: Key[Array, ""], models: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, models)

    def local_work(
        assignment: Assignment, own: Client, data: Dataset, index: Array
    ) -> tuple[Client, Metrics]:
        x, dual = own
        shift = jax.tree.map(jnp.negative, dual)
        problem = Subproblem(shift=shift, pull=jnp.asarray(1.0 / penalty), anchor=x)
        problem = problem.around_origin()
        solution = solve(problem, x, assignment, data, index=index)
        change = jax.tree.map(jnp.subtract, solution.params, x)
        # g - (y - x) / lambda, of what the local steps read, so that none of the round's old dual need
        # be held while they are taken.
        zeros = jax.tree.map(jnp.zeros_like, x)
        dual = of_type(jax.tree.map(jnp.negative, problem.direction(zeros, solution.params)), dual)
        # As products, which run at memory speed where sums of squares do not.
        measured = {
            "drift": jnp.sqrt(optax.tree.vdot(change, change)),
            "dual_norm": jnp.sqrt(optax.tree.vdot(dual, dual)),
        }
        return Client(solution.params, dual), solution.metrics | measured

    def send(before: Client, after: Client, index: Array) -> Params:
        dual = after.memory if message is Dual.NEW else before.memory
        return jax.tree.map(lambda y, g: y - jnp.asarray(penalty, y.dtype) * g, after.params, dual)

    return adapt_then_combine(
        local_work, mixer, start=start, message=send, channel=channel, at_once=at_once
    )


def dfedadmm_sam(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    radius: float = 0.1,
    penalty: float = 3.0,
    message: Dual = Dual.NEW,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """DFedADMM-SAM: `dfedadmm` whose local steps see sharpness-aware gradients, at twice their cost.

    Args:
      loss: as in `dfedadmm`.
      optimizer: as there.
      mixer: as there.
      radius: rho >= 0 of the perturbation, traceable; see `dflax.local.sam`.
      penalty: as there.
      message: as there.
      channel: as there.
      at_once: as there.

    Returns:
      As `dfedadmm`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Li et al., arXiv 2308.08290.
    """
    return dfedadmm(
        sam(loss, radius),
        optimizer,
        mixer,
        penalty=penalty,
        message=message,
        channel=channel,
        at_once=at_once,
    )


def mean_dual(state: FederatedState) -> Metrics:
    """`mean_dual_norm`: |(1/n) sum_i g_i|, which is 0 at a fixed point; to be used in `evaluate`."""
    validation.instance("state", state, FederatedState, "Pass that of dfedadmm.")
    return {"mean_dual_norm": optax.tree.norm(weighted_mean(state.clients.memory))}
