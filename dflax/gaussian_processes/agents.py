"""Agents with observations of their own, padded to one length, as a federation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.clients import map_clients
from dflax.data.dataset import AnyArray, Dataset
from dflax.data.partition import Partition, from_indices
from dflax.federation import Federation
from dflax.gaussian_processes.grid import warn_of_spacing
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.likelihood import Observations
from dflax.population import Assignment


class Agents(NamedTuple):
    """N agents' inputs and targets; rows of padding are 0 and come last.

    Attributes:
      inputs: `[N, n, P]`.
      targets: `[N, n]`.
      mask: `[N, n]` 1 for observations, 0 for padding.
    """

    inputs: Float[Array, "N n P"]
    targets: Float[Array, "N n"]
    mask: Float[Array, "N n"]


def agents(
    inputs: Float[AnyArray, "m P"],
    targets: Float[AnyArray, " m"],
    partition: Partition,
    *,
    length: int | None = None,
) -> Agents:
    """Deals observations to agents, and pads each agent's to as many as the largest has.

    Args:
      inputs: `[m, P]`, or `[m]` in one dimension.
      targets: `[m]`, usually standardised.
      partition: which rows are whose, see `dflax.data.from_indices`. Each agent keeps the order of the
        rows.
      length: n, at least as many as the largest agent has, for data of several sizes that are to be
        served by one compiled program.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    y = np.asarray(validation.array("targets", targets, kind="real", shape=("m",)))
    x = np.asarray(validation.array("inputs", inputs, kind="real"))
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) != len(y) or not x.shape[1]:
        raise ValueError(
            f"inputs must have shape [{len(y)}, P] or [{len(y)}], a row for each target, got "
            f"{np.shape(inputs)}."
        )
    validation.instance("partition", partition, Partition, "Make one with dflax.data.from_indices.")
    # In the order of the data: partitions shuffle, and a series is evenly spaced only in order.
    lists = [np.sort(rows) for rows in partition.as_lists()]
    largest = max(int(rows.max()) for rows in lists)
    if largest >= len(y):
        raise ValueError(
            f"partition must name rows of the {len(y)} observations, got row {largest}."
        )
    longest = max(map(len, lists))
    if length is not None:
        validation.integer(
            "length", length, low=longest, fix="The largest agent needs as many rows."
        )
        longest = int(length)
    shape = (len(lists), longest)
    found = np.zeros((*shape, x.shape[1])), np.zeros(shape), np.zeros(shape)
    for agent, rows in enumerate(lists):
        for leaf, own in zip(found, (x[rows], y[rows], 1.0), strict=True):
            leaf[agent, : len(rows)] = own
    kind = jnp.result_type(float)
    return Agents(*(jnp.asarray(leaf, kind) for leaf in found))


def observe(
    kernel: MultipleKernel, agents: Agents, noise: float | Float[AnyArray, " N"]
) -> Observations:
    """What the agents' local steps need of their observations, computed once, leaves `[N, ...]`.

    Args:
      kernel: see `gsmp`.
      agents: see `agents`.
      noise: variance s2 > 0 of the targets' noise, one for all or one each; see `noise_variance`.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      BelowNyquist: inputs too near each other for the kernel's highest frequency.
    """
    check_agents(kernel, agents)
    variances = noise_of_each(agents, noise)
    if not validation.is_traced(agents.inputs):
        for own, mask in zip(np.asarray(agents.inputs), np.asarray(agents.mask) > 0, strict=True):
            kernel.verify(own[mask])
            warn_of_spacing(own[mask], kernel.highest)
    cache = map_clients(kernel.prepare, agents.inputs, agents.mask)
    return Observations(cache, agents.targets, agents.mask, variances)


def observing(observed: Observations, **options: Any) -> Federation:
    """A federation whose example i is what agent i has observed.

    The observations are data of the source. No state and no checkpoint holds them.

    Args:
      observed: leaves `[N, ...]`, of `observe`.
      **options: of `dflax.Federation`, such as `participation`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_observations(observed)
    count = len(observed.targets)
    data = Dataset(observed, jnp.arange(count, dtype=jnp.int32), name="observations")
    partition = from_indices([np.array([agent]) for agent in range(count)])
    given: dict[str, Any] = {"local_steps": 1, "weights": jnp.ones(count)}
    return Federation(data, partition, batch_size=1, **(given | options))


def observed_by(assignment: Assignment, data: Dataset) -> Observations:
    """One agent's observations, in a round of `observing`.

    Raises:
      TypeError: a round of another source.
    """
    if not isinstance(data, Dataset) or not isinstance(data.inputs, Observations):
        raise TypeError(
            "the round's examples must be the agents' observations. Make its source with "
            "dflax.gaussian_processes.observing(observed)."
        )
    own = data.fetch(assignment.minibatches[0, :1]).inputs
    return jax.tree.map(lambda leaf: leaf[0], own)


def starting_weights(kernel: MultipleKernel, agents: Agents) -> Float[Array, " A"]:
    """The mean of y^2 over all observations, dealt evenly over the A components.

    A multiplicative update never leaves 0, so that a run starts here.
    """
    check_agents(kernel, agents)
    power = jnp.sum(jnp.square(agents.targets)) / jnp.sum(agents.mask)
    return jnp.full(kernel.components, power / kernel.components)


def noise_of_each(agents: Agents, noise: float | Float[AnyArray, " N"]) -> Float[Array, " N"]:
    """The noise's variance of each agent; refuses what is not positive, and other numbers of them."""
    fix = "Without noise C has no inverse; estimate it with noise_variance()."
    validation.real("noise", noise, low=0.0, low_open=True, fix=fix)
    count = len(agents.targets)
    if np.ndim(noise) and np.shape(noise) != (count,):
        raise ValueError(f"noise must be one number or {count}, got shape {np.shape(noise)}.")
    return jnp.broadcast_to(jnp.asarray(noise, agents.targets.dtype), (count,))


def check_kernel(kernel: MultipleKernel) -> None:
    """Refuses what is no kernel."""
    validation.instance("kernel", kernel, MultipleKernel, "Make one with gsmp().")


def check_agents(kernel: MultipleKernel, agents: Agents) -> None:
    """Refuses what are no agents, or agents of other dimensions than the kernel."""
    check_kernel(kernel)
    validation.instance("agents", agents, Agents, "Make them with agents().")
    if agents.inputs.shape[-1] != kernel.dimensions:
        raise ValueError(
            f"agents must have inputs of {kernel.dimensions} dimensions, as the kernel, got "
            f"{agents.inputs.shape[-1]}."
        )


def check_observations(observed: Observations) -> None:
    """Refuses what are no stacked observations."""
    validation.instance("observed", observed, Observations, "Make them with observe().")
    validation.leading_axis("observed", observed)
