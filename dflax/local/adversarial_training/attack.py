"""Attacks on a model's inputs: projected gradient ascent in a ball around each example."""

import enum
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.clients import against
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss

# Keeps the direction finite where an example's gradient vanishes (dead units, f = 0 at the start).
SMALLEST_NORM = 1e-12


class Norm(enum.Enum):
    """In which norm a perturbation of one example is bounded.

    Attributes:
      L2: sqrt(sum_j delta_j^2) <= radius, over all entries of an example's inputs.
      LINF: max_j |delta_j| <= radius.
    """

    L2 = "l2"
    LINF = "l-infinity"


class Attack(Protocol):
    """Anything that gives a minibatch with other inputs; what it returns is no function of params."""

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Batch:
        """The attacked minibatch."""
        ...


class Bounds(NamedTuple):
    """The range of valid inputs, for both ends a number or an array like one example; traceable."""

    low: float | Array
    high: float | Array


def projected_gradient(
    loss: Loss,
    radius: float | Array,
    steps: int,
    *,
    norm: Norm = Norm.L2,
    step_size: float | Array | None = None,
    random_start: bool = True,
    bounds: tuple[float | Array, float | Array] | None = None,
) -> Attack:
    """Projected gradient ascent (PGD) on the loss of every example, in a ball around its inputs.

    From delta = 0, or uniform in the ball, for p = 1, ..., steps:

        s     = g / (|g|_2 + 1e-12)  in l2,   sign(g)  in l-infinity,   g = grad_delta loss(x + delta)
        delta = projection(delta + step_size s)        onto |delta| <= radius, for every example
        delta = clip(x + delta) - x                    with `bounds`

    The model is read in evaluation mode (no dropout, running statistics as they are), and nothing is
    differentiated through the attack.

    Args:
      loss: `(params, batch, key) -> (mean loss, metrics)` whose examples do not influence each other.
      radius: of the ball >= 0, in units of the decoded inputs; traceable. 0 changes nothing.
      steps: P >= 0, gradients of the attack; 0 changes nothing, not even by a random start.
      norm: of the ball.
      step_size: > 0; traceable; default 2.5 radius / steps.
      random_start: begin at a point uniform in the ball instead of at the example.
      bounds: (low, high) of valid inputs, to which x + delta is clipped; traceable; default none.
        An example must be valid itself, else its perturbation may leave the ball.

    Returns:
      An `Attack`: `(params, batch, key) -> batch` with floating-point inputs moved.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083.
    """
    validation.function("loss", loss, "Make one for example with dflax.losses.classification.")
    validation.real("radius", radius, low=0.0, scalar=True)
    validation.integer("steps", steps, low=0)
    validation.instance("norm", norm, Norm, "For example dflax.local.Norm.L2.")
    validation.flag("random_start", random_start)
    if step_size is not None:
        validation.real("step_size", step_size, low=0.0, low_open=True, scalar=True)
    valid = None if bounds is None else _bounds(bounds)
    rate = 2.5 * radius / max(steps, 1) if step_size is None else step_size
    project, ascent, start = (
        (_project_l2, _normalized, _uniform_l2)
        if norm is Norm.L2
        else (_project_linf, _signs, _uniform_linf)
    )

    def attack(params: Params, batch: Batch, key: Key[Array, ""]) -> Batch:
        if steps == 0:
            return batch
        clean = jax.lax.stop_gradient(batch.inputs)
        params = jax.lax.stop_gradient(params)

        def moved(delta: PyTree[Array]) -> PyTree[Array]:
            inputs = jax.tree.map(jnp.add, clean, delta)
            if valid is None:
                return inputs
            return jax.tree.map(lambda x: jnp.clip(x, valid.low, valid.high), inputs)

        def total(delta: PyTree[Array]) -> Float[Array, ""]:
            # Without the mask and times B the mean is a sum: each example sees its own gradient.
            inputs = jax.tree.map(jnp.add, clean, delta)
            value, _ = loss(params, batch._replace(inputs=inputs, mask=None), None)
            return value * batch.labels.shape[0]

        def valid_delta(delta: PyTree[Array]) -> PyTree[Array]:
            return delta if valid is None else jax.tree.map(jnp.subtract, moved(delta), clean)

        def climb(_: Array, delta: PyTree[Array]) -> PyTree[Array]:
            direction = ascent(jax.grad(total)(delta))
            stepped = jax.tree.map(
                lambda d, s: d + jnp.asarray(rate, d.dtype) * s, delta, direction
            )
            return valid_delta(project(stepped, radius))

        delta = jax.tree.map(jnp.zeros_like, clean)
        if random_start:
            delta = valid_delta(start(key, delta, radius))
        delta = jax.lax.fori_loop(0, steps, climb, delta)
        return batch._replace(inputs=jax.lax.stop_gradient(moved(delta)))

    return attack


