"""Tasks: a model on an accelerator with a workload, and the descriptors that a selector sees."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.inference.hardware import Accelerator, Network, accelerator, network

Real = float | Float[Array, "..."]

# What cannot be taken the logarithm of counts as this.
LEAST = 1e-6


class Workload(NamedTuple):
    """What is asked of a model. From `workload`.

    Attributes:
      batch: requests that are there at once, >= 1.
      prompt: tokens of a prompt, >= 1.
      output: tokens of an answer on average, >= 1.
      shared: share of the prompt that all requests begin with, in [0, 1].
      variation: coefficient of variation of the answers' lengths, >= 0.
    """

    batch: Real
    prompt: Real
    output: Real
    shared: Real
    variation: Real


class Tasks(NamedTuple):
    """n tasks.

    Attributes:
      model: `[n]` which model, of those that `network` was taken from.
      device: `[n]` which accelerator.
      network: leaves `[n]`.
      accelerator: leaves `[n]`.
      workload: leaves `[n]`.
    """

    model: Int[Array, " n"]
    device: Int[Array, " n"]
    network: Network
    accelerator: Accelerator
    workload: Workload


DESCRIPTORS = (
    "log parameters",
    "layers",
    "log cache bytes",
    "log flops",
    "log bandwidth",
    "log memory",
    "log price",
    "log batch",
    "log prompt",
    "log output",
    "shared",
    "variation",
)


def workload(
    batch: Real, prompt: Real, output: Real, shared: Real = 0.0, variation: Real = 0.0
) -> Workload:
    """A workload; every number may be an array, so that many are one.

    Args:
      batch: requests that are there at once, >= 1.
      prompt: tokens of a prompt, >= 1.
      output: tokens of an answer on average, >= 1.
      shared: share of the prompt that all requests begin with, in [0, 1].
      variation: coefficient of variation of the answers' lengths, >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, value in (("batch", batch), ("prompt", prompt), ("output", output)):
        validation.real(name, value, low=1.0)
    validation.real("shared", shared, low=0.0, high=1.0)
    validation.real("variation", variation, low=0.0)
    return Workload(batch, prompt, output, shared, variation)


def studied_networks() -> Network:
    """Six models of 1.2 to 14 billion parameters in 16 bits, leaves `[6]`."""
    sizes = jnp.array([1.2, 3.0, 8.0, 7.0, 14.0, 13.0]) * 1e9
    cache = jnp.array([0.03, 0.11, 0.13, 0.5, 0.2, 0.8]) * 1e6
    return network(sizes, cache, layers=jnp.array([16.0, 28.0, 32.0, 32.0, 48.0, 40.0]))


def studied_accelerators() -> Accelerator:
    """Six accelerators of 65 to 990 TFLOP/s, leaves `[6]`."""
    return accelerator(
        jnp.array([65.0, 121.0, 150.0, 312.0, 312.0, 990.0]) * 1e12,
        jnp.array([320.0, 300.0, 936.0, 1555.0, 2039.0, 3350.0]) * 1e9,
        jnp.array([16.0, 24.0, 24.0, 40.0, 80.0, 80.0]) * 1e9,
        price=jnp.array([0.35, 0.7, 0.5, 1.8, 2.5, 4.5]),
    )


