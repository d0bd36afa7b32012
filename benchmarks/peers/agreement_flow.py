"""What torchcfm and flow-matching make of given data and noise: targets, conversions, Euler's rule."""

from collections.abc import Callable
from typing import Any

import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, VPScheduler
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)

# Both count time from noise to data.
MATCHERS = {
    "rectified": ConditionalFlowMatcher,
    "cosine": VariancePreservingConditionalFlowMatcher,
}
SCHEDULERS = {
    "rectified": CondOTScheduler,
    "cosine": CosineScheduler,
    "variance preserving": VPScheduler,
}


def matcher(path: str, data: list, noise: list, time: list) -> tuple[Any, Any]:
    """Noised examples and the target of torchcfm."""
    given = (torch.tensor(rows, dtype=torch.float64) for rows in (noise, data))
    start, end = given
    when = 1 - torch.tensor(time, dtype=torch.float64)
    made = MATCHERS[path](sigma=0.0)
    _, x, velocity = made.sample_location_and_conditional_flow(start, end, t=when)
    return x, -velocity


def affine(path: str, data: list, noise: list, time: list) -> tuple[Any, Any]:
    """Noised examples and the target of flow-matching."""
    start, end = (torch.tensor(rows, dtype=torch.float64) for rows in (noise, data))
    when = 1 - torch.tensor(time, dtype=torch.float64)
    drawn = AffineProbPath(SCHEDULERS[path]()).sample(t=when, x_0=start, x_1=end)
    return drawn.x_t, -drawn.dx_t


def converted(path: str, kind: str, prediction: list, x: list, time: list) -> Any:
    """A velocity out of predicted noise or data, by flow-matching."""
    made = AffineProbPath(SCHEDULERS[path]())
    seen, told = (torch.tensor(rows, dtype=torch.float64) for rows in (x, prediction))
    when = 1 - torch.tensor(time, dtype=torch.float64)[:, None]
    convert = {"noise": made.epsilon_to_velocity, "data": made.target_to_velocity}[kind]
    return -convert(told, seen, when)


def euler(matrix: list, start: list, steps: int) -> Any:
    """Where Euler's rule leads on the field `x A + t`, time from 1 to 0, by flow-matching."""
    weights = torch.tensor(matrix, dtype=torch.float64)

    class Linear(ModelWrapper):
        def forward(self, x: Any, t: Any, **extras: Any) -> Any:
            return -(x @ weights + (1 - t))

    solver = ODESolver(velocity_model=Linear(model=torch.nn.Identity()))
    first = torch.tensor(start, dtype=torch.float64)
    return solver.sample(x_init=first, method="euler", step_size=1 / steps)


WORK: dict[str, Callable[..., Any]] = {
    "matcher": matcher,
    "affine": affine,
    "converted": converted,
    "euler": euler,
}


def measure(cases: list) -> dict[str, Any]:
    """What they make of each case, a name and arguments."""
    found = []
    for name, arguments in cases:
        made = WORK[name](**arguments)
        several = made if isinstance(made, tuple) else (made,)
        found.append([one.double().tolist() for one in several])
    return {"found": found, "ms": 0.0}
