"""A transformer cut at two of its blocks, with soft prompts."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.split.split import Frozen, Split, Trained
from dflax.models.transformer import Block, TransformerClassifier, patches

BOUND = 0.1


class DegenerateCut(UserWarning):
    """Head and tail together hold no attention, so that without the body no token sees another."""


def split_transformer(
    model: TransformerClassifier, cut: tuple[int, int] = (1, 0), *, prompts: int = 0
) -> Split:
    """A classifier as head, body and tail, with p soft prompts before its tokens.

        head: embedding + positions, prompts put before them, the first cut[0] blocks
        body: the blocks between
        tail: the last cut[1] blocks, norm, mean over the tokens, classifier

    Prompts have no positions, and the mean leaves them out: they act through attention alone. Without
    prompts the composite is the model.

    Args:
      model: whose weights `Split.divide` will be given; with dropout 0.
      cut: blocks of head and tail, both >= 0, together at most `model.depth`.
      prompts: p >= 0, at most the number of tokens; drawn uniformly from (-0.1, 0.1).

    Returns:
      A `Split`. `divide(params, key)` takes the weights, `model.init(...)["params"]`.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      DegenerateCut: `cut` is (0, 0). Methods that train or score without the body then learn nothing
        of prompts.

    References:
      Jia et al., Visual Prompt Tuning, arXiv 2203.12119.
    """
    fix = "Its parts are known."
    validation.instance("model", model, TransformerClassifier, fix)
    validation.integer("prompts", prompts, low=0)
    if model.dropout:
        raise ValueError(f"model must have dropout 0 to be split, got {model.dropout}.")
    first, last = _ends(cut, model.depth)
    if prompts and first + last == 0:
        warnings.warn(
            "cut = (0, 0) leaves no attention to head and tail: without the body prompts change "
            "nothing. Give one of them a block, for example cut=(1, 0).",
            DegenerateCut,
            stacklevel=2,
        )
    block: Any = Block(model.heads, dtype=model.dtype, parent=None)
    middle = [f"Block_{place}" for place in range(model.depth)]
    held = (middle[:first], middle[first : model.depth - last], middle[model.depth - last :])

    def through(params: Params, names: list[str], x: Array) -> Array:
        for name in names:
            x = block.apply({"params": params[name]}, x)
        return x

    def head(params: Params, prompts: PyTree[Array], inputs: Array) -> Float[Array, "B pL d"]:
        x = _embedded(model, params, inputs)
        for one in jax.tree.leaves(prompts):
            if one.shape[0] > x.shape[1]:
                raise ValueError(
                    f"prompts must be at most as many as the {x.shape[1]} tokens, got {one.shape[0]}."
                )
            shape = (x.shape[0], *one.shape)
            x = jnp.concatenate([jnp.broadcast_to(one.astype(x.dtype), shape), x], axis=1)
        return through(params, held[0], x)

    def body(params: Params, x: Float[Array, "B pL d"]) -> Float[Array, "B pL d"]:
        return through(params, held[1], x)

    def tail(params: Params, x: Float[Array, "B pL d"]) -> Float[Array, "B C"]:
        x = through(params, held[2], x)[:, prompts:]
        norm: Any = nn.LayerNorm(dtype=model.dtype, parent=None)
        x = jnp.mean(norm.apply({"params": params["LayerNorm_0"]}, x), axis=1)
        scores: Any = nn.Dense(model.classes, dtype=model.dtype, parent=None)
        return scores.apply({"params": params["head"]}, x)

    def divide(params: Params, key: Key[Array, ""]) -> tuple[Frozen, Trained]:
        validation.model("params", params)
        validation.typed_key("key", key)
        ends = (["embedding", "positions", *held[0]], held[1], [*held[2], "LayerNorm_0", "head"])
        wanted = sorted(name for names in ends for name in names)
        if not isinstance(params, dict) or sorted(params) != wanted:
            found = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(
                f"params must be the weights of model, {wanted}, got {found}. Pass "
                'model.init(key, inputs)["params"].'
            )
        own: Any = ()
        if prompts:
            own = jax.random.uniform(key, (prompts, model.width), minval=-BOUND, maxval=BOUND)
        parts = [{name: params[name] for name in names} for names in ends]
        return Frozen(parts[0], parts[1]), Trained(own, parts[2])

    return Split(head, body, tail, divide)


def _ends(cut: Any, depth: int) -> tuple[int, int]:
    """Blocks of head and tail, if they are blocks of the model."""
    if not isinstance(cut, (tuple, list)) or len(cut) != 2:
        raise TypeError(
            f"cut must be a pair, blocks of head and of tail, got {validation.shown(cut)}. For "
            "example (1, 0)."
        )
    for count in cut:
        validation.integer("cut", count, low=0, high=depth)
    if sum(cut) > depth:
        raise ValueError(
            f"cut must leave head and tail blocks of their own, at most {depth} together, got {cut}."
        )
    return int(cut[0]), int(cut[1])


def _embedded(model: TransformerClassifier, params: Params, inputs: Array) -> Array:
    """Tokens with their positions, as the model itself makes them."""
    if model.vocabulary is not None:
        layer: Any = nn.Embed(model.vocabulary, model.width, dtype=model.dtype, parent=None)
    else:
        assert model.patch is not None, "checked by the model"
        layer = nn.Dense(model.width, dtype=model.dtype, parent=None)
        inputs = patches(inputs, model.patch)
    x = layer.apply({"params": params["embedding"]}, inputs)
    positions = params["positions"]
    if positions.shape != x.shape[1:]:
        raise ValueError(
            f"inputs must have the {positions.shape[0]} positions of initialisation, got "
            f"{x.shape[1]}. Crop or pad them."
        )
    return x + positions.astype(x.dtype)
