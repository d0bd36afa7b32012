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


def require_weights_alone(models: PyTree[Array], method: str) -> None:
    """Refuse running statistics in a method that makes its steps of gradients of several models.

    Running statistics have no gradient: what takes their place moves them to those of one batch, and
    differences, means and rates of that mean nothing.

    Args:
      models: what the method is to train; only names are read.
      method: who asks, for the message.

    Raises:
      ValueError: an array under "batch_stats".
    """
    if holds_statistics(models):
        raise ValueError(
            f'params must hold no running statistics ("{STATISTICS}"), because {method} makes its steps '
            "of gradients of several models, and statistics have none. Take a model with GroupNorm, or "
            "a method whose clients step with an optimiser of their own, such as fedavg or dfedavg."
        )


def of_weights(change: Params) -> Params:
    """A change of a model in which running statistics do not move; of models without any, the same.

    Duals and control variates are sums of gradients, and running statistics have none.
    """
    if not isinstance(change, dict) or STATISTICS not in change:
        return change
    zeros: Any = jax.tree.map(jnp.zeros_like, change[STATISTICS])
    return {**change, STATISTICS: zeros}


def with_statistics_of(seen: Params, direction: Params) -> Params:
    """A direction that moves running statistics as `seen` does; of models without any, the same."""
    if not isinstance(seen, dict) or STATISTICS not in seen:
        return direction
    return {**direction, STATISTICS: seen[STATISTICS]}
