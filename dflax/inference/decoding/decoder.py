"""A language model that is served: prompts go into a cache, and tokens come out one at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Params
from dflax.inference.decoding.cache import Cache, chosen_slots
from dflax.inference.decoding.forward import Place, forward
from dflax.models.transformer import TransformerLM

Choice = Callable[[Key[Array, ""], Float[Array, "B V"]], Int[Array, " B"]]


class Decoder(NamedTuple):
    """A model over a cache. Each call takes the batch's own slots and leaves the others alone.

    Attributes:
      prefill: `(params, cache, slots [B], tokens [B, L], lengths [B]) -> (logits [B, V], cache)`. The
        first `lengths` tokens of each row follow what its slot holds: a prompt, its rest after a
        shared prefix, or a chunk of it. Logits are those after a row's last token.
      decode: `(params, cache, slots [B], tokens [B], counts [B], key, steps) -> (tokens [B, steps],
        cache)`. From the token that each slot sees next, `steps` iterations; a row stops after its
        `counts` of them, or where its slot is full, and repeats its last token. `steps` is static.
      generate: `(params, cache, slots, tokens [B, L], lengths [B], key, steps) ->
        (tokens [B, steps], cache)`: prompts, then as many tokens of each.
      check: `(cache, slots, tokens, lengths)`: refuses prompts that `prefill` cannot take, which it
        cannot do itself in a compiled program.
    """

    prefill: Callable[..., tuple[Float[Array, "B V"], Cache]]
    decode: Callable[..., tuple[Int[Array, "B T"], Cache]]
    generate: Callable[..., tuple[Int[Array, "B T"], Cache]]
    check: Callable[..., None]


def greedy() -> Choice:
    """The likeliest token."""
    return lambda key, logits: jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sampled(temperature: float | Float[Array, ""] = 1.0) -> Choice:
    """A token drawn with probabilities softmax(logits / temperature).

    Args:
      temperature: > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("temperature", temperature, low=0.0, low_open=True, scalar=True)

    def choose(key: Key[Array, ""], logits: Float[Array, "B V"]) -> Int[Array, " B"]:
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    return choose


