"""The local solver: K steps of an optax optimiser on a subproblem, fewer for clients that tire."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import select
from dflax.data.dataset import Batch, Dataset
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.subproblem import Subproblem
from dflax.models.statistics import with_statistics
from dflax.population import Assignment

Optimizer = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]
"""An optax optimiser, or a function of the round's number that returns one."""


class Solution(NamedTuple):
    """What a client holds after its local steps.

    Attributes:
      params: the model.
      optimizer: the optimiser's state, for methods that keep it from round to round.
      gradient: mean of the oracle's raw gradients over the steps done, added up in float32 or wider;
        None unless asked for.
      metrics: means over the steps done, float32 or wider, of integers and booleans as well; 0 for a
        client that did none.
      memory: what an oracle with a lasting memory holds after the last step; () for the others.
    """

    params: Params
    optimizer: PyTree[Array]
    gradient: Params | None
    metrics: Metrics
    memory: Any = ()


def optimizer_at(optimizer: Optimizer, index: Int[Array, ""]) -> optax.GradientTransformation:
    """The optimiser of a round: the transformation itself, or what a function of the round makes.

    Running statistics ("batch_stats" of a variables dict) are kept apart from it: see
    `dflax.models.with_statistics`.
    """
    made = optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(index)
    return with_statistics(made)


def check_optimizer(name: str, optimizer: Optimizer) -> None:
    """Refuse what is neither an optax optimiser nor a function of the round that makes one."""
    made = optimizer
    if not isinstance(made, optax.GradientTransformation) and callable(made):
        validation.function(name, made, "It gets the round's number.", takes=1)
        made = made(jnp.int32(0))
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            f"{name} must be an optax optimiser, or a function of the round's number that returns "
            f"one, got {validation.shown(optimizer)}. For example optax.sgd(0.1), or "
            "lambda t: optax.sgd(0.1 * 0.998 ** t)."
        )


