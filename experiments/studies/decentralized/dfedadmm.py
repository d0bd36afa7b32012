"""DFedADMM on a ring of clients with skewed labels, beside DFedAvg(M), DFedSAM, D-PSGD and DSGT."""

import dataclasses
from typing import Any, Literal

import numpy as np
import optax

import dflax as dx
from dflax import decentralized, topology
from experiments.tasks import images
from experiments.tasks.gossip import given_matrix
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tasks.paired import Paired, label_priors
from experiments.tools.command import main
from experiments.tools.curves import rounds_to
from experiments.tools.figures import bars, curve, figure, looks, sent_axis
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      clients: number of clients n on the ring, on scikit-learn's digits.
      owned: examples of a client.
      alphas: Dirichlet concentrations of the clients' label priors; the claims about the local models
        are of the first.
      seeds: splits and starts for each of them, the same for all methods.
      rounds: T.
      local_steps: K.
      batch_size: B.
      rate: learning rate of every method but one row; it falls by `decay` a round.
      decay: factor per round.
      rho: radius of the sharpness-aware methods.
      bar: accuracy of the mean model to which rounds are counted.
      network: on Fashion-MNIST afterwards, over four graphs: "halved" a CNN with channels 8 and 16 on
        images averaged to half their size, "small" on whole ones (a quarter of an hour), "large" a CNN
        with 421,642 parameters (for an accelerator), "none" nothing.
      graph_rounds: of the CNNs.
      seed: of splits and starts.
    """

    clients: int = 20
    owned: int = 64
    alphas: tuple[float, ...] = (0.1, 0.3)
    seeds: int = 3
    rounds: int = 200
    local_steps: int = 10
    batch_size: int = 16
    rate: float = 0.1
    decay: float = 0.998
    rho: float = 0.1
    bar: float = 0.75
    network: Literal["none", "halved", "small", "large"] = "halved"
    graph_rounds: int = 30
    seed: int = 0


LAMBDAS = (0.3, 1.0, 3.0, 10.0)
EARLY = 30
MEAN_MODELS = "on Fashion-MNIST DFedADMM's mean models, CNNs, end above DFedAvg's on every graph"
CLIENTS_MODELS = (
    "on Fashion-MNIST DFedADMM's clients' models, CNNs, end above DFedAvg's, mean over graphs"
)


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs all methods on the same splits and starts, and tells what the dual variables change."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    seeds = [config.seed + s for s in range(config.seeds)]
    splits = [
        label_priors(labels, config.clients, alpha, config.owned, seed)
        for alpha in config.alphas
        for seed in seeds
    ]

    def stepping(local_steps: int, batch_size: int) -> Paired:
        return Paired(
            data,
            splits,
            seeds * len(config.alphas),
            dx.models.MLP((32,), classes=10),
            local_steps=local_steps,
            batch_size=batch_size,
            rounds=config.rounds,
            tail=min(5, config.rounds),
        )

    several = stepping(config.local_steps, config.batch_size)
    # What D-PSGD and DSGT have of a round is one step on as many examples.
    single = stepping(1, config.local_steps * config.batch_size)
    found = curves(several, single, dx.gossip.ring(config.clients), config, stage)
    rows = {}
    for place, alpha in enumerate(config.alphas):
        own = slice(place * config.seeds, (place + 1) * config.seeds)
        for name, one in found.items():
            rows[f"{name}; Dirichlet {alpha:g}"] = {
                f"round {EARLY}": at(one, EARLY)[own].mean(),
                f"rounds to {100 * config.bar:g} %": reached(one, config)[own].mean(),
                "local": one["local"][own].mean(),
                "std over seeds": one["local"][own].std(),
                "distance": one["distance"][own, -1].mean(),
            }
    figures = {"accuracy": accuracy_figure(found, config)}
    return Summary(rows, digits_claims(found, config), figures)


def curves(
    paired: Paired, single: Paired, mixer: dx.gossip.Mixer, config: Config, stage: Stage
) -> dict[str, Any]:
    """Every method's measurements, `[S, T]` and `[S]`."""
    loss = paired.loss

    def sgd(rate: Any, **options: Any) -> Any:
        return lambda t: optax.sgd(rate * config.decay**t, **options)

    own = sgd(config.rate)

    def run(name: str, task: Paired, *arguments: Any) -> Any:
        return stage(name, lambda: task.run(*arguments))

    plain = run(
        "DFedAvg",
        paired,
        lambda rate: decentralized.dfedavg(loss, sgd(rate), mixer),
        (config.rate, 3 * config.rate),
    )
    heavy = run(
        "DFedAvgM",
        paired,
        lambda mu: decentralized.dfedavg(loss, sgd(config.rate, momentum=mu), mixer),
        (0.9,),
    )
    sharp = run(
        "DFedSAM",
        paired,
        lambda rho: decentralized.dfedsam(loss, own, mixer, radius=rho),
        (config.rho,),
    )
    admm = run(
        "DFedADMM",
        paired,
        lambda penalty: decentralized.dfedadmm(loss, own, mixer, penalty=penalty),
        LAMBDAS,
    )
    both = run(
        "DFedADMM-SAM",
        paired,
        lambda penalty: decentralized.dfedadmm_sam(
            loss, own, mixer, radius=config.rho, penalty=penalty
        ),
        (1.0, 3.0),
    )

    last = decentralized.Order.ADAPT_THEN_COMBINE
    rates = (config.rate, 3 * config.rate)
    steps = run(
        "D-PSGD",
        single,
        lambda rate: decentralized.dpsgd(loss, sgd(rate), mixer, order=last),
        rates,
    )
    tracked = run(
        "DSGT",
        single,
        lambda rate: decentralized.dsgt(loss, lambda t: rate * config.decay**t, mixer),
        rates,
    )

    def row(found: dict[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
        return {
            name: found[name][place] for name in ("mean model", "distance", "local", "megabytes")
        }

    return (
        {
            f"{name}, rate {rate:g}": row(measured, i)
            for name, measured in (("D-PSGD", steps), ("DSGT", tracked))
            for i, rate in enumerate(rates)
        }
        | {
            "DFedAvg": row(plain, 0),
            f"DFedAvg, rate {3 * config.rate:g}": row(plain, 1),
            "DFedAvgM, momentum 0.9": row(heavy, 0),
            f"DFedSAM, rho {config.rho:g}": row(sharp, 0),
        }
        | {f"DFedADMM, lambda {value:g}": row(admm, i) for i, value in enumerate(LAMBDAS)}
        | {
            "DFedADMM-SAM, lambda 1": row(both, 0),
            "DFedADMM-SAM, lambda 3": row(both, 1),
        }
    )


def at(curve: dict[str, np.ndarray], number: int) -> np.ndarray:
    """The mean model's accuracy after that round, or after the last one."""
    return curve["mean model"][:, min(number, curve["mean model"].shape[1]) - 1]


def reached(curve: dict[str, np.ndarray], config: Config) -> np.ndarray:
    """Rounds to the bar; as many as there were where it was not reached."""
    return np.minimum(rounds_to(curve["mean model"], config.bar), config.rounds)


def digits_claims(found: dict[str, Any], config: Config) -> list[Claim]:
    """What has to come out on digits."""
    plain = found["DFedAvg"]
    first = slice(0, config.seeds)
    sooner = {
        value: reached(plain, config) / reached(found[f"DFedADMM, lambda {value:g}"], config)
        for value in (3.0, 10.0)
    }
    gain = {
        value: found[f"DFedADMM, lambda {value:g}"]["local"][first] - plain["local"][first]
        for value in (3.0, 10.0)
    }
    weak = at(found["DFedADMM, lambda 0.3"], EARLY) - at(plain, EARLY)
    claims = [
        Claim(
            f"lambda 3 takes the mean model to {100 * config.bar:g} % at least 1.25 times sooner than "
            "DFedAvg at the same rate, on every split",
            bool((sooner[3.0] >= 1.25).all()),
            [float(sooner[3.0].min()), float(sooner[3.0].max())],
            1.25,
        ),
        Claim(
            "lambda 10 does so on average over splits",
            bool(sooner[10.0].mean() >= 1.25),
            float(sooner[10.0].mean()),
            1.25,
        ),
        Claim(
            f"at alpha {config.alphas[0]:g} lambda 3 ends with local models better by 0.015 on average",
            bool(gain[3.0].mean() >= 0.015),
            [float(gain[3.0].mean()), float(gain[3.0].std())],
            0.015,
        ),
        Claim(
            f"at alpha {config.alphas[0]:g} lambda 10 ends with local models better by 0.025 on average",
            bool(gain[10.0].mean() >= 0.025),
            [float(gain[10.0].mean()), float(gain[10.0].std())],
            0.025,
        ),
        Claim(
            f"lambda 0.3, whose round steps are short, is behind DFedAvg in round {EARLY}",
            bool((weak < 0).all()),
            [float(weak.min()), float(weak.max())],
            0.0,
        ),
    ]
    for value in (1, 3):
        sharp = found[f"DFedADMM-SAM, lambda {value}"]["local"]
        change = float(np.mean(sharp - found[f"DFedADMM, lambda {value}"]["local"]))
        claims.append(
            Claim(
                f"sharpness-aware steps cost the local models at most 0.005 at lambda {value}",
                change >= -0.005,
                change,
                -0.005,
            )
        )
    return claims


LOOKS = looks(
    (
        "DFedAvg",
        "DFedAvg, rate 0.3",
        "DFedAvgM, momentum 0.9",
        "DFedADMM, lambda 0.3",
        "DFedADMM, lambda 3",
        "DFedADMM, lambda 10",
    )
)


def accuracy_figure(found: dict[str, Any], config: Config) -> Any:
    """Accuracy of the mean model over rounds and megabytes, one panel for each split law."""
    panels = len(config.alphas)
    with figure(4.6 * panels, 4.3, ncols=panels, sharey=True, squeeze=False) as (drawn, axes):
        for place, (panel, alpha) in enumerate(zip(axes[0], config.alphas, strict=True)):
            own = slice(place * config.seeds, (place + 1) * config.seeds)
            for name, look in LOOKS.items():
                if name not in found:
                    continue
                accuracy = found[name]["mean model"][own]
                curve(panel, np.arange(1, accuracy.shape[1] + 1), accuracy, look, name)
            bar = f"{100 * config.bar:g} %, to which rounds are counted"
            panel.axhline(config.bar, color="0.6", linewidth=0.8, label=bar)
            panel.set(
                xlabel="round", title=f"Dirichlet {alpha:g}", xlim=(1, min(100, config.rounds))
            )
            # A round of every method sends one model to each neighbour.
            sent_axis(panel, float(found["DFedAvg"]["megabytes"][0, 0]))
        axes[0][0].set_ylabel("accuracy of the mean model")
        handles = axes[0][-1].get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=4, fontsize=8)
    return drawn


def over_graphs(config: Config, stage: Stage = in_memory) -> Summary:
    """A CNN on Fashion-MNIST: the methods' ordering over graphs, from sparse to dense."""
    data = dx.data.fashion_mnist()
    clients, seeds = 12, [config.seed, config.seed + 1]
    labels = np.asarray(data.labels)
    paired = Paired(
        data,
        [label_priors(labels, clients, 0.3, 300, seed) for seed in seeds],
        seeds,
        images.network(config.network),
        local_steps=5,
        batch_size=20,
        rounds=config.graph_rounds,
        tail=2,
        examples=500,
        together=False,
    )
    graphs = {
        "ring": topology.metropolis(topology.ring(clients)),
        "torus": topology.metropolis(topology.torus(3, 4)),
        "exponential": topology.uniform(topology.exponential(clients)),
        "complete": topology.metropolis(topology.complete(clients)),
    }
    matrices = [matrix.dense() for matrix in graphs.values()]
    rate = optax.sgd(config.rate)
    methods: dict[str, Any] = {
        "DFedAvg": lambda mixer: decentralized.dfedavg(paired.loss, rate, mixer),
        "DFedSAM": lambda mixer: decentralized.dfedsam(paired.loss, rate, mixer, radius=0.05),
        "DFedADMM": lambda mixer: decentralized.dfedadmm(paired.loss, rate, mixer),
        "DFedADMM-SAM": lambda mixer: decentralized.dfedadmm_sam(
            paired.loss, rate, mixer, radius=0.05
        ),
    }
    # The graph is what varies in a method's program.
    measured = {
        name: stage(
            f"{name} on Fashion-MNIST",
            lambda make=make: paired.run(lambda matrix: make(given_matrix(matrix)), matrices),
        )
        for name, make in methods.items()
    }
    local = {
        (name, graph): measured[name]["local"][place]
        for name in methods
        for place, graph in enumerate(graphs)
    }
    averaged = {
        (name, graph): measured[name]["mean model"][place][:, -2:].mean(1)
        for name in methods
        for place, graph in enumerate(graphs)
    }
    rows = {
        f"Fashion-MNIST, {name}": {graph: local[name, graph].mean() for graph in graphs}
        | {f"{graph}, mean model": averaged[name, graph].mean() for graph in graphs}
        for name in methods
    }
    gains = {
        whose: [float((found["DFedADMM", g] - found["DFedAvg", g]).mean()) for g in graphs]
        for whose, found in (("clients' models", local), ("mean models", averaged))
    }
    claims = [
        Claim(
            MEAN_MODELS,
            min(gains["mean models"]) > 0,
            gains["mean models"],
            0.0,
        ),
        # On sparse graphs they are level within the spread over seeds, on the complete one far ahead.
        Claim(
            CLIENTS_MODELS,
            float(np.mean(gains["clients' models"])) > 0,
            gains["clients' models"],
            0.0,
        ),
    ]
    with figure(6.0, 3.6) as (drawn, axes):
        width = 0.8 / len(methods)
        for name, look in looks(methods).items():
            heights = np.stack([local[name, graph] for graph in graphs], axis=1)
            bars(
                axes,
                np.arange(len(graphs)) + (look.place - 1.5) * width,
                heights,
                look,
                width,
                name,
            )
        axes.set_xticks(range(len(graphs)), list(graphs))
        axes.set_ylabel("mean accuracy of the clients' models")
        axes.grid(axis="x", visible=False)
        drawn.legend(loc="outside upper center", ncols=len(methods), fontsize=8)
    return Summary(rows, claims, {"graphs": drawn})


STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part(
            "Fashion-MNIST",
            over_graphs,
            needs=(FASHION_MNIST,),
            states=lambda config: [MEAN_MODELS, CLIENTS_MODELS],
            wanted=lambda config: config.network != "none",
        ),
    ),
    quick=Config(seeds=1, rounds=30, graph_rounds=4),
    pictures=(
        Picture(
            name="accuracy",
            file="dfedadmm.png",
            claim=(
                "A dual per client takes the mean model to 75 % sooner than DFedAvg at "
                "the same rate, and to a higher end, if lambda is large enough."
            ),
            data="digits (scikit-learn), {config.clients} clients on a ring",
            bands="bands: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
