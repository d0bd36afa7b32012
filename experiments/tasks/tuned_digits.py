"""A residual perceptron that knows the digits 0 to 4, to be fine-tuned over the air for all ten."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import rl

WIDTH, BLOCKS, CLASSES, OLD = 64, 3, 10, 5


def scores(params: Any, inputs: jax.Array) -> jax.Array:
    """Class scores: three residual blocks of two linear layers of 64, and a head."""
    h = inputs.reshape(inputs.shape[0], WIDTH)
    for block in range(BLOCKS):
        own = params[f"block_{block}"]
        inner = jax.nn.relu(h @ own["first"]["kernel"] + own["first"]["bias"])
        h = h + inner @ own["second"]["kernel"] + own["second"]["bias"]
    return h @ params["head"]["kernel"] + params["head"]["bias"]


LOSS = dx.losses.classification(scores)


def pretrained(data: dx.data.Dataset, key: Any, steps: int = 300) -> Any:
    """Weights after Adam on the digits 0 to 4 of the training half, all at once."""

    def dense(key: Any, outputs: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(key, (WIDTH, outputs)) / WIDTH**0.5
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    keys = jax.random.split(key, (BLOCKS + 1, 2))
    params = {
        f"block_{b}": {"first": dense(keys[b, 0], WIDTH), "second": dense(keys[b, 1], WIDTH)}
        for b in range(BLOCKS)
    } | {"head": dense(keys[BLOCKS, 0], CLASSES)}
    adam = optax.adam(1e-3)
    batch = data.fetch(jnp.arange(len(data)))
    batch = batch._replace(mask=(batch.labels < OLD).astype(jnp.float32))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        slope, _ = jax.grad(LOSS, has_aux=True)(params, batch, None)
        changes, state = adam.update(slope, state)
        return (optax.apply_updates(params, changes), state), None

    return jax.lax.scan(step, (params, adam.init(params)), None, length=steps)[0][0]


def tuning(params: Any, rank: int, rate: float) -> rl.AdapterTask:
    """Adapters of all six layers and the head; the policy sees the entropy of the pixels' values."""
    return rl.adapter_tuning(
        LOSS,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-5)),
        params,
        rank,
        where=lambda path: path.startswith("block") and path.endswith("kernel"),
        head=lambda path: path.startswith("head"),
        described=lambda batch: rl.token_statistics(
            jnp.round(16 * batch.inputs).astype(jnp.int32), 17
        ),
    )


def link(sizes: np.ndarray, ratios: tuple[float, ...]) -> rl.RadioLink:
    """A link on which the uniform rank 4 costs 0.65 at 10 dB."""
    budget = 4 * sizes.sum() / 0.65
    return rl.radio_link(ratios, (budget * 32 / np.log2(11.0),))
