"""pfl-research's federated averaging of an image model, with PyTorch, in one process."""

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers.networks import NETWORKS, SHAPES
from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task


class Classifier(torch.nn.Module):
    """The model with the two methods that pfl-research wants."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network
        self.cross_entropy = torch.nn.CrossEntropyLoss()

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy."""
        return self.cross_entropy(self.network(inputs), labels)

    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict:
        """The loss, for the one evaluation that a run begins with."""
        return {"loss": Weighted(float(self.loss(inputs, labels)), len(inputs))}


def measure(task: list, network: str, rounds: int) -> dict[str, float]:
    """Milliseconds per round."""
    work = Task(*task)
    inputs, labels = work.examples()
    images = torch.from_numpy(inputs).reshape(-1, *SHAPES[network])
    owned = dict(enumerate(work.dealt()))
    data = {
        client: [images[torch.from_numpy(rows)], torch.from_numpy(labels[rows]).long()]
        for client, rows in owned.items()
    }

    def clients() -> FederatedDataset:
        sampler = get_user_sampler("minimize_reuse", list(data))
        return FederatedDataset.from_slices(data, sampler)

    classifier = Classifier(NETWORKS[network](work.classes))
    model = PyTorchModel(
        model=classifier,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(classifier.parameters(), lr=1.0),
    )
    backend = SimulatedBackend(training_data=clients(), val_data=clients())
    settings = NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=rounds,
        train_cohort_size=work.cohort,
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(
        local_num_epochs=None,
        local_num_steps=work.steps,
        local_learning_rate=work.rate,
        local_batch_size=work.batch,
    )

    def train() -> None:
        FederatedAveraging().run(
            algorithm_params=settings,
            backend=backend,
            model=model,
            model_train_params=local,
            model_eval_params=NNEvalHyperParams(local_batch_size=None),
            send_metrics_to_platform=False,
        )

    return {"ms": milliseconds(train, repeats=3, units=rounds)}