def random_tasks(
    key: Key[Array, ""],
    count: int,
    networks: Network | None = None,
    accelerators: Accelerator | None = None,
) -> Tasks:
    """Random workloads on models and accelerators drawn uniformly.

    batch 2^i with i of 0..7, prompt 2^U(6, 12), output 2^U(4, 9.5), rounded; shared of 0, 0.3, 0.6, 0.9;
    variation U(0, 1).

    Args:
      key: a typed key.
      count: n >= 1.
      networks: leaves `[L]`; None: `studied_networks()`.
      accelerators: leaves `[H]`; None: `studied_accelerators()`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    validation.integer("count", count, low=1)
    networks = studied_networks() if networks is None else networks
    accelerators = studied_accelerators() if accelerators is None else accelerators
    validation.instance("networks", networks, Network)
    validation.instance("accelerators", accelerators, Accelerator)
    keys = jax.random.split(key, 7)
    model = jax.random.randint(keys[0], (count,), 0, _count("networks", networks))
    device = jax.random.randint(keys[1], (count,), 0, _count("accelerators", accelerators))
    work = Workload(
        2.0 ** jax.random.randint(keys[2], (count,), 0, 8),
        jnp.round(2.0 ** jax.random.uniform(keys[3], (count,), minval=6.0, maxval=12.0)),
        jnp.round(2.0 ** jax.random.uniform(keys[4], (count,), minval=4.0, maxval=9.5)),
        jnp.array([0.0, 0.3, 0.6, 0.9])[jax.random.randint(keys[5], (count,), 0, 4)],
        jax.random.uniform(keys[6], (count,)),
    )
    return Tasks(model, device, taken(networks, model), taken(accelerators, device), work)


def taken(table: Any, rows: Int[Array, " n"]) -> Any:
    """Rows of a table of models or accelerators; what is one number for all stays so, `[n]` times."""
    many = max(np.shape(leaf)[0] if np.ndim(leaf) else 1 for leaf in table)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (many,))[rows], table)


def descriptors(tasks: Tasks) -> Float[Array, "n 12"]:
    """What a selector sees of tasks, in the order of `DESCRIPTORS`.

    Raises:
      TypeError: no `Tasks`.
    """
    check_tasks(tasks)
    model, device, work = tasks.network, tasks.accelerator, tasks.workload

    def log(value: Real) -> Array:
        return jnp.log(jnp.maximum(jnp.asarray(value, jnp.float32), LEAST))

    columns = (
        log(model.parameters),
        model.layers,
        log(model.cache_bytes),
        log(device.flops),
        log(device.bandwidth),
        log(device.memory),
        log(device.price),
        log(work.batch),
        log(work.prompt),
        log(work.output),
        work.shared,
        work.variation,
    )
    return jnp.stack([jnp.asarray(column, jnp.float32) for column in columns], -1)


def expert_rule(x: Float[Array, "m 12"]) -> Int[Array, " m"]:
    """Prefix caching (1) where more than half is shared and 16 or more wait, else batching (2).

    Args:
      x: of `descriptors`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("x", x, kind="real", shape=("m", len(DESCRIPTORS)))
    x = jnp.asarray(given)
    shared, batch = x[:, DESCRIPTORS.index("shared")], x[:, DESCRIPTORS.index("log batch")]
    return jnp.where((shared > 0.5) & (batch >= np.log(15.5)), 1, 2)


def held_out(tasks: Tasks, models: Any, devices: Any) -> Bool[Array, " n"]:
    """Which tasks have a model or an accelerator that nobody may train on.

    A random split of rows would leave the same model and accelerator on both sides.

    Args:
      tasks: see `Tasks`.
      models: `[a]` numbers of models that are held out, as in `tasks.model`; may be empty.
      devices: `[b]` numbers of accelerators.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_tasks(tasks)
    out = jnp.zeros(len(tasks.model), bool)
    for name, held, own in (("models", models, tasks.model), ("devices", devices, tasks.device)):
        given = validation.array(name, held, kind="integer", low=0)
        if given.ndim != 1:
            raise ValueError(f"{name} must be a list of numbers, got shape {given.shape}.")
        out |= (jnp.asarray(own)[:, None] == jnp.asarray(given, jnp.int32)).any(-1)
    return out


def check_tasks(value: Any) -> None:
    """Refuse what is no `Tasks`."""
    fix = "Make them with dflax.inference.selection.random_tasks."
    validation.instance("tasks", value, Tasks, fix)


def _count(name: str, table: Any) -> int:
    shapes = {np.shape(leaf) for leaf in table} - {()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"{name} must have leaves of one length [n], got shapes {sorted(shapes)}.")
    return shapes.pop()[0] if shapes else 1
