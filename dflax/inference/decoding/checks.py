"""What prefill and decoding refuse."""

from typing import Any

import numpy as np

from dflax import validation
from dflax.algorithm import Params
from dflax.inference.decoding.cache import Cache, chosen_slots
from dflax.models.transformer import TransformerLM


def check_batch(model: TransformerLM, params: Params, cache: Cache, slots: Any) -> None:
    """Refuse a cache of another model, and slots that it does not have."""
    validation.model("params", params)
    validation.instance("cache", cache, Cache, "Make it with dflax.inference.decoding.empty_cache.")
    shape = (model.depth, model.heads, model.width // model.heads)
    found = (cache.keys.shape[0], *cache.keys.shape[3:])
    if found != shape:
        raise ValueError(
            f"cache must have the model's layers, heads and width, {shape}, got {found}. Make it "
            "with dflax.inference.decoding.empty_cache(model, ...)."
        )
    chosen_slots("slots", slots, cache)


def check_prompts(
    model: TransformerLM, cache: Cache, slots: Any, tokens: Any, lengths: Any
) -> None:
    """Refuse prompts that the model's context or the slots' room cannot take."""
    chosen_slots("slots", slots, cache)
    rows = np.shape(slots)[0]
    high = model.vocabulary - 1
    validation.array("tokens", tokens, kind="integer", shape=(rows, "L"), low=0, high=high)
    longest = np.shape(tokens)[1]
    validation.array("lengths", lengths, kind="integer", shape=(rows,), low=0, high=longest)
    known = not (validation.is_traced(lengths) or validation.is_traced(cache.lengths))
    if not known:
        return
    after = np.asarray(cache.lengths)[np.asarray(slots)] + np.asarray(lengths)
    for room, what in ((model.length, "the model's context"), (cache.capacity, "the cache")):
        if after.max() > room:
            raise ValueError(
                f"lengths must leave each slot within the {room} tokens of {what}, got "
                f"{int(after.max())} with what it holds. Cut the prompt, or release the slot."
            )


def check_decode(
    model: TransformerLM, slots: Any, tokens: Any, counts: Any, key: Any, steps: Any
) -> None:
    """Refuse tokens that are none, and counts that fit no slots."""
    rows = np.shape(slots)[0]
    high = model.vocabulary - 1
    validation.array("tokens", tokens, kind="integer", shape=(rows,), low=0, high=high)
    validation.integer("steps", steps, low=1)
    validation.array("counts", counts, kind="integer", shape=(rows,), low=0)
    validation.typed_key("key", key)
