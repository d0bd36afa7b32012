"""A mixture of experts in the place of a transformer's dense layers."""

import enum
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.clients.devices import platform
from dflax.models.moe.products import (
    Owned,
    blocked_product,
    every_product,
    paired_product,
    ragged_product,
)
from dflax.models.moe.routing import Load, Routing, load, route

Matrices = tuple[Array | Owned, Array | Owned, Array | Owned]


class Dispatch(enum.Enum):
    """How tokens reach their experts; the outputs are the same.

    Attributes:
      DENSE: every expert sees every token: E / a times the work. The reference.
      RAGGED: tokens are sorted by expert, `jax.lax.ragged_dot` multiplies; for TPUs and GPUs. On a CPU
        it is dense inside.
      BLOCKED: tokens are sorted by expert and multiplied a block of rows at a time; for CPUs.
    """

    DENSE = "dense"
    RAGGED = "ragged"
    BLOCKED = "blocked"


class MoE(nn.Module):
    """A mixture of SwiGLU experts, of which each token uses `active`.

        p = softmax(x R),    S = the a experts of the largest p
        y = sum over e in S of p_e (silu(x G_e) * (x U_e)) D_e

    Its load is sown into the collection "routing"; `model.apply(variables, x, mutable=["routing"])`
    returns it. Any of the three matrices may be an `Owned`.

    Attributes:
      experts: E >= 1.
      active: a in [1, E].
      hidden: H >= 1, the hidden width of an expert.
      normalised: whether the a weights of a token are divided by their sum.
      capacity: None, and no token is dropped; or c > 0, and an expert takes the first
        ceil(c T a / E) of its tokens. What it does not take adds nothing, and is counted in the load.
      dispatch: how tokens reach experts; None chooses by platform. With a capacity they go through
        buffers of that size.
      dtype: of the computation; None means that of the parameters, float32. The router's is float32.

    References:
      Shazeer et al., arXiv 1701.06538; Gale et al., MegaBlocks, arXiv 2211.15841.
    """

    experts: int
    active: int = 2
    hidden: int = 64
    normalised: bool = False
    capacity: float | None = None
    dispatch: Dispatch | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("experts", self.experts, low=1)
        validation.integer(
            "active", self.active, low=1, high=self.experts, fix="It is how many a token uses."
        )
        validation.integer("hidden", self.hidden, low=1)
        validation.flag("normalised", self.normalised)
        validation.dtype("dtype", self.dtype)
        if self.capacity is not None:
            fix = "None drops no token."
            validation.real("capacity", self.capacity, low=0.0, low_open=True, scalar=True, fix=fix)
        if self.dispatch is not None:
            validation.instance("dispatch", self.dispatch, Dispatch, "For example Dispatch.DENSE.")
            if self.capacity is not None:
                raise ValueError(
                    "dispatch must be None with a capacity, whose buffers are a way of their own, got "
                    f"{self.dispatch} and capacity={self.capacity}."
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The mixture's output of each token."""
        width = x.shape[-1]
        tokens = x.reshape(-1, width)
        router = nn.Dense(self.experts, use_bias=False, dtype=jnp.float32, name="router")
        scores = router(tokens)
        start = nn.initializers.lecun_normal(batch_axis=0)
        shapes = {"gate": (width, self.hidden), "up": (width, self.hidden)}
        shapes["down"] = (self.hidden, width)
        given: Any = [
            self.param(name, start, (self.experts, *shape)) for name, shape in shapes.items()
        ]
        if self.dtype is not None:
            tokens, given = jax.tree.map(_cast(self.dtype), (tokens, given))
        routing = route(scores, self.active, normalised=self.normalised)
        if self.capacity is None:
            y, overflow = mixture(tokens, tuple(given), routing, self.dispatch), jnp.zeros(())
        else:
            places = math.ceil(self.capacity * tokens.shape[0] * self.active / self.experts)
            places = min(places, tokens.shape[0])
            y, overflow = buffered(tokens, tuple(given), routing, places)
        self.sow("routing", "load", load(scores, routing, overflow), reduce_fn=_last, init_fn=_none)
        return y.reshape(x.shape)


def mixture(
    tokens: Float[Array, "T D"],
    matrices: Matrices,
    routing: Routing,
    dispatch: Dispatch | None = None,
) -> Float[Array, "T D"]:
    """`y_t = sum_k weights[t, k] expert(chosen[t, k])(x_t)`, no token dropped.

    Args:
      tokens: x.
      matrices: gate and up `[E, D, H]`, and down `[E, H, D]`; arrays, or `Owned`.
      routing: of the tokens.
      dispatch: see `Dispatch`; None: BLOCKED on a CPU and RAGGED elsewhere.
    """
    gate, up, down = matrices
    weights = routing.weights.astype(tokens.dtype)
    if dispatch is None:
        dispatch = Dispatch.BLOCKED if platform() == "cpu" else Dispatch.RAGGED
    experts = routing.probabilities.shape[1]
    if dispatch is Dispatch.DENSE:
        hidden = jax.nn.silu(every_product(tokens, gate)) * every_product(tokens, up)
        places = routing.chosen[..., None] == jnp.arange(experts)
        share = jnp.sum(jnp.where(places, weights[..., None], 0), axis=1)
        return jnp.einsum("etd,te->td", paired_product(hidden, down), share)
    product = ragged_product if dispatch is Dispatch.RAGGED else blocked_product
    count, active = routing.chosen.shape
    expert = routing.chosen.reshape(-1)
    sizes, rank = _ranks(expert, experts)
    order = jnp.argsort(expert)
    place = (jnp.cumsum(sizes) - sizes)[expert] + rank
    rows = _moved(jnp.repeat(tokens, active, axis=0), order, place)
    hidden = jax.nn.silu(product(rows, gate, sizes)) * product(rows, up, sizes)
    back = _moved(product(hidden, down, sizes), place, order)
    return jnp.einsum("tkd,tk->td", back.reshape(count, active, -1), weights)


def buffered(
    tokens: Float[Array, "T D"], matrices: Matrices, routing: Routing, places: int
) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
    """The mixture through buffers `[E, C, D]`, and how many pairs had no place in them.

    Args:
      tokens: x.
      matrices: as for `mixture`.
      routing: of the tokens.
      places: C >= 1, tokens that an expert takes, the first ones.
    """
    gate, up, down = matrices
    count, active = routing.chosen.shape
    expert = routing.chosen.reshape(-1)
    experts = routing.probabilities.shape[1]
    _, rank = _ranks(expert, experts)
    there = rank < places
    # One place more for all that find none, which nobody reads.
    place = jnp.where(there, expert * places + rank, experts * places)
    rows = jnp.repeat(tokens, active, axis=0)
    buffers = jnp.zeros((experts * places + 1, tokens.shape[1]), tokens.dtype).at[place].set(rows)
    filled = buffers[:-1].reshape(experts, places, -1)
    hidden = jax.nn.silu(paired_product(filled, gate)) * paired_product(filled, up)
    out = paired_product(hidden, down).reshape(experts * places, -1)
    back = jnp.where(there[:, None], out[jnp.minimum(place, experts * places - 1)], 0)
    weights = routing.weights.astype(tokens.dtype)
    y = jnp.einsum("tkd,tk->td", back.reshape(count, active, -1), weights)
    return y, jnp.sum(~there)


def _ranks(expert: Int[Array, " R"], experts: int) -> tuple[Int[Array, " E"], Int[Array, " R"]]:
    """How many rows each expert has, and which of its rows each one is."""
    places = expert[:, None] == jnp.arange(experts)
    done = jnp.cumsum(places.astype(jnp.int32), axis=0)
    return done[-1], jnp.sum(jnp.where(places, done, 0), axis=1) - 1


@jax.custom_vjp
def _moved(rows: Array, order: Array, place: Array) -> Array:
    """`rows[order]`, of which `place` is the inverse: no scatter in its reverse rule."""
    return rows[order]


_moved.defvjp(
    lambda rows, order, place: (rows[order], place), lambda place, g: (g[place], None, None)
)


def _cast(dtype: Any) -> Any:
    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return cast


def _last(before: Any, new: Load) -> Load:
    return new


def _none() -> None:
    return None
