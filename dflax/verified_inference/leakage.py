"""What the activations that cross the cut of a split model tell of its inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.models import Split

Inverse = Callable[[Array], Array]


def split_inference(
    split: Split, *, sigma: float | Float[Array, ""] = 0.0
) -> Callable[[Any, Any, Key[Array, ""]], tuple[Array, Array]]:
    """Inference through a split model with noise on what the client sends.

        client:  h = head(x)                      server:  a = body(h + sigma std(h) N(0, I))
        client:  scores = tail(a)

    `std` is over examples and units together. With sigma = 0 the scores are those of `split.apply`.

    Args:
      split: the model, see `dflax.models.Split`.
      sigma: noise in units of the activations' deviation, >= 0; traceable.

    Returns:
      `infer(params, inputs, key) -> (scores, sent)`, `params` as `split.divide` gives them, `sent` what
      the server sees.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("split", split, Split, "Make one with dflax.models.split_mlp.")
    validation.real("sigma", sigma, low=0.0, scalar=True)

    def infer(params: Any, inputs: PyTree[Array], key: Array) -> tuple[Array, Array]:
        frozen, trained = params
        h = split.head(frozen.head, trained.prompts, inputs)
        noise = jax.random.normal(key, h.shape, h.dtype)
        sent = h + sigma * jnp.std(h) * noise
        return split.tail(trained.tail, split.body(frozen.body, sent)), sent

    return infer


