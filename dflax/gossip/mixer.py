"""The protocol of everything that turns n models into n models."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int, Key, PyTree

from dflax import returned
from dflax.algorithm import Metrics
from dflax.topology import Graph

Models = PyTree[Array]
"""What is mixed: a tree whose leaves lead with the n clients, `[n, ...]`."""
MixerState = Any
"""What a mixer carries from round to round, of which a `PerClient` has a row for every client."""


class Mixing(NamedTuple):
    """One mixing: what a mixer may know of it beside the models.

    A mixer that wraps another hands this on whole, changed where it means to change something.

    Attributes:
      key: the mixing's own typed key, for random graphs and draws of examples.
      index: `[]` int32, number of the round, for what varies in time.
      active: mask `[n]` of the clients that take part; None for all of them.
      round: the `Round` in which clients mix, for mixers that read the clients' own examples; None
        outside of a federation.
    """

    key: Key[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # over the method of tuples
    active: Array | None = None
    round: Any = None


class Uncorrected(NamedTuple):
    """A part of what is mixed that is only mixed: who corrects what it mixed leaves this alone.

    For methods that rest on sums, such as the trackers of `dsgt`, whose mean must be kept.

    Attributes:
      part: leaves `[n, ...]`.
    """

    part: Models


class PerClient(NamedTuple):
    """A part of a mixer's state that has a row for every client.

    It is dealt over devices with the clients. Everything else in the state lives on every device.

    Attributes:
      rows: leaves `[n, ...]`.
    """

    rows: PyTree[Array]


class Known(NamedTuple):
    """What is known of a mixer: methods refuse by it, and a wrapper hands it on, changed where it must.

    Attributes:
      symmetric: whether every mixing is the product with a matrix that equals its transpose; None
        where it is not known.
      doubly_stochastic: whether every mixing keeps agreement and the mean: rows and columns of its
        matrix sum to 1. None where it is not known. A mixer that corrects what it mixed
        (`variance_corrected`) answers for the mixing before the correction. A part that is marked
        `Uncorrected` gets that mixing alone.
      linear: whether one matrix mixes all numbers of a mixing, so that a sum and the weights in it may
        be mixed side by side. False of robust rules, and where each entry is mixed with those who sent
        it; None where it is not known.
      whole_models: whether it reads what it mixes as models, by the names of their layers, so that it
        mixes nothing beside them: no trackers, no masks, no variances.
      averages_statistics: whether running statistics ("batch_stats") come out as averages, which fit no
        model; False where they are estimated afresh or refused.
      graph: along whose edges models travel, the same in every mixing; None where it changes or is
        not known.
    """

    symmetric: bool | None = None
    doubly_stochastic: bool | None = None
    linear: bool | None = None
    whole_models: bool = False
    averages_statistics: bool = True
    graph: Graph | None = None


class Mixer(NamedTuple):
    """One mixing of all clients' models, `[n, ...]` to `[n, ...]`.

    Attributes:
      clients: n, the number of clients it mixes (static).
      init: `init(models) -> state`. `models` is a pytree with leaves `[n, ...]`. The state holds what
        the rule carries (push-sum weights) and every table it reads (neighbours, weights, schedules):
        tables are data of the compiled program, never constants in it. Parts that have a row for
        every client are marked as `PerClient`.
      apply: `apply(models, state, mixing) -> (models, state, metrics)`, see `Mixing`. An inactive
        client keeps its model, and the weight it would have had at a neighbour goes to that
        neighbour's own model. Metrics are a dict of scalars. `models_sent` is one of them: how much
        travels over all directed edges in this mixing, in units of one client's whole `models`. A rule
        that sends a part of it counts that part. All other metrics are means, NaN where there is
        nothing to average.
      known: what is known of it, see `Known`.
    """

    clients: int
    init: Callable[[Models], MixerState]
    apply: Callable[[Models, MixerState, Mixing], tuple[Models, MixerState, Metrics]]
    known: Known = Known()


def mix(
    mixer: Mixer, models: Models, state: MixerState, mixing: Mixing
) -> tuple[Models, MixerState, Metrics]:
    """`mixer.apply(models, state, mixing)`, refusing by name what no mixer may return.

    Raises:
      TypeError: no triple, metrics that are no dict or lack `models_sent`, and models or a state of
        another structure or type.
      ValueError: models or a state of another shape.
    """
    name = "the mixer's apply(models, state, mixing)"
    mixed, after, metrics = returned.parts(
        name, mixer.apply(models, state, mixing), ("models", "state", "metrics")
    )
    returned.metrics(f"the metrics of {name}", metrics)
    if "models_sent" not in metrics:
        raise TypeError(
            f"the metrics of {name} must count models_sent, got {sorted(metrics)}. It is how many "
            "models travel over all directed edges."
        )
    returned.alike(f"the models of {name}", mixed, models, "what it was given")
    returned.alike(f"the state of {name}", after, state, "the state before")
    return mixed, after, metrics


def in_models(metrics: Metrics, sent: Models, models: Models) -> Metrics:
    """Metrics in which `models_sent`, counted in trees like `sent`, is counted in trees like `models`.

    What stands beside a model is counted by its numbers: `sent` of two trees of the model's size is two.
    """
    share = _numbers(sent) / _numbers(models)
    return metrics if share == 1.0 else metrics | {"models_sent": metrics["models_sent"] * share}


def _numbers(tree: Models) -> int:
    return sum(math.prod(jax.numpy.shape(leaf)) for leaf in jax.tree.leaves(tree))


def over_several(metrics: Metrics) -> Metrics:
    """Metrics of several mixings in a round, leaves `[Q, ...]`, as those of one: what is sent adds up.

    All others are means.
    """
    return {
        name: values.sum(0) if name == "models_sent" else values.mean(0)
        for name, values in metrics.items()
    }


def of_several(
    mixers: Sequence[Mixer],
    init: Callable[[Models], MixerState],
    apply: Callable[[Models, MixerState, Mixing], tuple[Models, MixerState, Metrics]],
) -> Mixer:
    """A mixer that is one of several in every mixing: what is known of all of them is known of it."""
    each = [mixer.known for mixer in mixers]
    known = Known(
        symmetric=all_known([one.symmetric for one in each]),
        doubly_stochastic=all_known([one.doubly_stochastic for one in each]),
        linear=all_known([one.linear for one in each]),
        whole_models=any(one.whole_models for one in each),
        averages_statistics=any(one.averages_statistics for one in each),
        graph=each[0].graph if len(each) == 1 else None,
    )
    return Mixer(mixers[0].clients, init, apply, known)


def require_mixer(mixer: Mixer, name: str = "mixer") -> None:
    """Refuse what is no mixer, under the name of the argument that it is."""
    if not isinstance(mixer, Mixer):
        raise TypeError(
            f"{name} must be a Mixer, got {type(mixer).__name__}. Make one with dflax.gossip, for "
            "example dflax.gossip.ring(n) or dflax.gossip.mixer(W)."
        )


def require_mean_kept(mixer: Mixer, method: str) -> None:
    """Refuse a mixer that is known to move the mean, for a method whose analysis rests on it.

    Raises:
      TypeError: no mixer.
      ValueError: its matrix is known not to be doubly stochastic.
    """
    require_mixer(mixer)
    if mixer.known.doubly_stochastic is False:
        raise ValueError(
            f"mixer must keep the mean of what {method} mixes, got one whose matrix is not doubly "
            "stochastic. Use an undirected graph with metropolis weights, or a regular directed one."
        )


def require_any_tree(mixer: Mixer, method: str, beside: str, fix: str, name: str = "mixer") -> None:
    """Refuse a mixer of whole models, for a method that mixes something beside them.

    Args:
      mixer: what is given.
      method: who asks, for the message.
      beside: what it mixes beside models.
      fix: what to do instead.
      name: of the argument.

    Raises:
      TypeError: no mixer.
      ValueError: it mixes whole models alone.
    """
    require_mixer(mixer, name)
    if mixer.known.whole_models:
        raise ValueError(
            f"{name} must mix any tree of numbers, because {method} mixes {beside} beside the models, "
            f"got one that reads what it mixes as models (aligned, anchored or recalibrated). {fix}"
        )


def require_linear(mixer: Mixer, method: str, fix: str, name: str = "mixer") -> None:
    """Refuse a mixer that is no product with a matrix, for a method that mixes sums and their weights.

    Args:
      mixer: what is given.
      method: who asks, for the message.
      fix: what to do instead.
      name: of the argument.

    Raises:
      TypeError: no mixer.
      ValueError: it is known not to be linear.
    """
    require_mixer(mixer, name)
    if mixer.known.linear is False:
        raise ValueError(
            f"{name} must mix all numbers by one matrix, because {method} mixes sums and the weights in "
            f"them, got one that does not (a neighbour rule, sampled parts). {fix}"
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


def deal(state: MixerState) -> tuple[MixerState, MixerState]:
    """A mixer's state as two trees of its form: what exists once, and the rows of the clients.

    Each holds None in the places of the other; `reunited` is the inverse.
    """
    once = jax.tree.map(lambda part: None if _has_rows(part) else part, state, is_leaf=_has_rows)
    rows = jax.tree.map(lambda part: part if _has_rows(part) else None, state, is_leaf=_has_rows)
    return once, rows


def reunited(once: MixerState, rows: MixerState) -> MixerState:
    """The mixer's state from what `deal` made of it."""
    return jax.tree.map(
        lambda leaf, row: row if leaf is None else leaf,
        once,
        rows,
        is_leaf=lambda leaf: leaf is None,
    )


def _has_rows(part: Any) -> bool:
    return isinstance(part, PerClient)
