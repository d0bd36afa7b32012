"""Small crowds, and an oracle that is exact and says that it is not."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import heavy_hitters as hh
from dflax.privacy import local_privacy as lp
from dflax.privacy.local_privacy import Estimates

KEY = jax.random.key(0)
# Unlike shares, so that sums over parties are not equal but for rounding.
SIZES = (307, 511, 203)
BITS, LEVELS, K = 11, 5, 4


def crowd(seed=0, bits=BITS, sizes=SIZES, codes=40):
    """Items with common and own favourites, as numbers."""
    rng = np.random.default_rng(seed)
    names = rng.choice(1 << min(bits, 40), codes, replace=False).astype(np.uint64)
    names = names * np.uint64(max(1, 1 << (bits - 40))) if bits > 40 else names
    items = []
    for party, size in enumerate(sizes):
        weights = np.arange(1, codes + 1) ** -1.0
        weights[10 + 3 * party : 13 + 3 * party] = 0.5
        items.append(names[rng.choice(codes, size, p=weights / weights.sum())])
    return np.concatenate(items)


def groups_of(source):
    """The table of a source as lists of numbers, level by level and party by party."""
    items, present = (np.asarray(leaf) for leaf in source.table[:2])
    return [
        [
            [int(v) for v in hh.as_numbers(rows[here])]
            for rows, here in zip(level, there, strict=True)
        ]
        for level, there in zip(items, present, strict=True)
    ]


def exact(deviation):
    """Frequencies as they are, with `deviation / sqrt(n)` said of them."""
    oracle = lp.k_rr(1.0)

    def simulate(key, values, domain, present):
        hits = (values[:, None] == jnp.arange(int(domain.padded))) & present[:, None]
        counts, users = hits.sum(0), present.sum()
        said = jnp.where(users > 0, deviation / jnp.sqrt(jnp.maximum(users, 1)), jnp.inf)
        shares = counts / jnp.maximum(users, 1)
        return Estimates(shares, jnp.where(domain.valid, said, 0.0), counts, users)

    return oracle._replace(simulate=simulate)


def run(algorithm, source, sizes=SIZES, key=KEY):
    levels = source.rows
    start = algorithm.init(key, jnp.array(sizes))
    rolled = jax.jit(lambda state, source: dx.rollout(algorithm, state, source, key, levels))
    return rolled(start, source)
