"""Crowds of users in parties, each user with one item; and runs that look for the most frequent."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

import dflax as dx
from dflax import counter
from dflax import heavy_hitters as hh
from dflax.privacy import local_privacy as lp

BITS, LEVELS = 24, 12
SHARES = (0.30, 0.25, 0.18, 0.12, 0.09, 0.06)


class Crowds(NamedTuple):
    """Several crowds of one law, on a leading axis.

    Attributes:
      sizes: users of each party.
      keys: `[s]` typed keys, of each crowd.
      items: `[s, N, 1]` uint32.
      truth: `[s]` the most frequent items, as many as any run looks for.
      equal: groups of equal size.
      growing: groups of growing size.
    """

    sizes: tuple[int, ...]
    keys: Array
    items: UInt32[Array, "s N 1"]
    truth: hh.Found
    equal: dx.Events
    growing: dx.Events


def party_sizes(users: int) -> tuple[int, ...]:
    """Users of six parties, .30, .25, .18, .12, .09 and .06 of them."""
    return tuple(round(share * users) for share in SHARES)


def codes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Distinct items of 24 bits, uniform at random."""
    return rng.choice(1 << BITS, count, replace=False).astype(np.uint64)


def misaligned(rng: np.random.Generator, sizes: tuple[int, ...]) -> np.ndarray:
    """Every party has favourites that it shares with all, and others of its own that distract it.

    Of each party .35 hold 20 shared items (weights j^-0.7 times lognormal(0, 0.3)), .35 one of 8 items
    of its own, .30 one of 980 common items.
    """
    own = 8
    names = codes(rng, 20 + own * len(sizes) + 980)
    items = []
    for party, size in enumerate(sizes):
        weights = np.zeros(len(names))
        favourites = np.arange(1, 21) ** -0.7 * rng.lognormal(0, 0.3, 20)
        weights[:20] = 0.35 * favourites / favourites.sum()
        weights[20 + own * party : 20 + own * (party + 1)] = 0.35 / own
        weights[-980:] = 0.30 / 980
        items.append(names[rng.choice(len(names), size, p=weights / weights.sum())])
    return np.concatenate(items)


def aligned(rng: np.random.Generator, sizes: tuple[int, ...]) -> np.ndarray:
    """No item is a party's own: 1000 under Zipf's law (1.3), times lognormal(0, 1.5) by party."""
    names = codes(rng, 1000)
    items = []
    for size in sizes:
        weights = np.arange(1, 1001) ** -1.3 * rng.lognormal(0, 1.5, 1000)
        items.append(names[rng.choice(1000, size, p=weights / weights.sum())])
    return np.concatenate(items)


def drawn(
    law: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
    users: int,
    seeds: range,
    most: int,
) -> Crowds:
    """Crowds of a law, one for each seed, with their truth and their groups."""
    sizes = party_sizes(users)
    given = [hh.as_words(law(np.random.default_rng(seed), sizes), BITS) for seed in seeds]
    items = jnp.asarray(np.stack(given))
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))

    def prepared(key: Array, items: Array) -> tuple[Any, dx.Events, dx.Events]:
        # A run folds the numbers of its levels into the same key.
        group = jax.random.fold_in(key, counter.OF_STARTS)
        equal, growing = (
            hh.grouped(group, items, sizes, LEVELS, growing=growing) for growing in (False, True)
        )
        return hh.most_frequent(items, most), equal, growing

    truth, equal, growing = jax.jit(lambda *own: jax.lax.map(lambda one: prepared(*one), own))(
        keys, items
    )
    return Crowds(sizes, keys, items, truth, equal, growing)


ORACLES = {
    "k-RR": lp.k_rr,
    "OUE": lp.oue,
    "SUE": lp.sue,
    "OLH": lp.olh,
    # 32 blocks suit epsilon 4.
    "HR": functools.partial(lp.hadamard_response, blocks=32),
}


