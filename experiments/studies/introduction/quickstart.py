"""FedAvg, DFedAvg on two graphs and D-PSGD on the same 100 clients with skewed labels."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import optax

import dflax as dx
from dflax import evaluation
from experiments.tasks.inputs import IMAGES, images_or_digits
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Quickstart settings.

    Attributes:
      data: "auto" takes Fashion-MNIST when its files are on this machine, else digits.
      clients: number of clients n.
      alpha: Dirichlet concentration of the label split; smaller is more skewed.
      cohort: clients that FedAvg invites per round.
      rounds: communication rounds of FedAvg and DFedAvg.
      local_steps: local steps per round K; D-PSGD takes the same number of steps, one a round.
      batch_size: examples per local step.
      learning_rate: of the local SGD.
      hidden: width of the perceptron's hidden layer.
      evaluations: how often each curve is measured.
      seed: of everything random.
    """

    data: str = "auto"
    clients: int = 100
    alpha: float = 0.3
    cohort: int = 10
    rounds: int = 60
    local_steps: int = 10
    batch_size: int = 20
    learning_rate: float = 0.1
    hidden: int = 100
    evaluations: int = 15
    seed: int = 0


def trained(
    evaluations: int,
    start_key: jax.Array,
    run_key: jax.Array,
    params: Any,
    name: str,
    algorithm: dx.Algorithm,
    source: dx.Federation,
    measure: Any,
    rounds: int,
) -> dict[str, Any]:
    """A method's run: its measurements, so many of them, and how long it took."""
    began = time.perf_counter()
    _, history = dx.run(
        algorithm,
        algorithm.init(start_key, params),
        source,
        rounds=rounds,
        key=run_key,
        evaluate=measure,
        every=max(rounds // evaluations, 1),
        title=f"{name:<22}",
    )
    measured = history.evaluations
    mean = "accuracy" if "mean_model_accuracy" not in measured else "mean_model_accuracy"
    return {
        "evaluated": history.evaluated,
        "accuracy": measured["accuracy"],
        "mean model": measured[mean],
        "rounds/s": history.rounds_per_second,
        "compile s": history.compile_seconds,
        "total s": time.perf_counter() - began,
    }


def four_methods(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs the four methods and draws accuracy over local steps and the label split."""
    data = images_or_digits(config.data)
    labels = np.asarray(data.labels)
    partition = dx.data.dirichlet(labels, config.clients, config.alpha, seed=config.seed)
    assert data.classes is not None, "the studies classify"
    model = dx.models.MLP((config.hidden,), classes=data.classes)
    loss = dx.losses.classification(model.apply)
    start_key, model_key, run_key = jax.random.split(jax.random.key(config.seed), 3)
    params = model.init(model_key, data.example)["params"]
    descent = optax.sgd(config.learning_rate)

    def federation(local_steps: int, participation: Any = None) -> dx.Federation:
        return dx.Federation(
            data,
            partition,
            local_steps=local_steps,
            batch_size=config.batch_size,
            participation=participation,
        )

    whole = evaluation.on(loss, data.test)
    part = evaluation.on(loss, data.test, examples=min(1000, len(data.test)))
    at_server = evaluation.server_model(whole)
    at_clients = evaluation.together(
        evaluation.client_models(part), evaluation.mean_model(whole), evaluation.consensus
    )
    K, n = config.local_steps, config.clients
    ring, exponential = dx.gossip.ring(n), dx.gossip.exponential(n)
    methods = {
        f"FedAvg, {config.cohort} a round": (
            dx.server.fedavg(loss, descent),
            federation(K, dx.participation.uniform(config.cohort)),
            at_server,
            K,
        ),
        "DFedAvg, ring": (
            dx.decentralized.dfedavg(loss, descent, ring),
            federation(K),
            at_clients,
            K,
        ),
        "DFedAvg, exponential": (
            dx.decentralized.dfedavg(loss, descent, exponential),
            federation(K),
            at_clients,
            K,
        ),
        "D-PSGD, exponential": (
            dx.decentralized.dpsgd(loss, descent, exponential),
            federation(1),
            at_clients,
            1,
        ),
    }
    rows, curves = {}, {}
    for name, (algorithm, source, measure, steps) in methods.items():
        rounds = config.rounds * K // steps

        def run(given: Any = (name, algorithm, source, measure, rounds)) -> dict[str, Any]:
            return trained(config.evaluations, start_key, run_key, params, *given)

        found = stage(name, run)
        curves[name] = (found["evaluated"] * steps, found["accuracy"])
        rows[name] = {
            "accuracy": float(found["accuracy"][-1]),
            "mean model": float(found["mean model"][-1]),
            "rounds": rounds,
            **{what: float(found[what]) for what in ("rounds/s", "compile s", "total s")},
        }
        print(f"{name:<22} accuracy {rows[name]['accuracy']:.3f}", flush=True)

    fedavg, ring_row, exponential_row, dpsgd = rows.values()
    bar = 0.7 if data.classes == 10 and len(data.train) > 10_000 else 0.8
    claims = [
        Claim(
            "FedAvg learns the task",
            fedavg["accuracy"] >= bar,
            fedavg["accuracy"],
            f">= {bar}",
        ),
        Claim(
            "a better connected graph serves clients better: exponential beats ring",
            exponential_row["accuracy"] > ring_row["accuracy"],
            exponential_row["accuracy"],
            ring_row["accuracy"],
        ),
        Claim(
            "DFedAvg on the exponential graph is within 5 points of FedAvg without a server",
            exponential_row["accuracy"] >= fedavg["accuracy"] - 0.05,
            exponential_row["accuracy"],
            fedavg["accuracy"],
        ),
        Claim(
            "D-PSGD, which talks after every step, ends within 2 points of DFedAvg or above",
            dpsgd["accuracy"] >= exponential_row["accuracy"] - 0.02,
            dpsgd["accuracy"],
            exponential_row["accuracy"],
        ),
    ]
    with figure() as (accuracy, axes):
        for name, look in looks(curves).items():
            steps_done, values = curves[name]
            curve(axes, np.asarray(steps_done), np.asarray(values)[None], look, name)
        title = f"{data.name}, {n} clients, Dirichlet {config.alpha:g}, one seed"
        axes.set(
            xlabel="local steps per client",
            ylabel="test accuracy (mean over clients' models)",
            title=title,
        )
        axes.legend(loc="lower right")
    split = dx.data.partition_figure(partition, labels, classes=data.classes)
    split.suptitle(f"{title}: examples of each class that a client owns", y=1.02)
    return Summary(rows, claims, {"accuracy": accuracy, "partition": split})


STUDY = Study(
    Config,
    (Part("four methods", four_methods, needs=(IMAGES,)),),
    seconds=46,
    quick=Config(clients=20, rounds=8, evaluations=4),
    pictures=(
        Picture(
            name="accuracy",
            file="quickstart_accuracy.png",
            claim=(
                "A denser graph serves clients better, and without a server they come "
                "within a few points of FedAvg."
            ),
            data="Fashion-MNIST, {config.clients} clients, Dirichlet {config.alpha:g}",
            bands="one seed, no bands",
            headed=False,
        ),
        Picture(
            name="partition",
            file="quickstart_partition.png",
            claim=(
                "Who has which labels: a Dirichlet law leaves most clients with a few "
                "classes, and with unequal numbers of examples."
            ),
            data="Fashion-MNIST, {config.clients} clients, Dirichlet {config.alpha:g}",
            bands=(
                "one seed; columns above are clients' sizes, rows at the right how many "
                "clients have that size"
            ),
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
