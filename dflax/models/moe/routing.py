"""Which experts a token goes to, and what keeps their load even."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation


class Routing(NamedTuple):
    """Where T tokens go.

    Attributes:
      chosen: `[T, a]` int32, each token's experts, the most likely one first.
      weights: `[T, a]`, what their outputs are multiplied by.
      probabilities: `[T, E]`, softmax of the router's scores, float32.
    """

    chosen: Int[Array, "T a"]
    weights: Float[Array, "T a"]
    probabilities: Float[Array, "T E"]


class Load(NamedTuple):
    """What a layer's routing comes to over a batch; the layer sows one into the collection "routing".

    Attributes:
      counts: `[E]`, pairs of a token and an expert, of sum T a; not differentiated.
      probability: `[E]`, the mean probability of each expert.
      square: `[]`, the mean over tokens of the squared log-sum-exp of the router's scores.
      overflow: `[]`, pairs that had no place in the expert's buffer; 0 without a capacity.
      entropy: `[]`, the mean over tokens of `- sum_e p_e log p_e`, in nats: log E for a router that
        knows nothing, 0 for one without doubts; not differentiated.
    """

    counts: Float[Array, " E"]
    probability: Float[Array, " E"]
    square: Float[Array, ""]
    overflow: Float[Array, ""]
    entropy: Float[Array, ""]


def route(scores: Float[Array, "T E"], active: int, *, normalised: bool = False) -> Routing:
    """The `active` experts of the highest scores, weighted by their probabilities.

        p = softmax(scores),   weights = the a largest p,   divided by their sum if `normalised`

    Args:
      scores: of a router.
      active: a in [1, E].
      normalised: whether a token's weights are of sum 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Shazeer et al., Outrageously Large Neural Networks, arXiv 1701.06538.
    """
    if not isinstance(scores, jax.Array):
        scores = jnp.asarray(validation.array("scores", scores, kind="real", shape=("T", "E")))
    if scores.ndim != 2 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"scores must be real, [T, E], got {scores.dtype} {scores.shape}.")
    experts = scores.shape[1]
    validation.integer("active", active, low=1, high=experts, fix="A token has at most E experts.")
    validation.flag("normalised", normalised)
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    probabilities = jax.nn.softmax(wide, axis=-1)
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(probabilities), active)
    # Picked by comparison: looked up, the gradient would be a scatter, which a CPU does one by one.
    places = chosen[..., None] == jnp.arange(experts)
    weights = jnp.sum(jnp.where(places, probabilities[:, None], 0), axis=-1)
    if normalised:
        weights = weights / weights.sum(-1, keepdims=True)
    return Routing(chosen.astype(jnp.int32), weights, probabilities)


def load(scores: Float[Array, "T E"], routing: Routing, overflow: Array | float = 0.0) -> Load:
    """The load of a batch.

    Args:
      scores: of the router.
      routing: of the same tokens.
      overflow: pairs that had no place.
    """
    wide = scores.astype(routing.probabilities.dtype)
    experts = scores.shape[1]
    counts = jnp.sum(routing.chosen[..., None] == jnp.arange(experts), axis=(0, 1))
    return Load(
        counts.astype(wide.dtype),
        routing.probabilities.mean(0),
        jnp.square(jax.nn.logsumexp(wide, axis=-1)).mean(),
        jnp.asarray(overflow, wide.dtype),
        entropy_of(jax.lax.stop_gradient(routing.probabilities)).mean(),
    )


def entropy_of(probabilities: Float[Array, "... E"]) -> Float[Array, "..."]:
    """`- sum_e p_e log p_e` in nats; probabilities of 0 add nothing."""
    return jax.scipy.special.entr(probabilities).sum(-1)


def balance_loss(load: Load, factor: Float[Array, " E"] | float = 1.0) -> Float[Array, ""]:
    """`E / (T a) sum_e factor_e count_e mean p_e`: 1 for a router that treats all experts alike.

    Args:
      load: of a layer; of several, with leading axes, the mean over them.
      factor: of each expert's count, >= 0; below 1 for experts that shall get more tokens. Traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Fedus et al., Switch Transformers, arXiv 2101.03961.
    """
    validation.instance("load", load, Load, "Layers sow it into the collection routing.")
    validation.real("factor", factor, low=0.0)
    counts = jax.lax.stop_gradient(load.counts)
    if np.shape(factor) not in ((), counts.shape[-1:]):
        raise ValueError(
            f"factor must be one number or one of each expert, {counts.shape[-1:]}, got shape "
            f"{np.shape(factor)}."
        )
    share = counts / counts.sum(-1, keepdims=True)
    return counts.shape[-1] * jnp.mean(jnp.sum(factor * share * load.probability, -1))


def square_loss(load: Load) -> Float[Array, ""]:
    """The router's z-loss: the mean over tokens, and layers, of `(log sum_e exp score_e)^2`.

    Args:
      load: of a layer; of several, with leading axes, the mean over them.

    References:
      Zoph et al., ST-MoE, arXiv 2202.08906.
    """
    validation.instance("load", load, Load, "Layers sow it into the collection routing.")
    return jnp.mean(load.square)
