"""FedAdagrad, FedYogi and FedAdam: servers that scale every coordinate by what it has seen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dflax import validation
from dflax.algorithm import Algorithm, Params
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer
from dflax.server.framework.averaging import averaging
from dflax.server.framework.rates import Rate, check_rate, rate_at

Number = float | Array


class Moments(NamedTuple):
    """What an adaptive server remembers.

    Attributes:
      mean: m, of the clients' mean changes with the opposite sign; a tree like the model.
      square: v, of their squares.
    """

    mean: Params
    square: Params


def fedadam(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.99,
    tau: Number = 1e-3,
    **options: Any,
) -> Algorithm:
    """FedAdam: a server that takes steps of Adam along the clients' mean change d.

        m = b1 m + (1 - b1) d,    v = b2 v + (1 - b2) d^2,    x = x + rate m / (sqrt(v) + tau)

    from m = 0 and v = tau^2, without a correction of the bias of either (which `optax.adam` makes).

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      server_rate: the server's learning rate > 0, traceable; or a function of the round's number that
        returns one. The paper tunes it in powers of sqrt(10) around 0.01 to 0.1.
      b1: in [0, 1); traceable.
      b2: in [0, 1); traceable.
      tau: degree of adaptivity > 0: small adapts much; traceable.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, `Moments` its memory. Metrics: the loss's own
      and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.fedadam(dx.data.quadratic_loss, optax.sgd(0.1), server_rate=0.1)
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=20, key=jax.random.key(1))
      >>> bool(history.metrics["loss"][-1] < history.metrics["loss"][0])
      True

    References:
      Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295.
    """
    _unit("b2", b2)
    server = _adaptive(server_rate, b1, tau, lambda v, d: b2 * v + (1 - b2) * d * d)
    return averaging(loss, optimizer, server, **options)


def fedyogi(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.99,
    tau: Number = 1e-3,
    **options: Any,
) -> Algorithm:
    """FedYogi: as `fedadam`, but with `v = v - (1 - b2) d^2 sign(v - d^2)`, which forgets slowly."""
    _unit("b2", b2)
    server = _adaptive(
        server_rate, b1, tau, lambda v, d: v - (1 - b2) * d * d * jnp.sign(v - d * d)
    )
    return averaging(loss, optimizer, server, **options)


def fedadagrad(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_rate: Rate,
    *,
    b1: Number = 0.0,
    tau: Number = 1e-3,
    **options: Any,
) -> Algorithm:
    """FedAdagrad: as `fedadam`, but with `v = v + d^2`, which never forgets, and no momentum."""
    server = _adaptive(server_rate, b1, tau, lambda v, d: v + d * d)
    return averaging(loss, optimizer, server, **options)


def _adaptive(
    server_rate: Rate, b1: Number, tau: Number, accumulate: Callable[[Array, Array], Array]
) -> Optimizer:
    check_rate("server_rate", server_rate, low=0.0, low_open=True)
    _unit("b1", b1)
    validation.real("tau", tau, low=0.0, low_open=True, scalar=True)

    def init(params: Params) -> Moments:
        squares = jax.tree.map(lambda x: jnp.full(x.shape, tau, x.dtype) ** 2, params)
        return Moments(jax.tree.map(jnp.zeros_like, params), squares)

    def in_round(number: Int[Array, ""]) -> optax.GradientTransformation:
        eta = rate_at(server_rate, number)

        def update(
            slope: optax.Updates, state: optax.OptState, params: Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            mean = jax.tree.map(lambda m, d: b1 * m + (1 - b1) * d, state.mean, slope)
            square = jax.tree.map(accumulate, state.square, slope)
            step = jax.tree.map(lambda m, v: -eta * m / (jnp.sqrt(v) + tau), mean, square)
            return step, Moments(*jax.tree.map(_typed, (mean, square), tuple(state)))

        return optax.GradientTransformation(init, update)

    return in_round


def _typed(new: Array, old: Array) -> Array:
    """In half precision a traced number widens what it multiplies; a state keeps its type."""
    return new.astype(old.dtype)


def _unit(name: str, value: Number) -> None:
    validation.real(name, value, low=0.0, high=1.0, high_open=True, scalar=True)
