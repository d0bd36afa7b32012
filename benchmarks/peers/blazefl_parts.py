"""The models and data of BlazeFL's clients, where its processes find them."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.peers import torch_clients
from benchmarks.tasks import Task


class Models:
    """The task's model at its start, by whatever name."""

    def __init__(self, work: Task, network: torch_clients.Network):
        self.work, self.network = work, network

    def select_model(self, model_name: str) -> torch.nn.Module:
        """A new one."""
        return torch_clients.begun(self.work, self.network)


class Owned(Dataset):
    """What one client owns; asked for whole minibatches, which is faster than example by example."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor):
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[rows], self.labels[rows]


class Minibatches(Sampler):
    """K of them in a new order each time."""

    def __init__(self, work: Task):
        self.work = work

    def __iter__(self) -> Any:
        return iter(torch_clients.drawn(self.work))

    def __len__(self) -> int:
        return self.work.steps


class Clients:
    """The data of all clients; an epoch of a client has K minibatches."""

    def __init__(self, work: Task, network: torch_clients.Network):
        self.work, self.network = work, network

    def get_dataset(self, type_: str, cid: int | None) -> Owned:
        """What a client owns."""
        inputs, labels = torch_clients.examples(self.work, self.network)
        assert cid is not None
        owned = slice(cid * self.work.owned, (cid + 1) * self.work.owned)
        return Owned(inputs[owned], labels[owned])

    def set_dataset(self, type_: str, cid: int | None, dataset: Dataset) -> None:
        """Training changes no data."""

    def get_dataloader(self, type_: str, cid: int | None, **_: Any) -> DataLoader:
        """Of one local epoch."""
        owned = self.get_dataset(type_, cid)
        return DataLoader(owned, sampler=Minibatches(self.work), batch_size=None)
