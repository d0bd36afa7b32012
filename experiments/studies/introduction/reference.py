"""FedAvg and DFedAvg against plain NumPy loops with the same settings, over several seeds."""

import dataclasses

import jax
import numpy as np
import optax

import dflax as dx
from dflax import evaluation
from experiments.tasks.inputs import IMAGES, images_or_digits
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings, the quickstart's by default.

    Attributes:
      data: "auto" takes Fashion-MNIST when its files are on this machine, else digits.
      clients: number of clients n.
      alpha: Dirichlet concentration of the label split.
      cohort: clients that FedAvg invites per round.
      rounds: communication rounds.
      local_steps: local steps per round K.
      batch_size: examples per local step.
      learning_rate: of the local SGD.
      hidden: width of the perceptron's hidden layer.
      averaged: the accuracy is the mean over so many last rounds, as single rounds of a small cohort
        jitter by several points.
      seeds: repetitions; each draws partition, model and minibatches anew.
    """

    data: str = "auto"
    clients: int = 100
    alpha: float = 0.3
    cohort: int = 10
    rounds: int = 40
    local_steps: int = 10
    batch_size: int = 20
    learning_rate: float = 0.1
    hidden: int = 100
    averaged: int = 10
    seeds: int = 3


class NumPyPerceptron:
    """A perceptron with one hidden layer, its gradient written out, and nothing of JAX in it."""

    @staticmethod
    def gradient(params: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        """Of the mean cross-entropy."""
        W1, b1, W2, b2 = params
        h = np.maximum(x @ W1 + b1, 0)
        z = h @ W2 + b2
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        back = (p @ W2.T) * (h > 0)
        return [x.T @ back, back.sum(0), h.T @ p, p.sum(0)]

    @staticmethod
    def accuracy(params: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
        """Share of examples whose class scores highest."""
        W1, b1, W2, b2 = params
        scores = np.maximum(x @ W1 + b1, 0) @ W2 + b2
        return float((scores.argmax(1) == y).mean())


def numpy_loops(
    config: Config, data: dx.data.Split, seed: int, start: list[np.ndarray]
) -> dict[str, float]:
    """FedAvg and DFedAvg on the exponential graph as Python loops over rounds and clients."""
    generator = np.random.default_rng(1000 + seed)
    scale = float(np.asarray(data.train.scale))
    x = np.asarray(data.train.inputs).reshape(len(data.train), -1).astype(np.float32) * scale
    y = np.asarray(data.train.labels)
    test_x = np.asarray(data.test.inputs).reshape(len(data.test), -1).astype(np.float32) * scale
    test_y = np.asarray(data.test.labels)
    owned = dx.data.dirichlet(y, config.clients, config.alpha, seed=seed).as_lists()
    streams: list[list[int]] = [[] for _ in owned]

    def local_steps(params: list[np.ndarray], client: int) -> list[np.ndarray]:
        for _ in range(config.local_steps):
            while len(streams[client]) < config.batch_size:
                streams[client] += generator.permutation(owned[client]).tolist()
            rows = streams[client][: config.batch_size]
            del streams[client][: config.batch_size]
            seen = NumPyPerceptron.gradient(params, x[rows], y[rows])
            params = [p - config.learning_rate * g for p, g in zip(params, seen, strict=True)]
        return params

    def late(round: int) -> bool:
        return round >= config.rounds - config.averaged

    server, at_server = start, []
    for round in range(config.rounds):
        cohort = generator.choice(config.clients, config.cohort, replace=False)
        weights = np.array([len(owned[client]) for client in cohort], np.float32)
        models = [local_steps(server, client) for client in cohort]
        share = weights / weights.sum()
        server = [
            sum(w * leaf for w, leaf in zip(share, leaves, strict=True))
            for leaves in zip(*models, strict=True)
        ]
        if late(round):
            at_server.append(NumPyPerceptron.accuracy(server, test_x, test_y))

    n = config.clients
    offsets = [0] + [2**k for k in range(int(np.ceil(np.log2(n))))]
    part = slice(0, min(1000, len(test_y)))
    stacked, at_clients = [np.stack([leaf] * n) for leaf in start], []
    for round in range(config.rounds):
        models = [local_steps([leaf[i] for leaf in stacked], i) for i in range(n)]
        stacked = [np.stack(leaves) for leaves in zip(*models, strict=True)]
        stacked = [
            sum(np.roll(leaf, -offset, 0) for offset in offsets) / np.float32(len(offsets))
            for leaf in stacked
        ]
        if late(round):
            accuracies = [
                NumPyPerceptron.accuracy([leaf[i] for leaf in stacked], test_x[part], test_y[part])
                for i in range(n)
            ]
            at_clients.append(np.mean(accuracies))
    return {
        "FedAvg": float(np.mean(at_server)),
        "DFedAvg, exponential": float(np.mean(at_clients)),
    }


def compiled(
    config: Config, data: dx.data.Split, seed: int
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The same two methods as compiled rounds, and the model that both implementations start from."""
    partition = dx.data.dirichlet(np.asarray(data.labels), config.clients, config.alpha, seed=seed)
    assert data.classes is not None, "the studies classify"
    model = dx.models.MLP((config.hidden,), classes=data.classes)
    loss = dx.losses.classification(model.apply)
    model_key, key = jax.random.split(jax.random.key(seed))
    params = model.init(model_key, data.example)["params"]
    descent = optax.sgd(config.learning_rate)
    part = evaluation.on(loss, data.test, examples=min(1000, len(data.test)))
    methods = {
        "FedAvg": (
            dx.server.fedavg(loss, descent),
            dx.participation.uniform(config.cohort),
            evaluation.server_model(evaluation.on(loss, data.test)),
        ),
        "DFedAvg, exponential": (
            dx.decentralized.dfedavg(loss, descent, dx.gossip.exponential(config.clients)),
            dx.participation.everyone(),
            evaluation.client_models(part),
        ),
    }
    accuracies = {}
    for name, (algorithm, participation, measure) in methods.items():
        federation = dx.Federation(
            data,
            partition,
            local_steps=config.local_steps,
            batch_size=config.batch_size,
            participation=participation,
        )
        _, history = dx.run(
            algorithm,
            algorithm.init(key, params),
            federation,
            rounds=config.rounds,
            key=key,
            evaluate=measure,
            every=1,
            title=f"{name}, seed {seed}",
        )
        accuracies[name] = float(history.evaluations["accuracy"][-config.averaged :].mean())
    layers = [params["Dense_0"], params["Dense_1"]]
    start = [np.asarray(layer[name]) for layer in layers for name in ("kernel", "bias")]
    return accuracies, start


