"""Every robust rule that ByzFL has as well, on 50 messages of 421,642 numbers."""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import peers
from benchmarks.measure import Row, milliseconds
from benchmarks.tasks import messages
from dflax import aggregation
from dflax.aggregation import Aggregator, Combining

ROWS, COLUMNS, FAULTY, FEW = 50, 421_642, 10, 2
KEY = jax.random.key(0)
MEAN, MEDIAN = aggregation.mean(), aggregation.median()


class Work(NamedTuple):
    """One rule here and there.

    Attributes:
      rule: ours.
      peer: ByzFL's name of it, or of what comes before a rule; None where it has none.
      arguments: of the peer's.
      after: ByzFL's name of the rule behind it.
    """

    rule: Aggregator
    peer: str | None
    arguments: dict
    after: str = ""


F, G = {"f": FAULTY}, {"f": FEW}
WORK = {
    "mean": Work(MEAN, "Average", {}),
    "median": Work(MEDIAN, "Median", {}),
    "trimmed mean": Work(aggregation.trimmed_mean(FAULTY), "TrMean", F),
    "MeaMed": Work(aggregation.mea_med(FAULTY), "Meamed", F),
    "geometric median": Work(aggregation.geometric_median(), "GeometricMedian", {}),
    "Krum": Work(aggregation.krum(FAULTY, others="m-f-1"), "Krum", F),
    "Multi-Krum": Work(aggregation.multi_krum(FAULTY, others="m-f-1"), "MultiKrum", F),
    "CAF": Work(aggregation.caf(FAULTY), "CAF", F),
    f"MDA, f = {FEW}": Work(aggregation.mda(FEW), "MDA", G),
    f"SMEA, f = {FEW}": Work(aggregation.smea(FEW), "SMEA", G),
    "centred clipping, 1 step": Work(
        aggregation.centred_clipping(100.0), "CenteredClipping", {"tau": 100.0, "L": 1}
    ),
    "centred clipping, 3 steps": Work(
        aggregation.centred_clipping(100.0, 3), "CenteredClipping", {"tau": 100.0, "L": 3}
    ),
    "static clipping, mean": Work(
        aggregation.static_clipping(MEAN, 100.0), "Clipping", {"c": 100.0}, "Average"
    ),
    "ARC, mean": Work(aggregation.arc(MEAN, FAULTY), "ARC", F, "Average"),
    "ARC, median": Work(aggregation.arc(MEDIAN, FAULTY), "ARC", F, "Median"),
    "bucketing by 2, mean": Work(aggregation.bucketing(MEAN, 2), "Bucketing", {"s": 2}, "Average"),
    "bucketing by 2, median": Work(
        aggregation.bucketing(MEDIAN, 2), "Bucketing", {"s": 2}, "Median"
    ),
    "NNM, mean": Work(aggregation.nnm(MEAN, FAULTY), "NNM", F, "Average"),
    "NNM, median": Work(aggregation.nnm(MEDIAN, FAULTY), "NNM", F, "Median"),
    "NNM, Krum": Work(
        aggregation.nnm(aggregation.krum(FAULTY, others="m-f-1"), FAULTY), "NNM", F, "Krum"
    ),
    "Phocas": Work(aggregation.phocas(FAULTY), None, {}),
    "Bulyan": Work(aggregation.bulyan(FAULTY), None, {}),
    "DnC": Work(aggregation.dnc(FAULTY), None, {}),
    "FLTrust": Work(aggregation.fltrust(lambda params, data, here: data, 0.0), None, {}),
    "FoolsGold": Work(aggregation.foolsgold(ROWS), None, {}),
    "flag": Work(aggregation.flag(), None, {}),
    "mean of directions": Work(aggregation.mean_of_normalised(), None, {}),
}


def rows(quick: bool) -> list[Row]:
    """Ours beside ByzFL, a row for each rule."""
    columns = COLUMNS // 10 if quick else COLUMNS
    values, weights = jnp.asarray(messages(ROWS, columns)), jnp.ones(ROWS)
    found = []
    for name, work in WORK.items():
        state = work.rule.init(values[0])
        if name == "FLTrust":
            state = aggregation.RootData(values[0])
        here = Combining(KEY, 0, jnp.arange(ROWS), None, values[0])
        began = time.perf_counter()
        compiled = jax.jit(work.rule.apply).lower(values, weights, state, here).compile()
        seconds = time.perf_counter() - began
        took = milliseconds(functools.partial(compiled, values, weights, state, here), repeats=7)
        needed = compiled.memory_analysis()
        own = Row(
            f"{name}, {ROWS} x {columns:,}",
            took,
            compile_ms=1e3 * seconds,
            peak_bytes=None if needed is None else needed.temp_size_in_bytes,
        )
        measured = None
        if work.peer is not None:
            options = {"rule": work.peer, "arguments": work.arguments, "after": work.after}
            measured = peers.run(
                "byzfl", "reductions_byzfl", rows=ROWS, columns=columns, repeats=2, **options
            )
        found += own.beside(measured)
    return found
