"""FedDyn, and FedSpeed: the same with sharpness-aware gradients."""

from typing import Any, Literal

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.sam import sam
from dflax.local.solver import Optimizer
from dflax.server.framework.dual import Look, with_duals

Average = Literal["code", "active_old", "active_new"]


def feddyn(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    pull: float = 0.1,
    average: Average = "code",
    **options: Any,
) -> Algorithm:
    """FedDyn: a dual of its own makes each client's proximal problem agree with the common optimum.

        y_i = K steps of `optimizer` on f_i(y) + pull <h_i, y> + (pull / 2) |y - x|^2 from x
        h_i = h_i + y_i - x                                                   i in S, in parallel
        x   = (mean over S of y_i) + (mean over all n clients of h_i)

    With everyone taking part and exact gradients it stops at the optimum for any K, where h_i = -grad
    f_i / pull. h_i is made of models, so weight decay in the optimiser is in it, as in the authors'
    code: with SGD it is the same as (wd / 2) |y|^2 in the loss. In the paper's notation pull h_i is
    -grad L_k and pull is alpha. Clients count the same, whatever the federation's weights.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      clients: n, the number of clients of the federation.
      pull: strength of the proximal term > 0, with (local rate) * (pull + weight decay) < 1;
        traceable.
      average: "code" as above, as the authors' code of FedSpeed does; "active_old" and "active_new"
        average y_i + h_i over S alone, with h_i before or after this round: unstable when few take part
        or pull is small.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, h `state.clients.memory.dual` and, with "code",
      its mean `state.server.memory.mean`. Metrics: the loss's own, `drift` (mean of |y_i - x|^2),
      `clients_reporting`, and with "code" `divergence` (mean of |y_i - new x|^2) and `dual_norm`
      (|mean h|).

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(
      ...     jax.random.key(0), 4, 3, curvature_heterogeneity=1.0, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.feddyn(dx.data.quadratic_loss, optax.sgd(0.3), clients=4, pull=0.5)
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=100, key=jax.random.key(1))
      >>> bool(jnp.allclose(state.server.params, problem.optimum, atol=1e-3))
      True

    References:
      Acar et al., Federated Learning Based on Dynamic Regularization, arXiv 2111.04263.
    """
    oracle = gradient(loss)
    look = Look(lambda shared: oracle)
    return with_duals(look, optimizer, clients, pull=pull, average=average, **options)


def fedspeed(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    pull: float = 0.1,
    radius: float = 0.1,
    alpha: float = 1.0,
    average: Average = "code",
    relaxed: float | None = None,
    normalize: bool = True,
    **options: Any,
) -> Algorithm:
    """FedSpeed: FedDyn's prox-corrected local steps along a gradient mixed with a perturbed one.

        g = grad f_i(y),   q = (1 - alpha) g + alpha grad f_i(y + rho g / |g|)      on one minibatch
        y = y - rate (q + pull (y - x_0) + pull h_i)                          K steps from x_0
        h_i = h_i + y_i - x_0                                                 i in S, in parallel
        x   = (mean over S of y_i) + (mean over all n clients of h_i)

    x_0 = x, or with relaxed initialisation x + relaxed (x - the client's last model). pull is the
    paper's 1 / lambda and h_i its -lambda ghat_i. Two gradients a local step; rho = 0 or alpha = 0 is
    FedDyn. Weight decay belongs into the optimiser (`optax.add_decayed_weights`), where h_i contains
    it, and clipping around the loss (`dflax.local.clipped`).

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one, such as `lambda t: optax.sgd(0.1 * 0.998**t)`.
      clients: n, the number of clients of the federation.
      pull: strength of the proximal term > 0, with (local rate) * (pull + weight decay) < 1;
        traceable.
      radius: rho, of the perturbation, >= 0, traceable.
      alpha: weight of the perturbed gradient in [0, 1], traceable; 1 in the authors' code.
      average: see `feddyn`.
      relaxed: weight of relaxed initialisation >= 0 (up to about 0.2), traceable; None: off, and
        clients need not remember their last model.
      normalize: whether the perturbation has length rho; else it is rho g, as in the paper.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`, with the states and metrics of `feddyn`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Sun et al., FedSpeed, arXiv 2302.10429; its rule at the server is that of the authors' code,
      github.com/woodenchild95/FL-Simulator.
    """
    validation.real("alpha", alpha, low=0.0, high=1.0, scalar=True)
    oracle = sam(loss, radius, weight=alpha, normalize=normalize)
    look = Look(lambda shared: oracle)
    return with_duals(
        look, optimizer, clients, pull=pull, average=average, relaxed=relaxed, **options
    )
