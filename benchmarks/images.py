"""What the benchmarks on images share: their federations, and the operations of their work."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import dflax as dx
from benchmarks import rounds
from benchmarks.measure import Row
from benchmarks.products import alone
from benchmarks.tasks import Task


def federation(task: Task, shape: tuple[int, int, int]) -> dx.Federation:
    """The task's federation with inputs as images `[H, W, C]`."""
    source = rounds.federation(task)
    images = source.data.inputs.reshape(-1, *shape)
    data = dx.data.Dataset(images, source.data.labels, classes=task.classes)
    return dx.Federation(data, source.partition, local_steps=task.steps, batch_size=task.batch)


def round_flops(module: nn.Module, task: Task, shape: tuple[int, int, int]) -> float:
    """Operations of a round's gradients as XLA counts them, every convolution computed directly.

    Winograd's method does with fewer; held against this count, it may pass the ceiling.
    """
    gradient, *shapes = _gradient(module, task, shape)
    traced = jax.jit(gradient).trace(*shapes)
    cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    return float(cost["flops"]) * task.steps * task.cohort


def products(module: nn.Module, task: Task, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What the matrix products of a round's gradients take alone, see `benchmarks.products`."""
    return alone(*_gradient(module, task, shape), times=task.steps * task.cohort)


def _gradient(module: nn.Module, task: Task, shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """A local step's gradient as a function, and the shapes of what it is of."""
    images = jax.ShapeDtypeStruct((task.batch, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((task.batch,), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    loss = dx.losses.classification(module)

    def gradient(params: dict, images: jax.Array, labels: jax.Array) -> dict:
        return jax.grad(loss, has_aux=True)(params, dx.data.Batch(images, labels), None)[0]

    return gradient, params, images, labels


def row(
    name: str,
    module: nn.Module,
    task: Task,
    shape: tuple[int, int, int],
    flops: float,
    *,
    rewritten: bool = False,
    repeats: int = 5,
    devices: int = 1,
) -> Row:
    """Rounds of federated averaging of a module, its loss rewritten or as it is."""
    loss = dx.losses.classification(module)
    if rewritten:
        loss = dx.models.rewrite_convolutions(loss)
    algorithm = dx.server.fedavg(loss, optax.sgd(task.rate))
    params = module.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    assert math.prod(shape) == task.features
    source = federation(task, shape)
    return rounds.row(
        name,
        algorithm,
        params,
        source,
        rounds=1,
        repeats=repeats,
        flops=flops,
        devices=devices,
    )
