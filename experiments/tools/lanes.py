"""Runs side by side in one program, and their inputs with a leading axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dflax.clients import platform


def stacked(trees: list[Any]) -> Any:
    """Trees of the same shapes as one with a leading axis, to be vmapped: the data of several seeds."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def each(run: Callable[..., Any], lanes: Any, *shared: Any) -> Any:
    """`run(lane, *shared)` of every lane, results stacked: side by side on an accelerator.

    A CPU takes them one after another, which is faster there, to compile and to run.

    Args:
      run: of one lane.
      lanes: a tree whose leaves have a leading axis of lanes.
      *shared: what all have in common.
    """
    if platform() == "cpu":
        return jax.lax.map(lambda lane: run(lane, *shared), lanes)
    return jax.vmap(run, in_axes=(0, *(None for _ in shared)))(lanes, *shared)
