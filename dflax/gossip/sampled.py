"""Gossip of parts: every client sends some of its weights, and only those are averaged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from dflax import counter, validation
from dflax.aggregation.by_leaf import Weighted, weighted_sums
from dflax.algorithm import Metrics
from dflax.clients import select
from dflax.gossip.by_leaf import mix_sums
from dflax.gossip.mixer import (
    Mixer,
    MixerState,
    Mixing,
    Models,
    Uncorrected,
    require_any_tree,
    require_linear,
)
from dflax.gossip.products.linear import as_mask

Words = UInt32[Array, "n d"]


def sampled(mixer: Mixer, share: float) -> Mixer:
    """Every client sends a random share of its weights, drawn anew in each mixing.

        out_ie = w_ie + sum_j W_ij s_je (w_je - w_ie)         s_je = 1 with probability `share`

    independently over senders j and entries e: an entry that was not sent is replaced by the
    receiver's own. With `share` = 1 this is the mixer itself, up to rounding.

    Args:
      mixer: W.
      share: of the weights that is sent, in (0, 1]; traceable.

    Returns:
      A `Mixer`; `models_sent` counts whole models, so what is sent counts `share` of one.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Hegedűs, Danner and Jelasity, Decentralized learning works: an empirical comparison of gossip
      learning and federated learning, Journal of Parallel and Distributed Computing 148 (2021).
    """
    validation.real("share", share, low=0.0, high=1.0, low_open=True, scalar=True)

    def sent(seed: UInt32[Array, "2"], clients: int, entry: Words) -> Array:
        stream = counter.stream(seed, jnp.arange(clients, dtype=jnp.uint32))[:, None]
        word = counter.mix(stream ^ counter.mix(entry))
        return counter.uniform(word) < share

    return _of_parts(mixer, sent, share)


def partitioned(mixer: Mixer, parts: int) -> Mixer:
    """The weights are cut into parts once for all; every client sends one, drawn in each mixing.

        out_ie = w_ie + sum_j W_ij [part of e = p_j] (w_je - w_ie)          p_j uniform over S parts

    Args:
      mixer: W.
      parts: S >= 1, static. Which part an entry belongs to is a hash of its place.

    Returns:
      A `Mixer`; `models_sent` counts whole models, so what is sent counts 1 / S of one.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Hegedűs, Danner and Jelasity, Decentralized learning works: an empirical comparison of gossip
      learning and federated learning, Journal of Parallel and Distributed Computing 148 (2021).
    """
    validation.integer("parts", parts, low=1)

    def sent(seed: UInt32[Array, "2"], clients: int, entry: Words) -> Array:
        drawn = counter.mix(counter.stream(seed, jnp.arange(clients, dtype=jnp.uint32)))
        return counter.mix(entry) % jnp.uint32(parts) == drawn[:, None] % jnp.uint32(parts)

    return _of_parts(mixer, sent, 1.0 / parts)


def _of_parts(mixer: Mixer, sent: Callable[..., Array], share: float | Array) -> Mixer:
    fix = "Put gossip.recalibrated outermost: recalibrated(sampled(mixer, share), module)."
    require_any_tree(mixer, "sampling parts of models", "what was sent of each entry", fix)
    require_linear(mixer, "sampling parts of models", "Use gossip.mixer(topology).")
    clients = mixer.clients

    def init(models: Models) -> MixerState:
        ones = jax.tree.map(jnp.ones_like, models)
        return mixer.init(Uncorrected(weighted_sums(Weighted(models, ones))))

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        draw_key, mixer_key = jax.random.split(mixing.key)
        seed = counter.seed_of(draw_key)
        leaves, structure = jax.tree.flatten(models)
        masks, start = [], 0
        for leaf in leaves:
            width = leaf.size // clients
            entry = (start + jnp.arange(width, dtype=jnp.uint32))[None]
            masks.append(sent(seed, clients, entry).reshape(leaf.shape).astype(leaf.dtype))
            start += width
        parts = Weighted(models, jax.tree.unflatten(structure, masks))
        sums, state, metrics = mix_sums(mixer, parts, state, mixing._replace(key=mixer_key))
        mixed = jax.tree.map(
            lambda w, h, g: (w + (h - g * w)).astype(w.dtype), models, sums.value, sums.weights
        )
        mask = as_mask(mixing.active, clients)
        mixed = mixed if mask is None else select(mask, mixed, models)
        return mixed, state, metrics | {"models_sent": metrics["models_sent"] * share}

    known = mixer.known._replace(symmetric=False, doubly_stochastic=None, linear=False)
    return Mixer(clients, init, apply, known)
