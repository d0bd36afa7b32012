"""Series that agents own stretches of: two waves with noise, and real ones; reference solutions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dflax as dx
from dflax import gaussian_processes as gp

WAVES = (0.05, 0.2)
TEST = 20


class Series(NamedTuple):
    """An evenly spaced series, one step apart; its last `TEST` values are for testing.

    Attributes:
      name: in words.
      values: `[n]`, standardised by those of training where that is said.
      noise: the variance of its noise.
    """

    name: str
    values: Float[np.ndarray, " n"]
    noise: float

    @property
    def inputs(self) -> Float[np.ndarray, " n"]:
        """0, 1, 2, ..."""
        return np.arange(float(len(self.values)))

    @property
    def held_out(self) -> Float[np.ndarray, " m"]:
        """The last values."""
        return self.values[-TEST:]

    @property
    def points(self) -> Float[np.ndarray, " m"]:
        """Their inputs."""
        return self.inputs[-TEST:]

    def dealt(self, agents: int, length: int | None = None) -> gp.Agents:
        """The values for training in as many stretches, padded to a length."""
        count = len(self.values) - TEST
        rows = np.array_split(np.arange(count), agents)
        return gp.agents(
            self.inputs[:count], self.values[:count], dx.data.from_indices(rows), length=length
        )


def waves(seed: int, length: int = 240) -> Series:
    """sin(2 pi 0.05 x) + 0.5 cos(2 pi 0.2 x) with noise of deviation 0.1."""
    x = np.arange(float(length))
    clean = np.sin(2 * np.pi * WAVES[0] * x) + 0.5 * np.cos(2 * np.pi * WAVES[1] * x)
    noise = np.random.default_rng(seed).normal(size=length)
    return Series("two waves", clean + 0.1 * noise, 0.01)


def real() -> dict[str, Series]:
    """Monthly CO2 at Mauna Loa (501 months), yearly sunspots (309), monthly airline passengers (144).

    All are standardised by mean and deviation of the values for training; the noise is estimated from
    these as well. Months without a measurement are interpolated.

    Raises:
      ImportError: statsmodels or pmdarima is missing, which hold the series.
    """
    import pmdarima.datasets
    from statsmodels.datasets import co2, sunspots

    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate()
    found = {
        "CO2": monthly.to_numpy()[-501:],
        "sunspots": sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(),
        "airline": np.asarray(pmdarima.datasets.load_airpassengers()),
    }
    return {name: standardised(name, values) for name, values in found.items()}


def standardised(name: str, values: Float[np.ndarray, " n"]) -> Series:
    """A series with mean 0 and deviation 1 in training, and its noise by cross-validation."""
    training = values[:-TEST].astype(np.float64)
    scaled = (values - training.mean()) / training.std()
    with jax.enable_x64(True):
        noise = float(gp.noise_variance(scaled[:-TEST]))
    return Series(name, scaled, noise)


def centralised(
    kernel: gp.MultipleKernel, observed: gp.Observations, starts: list[Float[np.ndarray, " A"]]
) -> Float[np.ndarray, " A"]:
    """The best weights that SciPy's L-BFGS-B finds for the sum of all agents' objectives."""
    from scipy.optimize import minimize

    def value(theta: np.ndarray) -> tuple[float, np.ndarray]:
        found, slope = _evaluated(kernel, jnp.asarray(theta), observed)
        return float(found), np.asarray(slope, np.float64)

    bounds = [(0.0, None)] * kernel.components
    options = {"maxiter": 400, "maxfun": 500}
    ended = [
        minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for start in starts
    ]
    return min(ended, key=lambda one: one.fun).x


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(
    kernel: gp.MultipleKernel, theta: Array, observed: gp.Observations
) -> tuple[Array, Array]:
    """The sum of all agents' objectives, and its gradient."""
    found = jax.lax.map(lambda own: gp.evidence(kernel, own, theta), observed)
    return jnp.sum(found.value), jnp.sum(found.g - found.q, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def alone(
    kernel: gp.MultipleKernel, observed: gp.Observations, start: Array, steps: int
) -> Float[Array, "N A"]:
    """Every agent's own weights, without the others: experts, whose predictions are fused."""

    def one(own: gp.Observations) -> Array:
        at = functools.partial(gp.evidence, kernel, own)
        return gp.mm(steps)(at, start, jnp.zeros_like(start), jnp.zeros((), start.dtype))

    return jax.lax.map(one, observed)


def free_kernels(
    series: Series, components: int, restarts: int, steps: int, seed: int
) -> dict[str, Callable[[], Any]]:
    """What a squared exponential and a spectral mixture with free frequencies predict, all data."""
    count = len(series.values) - TEST
    x, y = series.inputs[:count, None], series.values[:count]
    rng = np.random.default_rng(seed)
    power = float(np.log(np.mean(y**2)))
    lengths = np.log(np.array([2.0, 6.0, 20.0]))
    starts: dict[str, tuple[Any, Any]] = {
        "SE": (
            gp.squared_exponential,
            gp.SquaredExponential(jnp.full(3, power / 2), jnp.asarray(lengths[:, None])),
        ),
        "SM": (
            gp.spectral_mixture,
            gp.SpectralMixture(
                jnp.full((restarts, components), power - np.log(components)),
                jnp.log(rng.uniform(0.002, 0.5, (restarts, components, 1))),
                jnp.log(rng.uniform(0.002, 0.02, (restarts, components, 1))),
            ),
        ),
    }

    def predicted(name: str) -> gp.Prediction:
        kernel, start = starts[name]
        fitted = gp.maximum_likelihood(kernel, start, x, y, series.noise, steps=steps)
        where = series.points[:, None]
        return gp.posterior(kernel, fitted.params, x, y, series.noise, where)

    return {name: functools.partial(predicted, name) for name in starts}


def mse(prediction: Any, series: Series) -> Any:
    """Mean squared error on what was held out, by agent where there are several."""
    return np.mean(np.square(np.asarray(prediction.mean) - series.held_out), axis=-1)
