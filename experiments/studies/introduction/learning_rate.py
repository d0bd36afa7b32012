"""Learning rates and seeds of DFedAvg on two graphs, each sweep one compiled program."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

import dflax as dx
from dflax import evaluation
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the sweep.

    Attributes:
      clients: number of clients n, on scikit-learn's digits.
      alpha: Dirichlet concentration of the label split.
      rounds: communication rounds.
      local_steps: local steps per round K.
      batch_size: examples per local step.
      lowest: smallest learning rate.
      highest: largest learning rate.
      rates: how many, evenly spaced on a logarithmic scale.
      seeds: repetitions, paired over rates.
      seed: of the split and of the sweep's key.
    """

    clients: int = 16
    alpha: float = 0.3
    rounds: int = 60
    local_steps: int = 5
    batch_size: int = 16
    lowest: float = 0.003
    highest: float = 3.0
    rates: int = 10
    seeds: int = 3
    seed: int = 0


def sweeps(config: Config, stage: Stage = in_memory) -> Summary:
    """Sweeps the rate on the ring and on the complete graph and draws both heat maps."""
    data = dx.data.digits()
    partition = dx.data.dirichlet(
        np.asarray(data.labels), config.clients, config.alpha, seed=config.seed
    )
    federation = dx.Federation(
        data, partition, local_steps=config.local_steps, batch_size=config.batch_size
    )
    model = dx.models.MLP((32,), classes=10)
    loss = dx.losses.classification(model.apply)
    rates = np.geomspace(config.lowest, config.highest, config.rates)
    key = jax.random.key(config.seed)
    accuracies, rows, difference = {}, {}, 0.0

    def start(algorithm: dx.Algorithm, key: jax.Array) -> dx.FederatedState:
        model_key, init_key = jax.random.split(key)
        return algorithm.init(init_key, model.init(model_key, data.example)["params"])

    measure = evaluation.client_models(evaluation.on(loss, data.test))
    for name, mixer in (
        ("ring", dx.gossip.ring(config.clients)),
        ("complete", dx.gossip.complete(config.clients)),
    ):

        def factory(rate: float | jax.Array, mixer: dx.gossip.Mixer = mixer) -> dx.Algorithm:
            return dx.decentralized.dfedavg(loss, optax.sgd(rate), mixer)

        def swept(name: str = name, factory: Any = factory) -> dict[str, Any]:
            """The sweep, and one element of it again on its own."""
            found = dx.sweep(
                factory,
                start,
                federation,
                grid={"rate": rates.tolist()},
                seeds=config.seeds,
                key=key,
                rounds=config.rounds,
                evaluate=measure,
                title=f"DFedAvg, {name}",
            )
            place, own_key = config.rates // 2, jax.random.fold_in(key, 0)
            algorithm = factory(float(np.float32(rates[place])))
            _, history = dx.run(
                algorithm,
                start(algorithm, own_key),
                federation,
                rounds=config.rounds,
                key=own_key,
                evaluate=measure,
            )
            last = found.evaluations["accuracy"][..., -1]
            return {
                "accuracy": last,
                "difference": abs(history.evaluations["accuracy"][-1] - last[place, 0]),
                "seconds": found.seconds,
                "compile s": found.compile_seconds,
            }

        found = stage(name, swept)
        accuracies[name] = found["accuracy"]
        difference = max(difference, float(found["difference"]))
        mean = accuracies[name].mean(1)
        best = int(mean.argmax())
        rows[f"DFedAvg, {name}"] = {
            "best rate": float(rates[best]),
            "accuracy": float(mean[best]),
            "std over seeds": float(accuracies[name][best].std()),
            "seconds": float(found["seconds"]),
            "compile s": float(found["compile s"]),
        }
    interior = all(0 < int(a.mean(1).argmax()) < config.rates - 1 for a in accuracies.values())
    claims = [
        Claim(
            "an element of the sweep is its own run (accuracy within half a point)",
            difference <= 0.005,
            difference,
            0.005,
        ),
        Claim(
            "the best rate lies inside the grid on both graphs",
            interior,
            [row["best rate"] for row in rows.values()],
            [config.lowest, config.highest],
        ),
        Claim(
            "at its best rate the complete graph is at least as good as the ring",
            rows["DFedAvg, complete"]["accuracy"] >= rows["DFedAvg, ring"]["accuracy"] - 0.005,
            rows["DFedAvg, complete"]["accuracy"],
            rows["DFedAvg, ring"]["accuracy"],
        ),
    ]
    with figure(8.0, 3.4, ncols=2, sharey=True) as (drawn, axes):
        for panel, (name, values) in zip(axes, accuracies.items(), strict=True):
            shown = panel.imshow(values.T, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
            panel.set_xticks(range(config.rates), [f"{rate:.2g}" for rate in rates], rotation=45)
            panel.set_yticks(range(config.seeds))
            panel.grid(False)
            panel.set(xlabel="learning rate", title=f"DFedAvg, {name}")
            for (rate, seed), value in np.ndenumerate(values):
                panel.text(
                    rate,
                    seed,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    color="white" if value < 0.6 else "black",
                )
        axes[0].set_ylabel("seed")
        drawn.colorbar(shown, ax=axes, label="mean local accuracy")
    return Summary(rows, claims, {"heat_map": drawn})


STUDY = Study(
    Config,
    (Part("both graphs", sweeps, needs=(DIGITS,)),),
    quick=Config(rounds=10, rates=4, seeds=2),
    seconds=20,
    pictures=(
        Picture(
            name="heat_map",
            file="learning_rate.png",
            claim=(
                "A sweep of rates and seeds is one compiled program a graph; the best "
                "rate lies inside the grid, and the complete graph is at least as good as"
                " the ring."
            ),
            data=(
                "digits (scikit-learn), {config.clients} clients, Dirichlet "
                "{config.alpha:g}, {config.rounds} rounds"
            ),
            bands="numbers are percents of test accuracy, a row a seed",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
