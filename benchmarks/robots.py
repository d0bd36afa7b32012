"""Swarms of robots under DBP: a tick of 300 robots, in three applications, and their matchings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import alone
from benchmarks.measure import Row, milliseconds
from dflax import robots
from dflax.robots.swarm import all_links
from experiments.tasks.swarms import moving, swarm


def rows(quick: bool) -> list[Row]:
    """Whole runs from the first tick on, as ticks with new accusations cost most."""
    return [*runs(200 if quick else 2000), *matchings(quick)]


def runs(ticks: int) -> list[Row]:
    """Ticks of a run of the paper's sizes, in milliseconds each.

    The peer is a hop of claims between those linked at the end, see `alone.hopped`: of the three stamps
    of each pair. Accusations, matchings and estimates are not in it.
    """
    measured = []
    for name, task in moving(1.0).items():
        count, key = len(task.members), jax.random.key(0)
        algorithm, source = swarm(task, "DBP", 0), dx.Population(count)
        state = algorithm.init(key, robots.scattered(key, count))

        def work(
            state: Any, source: dx.Population, algorithm: dx.Algorithm = algorithm
        ) -> tuple[Any, Any]:
            return dx.rollout(algorithm, state, source, jax.random.key(1), ticks)

        compiled = jax.jit(work).lower(state, source).compile()
        took = milliseconds(lambda: compiled(state, source), repeats=1, units=ticks)  # noqa: B023
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        bodies, ledger = compiled(state, source)[0].clients
        heard = jnp.asarray(alone.heard_by_each(np.asarray(all_links(bodies, 4.0, None))))
        hops, stamps = alone.repeated(alone.hopped, ticks), (ledger.heard, ledger.held, ledger.came)
        least = milliseconds(lambda: hops(stamps, heard), repeats=2, units=ticks)  # noqa: B023
        measured.append(
            Row(
                f"a tick of {count} robots, {name}, {ticks:,} ticks (state {size / 1e6:.0f} MB)",
                took,
                f"hops of claims alone, {heard.shape[1]} heard",
                least,
                peak_bytes=getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None),
            )
        )
    return measured


def matchings(quick: bool) -> list[Row]:
    """Maximum matchings of accusations among 300 robots, 100 of them liars, and networkx's."""
    import networkx

    count = 2 if quick else 10
    rng = np.random.default_rng(0)
    accused = rng.random((count, 300, 300)) < 0.03
    accused[:, :, :200] = False
    given = accused | accused.transpose(0, 2, 1)
    search = jax.jit(jax.vmap(robots.maximum_matching))
    placed = jnp.asarray(given)
    ours = milliseconds(lambda: search(placed), repeats=2 if quick else 5, units=count)
    graphs = [networkx.from_numpy_array(one) for one in given]

    def theirs() -> list[Any]:
        return [networkx.max_weight_matching(graph, maxcardinality=True) for graph in graphs]

    sizes = (np.asarray(search(placed)) >= 0).sum(1) // 2
    if sizes.tolist() != [len(found) for found in theirs()]:
        raise AssertionError("matchings must be as large as networkx's.")
    peer = milliseconds(theirs, repeats=1, units=count)
    name = f"networkx {networkx.__version__}"
    return [Row("a maximum matching of 300 robots' accusations, from nothing", ours, name, peer)]
