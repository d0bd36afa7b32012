"""A model of trusted execution: who is attested, what it costs, how often it is broken."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray


class Enclaves(NamedTuple):
    """Which nodes run in a trusted execution environment.

    Attributes:
      attested: `[n]` bool.
      p_break: probability that an attested node is broken at a query, and then does what its kind does.
      slowdown: of executions in an enclave.
      attestation: cost of showing that one runs there, in executions, for each query that asks.
      memory: `[]` or `[n]` bytes that an enclave has for a model.
    """

    attested: Bool[Array, " n"]
    p_break: Float[Array, ""]
    slowdown: Float[Array, ""]
    attestation: Float[Array, ""]
    memory: Float[Array, "..."]


def enclaves(
    attested: Bool[AnyArray, " n"],
    *,
    p_break: float | Float[Array, ""] = 0.0,
    slowdown: float | Float[Array, ""] = 1.07,
    attestation: float | Float[Array, ""] = 1.0,
    memory: float | Float[Array, "..."] = 2.0**37,
) -> Enclaves:
    """Nodes in enclaves. Critical queries go to those that have memory for the model.

    It is a model of costs and of trust, not an enclave: nothing is attested.

    Args:
      attested: `[n]` booleans.
      p_break: in [0, 1], traceable.
      slowdown: >= 1, traceable.
      attestation: in executions, >= 0, traceable.
      memory: bytes, > 0; one number, or one for each node.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("attested", attested, kind="boolean", shape=("n",))
    validation.probability("p_break", p_break)
    validation.real("slowdown", slowdown, low=1.0, scalar=True)
    validation.real("attestation", attestation, low=0.0, scalar=True)
    validation.real("memory", memory, low=0.0, low_open=True)
    if np.ndim(memory) and np.shape(memory) != given.shape:
        raise ValueError(
            f"memory must be one number or one for each of the {given.shape[0]} nodes, got shape "
            f"{np.shape(memory)}."
        )
    numbers = (jnp.asarray(x, jnp.float32) for x in (p_break, slowdown, attestation, memory))
    return Enclaves(jnp.asarray(given), *numbers)


def no_enclaves(count: int) -> Enclaves:
    """Nobody is attested, and critical queries go to anybody."""
    return enclaves(np.zeros(count, bool), slowdown=1.0, attestation=0.0)


def bytes_of(params: PyTree[Array]) -> int:
    """What a model's weights take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def capable(held: Enclaves, size: int) -> Bool[Array, " n"]:
    """The attested nodes that have memory for a model of so many bytes."""
    return held.attested & (held.memory >= size)
