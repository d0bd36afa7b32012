"""A mixture of experts in INT8: routing and weights of tokens stay in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.supernode.int8 import Int8Linear, int8_apply, int8_linear
from dflax.models.moe.routing import Routing


class Int8Experts(NamedTuple):
    """SwiGLU experts in INT8, each leaf with a leading axis E. From `int8_experts`.

    Attributes:
      gate: `[E]` layers from D to H.
      up: `[E]` layers from D to H.
      down: `[E]` layers from H to D.
    """

    gate: Int8Linear
    up: Int8Linear
    down: Int8Linear


def int8_experts(
    matrices: tuple[Array, Array, Array],
    inputs: Float[Array, "c D"],
    *,
    smooth: float | Float[Array, ""] = 0.0,
    search: bool = False,
    compensate: bool = False,
) -> Int8Experts:
    """Quantises the experts of a `dflax.models.MoE`, each by itself.

    Args:
      matrices: gate and up `[E, D, H]`, and down `[E, H, D]`.
      inputs: `[c, D]` examples of the tokens that come in; every expert looks at all of them.
      smooth: see `int8_linear`.
      search: see `int8_linear`.
      compensate: see `int8_linear`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    gate, up, down = expert_matrices("matrices", matrices)
    seen = jnp.asarray(validation.array("inputs", inputs, kind="real", shape=("c", gate.shape[1])))
    validation.probability("smooth", smooth)
    validation.flag("search", search)
    validation.flag("compensate", compensate)
    options: Any = {"smooth": smooth, "search": search, "compensate": compensate}

    def one(gate: Array, up: Array, down: Array) -> Int8Experts:
        hidden = jax.nn.silu(seen @ gate) * (seen @ up)
        return Int8Experts(
            int8_linear(gate, seen, **options),
            int8_linear(up, seen, **options),
            int8_linear(down, hidden, **options),
        )

    return jax.vmap(one)(gate, up, down)


def int8_mixture(
    experts: Int8Experts, tokens: Float[Array, "T D"], routing: Routing
) -> Float[Array, "T D"]:
    """`y_t = sum_k weights[t, k] expert(chosen[t, k])(x_t)` with products in INT8.

    Every expert sees every token, as in `Dispatch.DENSE`.

    Args:
      experts: from `int8_experts`.
      tokens: `[T, D]`.
      routing: of the tokens, from `dflax.models.moe.routing.route`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("experts", experts, Int8Experts, "Make them with int8_experts.")
    width = experts.gate.smoothing.shape[-1]
    given = jnp.asarray(validation.array("tokens", tokens, kind="real", shape=("T", width)))
    validation.instance("routing", routing, Routing)
    y = jax.vmap(int8_swiglu, (0, None))(experts, given)
    places = routing.chosen[..., None] == jnp.arange(y.shape[0])
    share = jnp.sum(jnp.where(places, routing.weights[..., None], 0), axis=1)
    return jnp.einsum("etd,te->td", y, share)


def int8_swiglu(expert: Int8Experts, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
    """One expert's outputs: the layers without an axis E."""
    hidden = jax.nn.silu(int8_apply(expert.gate, x)) * int8_apply(expert.up, x)
    return int8_apply(expert.down, hidden)


def expert_matrices(name: str, matrices: Any) -> tuple[Array, Array, Array]:
    """The three stacks of matrices, checked."""
    three = validation.sequence(name, matrices, "gate, up and down", least=3)
    if len(three) != 3:
        raise ValueError(f"{name} must be gate, up and down, got {len(three)} of them.")
    gate = validation.array(name, three[0], kind="real", shape=("E", "D", "H"))
    up = validation.array(name, three[1], kind="real", shape=gate.shape)
    back = (gate.shape[0], gate.shape[2], gate.shape[1])
    down = validation.array(name, three[2], kind="real", shape=back)
    return jnp.asarray(gate), jnp.asarray(up), jnp.asarray(down)
