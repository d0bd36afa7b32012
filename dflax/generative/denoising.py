"""The training loss of diffusion and flow models: noise an example, predict what was done to it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import losses, validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.generative.fields import check_target
from dflax.generative.path import Path, check_path, noised
from dflax.generative.targets import Target, value, velocity
from dflax.generative.times import Times, uniform
from dflax.local.oracle import Loss
from dflax.models.apply import Model, as_apply
from dflax.models.diffusion.noised import Noised


def denoising(
    model: Model,
    path: Path,
    *,
    target: Target = velocity,
    times: Times | None = None,
    weight: Callable[[Float[Array, " B"]], Float[Array, " B"]] | None = None,
    conditional: bool = False,
    null: PyTree[Array] | int | None = None,
    drop: float | Float[Array, ""] = 0.0,
) -> Loss:
    """Mean squared error of a prediction about noised examples.

        x_t = a(t) x_0 + s(t) eps,   eps ~ N(0, I),   t ~ times
        loss = mean over examples and entries of w(t) (model(x_t, t, condition) - p(t) x_0 - q(t) eps)^2

    The targets are those of DDPM (`targets.noise`), of a denoiser (`targets.data`), of progressive
    distillation (`targets.v`) and of flow matching (`targets.velocity`, the default).

    Args:
      model: see `dflax.models.as_apply`; its inputs are a `dflax.models.Noised`, its outputs `[B, ...]`
        like x_0.
      path: from data to noise, see `rectified` and its neighbours.
      target: what is predicted.
      times: law of t; default uniform on [0, 1].
      weight: w, `[B] -> [B]`, >= 0; None for 1.
      conditional: whether the minibatch's labels are the condition.
      null: the condition of nobody, for classifier-free guidance: one number, or a tree like one
        label. Needed where conditions are dropped.
      drop: probability in [0, 1) that the condition of an example gives way to `null`; traceable.

    Returns:
      A loss `(params, batch, key) -> (loss, {"loss"})`. Without a key (evaluation) every minibatch is
      noised by the same draws, so that two models are compared on equal terms.

    Raises:
      TypeError, ValueError: naming the argument; when traced, outputs of another shape.

    References:
      Ho et al., arXiv 2006.11239; Salimans and Ho, arXiv 2202.00512; Lipman et al., arXiv 2210.02747;
      Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598.
    """
    apply = as_apply(model)
    check_path(path)
    check_target(target)
    times = uniform() if times is None else times
    validation.function("times", times, "It gets a key and a number.", takes=2)
    if weight is not None:
        validation.function("weight", weight, "It gets times [B].", takes=1)
    validation.flag("conditional", conditional)
    validation.probability("drop", drop, high_open=True)
    drops = validation.is_traced(drop) or float(drop) > 0.0
    if null is not None:
        validation.arrays("null", null)
    if drops and (null is None or not conditional):
        raise ValueError(
            f"drop must be 0 where there is no condition or no null to put in its place, got {drop} "
            f"with conditional={conditional} and null={validation.shown(null)}. Give both, for example "
            "null=10 beside classes 0 to 9."
        )

    def forward(params: Params, inputs: Any, key: Key[Array, ""] | None) -> tuple[Array, Array]:
        data, labels = inputs
        draw_key, model_key = (
            (jax.random.key(0), None) if key is None else tuple(jax.random.split(key))
        )
        noise_key, drop_key = jax.random.split(draw_key)
        condition = labels if conditional else None
        if drops:
            condition = dropped(drop_key, condition, null, drop)
        seen, eps = noising(noise_key, path, times, data, condition)
        prediction, carry = apply.forward(params, seen, model_key)
        errors = squared_errors(prediction, value(target, path, data, eps, seen.time))
        return errors if weight is None else weight(seen.time) * errors, carry

    mean = losses.from_examples(
        apply._replace(forward=forward), lambda errors, batch: {"loss": errors}
    )

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        return mean(params, batch._replace(inputs=(batch.inputs, batch.labels)), key)

    return loss


def noising(
    key: Key[Array, ""],
    path: Path,
    times: Times,
    data: Float[Array, "B ..."],
    condition: PyTree[Array] | None = None,
) -> tuple[Noised, Float[Array, "B ..."]]:
    """Examples at times of their own, and the noise that is in them."""
    time_key, noise_key = jax.random.split(key)
    t = times(time_key, data.shape[0])
    eps = jax.random.normal(noise_key, data.shape, jnp.promote_types(data.dtype, jnp.float32))
    return Noised(noised(path, data, eps, t), t, condition), eps


def squared_errors(
    prediction: Float[Array, "B ..."], wanted: Float[Array, "B ..."]
) -> Float[Array, " B"]:
    """Means over an example's entries of the squared difference."""
    if prediction.shape != wanted.shape:
        raise ValueError(
            f"model must give outputs of the inputs' shape {wanted.shape}, got {prediction.shape}."
        )
    squares = jnp.square(prediction.astype(wanted.dtype) - wanted)
    return jnp.mean(squares.reshape(squares.shape[0], -1), axis=1)


def dropped(
    key: Key[Array, ""],
    condition: PyTree[Array],
    null: PyTree[Array] | int | None,
    probability: float | Float[Array, ""],
) -> PyTree[Array]:
    """Conditions `[B, ...]` of which each gives way to `null` with a probability."""
    count = jax.tree.leaves(condition)[0].shape[0]
    gone = jax.random.bernoulli(key, probability, (count,))

    def of_leaf(leaf: Array, nothing: Any) -> Array:
        return jnp.where(gone.reshape(-1, *(1,) * (leaf.ndim - 1)), nothing, leaf).astype(
            leaf.dtype
        )

    return jax.tree.map(of_leaf, condition, null)