def fast_gradient_sign(
    loss: Loss,
    radius: float | Array,
    *,
    norm: Norm = Norm.LINF,
    bounds: tuple[float | Array, float | Array] | None = None,
) -> Attack:
    """The fast gradient (sign) method (FGSM): one step of length `radius` from the example itself.

    Args:
      loss: as in `projected_gradient`, as are `radius`, `norm` and `bounds`.
      radius: length of the step.
      norm: l-infinity is the published one: delta = radius sign(g).
      bounds: of valid inputs.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, arXiv 1412.6572.
    """
    validation.real("radius", radius, low=0.0, scalar=True)
    # A step of any length >= radius ends on the sphere; at radius 0 it must not be 0 in itself.
    return projected_gradient(
        loss,
        radius,
        1,
        norm=norm,
        step_size=radius + SMALLEST_NORM,
        random_start=False,
        bounds=bounds,
    )


def distances(
    first: PyTree[Array], second: PyTree[Array], norm: Norm = Norm.L2
) -> Float[Array, " B"]:
    """How far each example of one minibatch of inputs lies from that of another, `[B]`."""
    validation.instance("norm", norm, Norm)
    difference = jax.tree.map(jnp.subtract, first, second)
    if norm is Norm.L2:
        return jnp.sqrt(_square_lengths(difference))
    largest = [jnp.abs(_rows(leaf)).max(1) for leaf in jax.tree.leaves(difference)]
    return jnp.stack(largest).max(0)


def _bounds(bounds: tuple[float | Array, float | Array]) -> Bounds:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(
            f"bounds must be a pair (low, high), got {validation.shown(bounds)}. "
            "For images in [0, 1] pass (0.0, 1.0)."
        )
    valid = Bounds(*bounds)
    for name, bound in zip(("low", "high"), valid, strict=True):
        validation.real(f"bounds: {name}", bound)
    known = not any(validation.is_traced(bound) for bound in valid)
    if known and bool(np.any(np.asarray(valid.low) > np.asarray(valid.high))):
        raise ValueError(f"bounds must be low <= high, got {validation.shown(bounds)}.")
    return valid


def _rows(leaf: Array) -> Float[Array, "B d"]:
    return leaf.reshape(leaf.shape[0], -1)


def _square_lengths(tree: PyTree[Array]) -> Float[Array, " B"]:
    """In float32 or wider: a length decides which points lie in the ball."""
    wide = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
    squares = [jnp.square(_rows(leaf).astype(wide)).sum(axis=1) for leaf in jax.tree.leaves(tree)]
    return jnp.sum(jnp.stack(squares), axis=0)


def _scaled(tree: PyTree[Array], factor: Float[Array, " B"]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: (leaf * against(factor, leaf)).astype(leaf.dtype), tree)


def _normalized(tree: PyTree[Array]) -> PyTree[Array]:
    return _scaled(tree, 1.0 / (jnp.sqrt(_square_lengths(tree)) + SMALLEST_NORM))


def _signs(tree: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(jnp.sign, tree)


def _project_l2(tree: PyTree[Array], radius: Any) -> PyTree[Array]:
    length = jnp.sqrt(_square_lengths(tree))
    inside = length <= radius
    return _scaled(tree, jnp.where(inside, 1.0, radius / jnp.where(inside, 1.0, length)))


def _project_linf(tree: PyTree[Array], radius: Any) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -radius, radius).astype(leaf.dtype), tree)


def _uniform_l2(key: Key[Array, ""], like: PyTree[Array], radius: Any) -> PyTree[Array]:
    """Uniform in the ball of every example: a normal direction times radius u^(1/d)."""
    leaves, structure = jax.tree.flatten(like)
    *keys, length_key = jax.random.split(key, len(leaves) + 1)
    normals = [
        jax.random.normal(own, leaf.shape, leaf.dtype)
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    dimension = sum(leaf.size // leaf.shape[0] for leaf in leaves)
    uniform = jax.random.uniform(length_key, (leaves[0].shape[0],))
    direction = _normalized(jax.tree.unflatten(structure, normals))
    return _scaled(direction, radius * uniform ** (1.0 / dimension))


def _uniform_linf(key: Key[Array, ""], like: PyTree[Array], radius: Any) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jnp.asarray(radius, leaf.dtype) * jax.random.uniform(own, leaf.shape, leaf.dtype, -1.0, 1.0)
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)