def tree(name: str, oracle: Any, k: int, epsilon: Any, sharing: Any) -> dx.Algorithm:
    """A method by its name, in this study's setting."""
    setting: dict[str, Any] = {"bits": BITS, "levels": LEVELS, "k": k}
    if name == "GTF":
        return hh.gtf(epsilon, **setting)
    if name in ("FedPEM", "TAP fixed"):
        return hh.tap(oracle(epsilon), sharing=sharing, extension=hh.fixed(k), **setting)
    if name == "TAPS validated":
        return hh.taps(oracle(epsilon), sharing=sharing, pruning=hh.validated(), **setting)
    make = {"TAP": hh.tap, "TAPS": hh.taps}[name]
    return make(oracle(epsilon), sharing=sharing, **setting)


class Runner:
    """Runs of the methods on crowds: one compiled program for each method, oracle, k and shape."""

    def __init__(self) -> None:
        self.programs: dict[tuple[str, str, int], Callable[..., Any]] = {}

    def __call__(
        self, crowds: Crowds, name: str, oracle: str, k: int, epsilon: float, sharing: int
    ) -> dict[str, Float[np.ndarray, " s"]]:
        """F1 and NCR of each crowd, the most candidates, and a user's bits."""
        # PEM in every party is a tree of fixed extension that shares nothing.
        kind = "TAP fixed" if name == "FedPEM" else name
        sharing = 0 if name in ("FedPEM", "GTF") else sharing
        place = (kind, "k-RR" if name == "GTF" else oracle, k)
        if place not in self.programs:
            self.programs[place] = jax.jit(self._program(crowds.sizes, *place))
        source = crowds.growing if name == "GTF" else crowds.equal
        found = self.programs[place](
            crowds.keys, source, crowds.truth, jnp.float32(epsilon), jnp.int32(sharing)
        )
        return {metric: np.asarray(values) for metric, values in found.items()}

    @staticmethod
    def _program(sizes: tuple[int, ...], name: str, oracle: str, k: int) -> Callable[..., Any]:
        def run(
            keys: Array, source: dx.Events, truth: hh.Found, epsilon: Array, sharing: Array
        ) -> dict[str, Array]:
            algorithm = tree(name, ORACLES[oracle], k, epsilon, sharing)

            def one(own: tuple[Array, dx.Events, hh.Found]) -> dict[str, Array]:
                key, source, truth = own
                truth = truth._replace(
                    items=truth.items[:k],
                    counts=truth.counts[:k],
                    number=jnp.minimum(truth.number, k),
                )
                start = algorithm.init(key, jnp.asarray(sizes))
                state, metrics = dx.rollout(algorithm, start, source, key, LEVELS)
                return {
                    "f1": hh.f1(state.server, truth),
                    "ncr": hh.ncr(state.server, truth),
                    "candidates": metrics["most_candidates"].max(),
                    "bits": metrics["report_bits"].mean(),
                    "sent": metrics["numbers_sent"].sum(),
                }

            return jax.lax.map(one, (keys, source, truth))

        return run


def triehh(crowds: Crowds, k: int, epsilon: float, delta: float) -> Float[np.ndarray, " s"]:
    """F1 of TrieHH, whose privacy is central."""
    users = sum(crowds.sizes)
    threshold = hh.triehh_threshold(delta)
    batch = hh.triehh_batch(epsilon, users=users, levels=LEVELS, threshold=threshold)
    algorithm = hh.triehh(bits=BITS, levels=LEVELS, k=k, threshold=threshold)
    source = dx.Population(users, participation=dx.participation.uniform(batch))

    def one(own: tuple[Array, Array, hh.Found]) -> Array:
        key, items, truth = own
        truth = truth._replace(
            items=truth.items[:k], counts=truth.counts[:k], number=jnp.minimum(truth.number, k)
        )
        state, _ = dx.rollout(algorithm, algorithm.init(key, items), source, key, LEVELS)
        return hh.f1(state.server[1], truth)

    run = jax.jit(lambda *own: jax.lax.map(one, own))
    return np.asarray(run(crowds.keys, crowds.items, crowds.truth))
