"""A mixture of experts and its gradient, beside a dense layer that does the work of the active ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.ceilings import arithmetic_ms
from benchmarks.measure import Row, alternately
from dflax.models import Dispatch, MoE

# Tokens, width, hidden width of an expert, experts, active.
SHAPES = ((1024, 64, 64, 8, 2), (4096, 256, 512, 8, 2), (4096, 256, 512, 32, 4))


def rows(quick: bool) -> list[Row]:
    """Blocked products and dense dispatch, each beside the dense layer."""
    shapes = SHAPES[:2] if quick else SHAPES
    return [
        layer(shape, dispatch, quick)
        for shape in shapes
        for dispatch in (Dispatch.BLOCKED, Dispatch.DENSE)
    ]


def layer(shape: tuple[int, ...], dispatch: Dispatch, quick: bool) -> Row:
    """Output and gradients of the layer, by its inputs and all weights; the limit, active products."""
    tokens, width, hidden, experts, active = shape
    x = jax.random.normal(jax.random.key(0), (tokens, width))
    mixture = MoE(experts, active=active, hidden=hidden, dispatch=dispatch)
    dense = MoE(1, active=1, hidden=active * hidden, dispatch=Dispatch.DENSE)
    ours, least = (gradient_of(model, x) for model in (mixture, dense))
    name = (
        f"{experts} experts, {active} active, {tokens} tokens, {width} x {hidden}, {dispatch.value}"
    )
    times = alternately(ours, least, repeats=3 if quick else 15)
    # Three products, forward once and backward twice.
    flops = 2.0 * 3 * 3 * tokens * active * width * hidden
    return Row(
        f"a mixture of {name}",
        times[0],
        "a dense layer of its active work",
        times[1],
        limit_ms=arithmetic_ms(flops),
        flops=flops,
    )


def gradient_of(model: MoE, x: Any) -> Any:
    """A call that runs the compiled gradient."""
    params = jax.jit(model.init)(jax.random.key(1), x)

    def value(params: Any, x: Any) -> Any:
        y: Any = model.apply(params, x)
        return jnp.sum(jnp.sin(y))

    return functools.partial(jax.jit(jax.grad(value, (0, 1))), params, x)
