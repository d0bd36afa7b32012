"""FedAsync of a perceptron in APPFL's own simulation of asynchronous clients, by a virtual clock."""

import logging
import pathlib
from typing import Any

import numpy as np
import torch
from appfl.agent import SimClientAgent, SimServerAgent
from appfl.vsim import AsyncSimDriver, ClientProfile

from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task

# What a step of a client of factor 1 takes by the virtual clock.
SECOND = 1.0


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of labels with the largest score: every piece of work there has a metric."""
    return float((scores.argmax(1) == labels).mean())


def settings(work: Task, events: int, alpha: float, power: float) -> dict[str, Any]:
    """APPFL's configuration. Its collections of garbage at every step are left out: it is faster so."""
    return {
        "algorithm_configs": {
            "scheduler": "AsyncScheduler",
            "scheduler_kwargs": {"num_clients": work.clients, "optimize_memory": False},
            "aggregator": "FedAsyncAggregator",
            "aggregator_kwargs": {
                "num_clients": work.clients,
                "alpha": alpha,
                "staleness_fn": "polynomial",
                "staleness_fn_kwargs": {"a": power},
                "gradient_based": True,
                "optimize_memory": False,
            },
            "trainer": "VanillaTrainer",
            "trainer_kwargs": {
                "mode": "step",
                "num_local_steps": work.steps,
                "optim": "SGD",
                "optim_args": {"lr": work.rate},
                "train_batch_size": work.batch,
                "train_drop_last": True,
                "send_gradient": True,
                "optimize_memory": False,
                "loss_fn": "CrossEntropyLoss",
                "metric_path": __file__,
                "metric_name": "accuracy",
            },
            "num_global_epochs": events,
        },
        "server_configs": {"optimize_memory": False},
        "model_configs": {
            "model_path": str(pathlib.Path(__file__).with_name("networks.py")),
            "model_name": "perceptron",
            "model_kwargs": {"widths": [work.features, work.hidden, work.classes]},
        },
    }


def measure(
    task: list, seconds: list[float], events: int, alpha: float, power: float, repeats: int
) -> dict[str, Any]:
    """Milliseconds per event; and of each event, in order, its time, client and staleness.

    Args:
      task: a `Task`.
      seconds: of each client's piece of work.
      events: how many arrivals.
      alpha: the server's rate.
      power: of the polynomial discount.
      repeats: timings, of which the least counts.
    """
    logging.disable(logging.CRITICAL)
    work = Task(*task)
    inputs, labels = work.examples()
    config = settings(work, events, alpha, power)
    drivers: list[AsyncSimDriver] = []

    def fresh() -> tuple[AsyncSimDriver]:
        server, clients = SimServerAgent(config), []
        for number, rows in enumerate(work.dealt()):
            owned = torch.utils.data.TensorDataset(
                torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows]).long()
            )
            clients.append(SimClientAgent(config, str(number), owned))
        profiles = {
            str(number): ClientProfile(own / work.steps / SECOND, bandwidth=0.0)
            for number, own in enumerate(seconds)
        }
        driver = AsyncSimDriver(
            server,
            clients,
            profiles,
            max_in_flight=work.clients,
            logger=logging.getLogger("appfl"),
            base_step_time=SECOND,
        )
        drivers.append(driver)
        return (driver,)

    took = milliseconds(lambda driver: driver.run(), repeats, events, fresh)
    history = [[one["vtime"], int(one["cid"]), one["staleness"]] for one in drivers[-1].history]
    return {"ms": took, "history": history}
