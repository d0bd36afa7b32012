"""The field of experts and a router: all experts at once, or each sample at its own."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Params
from dflax.clients import map_clients
from dflax.experts.diffusion.load import Router, weighed
from dflax.experts.diffusion.rules import Rule
from dflax.generative.fields import Field, check_field, field
from dflax.models.apply import Model, as_apply
from dflax.models.diffusion.noised import Noised


def ensemble(
    model: Model,
    params: Params,
    router: Router | None,
    rule: Rule,
    *,
    each: Callable[[Field], Field] | None = None,
    block: int | None = None,
    at_once: int | None = None,
) -> Field:
    """The field of K experts under a rule: `V(x, t) = sum_k w_k(x, t) v_k(x, t)`.

        w = rule(softmax(router(x, t)))

    Without `block` all experts see all samples. Where experts are dealt over devices, each device asks
    its own, and one sum of the size of x is exchanged.

    With `block` each sample goes to the experts of the rule alone. Samples are sorted by expert and
    evaluated in blocks of so many, each with one expert's parameters; the last block of an expert may be
    filled up. Nothing is dropped, whatever the router says, and parameters are never copied per
    sample. B samples with k experts each cost at most k B + K (block - 1) evaluations.

    Args:
      model: of all experts, see `dflax.models.as_apply`.
      params: `[K, ...]`, their averaged parameters.
      router: `(noised, key) -> logits [B, K]`, for example `dflax.generative.field(model, params)`; None
        for the rule `oracle`.
      rule: `full`, `top`, `threshold`, `nucleus`, `sampled` or `oracle`.
      each: what is made of every expert's field, for example `lambda f: guided(f, 2.0, null)`.
      block: samples of a block, for rules with a known number of experts; None for all experts.
      at_once: experts that a device computes at the same time, without `block`.

    Raises:
      TypeError, ValueError: naming the argument; when traced, a router of another number of experts.

    References:
      McAllister et al., Decentralized Diffusion Models, arXiv 2501.05450.
    """
    apply = as_apply(model)
    validation.model("params", params)
    experts = validation.leading_axis("params", params, least=1)
    validation.instance("rule", rule, Rule, "For example dflax.experts.top(1).")
    if rule.routed or router is not None:
        check_field("router", router)
    if each is not None:
        validation.function("each", each, "It makes a field of a field.", takes=1)
    validation.at_once(at_once)
    if block is not None:
        validation.integer("block", block, low=1)
        if rule.active is None:
            raise ValueError(
                f"block must be None for a rule whose number of experts varies, got {block}. Take "
                "top(k), sampled() or oracle(labels)."
            )

    def expert(params: Params, noised: Noised, key: Key[Array, ""]) -> Float[Array, "B ..."]:
        plain = field(apply, params)
        return (plain if each is None else each(plain))(noised, key)

    def mixed(noised: Noised, key: Key[Array, ""]) -> Float[Array, "B ..."]:
        weight_key, expert_key = jax.random.split(key)
        w = weighed(router, rule, experts, noised, weight_key)[1]
        if block is not None and rule.active is not None:
            return _dispatched(
                expert, params, w, noised, expert_key, min(rule.active, experts), block
            )
        values = map_clients(expert, params, shared=(noised, expert_key), at_once=at_once)
        return jnp.einsum("bk,kb...->b...", w.astype(values.dtype), values)

    return mixed


def _dispatched(
    expert: Callable[..., Any],
    params: Params,
    weights: Float[Array, "B K"],
    noised: Noised,
    key: Key[Array, ""],
    active: int,
    block: int,
) -> Float[Array, "B ..."]:
    """`sum_k w_k v_k` over the `active` largest weights, each expert on its own samples."""
    count, experts = weights.shape
    largest, chosen = jax.lax.top_k(weights, active)
    rows = count * active
    owners, slots, places, used = _blocks(chosen.reshape(rows), experts, block)

    def evaluate(samples: Int[Array, " b"], owner: Int[Array, ""]) -> Float[Array, "b ..."]:
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, owner, 0, False), params)
        return expert(own, jax.tree.map(lambda leaf: leaf[samples], noised), key)

    def of_block(given: tuple[Array, Array, Array]) -> Float[Array, "b ..."]:
        rows_of_block, owner, needed = given
        samples = rows_of_block // active
        shape = jax.eval_shape(evaluate, samples, owner)
        return jax.lax.cond(
            needed,
            evaluate,
            lambda samples, owner: jnp.zeros(shape.shape, shape.dtype),
            samples,
            owner,
        )

    values = jax.lax.map(of_block, (slots, owners, used))
    values = values.reshape(-1, *values.shape[2:])[places]
    values = values.reshape(count, active, *values.shape[1:])
    return jnp.einsum("bk,bk...->b...", largest.astype(values.dtype), values)


def _blocks(
    chosen: Int[Array, " rows"], experts: int, block: int
) -> tuple[Int[Array, " blocks"], Int[Array, "blocks b"], Int[Array, " rows"], Array]:
    """Rows sorted by expert and cut into blocks of one expert each.

    Returns:
      The expert of each block, the rows in it (0 where it is filled up), each row's place among all
      places, and which blocks hold any row.
    """
    rows = chosen.shape[0]
    number = math.floor((rows + experts * (block - 1)) / block)
    order = jnp.argsort(chosen, stable=True)
    counts = jnp.sum(chosen[:, None] == jnp.arange(experts), axis=0)
    needed = -(-counts // block)
    last = jnp.cumsum(needed)
    first_row, first_block = jnp.cumsum(counts) - counts, last - needed
    own = chosen[order]
    sorted_places = first_block[own] * block + jnp.arange(rows) - first_row[own]
    slots = jnp.zeros(number * block, jnp.int32).at[sorted_places].set(order, unique_indices=True)
    places = jnp.zeros(rows, jnp.int32).at[order].set(sorted_places, unique_indices=True)
    numbers = jnp.arange(number)
    owners = jnp.minimum(jnp.searchsorted(last, numbers, side="right"), experts - 1)
    return owners, slots.reshape(number, block), places, numbers < last[-1]


def evaluations(samples: int, experts: int, active: int, block: int) -> int:
    """The most evaluations of experts that `ensemble(..., block=block)` makes in a step.

    Args:
      samples: B.
      experts: K.
      active: k.
      block: samples of a block.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, value in (("samples", samples), ("experts", experts), ("block", block)):
        validation.integer(name, value, low=1)
    validation.integer("active", active, low=1, high=experts)
    return block * math.floor((samples * active + experts * (block - 1)) / block)
