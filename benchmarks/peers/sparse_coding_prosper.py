"""ProSper's own EM steps, from given parameters at a given temperature, on one process."""

import time
from typing import Any

import numpy as np
from prosper.em.annealing import LinearAnnealing
from prosper.em.camodels import bsc_et, dsc_et, mca_et, mmca_et, tsc_et

# The released TSC names a list that its module lacks.
tsc_et.states = np.array([-1.0, 0.0, 1.0])

CLASSES = {
    "BSC": bsc_et.BSC_ET,
    "TSC": tsc_et.TSC_ET,
    "DSC": dsc_et.DSC_ET,
    "MCA": mca_et.MCA_ET,
    "MMCA": mmca_et.MMCA_ET,
}


def measure(
    model: str,
    data: list[list[float]],
    dictionary: list[list[float]],
    active: Any,
    noise: float,
    candidates: int,
    most: int,
    temperature: float,
    cut: float,
    steps: int,
    values: list[float] | None = None,
) -> dict[str, Any]:
    """Parameters after one EM step, and the least milliseconds of several from the same parameters.

    Args:
      model: key of `CLASSES`.
      data: `[N, D]`.
      dictionary: W, `[D, H]`.
      active: pi, or one number for each value of DSC, 0 included.
      noise: sigma.
      candidates: H'.
      most: gamma.
      temperature: T.
      cut: share of the cut.
      steps: how many are timed.
      values: DSC's, 0 included.
    """
    y, W = np.array(data), np.array(dictionary)
    more = {} if values is None else {"states": np.array(values)}
    learner = CLASSES[model](*W.shape, candidates, most, **more)
    schedule = LinearAnnealing(10)
    schedule["T"], schedule["Ncut_factor"] = [(0, temperature)], [(0, cut)]
    schedule["anneal_prior"] = False
    pi = np.array(active) if values is not None else active
    times: list[float] = []
    for _ in range(steps):
        params = {"W": W.copy(), "pi": pi, "sigma": noise}
        began = time.perf_counter()
        params = learner.step(schedule, params, {"y": y})
        times.append(time.perf_counter() - began)
    return {
        "ms": 1e3 * min(times),
        "dictionary": np.asarray(params["W"]).tolist(),
        "prior": np.asarray(params["pi"]).tolist(),
        "noise": float(params["sigma"]),
    }
