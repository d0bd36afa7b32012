"""Swarms: Bradley-Terry of many queries at once beside choix, and whole rounds of Fortytwo."""

import contextlib
import importlib
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import alone
from benchmarks.measure import Row, alternately, milliseconds
from dflax import inference

NODES, PRIOR = 15, 0.1


def rows(quick: bool) -> list[Row]:
    """Rankings of queries, and rounds."""
    return [*rankings(200 if quick else 2000), *rounds(100 if quick else 1000)]


def rankings(queries: int) -> list[Row]:
    """A query's ranking from 45 comparisons by each of 15 judges."""
    choix: Any = None
    with contextlib.suppress(ImportError):
        choix = importlib.import_module("choix")
    generator = np.random.default_rng(0)
    wins = np.stack([_wins(generator) for _ in range(queries)])
    placed = jnp.asarray(wins, jnp.float32)

    def strengths(one: Any) -> Any:
        return inference.bradley_terry(one, prior=PRIOR, iterations=500, tolerance=1e-6)

    rank = jax.jit(jax.vmap(lambda one: strengths(one).log_strength))
    name = f"ranking 15 answers to 1e-6, {queries:,} queries at once"
    if choix is None:
        took = milliseconds(lambda: rank(placed), repeats=3, units=queries)
        return [Row(name, took, "choix: pip install choix")]
    some = wins[: min(queries, 200)] + PRIOR * ~np.eye(NODES, dtype=bool)

    def theirs() -> list[Any]:
        return [choix.ilsr_pairwise_dense(one, tol=1e-6) for one in some]

    off = max(
        np.abs(beta - (other - other.mean())).max()
        for beta, other in zip(np.asarray(rank(placed)), theirs(), strict=False)
    )
    if off > 1e-4:
        raise AssertionError(f"strengths must be choix's, got {off} apart.")
    ours, peer = alternately(lambda: rank(placed), theirs, repeats=3)
    version = importlib.metadata.version("choix")
    return [Row(name, ours / queries, f"choix {version}, one by one", peer / len(some))]


def rounds(count: int) -> list[Row]:
    """A round of 15 simulated nodes, 5 of them liars: 45 pairs a judge; alone, and 24 side by side.

    The peer is `alone.ranked`: the draws of comparisons, their wins and the ranking.
    """
    source = inference.Questions(NODES, inference.latent_questions())
    # As many iterations as `inference.by_strength` takes.
    least = alone.repeated(jax.vmap(alone.ranked(NODES, 3 * NODES, 60)), count)
    measured = []
    for lanes in (1, 24):

        def work(keys: Any, source: inference.Questions) -> Any:
            def run(key: Any) -> Any:
                liars = np.arange(NODES) > 9
                swarm = inference.latent_swarm(sharpness=1.2, liars=liars)
                algorithm = inference.fortytwo(swarm, pairs=3 * NODES)
                start = algorithm.init(key)
                return dx.rollout(algorithm, start, source, key, count)[1]["correct"]

            return jax.vmap(run)(keys)

        keys = jax.random.split(jax.random.key(0), lanes)
        compiled = jax.jit(work).lower(keys, source).compile()
        first = jnp.zeros(lanes, jnp.int32), jnp.zeros((lanes, NODES))
        took, alone_ms = (
            total / (count * lanes)
            for total in alternately(
                lambda: compiled(keys, source),  # noqa: B023
                lambda: least(first, keys),  # noqa: B023
                repeats=3,
            )
        )
        name = f"a round of Fortytwo, 15 nodes, {lanes} runs side by side"
        measured.append(Row(name, took, "its comparisons and ranking alone", alone_ms))
    return measured


def _wins(generator: np.random.Generator) -> np.ndarray:
    """Comparisons of answers of normal quality."""
    beta = generator.normal(size=NODES)
    first, second = generator.integers(0, NODES, (2, 3 * NODES * NODES))
    kept = first != second
    first, second = first[kept], second[kept]
    won = generator.random(len(first)) < 1 / (1 + np.exp(beta[second] - beta[first]))
    wins = np.zeros((NODES, NODES))
    np.add.at(wins, (np.where(won, first, second), np.where(won, second, first)), 1.0)
    return wins
