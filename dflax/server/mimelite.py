"""MimeLite: clients take steps of a server's optimiser whose statistics stand still meanwhile."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.data.dataset import Batch, Dataset
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.solver import Optimizer, check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import require_weights_alone
from dflax.population import Assignment
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


class Base(NamedTuple):
    """An optimiser in two parts, so that its statistics can be held fixed.

    Attributes:
      init: `params -> statistics`.
      direction: `(gradient, statistics) -> step direction`, U in the paper; descent subtracts it.
      track: `(gradient, statistics) -> statistics`, V in the paper.
    """

    init: Callable[[Params], PyTree[Array]]
    direction: Callable[[Params, PyTree[Array]], Params]
    track: Callable[[Params, PyTree[Array]], PyTree[Array]]


def fixed_momentum(beta: float | Array = 0.9) -> Base:
    """SGD with momentum: U = V = (1 - beta) g + beta m, beta in [0, 1); traceable; 0 is SGD."""
    validation.real("beta", beta, low=0.0, high=1.0, high_open=True, scalar=True)

    def blend(gradient: Params, mean: Params) -> Params:
        return jax.tree.map(lambda g, m: (1 - beta) * g + beta * m, gradient, mean)

    return Base(lambda params: jax.tree.map(jnp.zeros_like, params), blend, blend)


def fixed_adam(
    b1: float | Array = 0.9,
    b2: float | Array = 0.99,
    eps: float | Array = 1e-3,
    *,
    initial: float | Array = 1.0,
) -> Base:
    """Adam without bias correction: U = ((1 - b1) g + b1 m) / (sqrt(v) + eps), V the usual averages.

    Args:
      b1: of the mean m of gradients, in [0, 1); traceable, as all others are.
      b2: of the mean v of their squares, in [0, 1).
      eps: > 0.
      initial: what v starts from, >= 0. From 0 the clients would step blindly in the first round,
        before anything is known of the gradients.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        validation.real(name, value, low=0.0, high=1.0, high_open=True, scalar=True)
    validation.real("eps", eps, low=0.0, low_open=True, scalar=True)
    validation.real("initial", initial, low=0.0, scalar=True)
    mean = fixed_momentum(b1)

    def init(params: Params) -> tuple[Params, Params]:
        squares = jax.tree.map(lambda x: jnp.full(x.shape, initial, x.dtype), params)
        return mean.init(params), squares

    def direction(gradient: Params, statistics: tuple[Params, Params]) -> Params:
        first, second = statistics
        blended = mean.direction(gradient, first)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), blended, second)

    def track(gradient: Params, statistics: tuple[Params, Params]) -> tuple[Params, Params]:
        first, second = statistics
        squares = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, gradient, second)
        return mean.track(gradient, first), squares

    return Base(init, direction, track)


def mimelite(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    base: Base | None = None,
    *,
    server_rate: Rate = 1.0,
    **options: Any,
) -> Algorithm:
    """MimeLite: every client mimics the step that the server's optimiser would take.

    With statistics s (momentum, second moments) from the server, fixed during the round, a client
    from y = x does

        K times:  y = y - rate U(grad f_i(y; minibatch), s)
        g_i = mean of grad f_i(x) over all minibatches of the round
        x   = x + server_rate * mean_i (y_i - x),     s = V(mean_i g_i, s)

    so s sees gradients (and no weight decay that the optimiser adds) at the server's models alone, not
    those of clients that have drifted. Costs two gradients a minibatch. Where K B examples are a
    client's whole epoch, g_i is its full gradient.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: what takes the steps along U: `optax.sgd(rate)`, or a function of the round's number
        that returns an optimiser.
      base: the server's optimiser, `fixed_momentum(0.9)` by default, or `fixed_adam()`.
      server_rate: >= 0, 1 in the paper; traceable; or a function of the round's number that returns
        one.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`. A message
        is the dict of the "change" y - x and the "gradient" g.

    Returns:
      An `Algorithm`; the model is `state.server.params`, the statistics `state.server.memory`. Metrics:
      the loss's own and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Karimireddy et al., Mime: Mimicking Centralized Stochastic Algorithms in Federated Learning,
      arXiv 2008.03606.
    """
    base = fixed_momentum() if base is None else base
    validation.instance("base", base, Base, "For example dflax.server.fixed_momentum(0.9).")
    check_rate("server_rate", server_rate, low=0.0)
    check_optimizer("optimizer", optimizer)
    oracle = gradient(loss)
    # Steps of no length: the mean of gradients at one model.
    look = solver(oracle, optax.sgd(0.0), mean_gradient=True)

    def start(key: Key[Array, ""], params: Params) -> tuple[PyTree[Array], tuple[()]]:
        require_weights_alone(params, "MimeLite")
        return base.init(params), ()

    def work(
        assignment: Assignment, own: tuple[()], server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        def mimic(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
            seen, metrics = oracle(params, batch, key)
            return base.direction(seen, server.memory), metrics

        step_key, look_key = jax.random.split(assignment.key)
        arguments = (Subproblem(), server.params)
        local = assignment._replace(key=step_key)
        solution = solver(Oracle(mimic), optimizer)(*arguments, local, data, index=index)
        here = look(*arguments, assignment._replace(key=look_key), data)
        change = jax.tree.map(jnp.subtract, solution.params, server.params)
        return Report({"change": change, "gradient": here.gradient}, own, solution.metrics)

    def update(server: Server, received: Received) -> tuple[Params, PyTree[Array], Metrics]:
        rate = rate_at(server_rate, received.number)
        params = jax.tree.map(
            lambda x, d: x + jnp.asarray(rate, x.dtype) * d,
            server.params,
            received.message["change"],
        )
        return params, base.track(received.message["gradient"], server.memory), {}

    def message(params: Params) -> dict[str, Params]:
        return {"change": params, "gradient": params}

    return with_server(start, work, update, message=message, **options)
