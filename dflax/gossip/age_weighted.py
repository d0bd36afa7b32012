"""Gossip of models that know how often they were trained: older ones weigh more in a merge."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against, everywhere
from dflax.gossip.mixer import Known, Mixer, MixerState, Mixing, Models
from dflax.gossip.products.by_coordinates import by_coordinates
from dflax.gossip.products.linear import as_mask, require_models


class Aged(NamedTuple):
    """Models with their ages.

    Attributes:
      model: leaves `[n, ...]`.
      age: `[n]` float32, rounds of training that went into each, >= 0.
    """

    model: Params
    age: Float[Array, " n"]


def age_weighted(clients: int) -> Mixer:
    """Every node sends its model to one random other; receivers average by age.

        x_i <- (t_i x_i + sum_j t_j x_j) / (t_i + sum_j t_j),    t_i <- max(t_i, t_j)

    over the nodes j whose random peer is i. That is no mixing matrix of doubly stochastic kind: the
    mean of the models moves. Where all ages are 0 the own model stays.

    Args:
      clients: n >= 2.

    Returns:
      A `Mixer` of `Aged` trees, or of trees with one `Aged` in them: what stands beside it is averaged
      like its model. What is sent to an inactive node is lost, and counted.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ormándi, Hegedűs and Jelasity, Gossip Learning with Linear Models on Fully Distributed Data,
      arXiv 1109.1396.
    """
    validation.integer("clients", clients, low=2)

    def init(models: Models) -> MixerState:
        _age(models)
        require_models(models, clients)
        return ()

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        require_models(models, clients)
        mask = as_mask(mixing.active, clients)
        peer = random_peers(mixing.key, clients)
        own = _age(models)
        there = jnp.ones(clients, bool) if mask is None else mask
        # Off the end for what does not arrive: rows of inactive nodes enter no sum.
        target = everywhere(jnp.where(there & there[peer], peer, clients))

        def arrived(sent: Array, target: Array) -> Array:
            return jax.ops.segment_sum(sent, target, clients)

        total = own.at[target].add(own, mode="drop")

        def merged(leaf: Array) -> Array:
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            weighted = against(own, wide).astype(wide.dtype) * wide
            heard = weighted + by_coordinates(arrived, weighted, target)
            mean = (heard / against(jnp.maximum(total, 1e-30), wide).astype(wide.dtype)).astype(
                leaf.dtype
            )
            return jnp.where(against(there & (total > 0), leaf), mean, leaf)

        def part(tree: Any) -> Any:
            if not isinstance(tree, Aged):
                return merged(tree)
            return Aged(jax.tree.map(merged, tree.model), own.at[target].max(own, mode="drop"))

        after = jax.tree.map(part, models, is_leaf=_is_aged)
        return after, state, {"models_sent": there.sum().astype(jnp.float32)}

    return Mixer(clients, init, apply, Known(symmetric=False, doubly_stochastic=False))


def _age(models: Models) -> Float[Array, " n"]:
    aged = [part for part in jax.tree.leaves(models, is_leaf=_is_aged) if _is_aged(part)]
    if len(aged) != 1:
        raise TypeError(
            f"models must be of type Aged, or hold one, got {type(models).__name__} with "
            f"{len(aged)} in it. Give every model its age."
        )
    return aged[0].age


def _is_aged(part: Any) -> bool:
    return isinstance(part, Aged)


def random_peers(key: Key[Array, ""], clients: int) -> Int[Array, " n"]:
    """For every node one of the others, uniformly."""
    return (jnp.arange(clients) + jax.random.randint(key, (clients,), 1, clients)) % clients
