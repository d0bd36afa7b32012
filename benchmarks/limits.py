"""The least that rounds take, and that methods add to their base: their equations and no more."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

import dflax as dx
from benchmarks.measure import milliseconds
from benchmarks.tasks import Task
from dflax.data.dataset import Batch, Dataset
from dflax.decentralized.framework.protocol import Client
from dflax.local.solver import Optimizer
from dflax.population import Assignment
from dflax.server.framework.protocol import Report, Server


def momentum(loss: Any, optimizer: Optimizer) -> dx.Algorithm:
    """FedAvg whose local steps read a momentum and add up their gradients, as FedCM's must.

    Four arrays of the model's size a step besides FedAvg's: the momentum; of the sum `s + g` two read
    and one written. Nothing is made of the sum, nor sent.
    """
    oracle = dx.local.gradient(loss)

    def evaluate(params: Any, batch: Batch, key: Key[Array, ""], total: Any) -> Any:
        return *oracle(params, batch, key), ()

    def conclude(seen: Any, noted: Any, params: Any, total: Any) -> Any:
        return seen, jax.tree.map(jnp.add, total, seen)

    return _steps_alone(dx.local.Oracle(evaluate, conclude=conclude), optimizer)


def common_perturbation(loss: Any, optimizer: Optimizer) -> dx.Algorithm:
    """FedAvg whose local steps take two gradients and read and write what FedSMOO's must.

    In each step g - mu - s is read for its length, made once more on the way to y + e, and once more on
    the way to the new mu: 3 + 5 + 4 arrays, and the dual in the update. Nothing of it is sent or kept.
    """
    oracle = dx.local.gradient(loss)

    def evaluate(params: Any, batch: Batch, key: Key[Array, ""], own: Any) -> Any:
        mu, s = own
        here, metrics = oracle(params, batch, key)
        wanted = jax.tree.map(lambda g, a, b: g - a - b, here, mu, s)
        factor = 0.1 / (1e-7 + optax.tree.norm(wanted))
        there, _ = oracle(jax.tree.map(lambda y, e: y + factor * e, params, wanted), batch, key)
        return there, metrics, (factor, wanted)

    def conclude(seen: Any, noted: Any, params: Any, own: Any) -> Any:
        factor, wanted = noted
        mu, s = own
        return seen, (jax.tree.map(lambda a, e, b: a + factor * e - b, mu, wanted, s), s)

    return _steps_alone(dx.local.Oracle(evaluate, conclude=conclude), optimizer, of=2)


def dual(loss: Any, optimizer: Optimizer, mixer: dx.gossip.Mixer) -> dx.Algorithm:
    """DFedAvg whose clients read a dual in each local step and write it once a round, as DFedADMM's do.

    One array of the model's size a step besides DFedAvg's, and `g + y` once: two read, one written.
    """
    solve = dx.local.solver(loss, optimizer)

    def start(key: Key[Array, ""], models: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, models)

    def work(assignment: Assignment, own: Client, data: Dataset, index: Array) -> Any:
        problem = dx.local.Subproblem(shift=own.memory)
        solution = solve(problem, own.params, assignment, data, index=index)
        memory = jax.tree.map(jnp.add, own.memory, solution.params)
        return Client(solution.params, memory), solution.metrics

    return dx.decentralized.adapt_then_combine(work, mixer, start=start)


def linear_rounds(work: Task, rounds: int) -> dict[str, Any]:
    """Milliseconds of a round's equations alone, of a linear model, as a row's peer.

    The same m clients take the same minibatches in every round, each laid out for its step beforehand:
    nothing is drawn, gathered or measured, and the local steps are unrolled. Both products are in the
    order in which XLA multiplies them fast on a CPU.
    """
    shape = work.cohort, work.steps, work.batch
    inputs, labels = (jnp.asarray(array[: math.prod(shape)]) for array in work.examples())
    inputs = inputs.reshape(*shape, work.features)
    wanted = jax.nn.one_hot(labels.reshape(shape), work.classes)

    def descend(model: tuple[Array, Array], batch: tuple[Array, Array]) -> tuple[Array, Array]:
        (weight, bias), (x, y) = model, batch
        logits = jnp.einsum("mbf,mfc->mbc", x, weight) + bias[:, None]
        slopes = (jax.nn.softmax(logits) - y) / work.batch
        across = jax.lax.optimization_barrier(slopes.swapaxes(1, 2))
        change = jax.lax.optimization_barrier(jnp.einsum("mcb,mbf->mcf", across, x))
        return weight - work.rate * change.swapaxes(1, 2), bias - work.rate * slopes.sum(1)

    def one(model: Any, _: None) -> tuple[Any, None]:
        own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (work.cohort, *leaf.shape)), model)
        for step in range(work.steps):
            own = descend(own, (inputs[:, step], wanted[:, step]))
        return jax.tree.map(lambda leaf: leaf.mean(0), own), None

    (model,) = jax.tree.map(jnp.asarray, work.layers())
    run = jax.jit(lambda model: jax.lax.scan(one, model, None, length=rounds)[0])
    return {"peer": "its equations alone", "ms": milliseconds(lambda: run(model), units=rounds)}


def _steps_alone(oracle: dx.local.Oracle, optimizer: Optimizer, of: int = 1) -> dx.Algorithm:
    """FedAvg with an oracle that remembers, for a round, as many trees of the model's size."""
    solve = dx.local.solver(oracle, optimizer)
    start, update = dx.server.descent()

    def work(
        assignment: Assignment, own: Any, server: Server, data: Dataset, index: Array
    ) -> Report:
        x = server.params
        # What is read in a step besides lies in the server's model, which is there anyway.
        memory = x if of == 1 else (jax.tree.map(jnp.zeros_like, x), x)
        problem = dx.local.Subproblem(shift=x)
        solution = solve(problem, x, assignment, data, index=index, memory=memory)
        change = jax.tree.map(jnp.subtract, solution.params, x)
        # One number keeps the compiler from leaving the memory out.
        last = sum(leaf.ravel()[0] for leaf in jax.tree.leaves(solution.memory))
        return Report(change, own, solution.metrics | {"last": last})

    return dx.server.with_server(start, work, update)
