"""How much a mixing by the nearest contracts, and how far hostile peers can move it: a random search."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dflax import gossip
from dflax.gossip.rules.calibration import Calibration
from experiments.tools.finished import Stage
from experiments.tools.study import Claim, Summary

# n and f; the theorem asks for n >= 11 f.
SIZES = ((26, 2), (12, 1), (26, 5), (16, 3))
SEARCHES = 3


def constants(config: Any, stage: Stage) -> Summary:
    """Lower bounds of alpha and lambda of (alpha, lambda)-reduction, worst of each search."""
    rows: dict[str, dict[str, float]] = {}
    alphas = {}
    for n, f in SIZES:
        key = jax.random.key(config.seed + n)
        found = stage(
            f"search at n = {n}, f = {f}",
            lambda n=n, f=f, key=key: np.asarray(_searched(n, f, config.trials, key)),
        )
        alphas[n, f] = found[0]
        name = f"NNA, n = {n}, f = {f}"
        rows[name] = {
            "alpha": float(found[0].max()),
            "alpha, least search": float(found[0].min()),
            "lambda": float(found[1].max()),
            "lambda, least search": float(found[1].min()),
        }
    few = np.concatenate([alphas[26, 2], alphas[12, 1]])
    many = np.concatenate([alphas[26, 5], alphas[16, 3]])
    return Summary(
        rows,
        [
            Claim(
                "one mixing more than halves disagreement where n >= 11 f, every search",
                bool((few < 0.5).all()),
                few.tolist(),
                0.5,
            ),
            Claim(
                "and not where n = 5 f, every search", bool((many > 0.5).all()), many.tolist(), 0.5
            ),
        ],
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _searched(n: int, f: int, trials: int, key: jax.Array) -> jax.Array:
    """The largest alpha and lambda of every search, `[2, searches]`."""
    keys = jax.random.split(key, SEARCHES * trials)
    each = jax.vmap(lambda number, key: _trial(n, f, number, key))(jnp.arange(len(keys)), keys)
    return jnp.stack(each).reshape(2, SEARCHES, trials).max(2)


def _trial(n: int, f: int, number: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Honest values of one of six shapes; hostile ones within two deviations, one for all or many."""
    honest = n - f
    shape, lie, mode, hear = jax.random.split(key, 4)
    normal = jax.random.normal(shape, (honest,))
    clustered = jnp.where(jnp.arange(honest) < 2, 1.0, 0.01 * normal)
    shapes = (
        normal,
        # Student's t of two degrees.
        normal / jnp.sqrt(jax.random.exponential(lie, (honest,))),
        jax.random.uniform(shape, (honest,)),
        jax.random.bernoulli(shape, 0.5, (honest,)).astype(jnp.float32),
        jax.random.exponential(shape, (honest,)),
        clustered,
    )
    x = jnp.stack(shapes)[number % len(shapes)]
    wide = 2 * x.std()
    many = jax.random.uniform(lie, (honest,), minval=-1)
    one = jax.random.uniform(mode, minval=-1)
    # To all the same, to each another, or to each on its own side of the mean.
    ways = jnp.stack([jnp.full(honest, one), many, jnp.abs(one) * jnp.sign(x - x.mean())])
    liars = x.mean() + wide * ways[jax.random.randint(hear, (), 0, len(ways))]
    rule = gossip.nna(f)

    def mixed(peer: jax.Array, liar: jax.Array, key: jax.Array) -> jax.Array:
        order = jax.random.permutation(key, honest - 1)[: n - 2 * f - 1]
        others = x[order + (order >= peer)]
        heard = jnp.concatenate([others, jnp.full(f, liar)])
        weights = jnp.full(heard.shape, 1 / (n - f))
        nobody, left = jnp.zeros(heard.shape, jnp.int32), jnp.float32(1 / (n - f))
        here = gossip.Neighbourhood(peer, nobody, left, key, peer, Calibration(None, None))
        return rule.apply(x[peer], heard, weights, (), here)[0]

    after = jax.vmap(mixed)(jnp.arange(honest), liars, jax.random.split(hear, honest))
    before = jnp.maximum(x.var(), 1e-12)
    return after.var() / before, jnp.square(after.mean() - x.mean()) / before
