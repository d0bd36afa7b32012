"""Running statistics among models that are averaged: found, warned of, and kept out of duals."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dflax.algorithm import Params

STATISTICS = "batch_stats"


class AveragedStatistics(UserWarning):
    """Running statistics of batch normalisation are averaged and not estimated afresh.

    Where that is meant, because they are estimated before a model is used, silence it:
    `warnings.filterwarnings("ignore", category=dflax.models.AveragedStatistics)`.
    """


def holds_statistics(tree: PyTree[Array]) -> bool:
    """Whether there is an array under the name "batch_stats" anywhere in a tree."""
    return any(
        getattr(entry, "key", None) == STATISTICS
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        for entry in path
    )


def warn_of_averaging(
    messages: PyTree[Array], *, remedies: tuple[str, ...] = (), stacklevel: int = 3
) -> None:
    """Warn, as `AveragedStatistics`, where running statistics are among what will be averaged.

    Args:
      messages: what is averaged; only names are read.
      remedies: what can be done in this place, beside what always can.
      stacklevel: of `warnings.warn`; 3 names the caller of the function that calls this.
    """
    if not holds_statistics(messages):
        return
    always = (
        "estimate them before a model is used (dflax.models.recalibrate, to measure "
        "dflax.evaluation.recalibrated), or take a model with GroupNorm, which has none"
    )
    warnings.warn(
        f'"{STATISTICS}" will be averaged as they are: running statistics describe the activations of '
        "one model, their average those of none, and a model that is measured with them can look far "
        f"worse than it is. Either {', '.join((*remedies, always))}.",
        AveragedStatistics,
        stacklevel=stacklevel,
    )


def of_weights(change: Params) -> Params:
    """A change of a model in which running statistics do not move; of models without any, the same.

    Duals and control variates are sums of gradients, and running statistics have none.
    """
    if not isinstance(change, dict) or STATISTICS not in change:
        return change
    zeros: Any = jax.tree.map(jnp.zeros_like, change[STATISTICS])
    return {**change, STATISTICS: zeros}
