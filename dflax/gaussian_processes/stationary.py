"""Kernels whose parameters are free, fitted by likelihood: what a multiple kernel is held against."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.gaussian_processes.likelihood import minus_log_density
from dflax.gaussian_processes.prediction import Prediction
from dflax.gaussian_processes.triangular import triangular_inverse

LINE_SEARCH = 10
# An ascent ends where the gradient's norm is below this share of the value.
FLAT = 1e-6

# (parameters, left [m, P], right [n, P]) -> [m, n]
Kernel = Callable[[PyTree[Array], Float[Array, "m P"], Float[Array, "n P"]], Float[Array, "m n"]]


class SquaredExponential(NamedTuple):
    """Logarithms of an amplitude and of a length in every dimension.

    Attributes:
      amplitude: `[]` log of the standard deviation.
      length: `[P]`.
    """

    amplitude: Float[Array, ""]
    length: Float[Array, " P"]


class SpectralMixture(NamedTuple):
    """Logarithms of the parameters of Q components.

    Attributes:
      weights: `[Q]`.
      means: `[Q, P]` of the frequencies.
      deviations: `[Q, P]` of the spectral standard deviations.
    """

    weights: Float[Array, " Q"]
    means: Float[Array, "Q P"]
    deviations: Float[Array, "Q P"]


class Fitted(NamedTuple):
    """The best of several ascents of the likelihood.

    Attributes:
      params: of the kernel.
      value: `[]` y' C^-1 y + log det C there.
      values: `[R]` of all ascents.
    """

    params: PyTree[Array]
    value: Float[Array, ""]
    values: Float[Array, " R"]


def squared_exponential(params: SquaredExponential, left: Array, right: Array) -> Array:
    """a^2 exp(-sum_p t_p^2 / (2 l_p^2)), one length a dimension (ARD)."""
    validation.instance("params", params, SquaredExponential)
    _check_points(left, right)
    scaled = (left[:, None] - right[None]) / jnp.exp(params.length)
    return jnp.exp(2 * params.amplitude - 0.5 * jnp.sum(jnp.square(scaled), -1))


def spectral_mixture(params: SpectralMixture, left: Array, right: Array) -> Array:
    """sum_q w_q prod_p exp(-2 pi^2 t_p^2 s_qp^2) cos(2 pi t_p m_qp), all of them free.

    References:
      Wilson and Adams, Gaussian Process Kernels for Pattern Discovery and Extrapolation,
      arXiv 1302.4245.
    """
    validation.instance("params", params, SpectralMixture)
    _check_points(left, right)
    apart = left[:, None] - right[None]
    decay = jnp.einsum("mnp,qp->mnq", jnp.square(apart), jnp.exp(2 * params.deviations))
    waves = jnp.cos(2 * jnp.pi * apart[:, :, None] * jnp.exp(params.means))
    parts = jnp.exp(-2 * jnp.pi**2 * decay) * jnp.prod(waves, -1)
    return jnp.matmul(parts, jnp.exp(params.weights), precision="highest")


def maximum_likelihood(
    kernel: Kernel,
    starts: PyTree[Array],
    inputs: Float[AnyArray, "n P"],
    targets: Float[AnyArray, " n"],
    noise: float,
    *,
    steps: int = 100,
) -> Fitted:
    """Fits a kernel's parameters by L-BFGS from several starts, and takes the best.

    Args:
      kernel: `(params, left, right) -> [m, n]`, such as `squared_exponential`.
      starts: parameters with leaves `[R, ...]`, unconstrained.
      inputs: `[n, P]`.
      targets: `[n]`.
      noise: variance s2 > 0; traceable.
      steps: >= 1, of each ascent.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("steps", steps, low=1)
    validation.arrays("starts", starts, "Stack parameters of one start or more.", some=True)
    validation.leading_axis("starts", starts, least=1)
    x, y = _examples(kernel, inputs, targets, noise)
    found, values = _ascents(kernel, int(steps), jax.tree.map(jnp.asarray, starts), x, y, noise)
    best = jnp.nanargmin(values)
    return Fitted(jax.tree.map(lambda leaf: leaf[best], found), values[best], values)