def both_of(config: Config, data: dx.data.Split, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies by implementation and method, of one seed."""
    accuracies, start = compiled(config, data, seed)
    return {"dflax": accuracies, "NumPy": numpy_loops(config, data, seed, start)}


def both(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs both implementations on every seed and compares their means."""
    data = images_or_digits(config.data)
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        compared = stage(f"seed {seed}", lambda seed=seed: both_of(config, data, seed))
        for name, accuracy in compared["dflax"].items():
            ours.setdefault(name, []).append(float(accuracy))
            theirs.setdefault(name, []).append(float(compared["NumPy"][name]))
        last = {name: (ours[name][-1], theirs[name][-1]) for name in ours}
        print(f"seed {seed}: (dflax, NumPy) {last}", flush=True)
    rows, claims = {}, []
    for name in ours:
        rows[name] = {
            "dflax": float(np.mean(ours[name])),
            "dflax std": float(np.std(ours[name])),
            "NumPy": float(np.mean(theirs[name])),
            "NumPy std": float(np.std(theirs[name])),
        }
        claims.append(
            Claim(
                f"{name} is within 2 points of the NumPy loop, mean of {config.seeds} seeds",
                abs(rows[name]["dflax"] - rows[name]["NumPy"]) <= 0.02,
                rows[name]["dflax"],
                rows[name]["NumPy"],
            )
        )
    with figure(5.0, 3.2) as (drawn, axes):
        for place, name in enumerate(ours):
            for shift, label, values in ((-0.1, "dflax", ours), (0.1, "NumPy loop", theirs)):
                axes.scatter(
                    [place + shift] * config.seeds,
                    values[name],
                    color="C0" if label == "dflax" else "C1",
                    label=label if place == 0 else None,
                )
        axes.set_xticks(range(len(ours)), list(ours))
        axes.set_xlim(-0.5, len(ours) - 0.5)
        axes.set(ylabel="test accuracy, a dot per seed", title="the same rounds, twice")
        axes.legend()
    return Summary(rows, claims, {"accuracies": drawn})


STUDY = Study(
    Config,
    (Part("both implementations", both, needs=(IMAGES,)),),
    quick=Config(clients=20, rounds=6, averaged=3, seeds=2),
)


if __name__ == "__main__":
    main(STUDY, __file__)
