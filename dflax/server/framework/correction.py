"""What the methods with corrected local steps share: momentum, control variates, variance reduction."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.clients import replicate, select, weighted_mean
from dflax.data.dataset import Batch, Dataset
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.solver import Optimizer, check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


class Correction(NamedTuple):
    """What the server remembers; () for what a method has no use for.

    Attributes:
      momentum: g, the mean of the last round's local directions.
      control: c, the mean over all n clients of their control variates.
      previous: the model of the round before.
    """

    momentum: Params | tuple[()] = ()
    control: Params | tuple[()] = ()
    previous: Params | tuple[()] = ()


def corrected(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    *,
    beta: float | Array | None = None,
    use_control: bool = False,
    use_reduction: bool = False,
    server_rate: Rate | None = None,
    clients: int | None = None,
    **options: Any,
) -> Algorithm:
    """Local steps along corrected gradients, and a server that keeps the corrections.

    With G = grad f_i(y) and G' = grad f_i(x_prev) on the same minibatch, every local step goes along

        dir = G                               + (1 - beta) g      beta: momentum
        dir = beta G                          + (1 - beta) g      ... without variance reduction
        dir = ... - (1 - beta) G'                                 use_reduction
        dir = ... + beta (c - c_i)                                use_control

    where terms that are not asked for are absent and beta = 1 without momentum. Then, with S the
    clients that report and K each one's own number of steps,

        c_i = (1/K) sum_k G_ik,    c = c + (1/n) sum over S of the change of c_i
        g   = mean over S and k of dir,    x_prev = x
        x   = x - gamma g,   or without gamma the mean over S of the local models

    All of these are made of gradients: weight decay in the optimiser is in none of them. Where momentum
    and control variates are made of models instead, as in authors' code, they contain it: put
    (wd / (2 beta)) |y|^2 into the loss for that.

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round, or a function of the round.
      beta: weight of the new gradient in (0, 1], traceable; None: no momentum.
      use_control: whether clients keep control variates; needs `clients`.
      use_reduction: whether gradients at the previous model are taken as well; needs beta, and
        gradients at the start.
      server_rate: gamma, the server's step along the mean direction > 0, traceable; or a function of
        the round's number that returns one; None averages the models. For plain SGD of rate eta the
        two agree at gamma = eta K.
      clients: n.
      **options: of `with_server`.

    Returns:
      An `Algorithm` with `init(key, params, gradients=None)`: `gradients` are the clients' at
      `params`, leaves `[n, ...]`, see `dflax.local.client_gradients`; without, g and c_i start at 0.
      `state.server.memory` is a `Correction`, `state.clients.memory` the c_i. Metrics: the loss's
      own, `drift` (mean |y_i - x|^2), `direction_norm` (|g|), `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_optimizer("optimizer", optimizer)
    if beta is not None:
        check_beta(beta)
    if server_rate is not None:
        check_rate("server_rate", server_rate, low=0.0, low_open=True)
    if use_control:
        validation.integer("clients", clients, low=1)
    oracle = gradient(loss)
    fresh = 1.0 if beta is None else beta
    with_direction = beta is not None or server_rate is not None

    def start(
        key: Key[Array, ""], params: Params, gradients: PyTree[Array] | None = None
    ) -> tuple[Correction, PyTree[Array]]:
        if gradients is not None:
            count = validation.leading_axis("gradients", gradients, clients)
            controls, mean = gradients, weighted_mean(gradients)
        elif use_reduction:
            raise ValueError(
                "gradients must be given to init, because variance reduction starts from the mean "
                "gradient at the model, got None. Pass dflax.local.client_gradients(loss, federation, "
                "params)."
            )
        else:
            count = clients or 1
            mean = jax.tree.map(jnp.zeros_like, params)
            controls = replicate(mean, count)
        memory = Correction(
            mean if beta is not None else (),
            mean if use_control else (),
            params if use_reduction else (),
        )
        return memory, controls if use_control else ()

    def local_work(
        assignment: Assignment, own: Any, server: Server, data: Dataset, index: Array
    ) -> Report:
        memory, x, steps = server.memory, server.params, assignment.local_steps
        terms = []
        if beta is not None:
            terms.append(_times(1.0 - fresh, memory.momentum))
        if use_control:
            terms.append(_times(fresh, jax.tree.map(jnp.subtract, memory.control, own)))
        problem = Subproblem(None if use_reduction else beta, _sum(terms))
        seen: Any = oracle
        if use_reduction:
            seen = _reduced(oracle, memory.previous, 1.0 - fresh)
        solution = solver(seen, optimizer, mean_gradient=True)(
            problem,
            x,
            assignment,
            data,
            index=index,
            memory=jax.tree.map(jnp.zeros_like, x) if use_reduction else (),
        )
        change = jax.tree.map(jnp.subtract, solution.params, x)
        message = {}
        if server_rate is None:
            message["change"] = change
        if with_direction:
            # Affine in the gradient: the mean direction is that of the mean gradient.
            direction = problem.direction(solution.gradient, x)
            message["direction"] = _times((steps > 0).astype(jnp.float32), direction)
        if use_control:
            plain = solution.gradient
            if use_reduction:
                plain = _times(1.0 / jnp.maximum(steps, 1), solution.memory)
            # Who did no step has seen no gradient and keeps its control variate.
            control = select(steps > 0, plain, own)
            message["control"] = jax.tree.map(jnp.subtract, control, own)
            own = control
        drift = {"drift": optax.tree.norm(change, squared=True)}
        return Report(message, own, solution.metrics | drift)

    def update(server: Server, received: Received) -> tuple[Params, Correction, Metrics]:
        message, memory = received.message, server.memory
        if server_rate is None:
            step = message["change"]
        else:
            step = _times(-rate_at(server_rate, received.number), message["direction"])
        new = Correction(
            message["direction"] if beta is not None else (),
            _sum([memory.control, _times(received.share, message["control"])])
            if use_control
            else (),
            server.params if use_reduction else (),
        )
        metrics = {}
        if with_direction:
            metrics["direction_norm"] = optax.tree.norm(message["direction"])
        return _sum([server.params, step]), new, metrics

    def template(params: Params) -> dict[str, Params]:
        names = {"change": server_rate is None, "direction": with_direction, "control": use_control}
        return {name: params for name, sent in names.items() if sent}

    return with_server(
        start,
        local_work,
        update,
        message=template,
        clients=clients,
        equal=use_control,
        **options,
    )


def check_beta(beta: float | Array) -> None:
    """Refuse a weight of the new gradient outside of (0, 1]."""
    fix = "With 1 there is no momentum."
    validation.real("beta", beta, low=0.0, high=1.0, low_open=True, scalar=True, fix=fix)


def _reduced(oracle: Oracle, previous: Params, weight: float | Array) -> Oracle:
    """`G - weight G'` with both gradients on the same minibatch and key; remembers the sum of the G."""

    def evaluate(
        params: Params, batch: Batch, key: Key[Array, ""], total: Params
    ) -> tuple[tuple[Params, Params], Metrics, tuple[()]]:
        here, metrics = oracle(params, batch, key)
        there, _ = oracle(previous, batch, key)
        return (here, there), metrics, ()

    def conclude(
        seen: tuple[Params, Params], noted: tuple[()], params: Params, total: Params
    ) -> tuple[Params, Params]:
        here, there = seen
        return _sum([here, _times(-weight, there)]), _sum([total, here])

    return Oracle(evaluate, conclude=conclude)


def _times(factor: float | Array, tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def _sum(trees: list[Params]) -> Params | None:
    """Leaf by leaf; None of none."""
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), trees) if trees else None