def posterior(
    kernel: Kernel,
    params: PyTree[Array],
    inputs: Float[AnyArray, "n P"],
    targets: Float[AnyArray, " n"],
    noise: float,
    points: Float[AnyArray, "m P"],
) -> Prediction:
    """What a kernel with these parameters predicts of targets, noise included, leaves `[m]`.

    Args:
      kernel: `(params, left, right) -> [m, n]`.
      params: of the kernel.
      inputs: `[n, P]`.
      targets: `[n]`.
      noise: variance s2 > 0; traceable.
      points: `[m, P]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.arrays("params", params, some=True)
    x, y = _examples(kernel, inputs, targets, noise)
    given = validation.array("points", points, kind="real", shape=("m", x.shape[1]))
    where = jnp.asarray(given, y.dtype)
    factor = jnp.linalg.cholesky(kernel(params, x, x) + noise * jnp.eye(len(y), dtype=y.dtype))
    half = triangular_inverse(factor)
    whitened = jnp.matmul(half, kernel(params, x, where), precision="highest")
    own = jax.vmap(lambda one: kernel(params, one[None], one[None])[0, 0])(where)
    mean = jnp.matmul(whitened.T, jnp.matmul(half, y, precision="highest"), precision="highest")
    return Prediction(mean, own + noise - jnp.sum(jnp.square(whitened), axis=0))


def _check_points(left: Array, right: Array) -> None:
    """Refuses inputs that are not `[m, P]` and `[n, P]`."""
    found = validation.array("left", left, kind="real", shape=("m", "P"))
    validation.array("right", right, kind="real", shape=("n", found.shape[1]), fix="As left has.")


def _examples(kernel: Kernel, inputs: Any, targets: Any, noise: Any) -> tuple[Array, Array]:
    """Inputs and targets as they are computed with, once all is looked at."""
    validation.function("kernel", kernel, takes=3)
    validation.real("noise", noise, low=0.0, low_open=True, scalar=True)
    y = jnp.asarray(validation.array("targets", targets, kind="real", shape=("n",)))
    y = y.astype(jnp.result_type(y, float))
    x = validation.array("inputs", inputs, kind="real", shape=(len(y), "P"))
    return jnp.asarray(x, y.dtype), y


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ascents(
    kernel: Kernel, steps: int, starts: PyTree[Array], x: Array, y: Array, noise: Array
) -> tuple[PyTree[Array], Array]:
    """Where each start ends, and the value there; compiled once for data of one shape."""
    search = optax.scale_by_zoom_linesearch(LINE_SEARCH, initial_guess_strategy="one")
    descent = optax.lbfgs(linesearch=search)

    def value(params: PyTree[Array]) -> Array:
        covariance = kernel(params, x, x) + noise * jnp.eye(len(y), dtype=y.dtype)
        return minus_log_density(covariance, y)

    differentiate = optax.value_and_grad_from_state(value)

    def ascent(params: PyTree[Array]) -> tuple[PyTree[Array], Array]:
        def further(params: PyTree[Array], state: Any, found: Array, slope: PyTree[Array]) -> Any:
            updates, state = descent.update(
                slope, state, params, value=found, grad=slope, value_fn=value
            )
            return optax.apply_updates(params, updates), state

        def one(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            found, slope = differentiate(params, state=state)
            steep = optax.tree.norm(slope) > FLAT * (1 + jnp.abs(found))
            after = jax.lax.cond(
                steep,
                further,
                lambda params, state, *_: (params, state),
                params,
                state,
                found,
                slope,
            )
            return after, None

        params, _ = jax.lax.scan(one, (params, descent.init(params)), None, steps)[0]
        return params, value(params)

    # One after another, since searches differ in length.
    return jax.lax.map(ascent, starts)
