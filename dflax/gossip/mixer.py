"""The protocol of everything that turns n models into n models."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from dflax.algorithm import Metrics
from dflax.topology import Graph

Models = PyTree[Array]
MixerState = Any


class Uncorrected(NamedTuple):
    """A part of what is mixed that is only mixed: who corrects what it mixed leaves this alone.

    For methods that rest on sums, such as the trackers of `dsgt`, whose mean must be kept.

    Attributes:
      part: leaves `[n, ...]`.
    """

    part: Models


class Mixer(NamedTuple):
    """One mixing of all clients' models, `[n, ...]` to `[n, ...]`.

    Attributes:
      clients: n, the number of clients it mixes (static).
      init: `init(models) -> state`. `models` is a pytree with leaves `[n, ...]`. The state holds what
        the rule carries (push-sum weights) and every table it reads (neighbours, weights, schedules):
        tables are data of the compiled program, never constants in it.
      apply: `apply(models, state, key, index, active=None) -> (models, state, metrics)`. `key` is a
        typed key for random graphs, `index` the `[]` int32 number of the round for time-varying ones.
        `active` is a mask `[n]` of the clients that take part, None for all of them: an inactive
        client keeps its model, and the weight it would have had at a neighbour goes to that
        neighbour's own model. Metrics are a dict of scalars, `models_sent` among them: the number of
        models sent over all directed edges in this mixing.
      per_client: which parts of the state have a row per client, leaves `[n, ...]`, as a prefix of the
        state's tree: those are dealt over devices with the clients, the others live on every device.
      symmetric: whether the matrix of every mixing equals its transpose; None where it is not known,
        or the rule is no matrix.
      doubly_stochastic: whether every mixing keeps agreement and the mean: rows and columns of its
        matrix sum to 1; None where it is not known. Of a mixer that corrects what it mixed
        (`variance_corrected`): whether the mixing before the correction does, which is all that
        becomes of a part marked `Uncorrected`.
      informed: whether `apply` reads the clients' own examples, and so takes the keyword `round`, the
        `Round` in which it mixes. Algorithms made by `adapt_then_combine` and `combine_then_adapt` hand
        it over.
      whole_models: whether it reads what it mixes as models, by the names of their layers, so that it
        mixes nothing beside them: no trackers, no masks, no variances.
      averages_statistics: whether running statistics ("batch_stats") come out as averages, which fit no
        model; False where they are estimated afresh or refused.
      graph: along whose edges models travel, the same in every mixing; None where it changes or is
        not known.
    """

    clients: int
    init: Callable[[Models], MixerState]
    apply: Callable[..., tuple[Models, MixerState, Metrics]]
    per_client: PyTree[bool] = False
    symmetric: bool | None = None
    doubly_stochastic: bool | None = None
    informed: bool = False
    whole_models: bool = False
    averages_statistics: bool = True
    graph: Graph | None = None


def require_mixer(mixer: Mixer) -> None:
    """Refuse what is no mixer."""
    if not isinstance(mixer, Mixer):
        raise TypeError(
            f"mixer must be a Mixer, got {type(mixer).__name__}. Make one with dflax.gossip, for "
            "example dflax.gossip.ring(n) or dflax.gossip.mixer(W)."
        )


def require_mean_kept(mixer: Mixer, method: str) -> None:
    """Refuse a mixer that is known to move the mean, for a method whose analysis rests on it.

    Raises:
      TypeError: no mixer.
      ValueError: its matrix is known not to be doubly stochastic.
    """
    require_mixer(mixer)
    if mixer.doubly_stochastic is False:
        raise ValueError(
            f"mixer must keep the mean of what {method} mixes, got one whose matrix is not doubly "
            "stochastic. Use an undirected graph with metropolis weights, or a regular directed one."
        )


def require_any_tree(mixer: Mixer, method: str, beside: str, fix: str) -> None:
    """Refuse a mixer of whole models, for a method that mixes something beside them.

    Args:
      mixer: what is given.
      method: who asks, for the message.
      beside: what it mixes beside models.
      fix: what to do instead.

    Raises:
      TypeError: no mixer.
      ValueError: it mixes whole models alone.
    """
    require_mixer(mixer)
    if mixer.whole_models:
        raise ValueError(
            f"mixer must mix any tree of numbers, because {method} mixes {beside} beside the models, "
            f"got one that reads what it mixes as models (aligned, anchored or recalibrated). {fix}"
        )


# What those do instead of gossip.recalibrated who mix more than models.
PLAIN_AND_AFRESH = (
    "Take the mixer without it and estimate running statistics afresh before a model is used "
    "(dflax.models.recalibrate, dflax.evaluation.recalibrated), or a model with GroupNorm."
)


def all_known(answers: Sequence[bool | None]) -> bool | None:
    """True when every answer is, False when one is False, else None: not known."""
    if any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


def deal(mixer: Mixer, state: MixerState) -> tuple[MixerState, MixerState]:
    """A mixer's state as two trees of its form: what exists once, and the rows of the clients.

    Each holds None in the places of the other; `join` is the inverse.
    """
    rows = jax.tree.broadcast(mixer.per_client, state)
    once = jax.tree.map(lambda leaf, dealt: None if dealt else leaf, state, rows)
    return once, jax.tree.map(lambda leaf, dealt: leaf if dealt else None, state, rows)


def join(once: MixerState, rows: MixerState) -> MixerState:
    """The mixer's state from what `deal` made of it."""
    return jax.tree.map(
        lambda leaf, row: row if leaf is None else leaf,
        once,
        rows,
        is_leaf=lambda leaf: leaf is None,
    )
