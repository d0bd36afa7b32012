"""Gossip that keeps the variance of weights, for models that start from draws of their own."""

import enum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.variance import (
    Choice,
    kernels,
    require_choice,
    require_correction,
    rescaled,
    variances,
)
from dflax.algorithm import Metrics
from dflax.clients import mean_metrics, select, weighted_mean
from dflax.gossip.mixer import (
    Mixer,
    MixerState,
    Mixing,
    Models,
    Uncorrected,
    in_models,
    mix,
    require_any_tree,
)
from dflax.gossip.products.linear import as_mask


class Target(enum.Enum):
    """Which variance a mixed tensor gets: v_i that of the client's own, v_j of the received ones.

    Attributes:
      OTHERS: sum_j A_ij v_j, the mean over what was received; as published.
      SELF: v_i.
      ALL: beta v_i + (1 - beta) sum_j A_ij v_j, the mean over what was mixed.
    """

    OTHERS = "others"
    SELF = "self"
    ALL = "all"


def variance_corrected(
    neighbours: Mixer,
    own_weight: float = 0.5,
    *,
    target: Target = Target.OTHERS,
    choose: Choice = kernels,
    strength: float = 1.0,
    epsilon: float = 0.0,
) -> Mixer:
    """Averages with one's neighbours and stretches the result back to the models' own variance.

        out_i = beta w_i + (1 - beta) sum_j A_ij w_j
        w_il  = mean out_il + sqrt(V_il / var out_il) (out_il - mean out_il)    per chosen tensor l

    Means and variances are over the entries of one client's tensor. Without the second line, mixing
    n models with independent weights takes their variance to 1/n of what it was, and with it the
    signals in them. A client whose neighbours are all absent keeps its model. The mean over clients
    is not kept: the correction is not linear. It costs two readings of the models, and one number per
    tensor beside each model sent.

    It goes into every algorithm that takes a mixer, on top of any mixer that multiplies by a matrix,
    and into those that change the models' order first: `anchored(variance_corrected(...), matching)`.
    What a method marks `Uncorrected` is mixed and no more; `dsgt` and `dfedadmm` say what the
    correction does to their fixed points.

    Args:
      neighbours: A, a mixer that leaves the client itself out, for example
        `mixer(graph, weights=functools.partial(topology.uniform, self_weight=0.0))`. What a mixer
        gives to the client itself counts as received.
      own_weight: beta in [0, 1]; 0 for mixers that count the client itself already; traceable.
      target: whose variance the result gets, see `Target`.
      choose: which tensors are corrected, `(path, leaf) -> bool` on one message's leaves; default
        those with two axes or more: no biases, no scales and statistics of norms.
      strength: in [0, 1]; 1 gives exactly the variance V; traceable.
      epsilon: >= 0, added to both variances; traceable. 1e-4 is not small beside the variance 1 / 4096
        of a wide layer.

    Returns:
      A `Mixer` with the metrics of `neighbours` and `variance_scale`, the mean factor over chosen
      tensors and active clients.

    Raises:
      TypeError, ValueError: naming the argument; neighbours that mix whole models alone (`aligned`,
        `recalibrated`, which goes around this one).

    References:
      Tian, Al-Ars, Kitsak and Hofstee, Vanishing Variance Problem in Fully Decentralized
      Neural-Network Systems, arXiv 2404.04616.
    """
    fix = (
        "Put the correction inside, recalibrated(variance_corrected(mixer), module) or "
        "anchored(variance_corrected(mixer), matching); gossip.aligned takes none."
    )
    require_any_tree(neighbours, "variance_corrected", "variances", fix, "neighbours")
    validation.real("own_weight", own_weight, low=0.0, high=1.0, scalar=True)
    validation.instance("target", target, Target, "For example dflax.gossip.Target.OTHERS.")
    require_correction(choose, strength, epsilon)

    def init(models: Models) -> MixerState:
        chosen = _corrected(models, choose)
        require_choice(models, chosen)
        return neighbours.init((models, variances(models, chosen)))

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        chosen = _corrected(models, choose)
        spread = variances(models, chosen)
        both: Any = (models, spread)
        both, state, metrics = mix(neighbours, both, state, mixing)
        heard, received = both
        metrics = in_models(metrics, (models, spread), models)

        def blend(own: Array, other: Array) -> Array:
            beta = jnp.asarray(own_weight, own.dtype)
            return beta * own + (1 - beta) * other

        wanted: Float[Array, "n L"] = {
            Target.OTHERS: lambda: received,
            Target.SELF: lambda: spread,
            Target.ALL: lambda: blend(spread, received),
        }[target]()
        mixed = jax.tree.map(blend, models, heard)
        mixed, factors = rescaled(mixed, wanted, chosen, strength=strength, epsilon=epsilon)
        mask = as_mask(mixing.active, neighbours.clients)
        if mask is None:
            factor = weighted_mean(factors).mean()
        else:
            mixed = select(mask, mixed, models)
            factor = mean_metrics(factors, mask.astype(jnp.float32)).mean()
        return mixed, state, metrics | {"variance_scale": factor}

    # The correction is no product with a matrix.
    known = neighbours.known._replace(symmetric=False)
    return Mixer(neighbours.clients, init, apply, known)


def _corrected(models: Models, choose: Choice) -> Choice:
    """The choice, but nothing of what is marked `Uncorrected`."""
    flat = jax.tree_util.tree_leaves_with_path(models, is_leaf=_is_uncorrected)
    kept = [path for path, part in flat if _is_uncorrected(part)]

    def chosen(path: Any, leaf: Array | jax.ShapeDtypeStruct) -> bool:
        return not any(path[: len(start)] == start for start in kept) and choose(path, leaf)

    return chosen


def _is_uncorrected(part: Any) -> bool:
    return isinstance(part, Uncorrected)
