"""Fields over two dimensions whose quadrants or years agents own: waves with noise, and El Niño."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import dflax as dx
from dflax import gaussian_processes as gp

# Frequencies of the stronger and of the weaker wave along both axes.
DIAGONAL = ((0.05, 0.05), (0.2, 0.2))
ASIDE = ((0.06, 0.17), (0.23, 0.09))
HELD_OUT = 0.1


class Field(NamedTuple):
    """Values at places of a lattice with spacing 1, some of them held out.

    Attributes:
      name: in words.
      inputs: `[n, 2]` places for training.
      values: `[n]` there.
      points: `[m, 2]` places that are held out.
      held_out: `[m]` values there.
      owners: `[n]` the agent of each place for training, 0 .. N - 1.
      noise: the variance of the values' noise.
    """

    name: str
    inputs: Float[np.ndarray, "n 2"]
    values: Float[np.ndarray, " n"]
    points: Float[np.ndarray, "m 2"]
    held_out: Float[np.ndarray, " m"]
    owners: Int[np.ndarray, " n"]
    noise: float

    def dealt(self, length: int | None = None) -> gp.Agents:
        """The values for training, each with its owner."""
        rows = [np.flatnonzero(self.owners == agent) for agent in range(self.owners.max() + 1)]
        return gp.agents(self.inputs, self.values, dx.data.from_indices(rows), length=length)

    def together(self) -> gp.Agents:
        """All of them as one agent's."""
        rows = [np.arange(len(self.values))]
        return gp.agents(self.inputs, self.values, dx.data.from_indices(rows))


def crossed_waves(seed: int, frequencies: tuple[tuple[float, float], ...], side: int = 20) -> Field:
    """sin(2 pi a x) cos(2 pi b y) + 0.5 cos(2 pi c x) sin(2 pi d y), noise of deviation 0.1.

    On `side`^2 places, a tenth of them held out at random; four agents own a quadrant each.
    """
    (a, b), (c, d) = frequencies
    rng = np.random.default_rng(seed)
    places = _lattice(side, side)
    x, y = 2 * np.pi * places.T
    clean = np.sin(a * x) * np.cos(b * y) + 0.5 * np.cos(c * x) * np.sin(d * y)
    values = clean + 0.1 * rng.normal(size=len(clean))
    quadrants = (places >= side / 2) @ np.array([2, 1])
    return _split("crossed waves", rng, places, values, quadrants, 0.01)


def el_nino(seed: int, agents: int = 4) -> Field:
    """Sea temperatures of 61 years by 12 months, standardised by those for training.

    A tenth is held out at random; each agent owns a stretch of years. The noise is estimated from the
    values for training in the order of time.

    Raises:
      ImportError: statsmodels is missing, which holds the data.
    """
    from statsmodels.datasets import elnino

    table = elnino.load_pandas().data.to_numpy()[:, 1:].astype(np.float64)
    years, months = table.shape
    places = _lattice(years, months)
    owners = (places[:, 0] * agents / years).astype(int)
    rng = np.random.default_rng(seed)
    field = _split("El Niño", rng, places, table.ravel(), owners, 1.0)
    mean, deviation = field.values.mean(), field.values.std()
    scaled = (field.values - mean) / deviation
    with jax.enable_x64(True):
        noise = float(gp.noise_variance(scaled))
    return field._replace(values=scaled, held_out=(field.held_out - mean) / deviation, noise=noise)


def exponential(field: Field, steps: int) -> gp.Prediction:
    """What a squared exponential with a length for each dimension predicts, all data."""
    power = jnp.full(2, np.log(np.mean(field.values**2)) / 2)
    lengths = jnp.log(jnp.asarray([[1.5, 1.5], [5.0, 3.0]]))
    start = gp.SquaredExponential(power, lengths)
    x, y, noise = field.inputs, field.values, field.noise
    fitted = gp.maximum_likelihood(gp.squared_exponential, start, x, y, noise, steps=steps)
    return gp.posterior(gp.squared_exponential, fitted.params, x, y, noise, field.points)


def _lattice(rows: int, columns: int) -> Float[np.ndarray, "n 2"]:
    axes = np.arange(float(rows)), np.arange(float(columns))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def _split(
    name: str, rng: Any, places: np.ndarray, values: np.ndarray, owners: np.ndarray, noise: float
) -> Field:
    """A tenth of the places is held out."""
    drawn = rng.permutation(len(values))
    count = round(HELD_OUT * len(values))
    away, kept = np.sort(drawn[:count]), np.sort(drawn[count:])
    return Field(name, places[kept], values[kept], places[away], values[away], owners[kept], noise)
