"""Settings of P/D-Serve's study, and the numbers that its results stand beside."""

import dataclasses

import numpy as np

# Success rates of the experiment by another program, at loads .5, .8, .9, .95, 1, 1.1.
BEFORE = {
    "on demand": (1.0, 1.0, 0.999, 0.997, 0.992, 0.973),
    "reports of 0.1 s": (0.99, 0.91, 0.86, np.nan, 0.80, 0.74),
    "reports of 1 s": (0.94, 0.71, 0.62, np.nan, 0.55, 0.49),
    "shortest queue": (1.0, 1.0, 1.0, 0.97, 0.88, 0.60),
    "round robin": (1.0, 0.98, 0.95, 0.92, 0.87, 0.75),
}
# Requests a second of the tide of kinds: more than any one split of 12 serves at both turns, by the
# formula, and less than what the best split of each moment does.
RATE = 17.0
# The abstract's gains. It does not say at which load or against what exactly.
PAPER = {"throughput": 0.60, "success": 0.42, "transfer": 0.46, "over aggregated": 6.7}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seed: of all keys and traces; none of it chose anything.
      seeds: runs of each setting.
      loads: of prefill, as shares of what eight instances can do.
      size: requests of a run of the forwarding experiment.
      others: requests of a run of the other experiments.
      split: requests of a run at each split.
      periods: of the tides.
      rates: requests a second and instance that are tried under service levels.
      paces: TPOT that is promised, in multiples of that of a full batch.
      few: the rules that claims are about alone.
    """

    seed: int = 4100
    seeds: int = 4
    loads: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 1.0, 1.1)
    size: int = 20_000
    others: int = 6_000
    split: int = 4_000
    periods: int = 2
    rates: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
    paces: tuple[float, ...] = (1.15, 1.25, 1.5, 2.0, 3.0)
    few: bool = False
