"""Federated averaging in Flower's simulation engine: clients in PyTorch, on two actors of Ray."""

import itertools
import os
import time
from typing import Any

import torch
from torch.nn import functional

from benchmarks.peers import torch_clients
from benchmarks.tasks import Task

# Before they are imported: neither tells anybody what is run here.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

# Actors start and caches fill in so many rounds.
FIRST = 3


def client(work: Task, network: torch_clients.Network) -> ClientApp:
    """Local descent on what the partition owns."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        first = work.owned * int(context.node_config["partition-id"])
        inputs, labels = torch_clients.examples(work, network)
        model = torch_clients.begun(work, network)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        params = list(model.parameters())
        for rows in torch_clients.drawn(work):
            loss = functional.cross_entropy(model(inputs[first + rows]), labels[first + rows])
            gradients = torch.autograd.grad(loss, params)
            with torch.no_grad():
                torch._foreach_add_(params, gradients, alpha=-work.rate)
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": work.owned}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    return app


def simulated(work: Task, network: torch_clients.Network, rounds: int) -> list[tuple[float, float]]:
    """The second at which each round ended, and the mean loss of all examples then."""
    found: list[tuple[float, ArrayRecord]] = []
    model = torch_clients.begun(work, network)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=work.cohort / work.clients,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.clients,
        )
        strategy.start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=rounds,
            evaluate_fn=lambda _, arrays: found.append((time.perf_counter(), arrays)),
        )

    run_simulation(
        server,
        client(work, network),
        num_supernodes=work.clients,
        backend_config={
            "init_args": {"num_cpus": 2, "_node_ip_address": "127.0.0.1", "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    ended = []
    for second, arrays in found[1:]:
        model.load_state_dict(arrays.to_torch_state_dict())
        ended.append((second, torch_clients.mean_loss(model, work, network)))
    return ended


def measure(task: list, network: torch_clients.Network, rounds: int) -> dict[str, Any]:
    """The least milliseconds of a round after the first ones, and the losses after those."""
    seconds, losses = zip(*simulated(Task(*task), network, FIRST + rounds), strict=True)
    took = min(after - before for before, after in itertools.pairwise(seconds[FIRST - 1 :]))
    return {"ms": 1e3 * took, "losses": losses[:FIRST], "mode": "on Ray"}
