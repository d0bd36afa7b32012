"""Federated averaging by BlazeFL's own trainers: one thread of Python, two threads, two processes."""

import os
import pathlib
import tempfile
from typing import Any

# Bars of progress, three lines a round.
os.environ["TQDM_DISABLE"] = "1"

import torch
import torch.multiprocessing
from blazefl.contrib import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)

from benchmarks.peers import torch_clients
from benchmarks.peers.blazefl_parts import Clients, Models
from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task

# Processes come first: PyTorch's own threads do not survive a fork.
MODES = ("two processes", "two threads", "one after another")
WORKERS = 2
# With more clients a round processes, which take some 0.1 s each time for a client, are left out.
FEW = 100


class Simulation:
    """A server and a trainer of clients, round after round as BlazeFL's pages have it."""

    def __init__(
        self, work: Task, network: torch_clients.Network, mode: str, folder: pathlib.Path
    ) -> None:
        models, clients = Models(work, network), Clients(work, network)
        common: dict[str, Any] = {
            "model_selector": models,
            "model_name": network,
            "dataset": clients,
        }
        local: dict[str, Any] = {"epochs": 1, "batch_size": work.batch, "lr": work.rate, "seed": 0}
        local |= {"num_clients": work.clients, "device": "cpu"}
        self.server = FedAvgBaseServerHandler(
            **common,
            global_round=1 << 30,
            num_clients=work.clients,
            sample_ratio=work.cohort / work.clients,
            device="cpu",
            batch_size=work.batch,
            seed=0,
        )
        torch.set_num_threads(WORKERS if mode == "one after another" else 1)
        if mode == "two processes":
            self.trainer: Any = FedAvgProcessPoolClientTrainer(
                **common, **local, num_parallels=WORKERS, state_dir=folder
            )
        elif mode == "two threads":
            self.trainer = FedAvgThreadPoolClientTrainer(**common, **local, num_parallels=WORKERS)
        else:
            self.trainer = FedAvgBaseClientTrainer(**common, **local)

    def round(self) -> None:
        """Sampling, local training, averaging."""
        cohort = self.server.sample_clients()
        self.trainer.local_process(self.server.downlink_package(), cohort)
        for package in self.trainer.uplink_package():
            self.server.load(package)


def measure(task: list, network: torch_clients.Network, rounds: int) -> dict[str, Any]:
    """Milliseconds per round of the fastest mode, and losses of the task without chance."""
    work = Task(*task)
    torch.multiprocessing.set_start_method("fork")
    with tempfile.TemporaryDirectory() as folder:
        took = {
            mode: _milliseconds(Simulation(work, network, mode, pathlib.Path(folder)), rounds)
            for mode in MODES[work.cohort > FEW :]
        }
        mode = min(took, key=took.__getitem__)
        whole = work.whole()
        simulation = Simulation(whole, network, "one after another", pathlib.Path(folder))
        losses = []
        for _ in range(3):
            simulation.round()
            losses.append(torch_clients.mean_loss(simulation.server.model, whole, network))
    return {"ms": took[mode], "losses": losses, "mode": mode, "modes": took}


def _milliseconds(simulation: Simulation, rounds: int) -> float:
    def train() -> None:
        for _ in range(rounds):
            simulation.round()

    return milliseconds(train, repeats=3, units=rounds)