def ridge_inverse(
    sent: Float[AnyArray, "A u"], inputs: Float[AnyArray, "A d"], *, penalty: float | Array = 1e-3
) -> Inverse:
    """The affine map from activations to inputs that fits an attacker's own pairs best.

        min_M,b  |[sent, 1] [M; b] - inputs|^2 / A + penalty |M|^2

    Args:
      sent: `[A, u]` activations of inputs that the attacker has.
      inputs: `[A, d]`.
      penalty: > 0; traceable.

    Returns:
      `reconstruct(sent [B, u]) -> [B, d]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given, wanted = _pairs(sent, inputs)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    centre, target = jnp.mean(given, 0), jnp.mean(wanted, 0)
    h, x = given - centre, wanted - target
    gram = h.T @ h / h.shape[0] + penalty * jnp.eye(h.shape[1])
    weights = jnp.linalg.solve(gram, h.T @ x / h.shape[0])
    return lambda seen: (seen - centre) @ weights + target


def mlp_inverse(
    key: Key[Array, ""],
    sent: Float[AnyArray, "A u"],
    inputs: Float[AnyArray, "A d"],
    *,
    width: int = 128,
    steps: int = 1000,
    rate: float | Float[Array, ""] = 3e-3,
) -> Inverse:
    """A ridge and a network with one hidden layer on what it leaves, trained on an attacker's own pairs.

    Three quarters of the pairs train both, the network by Adam on all of them at once, from an output of
    zero. The last quarter says at which step to stop: it is no worse there than the ridge.

    Args:
      key: of its weights.
      sent: `[A, u]` activations of inputs that the attacker has, A >= 8.
      inputs: `[A, d]`.
      width: hidden units, >= 1.
      steps: of Adam, >= 1.
      rate: of Adam, > 0; traceable.

    Returns:
      `reconstruct(sent [B, u]) -> [B, d]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    given, wanted = _pairs(sent, inputs, least=8)
    validation.integer("width", width, low=1)
    validation.integer("steps", steps, low=1)
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
    units, outputs, rows = given.shape[1], wanted.shape[1], 3 * given.shape[0] // 4
    ridge = ridge_inverse(given[:rows], wanted[:rows])
    left = wanted - ridge(given)
    centre, scale = jnp.mean(given[:rows], 0), jnp.std(given[:rows]) + 1e-6
    params = {
        "in": jax.random.normal(key, (units, width)) * (2.0 / units) ** 0.5,
        "hidden": jnp.zeros(width),
        "out": jnp.zeros((width, outputs)),
    }

    def predict(params: Any, seen: Array) -> Array:
        hidden = jax.nn.relu((seen - centre) / scale @ params["in"] + params["hidden"])
        return hidden @ params["out"]

    def error(params: Any, part: slice) -> Array:
        return jnp.mean((predict(params, given[part]) - left[part]) ** 2)

    adam = optax.adam(rate)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state, best, least = carry
        gradient = jax.grad(error)(params, slice(rows))
        updates, state = adam.update(gradient, state)
        params = optax.apply_updates(params, updates)
        now = error(params, slice(rows, None))
        best = jax.tree.map(lambda new, old: jnp.where(now < least, new, old), params, best)
        return (params, state, best, jnp.minimum(now, least)), None

    start = (params, adam.init(params), params, error(params, slice(rows, None)))
    (_, _, best, _), _ = jax.lax.scan(step, start, None, length=steps)
    return lambda seen: ridge(seen) + predict(best, seen)


def reconstruction_error(
    reconstructed: Float[AnyArray, "B d"], inputs: Float[AnyArray, "B d"]
) -> Float[Array, ""]:
    """`MSE / Var`: 0 for inputs found exactly, 1 for who knows only their mean.

        sum |x' - x|^2 / sum |x - mean of x|^2

    Args:
      reconstructed: `[B, d]`.
      inputs: `[B, d]`, B >= 2.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    right = _rows("inputs", inputs, least=2)
    given = jnp.asarray(
        validation.array(
            "reconstructed", reconstructed, kind="real", shape=right.shape, fix="As inputs are."
        ),
        float,
    )
    return jnp.sum((given - right) ** 2) / jnp.sum((right - jnp.mean(right, 0)) ** 2)


def distance_correlation(
    inputs: Float[AnyArray, "B d"], sent: Float[AnyArray, "B u"]
) -> Float[Array, ""]:
    """How far the activations depend on the inputs, in any way: 0 iff not at all, in the limit of many.

        dCor = sqrt(dCov(x, h) / sqrt(dCov(x, x) dCov(h, h))),   dCov(x, h) = mean of A_ij B_ij

    with A and B the distances between examples, rows and columns centred.

    Args:
      inputs: `[B, d]`, B >= 2.
      sent: `[B, u]`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Szekely, Rizzo and Bakirov, Annals of Statistics 35 (2007). Vepakomma et al., NoPeek,
      arXiv 2008.09161.
    """
    first = _rows("inputs", inputs, least=2)
    second = _rows("sent", sent, least=2)
    if second.shape[0] != first.shape[0]:
        raise ValueError(
            f"sent must be of the {first.shape[0]} examples of inputs, got {second.shape[0]}."
        )
    a, b = _centred(first), _centred(second)
    both = jnp.sqrt(jnp.mean(a * a) * jnp.mean(b * b))
    return jnp.sqrt(jnp.maximum(jnp.mean(a * b), 0.0) / jnp.maximum(both, 1e-30))


def _centred(rows: Array) -> Float[Array, "B B"]:
    squares = jnp.sum(rows**2, axis=1)
    gram = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2.0 * gram, 0.0))
    distances = jnp.where(jnp.eye(rows.shape[0], dtype=bool), 0.0, distances)
    means = jnp.mean(distances, axis=0)
    return distances - means - means[:, None] + jnp.mean(means)


def _pairs(sent: Any, inputs: Any, least: int = 2) -> tuple[Array, Array]:
    given = _rows("sent", sent, least=least)
    wanted = _rows("inputs", inputs, least=least)
    if wanted.shape[0] != given.shape[0]:
        raise ValueError(
            f"inputs must be as many as the {given.shape[0]} rows of sent, got {wanted.shape[0]}."
        )
    return given, wanted


def _rows(name: str, values: Any, *, least: int) -> Array:
    given = validation.array(name, values, kind="real", shape=("B", "d"))
    if np.shape(given)[0] < least:
        raise ValueError(f"{name} must have at least {least} rows, got {np.shape(given)[0]}.")
    return jnp.asarray(given, float)
