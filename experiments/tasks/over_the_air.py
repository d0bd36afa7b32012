"""Adapters that are sent over the air: a closed-form loss whose best ranks are known, and the link."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dflax import rl

# A layer of OPT-1.3B at 1/32 of its widths: q, k, v, out [64 x 64] and two feed-forward [64 x 256].
LAYER = (129, 129, 129, 129, 321, 321)
# Parameters of one unit of rank in all 144 matrices of OPT-1.3B, and the bandwidth there.
WHOLE, HERTZ = 884_880, 100e6
RATIOS = (-5.0, 0.0, 5.0, 10.0, 15.0)


class Closed(NamedTuple):
    """A loss that falls with every rank.

    Attributes:
      weights: c, `[P]`, log-normal.
      decays: k, `[P]`, in {1, ..., 6}.
      sizes: `[P]`.
      rank: R.
    """

    weights: np.ndarray
    decays: np.ndarray
    sizes: np.ndarray
    rank: int

    @property
    def task(self) -> rl.AdapterTask:
        """What a policy is trained on."""
        return rl.separable(
            jnp.asarray(self.weights), jnp.asarray(self.decays), self.sizes, self.rank
        )


def closed(seed: int, layers: int = 4, rank: int = 8) -> Closed:
    """A loss of random weights and decays; at rank 0 it is 1.6 on average."""
    rng = np.random.default_rng(seed)
    count = layers * len(LAYER)
    return Closed(
        np.exp(rng.normal(size=count)) / count,
        rng.integers(1, 7, count).astype(float),
        np.tile(LAYER, layers),
        rank,
    )


def scaled_link(sizes: np.ndarray, ratios: tuple[float, ...] = RATIOS) -> rl.RadioLink:
    """A link on which a uniform rank costs what it costs OPT-1.3B at 100 MHz."""
    return rl.radio_link(ratios, (HERTZ * sizes.sum() / WHOLE,))


def best(task: Closed, budget: float, price: float, low: int = 1) -> tuple[float, np.ndarray]:
    """The largest `- f(r) - lambda n(r) / budget` of ranks that fit, and the ranks; exact.

    Dynamic programming over matrices and parameters: the value of every budget that is a whole number
    of parameters.
    """
    most = int(min(budget, task.rank * task.sizes.sum()))
    value, choices = np.zeros(most + 1), []
    for c, k, size in zip(task.weights, task.decays, task.sizes, strict=True):
        found = np.full((task.rank - low + 1, most + 1), -np.inf)
        for place, rank in enumerate(range(low, task.rank + 1)):
            used = rank * size
            if used <= most:
                gain = -c * np.exp(-rank / k) - price * used / budget
                found[place, used:] = value[: most + 1 - used] + gain
        choices.append(found.argmax(axis=0))
        value = found.max(axis=0)
    ranks, left = np.zeros(len(task.sizes), int), int(value.argmax())
    for p in range(len(ranks) - 1, -1, -1):
        ranks[p] = low + choices[p][left]
        left -= ranks[p] * task.sizes[p]
    return float(value.max()), ranks


def greedy(task: Closed, budget: float, price: float, low: int = 1) -> np.ndarray:
    """Ranks that take the largest gain per parameter first, as far as they fit: nearly the best."""
    ranks = np.full(len(task.sizes), low)
    while True:
        ahead = (
            task.weights
            * (np.exp(-ranks / task.decays) - np.exp(-(ranks + 1) / task.decays))
            / task.sizes
            - price / budget
        )
        fits = (ranks < task.rank) & (ranks @ task.sizes + task.sizes <= budget) & (ahead > 0)
        if not fits.any():
            return ranks
        ranks[np.where(fits, ahead, -np.inf).argmax()] += 1
