"""Gossip in which every leaf of a client's model, or every row of a leaf, has a weight of its own."""

from typing import Any

from dflax.aggregation.by_leaf import Weighted, ratios, require_weighted, weighted_sums
from dflax.algorithm import Metrics
from dflax.clients import select
from dflax.gossip.mixer import (
    Mixer,
    MixerState,
    Mixing,
    Uncorrected,
    mix,
    require_any_tree,
    require_linear,
)
from dflax.gossip.products.linear import as_mask

OUTERMOST = "Take the plain mixer inside, and put gossip.recalibrated around what it makes."


def weighted_by_leaf(mixer: Mixer) -> Mixer:
    """Averages over those who have something to say of a leaf, by what it counts with them.

        x_i <- sum_j W_ij a_j x_j / sum_j W_ij a_j         leaf by leaf; x_i where every a_j is 0

    a_j are the weights in the clients' messages: 0 for experts that a client does not have, for the
    entries outside its mask. They stay as they are. With equal weights it is the mixer itself.

    Args:
      mixer: W, which multiplies by a matrix.

    Returns:
      A `Mixer` of `dflax.aggregation.Weighted` trees. The weights travel, and are counted.

    Raises:
      TypeError, ValueError: naming the argument; from `init`, models that are not `Weighted`.
    """
    require_any_tree(mixer, "weighted_by_leaf", "what each leaf counts", OUTERMOST)
    require_linear(mixer, "weighted_by_leaf", "Use gossip.mixer(topology).")

    def init(models: Weighted) -> MixerState:
        require_weighted("models", models)
        return mixer.init(Uncorrected(weighted_sums(models)))

    def apply(
        models: Weighted, state: MixerState, mixing: Mixing
    ) -> tuple[Weighted, MixerState, Metrics]:
        sums, state, metrics = mix_sums(mixer, models, state, mixing)
        mixed = models._replace(value=ratios(sums, models).value)
        mask = as_mask(mixing.active, mixer.clients)
        return mixed if mask is None else select(mask, mixed, models), state, metrics

    known = mixer.known._replace(symmetric=False, doubly_stochastic=None, linear=False)
    return Mixer(mixer.clients, init, apply, known)


def mix_sums(
    mixer: Mixer, models: Weighted, state: MixerState, mixing: Mixing
) -> tuple[Weighted, MixerState, Metrics]:
    """`(sum_j W_ij a_j x_j, sum_j W_ij a_j)`, neither of which is a model: nobody corrects them."""
    sums: Any = Uncorrected(weighted_sums(models))
    sums, state, metrics = mix(mixer, sums, state, mixing)
    return sums.part, state, metrics
