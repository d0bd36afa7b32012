"""Sharpness-aware minimisation: gradients taken at the worst point nearby."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.clipping import squared_norm
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.models.averaged import of_weights

# Keeps the direction finite where the gradient vanishes; as in the authors' code of many methods.
SMALLEST_NORM = 1e-7


def sam(
    loss: Loss | Oracle, radius: float, *, weight: float = 1.0, normalize: bool = True
) -> Oracle:
    """The oracle of sharpness-aware minimisation (SAM).

    On one minibatch and with one key:

        g = grad f(x),    e = rho g / (|g| + 1e-7),    q = (1 - weight) g + weight grad f(x + e)

    |.| is the Euclidean norm over all parameters. Costs two gradients; metrics are those at x.

    Args:
      loss: a loss, or an `Oracle` to take both gradients from.
      radius: rho, of the perturbation, >= 0, in units of the parameters; traceable. With
        `normalize=False` the factor of the raw gradient: e = rho g.
      weight: of the perturbed gradient, in [0, 1]; 1 is SAM, between them FedSpeed's quasi-gradient;
        traceable.
      normalize: whether the perturbation has length rho whatever the gradient's length is.

    Returns:
      An `Oracle`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> loss = lambda params, batch, key: (0.5 * params @ params, {})
      >>> oracle = dx.local.sam(loss, radius=5.0)
      >>> seen, _ = oracle(jnp.array([3.0, 4.0]), None, jax.random.key(0))
      >>> seen.round(2).tolist()  # the gradient at (3, 4) + 5 (3, 4) / |(3, 4)|
      [6.0, 8.0]

    References:
      Foret et al., Sharpness-Aware Minimization, arXiv 2010.01412; Sun et al., FedSpeed,
      arXiv 2302.10429 (the weight).
    """
    oracle = gradient(loss)
    validation.real("radius", radius, low=0.0, scalar=True)
    validation.real("weight", weight, low=0.0, high=1.0, scalar=True)
    validation.flag("normalize", normalize)
    # SAM itself need not read the first gradient again.
    known_one = isinstance(weight, int | float) and weight == 1

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        here, metrics = oracle(params, batch, key)
        there, _ = oracle(perturbed(params, here, radius, normalize=normalize), batch, key)
        if known_one:
            return there, metrics
        mixed = jax.tree.map(lambda g, h: g + jnp.asarray(weight, g.dtype) * (h - g), here, there)
        return mixed, metrics

    return Oracle(evaluate)


def perturbed(
    params: Params, direction: Params, radius: float | Array, *, normalize: bool = True
) -> Params:
    """`x + rho d / (|d| + 1e-7)`, or `x + rho d` without `normalize`; |.| over all parameters.

    Running statistics ("batch_stats" of a variables dict) do not move and do not count.

    Args:
      params: x.
      direction: d, a tree like the model.
      radius: rho >= 0, in units of the parameters, or of d with `normalize=False`; traceable.
      normalize: whether the length of d does not count.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("radius", radius, low=0.0, scalar=True)
    validation.flag("normalize", normalize)
    direction = of_weights(direction)
    length = jnp.sqrt(squared_norm(direction)) + SMALLEST_NORM if normalize else 1.0
    step = radius / length
    return jax.tree.map(lambda x, d: x + jnp.asarray(step, x.dtype) * d, params, direction)