def model_of_one(value: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
    """A model of one number as a variables dict, which optimisers of running statistics take, too."""
    return {"params": value, "batch_stats": jnp.zeros_like(value)}


def check_pull(name: str, pull: float | Array, optimizer: Optimizer) -> None:
    """Refuse a proximal term that a local step overshoots: rate * (pull + weight decay) < 1.

    Looked at is what the optimiser does to `(pull / 2) |x|^2` alone, in round 0, from x = 1: it must
    end above 0. That is only known for optimisers without a state, such as SGD, and values that are
    not traced.

    Raises:
      TypeError, ValueError: naming the argument; also a pull that is not positive.
    """
    check_optimizer("optimizer", optimizer)
    validation.real(name, pull, low=0.0, low_open=True, scalar=True)
    descent, one = optimizer_at(optimizer, jnp.int32(0)), model_of_one(jnp.float32(1.0))
    state = descent.init(one)
    if validation.is_traced(pull) or jax.tree.leaves(state) or missing_argument(descent, one):
        return
    moved, _ = descent.update(model_of_one(jnp.float32(pull)), state, one)
    left = one["params"] + moved["params"]
    if not validation.is_traced(left) and float(left) <= 0.0:
        raise ValueError(
            f"{name} must be so small that the local rate times ({name} + weight decay) is below 1, got "
            f"{name}={pull}, with which one step takes a model at distance 1 of its anchor to "
            f"{float(left):g}. Lower it, or the learning rate."
        )


def check_no_value(name: str, optimizer: Optimizer) -> None:
    """Refuse an optimiser that asks for values of the objective where there are none.

    Raises:
      TypeError: naming the argument.
    """
    check_optimizer(name, optimizer)
    missing = missing_argument(
        optimizer_at(optimizer, jnp.int32(0)), model_of_one(jnp.float32(1.0))
    )
    if missing:
        raise TypeError(
            f"{name} must be an optimiser of gradients alone, got one that asks for more: {missing}. "
            "It can be a local optimizer on a plain loss; here no value of an objective is known. "
            "Take for example optax.sgd or optax.adam."
        )


def missing_argument(
    descent: optax.GradientTransformation, params: Params, **given: Any
) -> str | None:
    """What an optimiser says it lacks, beside gradients, its state and the model; None for nothing.

    Args:
      descent: the optimiser.
      params: a model, of which only shapes are read.
      **given: further arguments of its update, functions or arrays.
    """

    def update(params: Params, arrays: dict[str, Array]) -> Any:
        return descent.update(params, descent.init(params), params, **arrays, **functions)

    if not isinstance(descent, optax.GradientTransformationExtraArgs):
        return None
    functions = {name: value for name, value in given.items() if callable(value)}
    arrays = {name: value for name, value in given.items() if name not in functions}
    try:
        jax.eval_shape(update, params, arrays)
    except TypeError as error:
        if "required keyword-only argument" in str(error):
            return str(error).splitlines()[0]
        raise
    return None


def solver(
    loss: Loss | Oracle, optimizer: Optimizer, *, mean_gradient: bool = False
) -> Callable[..., Solution]:
    """The function that does one client's local work.

    For k = 0, ..., K - 1, as long as k is below the client's own number of steps:

        q = oracle(x, minibatch k)                             what the client sees of f_i
        x = optimiser(x, problem.direction(q, x))              one optax update

    Args:
      loss: a loss, or an `Oracle`, which may remember.
      optimizer: an optax optimiser; or a function of the round's number (traced) that returns one,
        for learning rates that change from round to round. One that asks for `value`, `grad` or
        `value_fn` (`optax.polyak_sgd`, `optax.lbfgs`) gets those of the subproblem on the minibatch,
        which takes a plain loss, at the price of further passes.
      mean_gradient: whether the solution carries the mean of the raw gradients q.

    Returns:
      `solve(problem, params, assignment, data, *, index=0, optimizer_state=None, memory=())
      -> Solution`, for one client: `problem` a `Subproblem`, `assignment` with `[K, B]` indices into
      `data`, `index` the round's number, `optimizer_state` that of an earlier round or None for a
      fresh one, `memory` what the oracle starts from.

    Raises:
      TypeError: naming the argument; and, when `solve` is traced, a loss or an oracle that returns
        something else than it should, or an optimiser that asks for what is not known here.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> round = federation.draw(jax.random.key(0), 0)
      >>> first = jax.tree.map(lambda leaf: leaf[0], round.assignments)
      >>> solve = dx.local.solver(dx.data.quadratic_loss, optax.sgd(0.5))
      >>> solution = jax.jit(solve)(dx.local.Subproblem(), jnp.zeros(3), first, round.data)
      >>> solution.params.shape, sorted(solution.metrics)
      ((3,), ['loss'])
    """
    oracle = loss if isinstance(loss, Oracle) else gradient(loss)
    keeps = oracle.conclude is not None and oracle.lasting
    # Such a memory holds the model before: two turns of the loop put it in each other's place, where
    # one would copy both.
    fleeting = oracle.conclude is not None and not oracle.lasting
    check_optimizer("optimizer", optimizer)
    validation.flag("mean_gradient", mean_gradient)

    def solve(
        problem: Subproblem,
        params: Params,
        assignment: Assignment,
        data: Dataset,
        *,
        index: int | Int[Array, ""] = 0,
        optimizer_state: PyTree[Array] | None = None,
        memory: Any = (),
    ) -> Solution:
        descent = optimizer_at(optimizer, jnp.asarray(index))
        whole, problem = problem, problem.around_origin()
        if optimizer_state is None:
            optimizer_state = descent.init(params)

        def fetch(k: Array, minibatch: Array) -> tuple[Batch, Array]:
            fetch_key, oracle_key = jax.random.split(jax.random.fold_in(assignment.key, k))
            return data.fetch(minibatch, fetch_key), oracle_key

        def values(batch: Batch, key: Array, params: Params, wanted: Params) -> dict[str, Any]:
            def value(x: Params) -> Float[Array, ""]:
                assert oracle.objective is not None, "checked before the first step"
                return whole.value(oracle.objective(x, batch, key)[0], x)

            return {"value": value(params), "grad": wanted, "value_fn": value}

        def one_step(carry: Any, scanned: Any) -> tuple[Any, None]:
            k, minibatch = scanned
            # Fetched out here: a conditional under vmap would copy the data set for every client.
            batch, oracle_key = fetch(k, minibatch)
            params, optimizer_state, total, measured, memory = carry
            works = k < assignment.local_steps

            def look(params: Params, memory: Any) -> Any:
                return oracle.look(params, batch, oracle_key, memory)

            def rest(params: Params, memory: Any) -> Any:
                return _zeros(looked)

            # Under vmap this is a select; for a client alone it saves the steps not taken. What
            # follows is written in place over what it reads, which no branch could do.
            seen, metrics, noted = jax.lax.cond(works, look, rest, params, memory)
            seen, remembered = oracle.end(seen, noted, params, memory)
            wanted = problem.direction(seen, params)
            known = values(batch, oracle_key, params, wanted) if asks else {}
            updates, moved = descent.update(wanted, optimizer_state, params, **known)
            memory = select(works, remembered, memory) if keeps else remembered
            after = optax.apply_updates(params, updates), moved
            params, optimizer_state = select(works, after, (params, optimizer_state))
            if total is not None:
                total = select(works, _plus(total, seen), total)
            measured = _plus(measured, metrics)
            return (params, optimizer_state, total, measured, memory), None

        steps = assignment.minibatches.shape[0]
        scanned = (jnp.arange(steps, dtype=jnp.int32), assignment.minibatches)
        first = jax.tree.map(lambda leaf: leaf[0], scanned)
        batch, oracle_key = jax.eval_shape(fetch, *first)
        looked = jax.eval_shape(oracle.look, params, batch, oracle_key, memory)
        asks = missing_argument(descent, params)
        if asks and oracle.objective is None:
            raise TypeError(
                f"optimizer must be one of gradients alone, got one that asks for more: {asks}. Only a "
                "plain loss gives values, this oracle does not. Take for example optax.sgd."
            )
        if asks:
            _check_served(descent, params)
        total = _zeros(jax.tree.map(_wide, params)) if mean_gradient else None
        carry = params, optimizer_state, total, _zeros(jax.tree.map(_wide, looked[1])), memory
        (params, optimizer_state, total, measured, memory), _ = jax.lax.scan(
            one_step, carry, scanned, unroll=2 if fleeting else 1
        )
        done = jnp.maximum(assignment.local_steps, 1)
        total, measured = jax.tree.map(
            lambda leaf: leaf / done.astype(leaf.dtype), (total, measured)
        )
        if total is not None:
            total = jax.tree.map(lambda t, x: t.astype(x.dtype), total, params)
        return Solution(params, optimizer_state, total, measured, memory)

    return solve


def _check_served(descent: optax.GradientTransformation, params: Params) -> None:
    value = jnp.zeros(())
    lacks = missing_argument(descent, params, value=value, grad=params, value_fn=optax.tree.norm)
    if lacks:
        raise TypeError(
            "optimizer must ask for no more than value, grad and value_fn, which local steps give it, "
            f"got one that says: {lacks}. Take for example optax.sgd."
        )


def _wide(leaf: Any) -> jax.ShapeDtypeStruct:
    """Where values of this dtype are added up: float32, or their own if it is wider."""
    dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


def _plus(total: PyTree[Array], values: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda t, v: t + v.astype(t.dtype), total, values)


def _zeros(shapes: PyTree) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