def decoder(
    model: TransformerLM, *, choose: Choice | None = None, chunk: int | None = None
) -> Decoder:
    """Cached decoding with the parameters that `model` was trained with.

    Args:
      model: dense layers, no mixture of experts; dropout is off.
      choose: `(key, logits [B, V]) -> tokens [B]`: `greedy()` (default), or `sampled(temperature)`.
      chunk: tokens that a prefill takes at a time, >= 1, for as many times as the longest prompt
        needs; None: all L at once, padding included.

    Returns:
      Pure functions. `compiled` jits them and donates the cache, which is then updated in place.

    Raises:
      TypeError, ValueError: naming the argument; the functions name prompts beyond the model's
        context or beyond the cache. What is known only in a compiled program is not refused there:
        tokens beyond the cache are dropped.

    References:
      Pope et al., Efficiently Scaling Transformer Inference, arXiv 2211.05102.
      Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve,
      arXiv 2403.02310.
    """
    validation.instance(
        "model", model, TransformerLM, "For example dflax.models.TransformerLM(64)."
    )
    if model.mixture is not None:
        raise ValueError("model must have dense layers, got a mixture of experts.")
    if choose is not None:
        validation.function("choose", choose, takes=2)
    pick = greedy() if choose is None else choose
    if chunk is not None:
        validation.integer("chunk", chunk, low=1)

    def check(cache: Cache, slots: Any, tokens: Any, lengths: Any) -> None:
        _check_prompts(model, cache, slots, tokens, lengths)

    def prefill(
        params: Params,
        cache: Cache,
        slots: Int[Array, " B"],
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], Cache]:
        _check_batch(model, params, cache, slots)
        check(cache, slots, tokens, lengths)
        slots, tokens, lengths = jnp.asarray(slots), jnp.asarray(tokens), jnp.asarray(lengths)
        if chunk is None:
            place = Place(slots, cache.lengths[slots], lengths)
            return forward(model, params, cache, tokens, place)
        return in_chunks(params, cache, slots, tokens, lengths, chunk)

    def in_chunks(
        params: Params, cache: Cache, slots: Array, tokens: Array, lengths: Array, chunk: int
    ) -> tuple[Float[Array, "B V"], Cache]:
        tokens = jnp.pad(tokens, ((0, 0), (0, -tokens.shape[1] % chunk)))

        def one(number: Int[Array, ""], carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
            logits, cache = carry
            part = jax.lax.dynamic_slice_in_dim(tokens, number * chunk, chunk, axis=1)
            counts = jnp.clip(lengths - number * chunk, 0, chunk)
            place = Place(slots, cache.lengths[slots], counts)
            new, cache = forward(model, params, cache, part, place)
            return jnp.where((counts > 0)[:, None], new, logits), cache

        shape = jax.eval_shape(lambda: one(jnp.int32(0), (jnp.zeros(()), cache))[0])
        begun = (jnp.zeros(shape.shape, shape.dtype), cache)
        return jax.lax.fori_loop(0, -(-jnp.max(lengths) // chunk), one, begun)

    def decode(
        params: Params,
        cache: Cache,
        slots: Int[Array, " B"],
        tokens: Int[Array, " B"],
        counts: Int[Array, " B"],
        key: Key[Array, ""],
        steps: int,
    ) -> tuple[Int[Array, "B T"], Cache]:
        _check_batch(model, params, cache, slots)
        _check_decode(model, slots, tokens, counts, key, steps)
        slots, tokens = jnp.asarray(slots), jnp.asarray(tokens, jnp.int32)
        counts = jnp.asarray(counts)

        def one(carry: tuple[Array, Cache], step: Int[Array, ""]) -> tuple[tuple, Array]:
            tokens, cache = carry
            start = cache.lengths[slots]
            going = (step < counts) & (start < min(cache.capacity, model.length))
            place = Place(slots, start, going.astype(jnp.int32))
            logits, cache = forward(model, params, cache, tokens[:, None], place)
            tokens = jnp.where(going, pick(jax.random.fold_in(key, step), logits), tokens)
            return (tokens, cache), tokens

        (_, cache), made = jax.lax.scan(one, (tokens, cache), jnp.arange(steps))
        return made.T, cache

    def generate(
        params: Params,
        cache: Cache,
        slots: Int[Array, " B"],
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"],
        key: Key[Array, ""],
        steps: int,
    ) -> tuple[Int[Array, "B T"], Cache]:
        validation.typed_key("key", key)
        validation.integer("steps", steps, low=1)
        logits, cache = prefill(params, cache, slots, tokens, lengths)
        first_key, key = jax.random.split(key)
        first = pick(first_key, logits)
        if steps == 1:
            return first[:, None], cache
        counts = jnp.full(first.shape, steps - 1)
        rest, cache = decode(params, cache, slots, first, counts, key, steps - 1)
        return jnp.concatenate([first[:, None], rest], axis=1), cache

    return Decoder(prefill, decode, generate, check)


def compiled(served: Decoder) -> Decoder:
    """The same functions, jitted: the cache is donated, so who calls keeps the returned one alone.

    Args:
      served: of `decoder`.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("served", served, Decoder, "Make it with dflax.inference.decoder.")
    prefill = jax.jit(served.prefill, donate_argnums=1)
    generate = jax.jit(served.generate, donate_argnums=1, static_argnums=6)

    def checked_prefill(
        params: Params, cache: Cache, slots: Array, tokens: Array, lengths: Array
    ) -> tuple[Float[Array, "B V"], Cache]:
        served.check(cache, slots, tokens, lengths)
        return prefill(params, cache, slots, tokens, lengths)

    def checked_generate(
        params: Params,
        cache: Cache,
        slots: Array,
        tokens: Array,
        lengths: Array,
        key: Key[Array, ""],
        steps: int,
    ) -> tuple[Int[Array, "B T"], Cache]:
        served.check(cache, slots, tokens, lengths)
        return generate(params, cache, slots, tokens, lengths, key, steps)

    decode = jax.jit(served.decode, donate_argnums=1, static_argnames="steps")
    return Decoder(checked_prefill, decode, checked_generate, served.check)


def _check_batch(model: TransformerLM, params: Params, cache: Cache, slots: Any) -> None:
    validation.model("params", params)
    validation.instance("cache", cache, Cache, "Make it with dflax.inference.empty_cache.")
    shape = (model.depth, model.heads, model.width // model.heads)
    found = (cache.keys.shape[0], *cache.keys.shape[3:])
    if found != shape:
        raise ValueError(
            f"cache must have the model's layers, heads and width, {shape}, got {found}. Make it "
            "with dflax.inference.empty_cache(model, ...)."
        )
    chosen_slots("slots", slots, cache)


def _check_prompts(
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


def _check_decode(
    model: TransformerLM, slots: Any, tokens: Any, counts: Any, key: Any, steps: Any
) -> None:
    rows = np.shape(slots)[0]
    high = model.vocabulary - 1
    validation.array("tokens", tokens, kind="integer", shape=(rows,), low=0, high=high)
    validation.integer("steps", steps, low=1)
    validation.array("counts", counts, kind="integer", shape=(rows,), low=0)
    validation.typed_key("key", key)
