"""What APPFL's FedCompass scheduler decides on given times of arrivals, by a simulated clock."""

import heapq
import importlib
import importlib.util
import sys
import time
import types
from typing import Any

import numpy as np

from benchmarks.tasks import step_seconds


class Aggregator:
    """Notes what is aggregated, in the place of models."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[Any] = []

    def aggregate(self, client_id: Any = None, local_model: Any = None, **given: Any) -> dict:
        """A step of the server: who, with how many local steps, how old."""
        steps, ages = given["local_steps"], given["staleness"]
        if client_id is not None:
            steps, ages = {client_id: steps}, {client_id: ages}
        self.steps.append([self.now, [[i, int(steps[i]), int(ages[i])] for i in sorted(steps)]])
        return {}

    def get_parameters(self, **_: Any) -> dict:
        """The model, of which there is none."""
        return {}


def stand_in(name: str, **content: Any) -> types.ModuleType:
    """A module of that name, so that a scheduler needs neither PyTorch nor Ray."""
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


def scheduler_module() -> Any:
    """APPFL's own file; what it imports besides are names for annotations and a garbage collection."""
    spec = importlib.util.find_spec("appfl")
    paths = list((spec and spec.submodule_search_locations) or ())
    stand_in("appfl").__path__ = paths
    stand_in("appfl.algorithm").__path__ = [f"{path}/algorithm" for path in paths]
    package = stand_in("appfl.algorithm.scheduler")
    package.__path__ = [f"{path}/algorithm/scheduler" for path in paths]
    stand_in("appfl.algorithm.aggregator", BaseAggregator=object)
    stand_in("appfl.misc").__path__ = []
    stand_in("appfl.misc.memory_utils", optimize_memory_cleanup=lambda *_, **__: None)
    stand_in("omegaconf", DictConfig=dict)
    base = importlib.import_module("appfl.algorithm.scheduler.base_scheduler")
    vars(package)["BaseScheduler"] = base.BaseScheduler
    return importlib.import_module("appfl.algorithm.scheduler.compass_scheduler")


def simulated(module: Any, seconds: np.ndarray, horizon: float, settings: dict) -> list:
    """All steps of the server: time and `[client, local steps, staleness]` of each change."""
    aggregator = Aggregator()
    due: list[Any] = []
    timers: list[Any] = []
    pieces = [0] * len(seconds)

    class Timer:
        """`threading.Timer` by the simulated clock."""

        def __init__(self, wait: float, call: Any, args: Any = (), kwargs: Any = None):
            self.wait, self.call = wait, lambda: call(*args, **(kwargs or {}))

        def start(self) -> None:
            heapq.heappush(due, (aggregator.now + self.wait, 1, len(timers)))
            timers.append(self)

        def cancel(self) -> None:
            self.call = lambda: None

    module.time = types.SimpleNamespace(time=lambda: aggregator.now)
    module.threading = types.SimpleNamespace(
        Lock=importlib.import_module("threading").Lock, Timer=Timer
    )
    module.gc = types.SimpleNamespace(collect=lambda: None)
    scheduler = module.CompassScheduler(types.SimpleNamespace(**settings), aggregator, None)

    def sent(client: int, steps: int) -> None:
        """The client goes to work."""
        own = seconds[client, pieces[client] % seconds.shape[1]]
        pieces[client] += 1
        heapq.heappush(due, (aggregator.now + steps * own, 0, client))

    for client in range(len(seconds)):
        sent(client, settings["max_local_steps"])
    while due and due[0][0] <= horizon:
        aggregator.now, kind, number = heapq.heappop(due)
        if kind:
            timers[number].call()
            continue
        answer = scheduler.schedule(number, {})
        if isinstance(answer, tuple):
            sent(number, answer[1]["local_steps"])
        else:
            answer.add_done_callback(
                lambda done, client=number: sent(client, done.result()[1]["local_steps"])
            )
    return aggregator.steps


def measure(cases: list, horizon: float, settings: dict) -> dict[str, Any]:
    """What each of `(clients, seed, random)` comes to, see `step_seconds`, and milliseconds for all."""
    module = scheduler_module()
    given = [step_seconds(n, seed, random=random) for n, seed, random in cases]
    began = time.perf_counter()
    found = [simulated(module, one, horizon, settings) for one in given]
    return {"found": found, "ms": 1e3 * (time.perf_counter() - began)}
