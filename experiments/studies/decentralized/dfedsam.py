"""DFedSAM and several gossip steps on clients with skewed labels: radius, steps, spectral gap."""

import dataclasses
from typing import Any

import numpy as np
import optax

import dflax as dx
from dflax import decentralized, topology
from experiments.tasks.inputs import DIGITS
from experiments.tasks.paired import Paired, label_priors
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, log_megabytes, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      rows: of the grid of clients, on scikit-learn's digits.
      columns: of the grid; there are rows times columns clients.
      owned: examples of a client.
      alpha: Dirichlet concentration of the clients' label priors.
      seeds: splits and starts, the same for all methods.
      rounds: T.
      local_steps: K.
      batch_size: B.
      rate: learning rate.
      rho: radius of the claims.
      seed: of splits and starts.
    """

    rows: int = 4
    columns: int = 5
    owned: int = 30
    alpha: float = 0.1
    seeds: int = 3
    rounds: int = 60
    local_steps: int = 20
    batch_size: int = 16
    rate: float = 0.1
    rho: float = 0.2
    seed: int = 0

    @property
    def clients(self) -> int:
        """n, the number of clients."""
        return self.rows * self.columns


STEPS = (1, 2, 4, 8)


def radius_steps_and_graphs(config: Config, stage: Stage = in_memory) -> Summary:
    """Sweeps the radius at one and four gossip steps, the gossip steps, and the graphs."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    seeds = [config.seed + s for s in range(config.seeds)]
    paired = Paired(
        data,
        [label_priors(labels, config.clients, config.alpha, config.owned, s) for s in seeds],
        seeds,
        dx.models.MLP((64,), classes=10),
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        rounds=config.rounds,
        tail=config.rounds,
    )
    radii = (0.0, config.rho / 2, config.rho, 2.5 * config.rho)
    found: dict[tuple[str, int, float], dict[str, np.ndarray]] = {}

    def run(graph: str, matrix: topology.MixingMatrix, steps: int, rhos: tuple[float, ...]) -> None:
        """Fills in the local accuracies and distances of these radii."""
        mixer = dx.gossip.mixer(matrix)
        measured = stage(
            f"{graph}, {steps} gossip steps",
            lambda: paired.run(
                lambda rho: decentralized.dfedsam(
                    paired.loss, optax.sgd(config.rate), mixer, radius=rho, gossip_steps=steps
                ),
                rhos,
            ),
        )
        for place, rho in enumerate(rhos):
            found[graph, steps, rho] = {
                "local": measured["local curve"][place, :, -1],
                "curve": measured["local curve"][place],
                "megabytes": measured["megabytes"][place],
                "mean model": measured["mean model"][place, :, -1],
                "distance": measured["distance"][place, :, -1],
            }

    graphs = {
        "ring": topology.metropolis(topology.ring(config.clients)),
        "grid": topology.metropolis(topology.torus(config.rows, config.columns)),
        "exponential": topology.uniform(topology.exponential(config.clients)),
        "complete": topology.metropolis(topology.complete(config.clients)),
    }
    for steps in STEPS:
        run("ring", graphs["ring"], steps, radii if steps in (1, 4) else (0.0, config.rho))
    for name in list(graphs)[1:]:
        run(name, graphs[name], 1, (0.0, config.rho))
    gaps = {name: topology.spectral_gap(matrix) for name, matrix in graphs.items()}
    rows = {
        f"{graph}, Q = {steps}, rho = {rho:g}": {
            "local": one["local"].mean(),
            "std over seeds": one["local"].std(),
            "mean model": one["mean model"].mean(),
            "distance": one["distance"].mean(),
            "MB": one["megabytes"][:, -1].mean(),
            "gain over rho 0": (one["local"] - found[graph, steps, 0.0]["local"]).mean(),
        }
        for (graph, steps, rho), one in sorted(found.items(), key=lambda item: item[0][:2])
    }
    swept, compared = list(rows), baselines(paired, graphs, config, stage)
    figures = {
        "gossip_steps": steps_figure(found, radii, config),
        "spectral_gap": gap_figure(found, gaps, config),
        "traffic": traffic_figure(found, list(graphs), config),
    }
    tables = {
        f"DFedSAM after {config.rounds} rounds; MB sent by a client": swept,
        "other methods with the same local work": list(compared),
    }
    return Summary(rows | compared, all_claims(found, gaps, config), figures, tables)


def baselines(
    paired: Paired, graphs: dict[str, topology.MixingMatrix], config: Config, stage: Stage
) -> dict[str, dict[str, float]]:
    """DisPFL, whose models are seen as they are after training, and DFedAvg where links take turns."""
    descent = optax.sgd(config.rate)
    density, budget = 0.5, 0.5
    dispfl = {
        f"DisPFL, {name}, density {density:g}": decentralized.dispfl(
            paired.loss,
            descent,
            dx.gossip.mixer(graphs[name]),
            rounds=config.rounds,
            density=density,
        )
        for name in ("ring", "grid")
    }
    turns = {
        f"MATCHA, grid, budget {budget:g}": dx.gossip.matcha(
            topology.torus(config.rows, config.columns), budget
        ),
        "one-peer exponential": dx.gossip.one_peer_exponential(config.clients),
    }
    averaging = {
        name: decentralized.dfedavg(paired.loss, descent, mixer) for name, mixer in turns.items()
    }
    rows = {}
    for name, method in (dispfl | averaging).items():
        measured = stage(name, lambda method=method: paired.run(lambda _: method))
        local = measured["local curve"][0, :, -1]
        # A sparse message: its active entries, and a bit for each entry of the mask.
        share = density + 1 / 32 if name in dispfl else 1.0
        rows[name] = {
            "local": local.mean(),
            "std over seeds": local.std(),
            "mean model": measured["mean model"][0, :, -1].mean(),
            "distance": measured["distance"][0, :, -1].mean(),
            "MB": share * measured["megabytes"][0, :, -1].mean(),
        }
    return rows


def all_claims(found: dict[Any, Any], gaps: dict[str, float], config: Config) -> list[Claim]:
    """What has to come out."""

    def local(graph: str, steps: int, rho: float) -> np.ndarray:
        return found[graph, steps, rho]["local"]

    four = local("ring", 4, 0.0) - local("ring", 1, 0.0)
    claims = [
        Claim(
            "four gossip steps beat one by 0.08 on average and by 0.04 on every seed",
            bool(four.mean() >= 0.08 and four.min() >= 0.04),
            [float(four.mean()), float(four.min())],
            [0.08, 0.04],
        )
    ]
    for steps in (1, 4):
        gain = local("ring", steps, config.rho) - local("ring", steps, 0.0)
        claims.append(
            Claim(
                f"rho {config.rho:g} beats rho 0 at Q = {steps} by 0.012 on average and on every seed",
                bool(gain.mean() >= 0.012 and gain.min() > 0),
                [float(gain.mean()), float(gain.min())],
                [0.012, 0.0],
            )
        )
    for rho in (0.0, config.rho):
        rising = [float(local("ring", steps, rho).mean()) for steps in STEPS]
        claims.append(
            Claim(
                f"accuracy rises over Q = 1, 2, 4, 8 at rho {rho:g}",
                bool(np.all(np.diff(rising) > 0)),
                rising,
                "rising",
            )
        )
        order = sorted(gaps, key=lambda name: gaps[name])
        over = [float(local(name, 1, rho).mean()) for name in order]
        claims.append(
            Claim(
                f"accuracy rises with the spectral gap over {', '.join(order)} at rho {rho:g}",
                bool(np.all(np.diff(over) > 0)),
                over,
                [float(gaps[name]) for name in order],
            )
        )
    return claims


def steps_figure(found: dict[Any, Any], radii: tuple[float, ...], config: Config) -> Any:
    """Local accuracy over gossip steps, and the paired gain over the radius."""
    with figure(8.6, 3.5, ncols=2) as (drawn, axes):
        for rho, color, line in ((0.0, "C0", "o-"), (config.rho, "C1", "s--")):
            values = np.stack([found["ring", steps, rho]["local"] for steps in STEPS])
            label = "DFedAvg" if rho == 0.0 else f"DFedSAM, rho {rho:g}"
            axes[0].plot(STEPS, values, ".", color=color, alpha=0.4)
            axes[0].plot(STEPS, values.mean(1), line, color=color, label=label)
        axes[0].set_xscale("log", base=2)
        axes[0].set_xticks(STEPS, [str(steps) for steps in STEPS])
        axes[0].set(xlabel="gossip steps Q", ylabel="mean accuracy of the clients' models")
        axes[0].legend(loc="lower right")
        for steps, color, line in ((1, "C2", "o-"), (4, "C3", "s--")):
            gains = np.stack(
                [
                    found["ring", steps, rho]["local"] - found["ring", steps, 0.0]["local"]
                    for rho in radii
                ]
            )
            axes[1].plot(radii, gains, ".", color=color, alpha=0.4)
            axes[1].plot(radii, gains.mean(1), line, color=color, label=f"Q = {steps}")
        axes[1].set(xlabel="radius rho", ylabel="gain over rho 0, same seed")
        axes[1].legend(loc="lower right")
    return drawn


def gap_figure(found: dict[Any, Any], gaps: dict[str, float], config: Config) -> Any:
    """Local accuracy against the spectral gap of what a round multiplies by."""
    second = 1.0 - gaps["ring"]
    with figure(6.0, 3.8) as (drawn, axes):
        for rho, color, marks, label in (
            (0.0, "C0", "os", "DFedAvg"),
            (config.rho, "C1", "^D", f"DFedSAM, rho {config.rho:g}"),
        ):
            graphs = [found[name, 1, rho]["local"].mean() for name in gaps]
            axes.plot(list(gaps.values()), graphs, f"{marks[0]}-", color=color, label=label)
            several = [1.0 - second**steps for steps in STEPS]
            ring = [found["ring", steps, rho]["local"].mean() for steps in STEPS]
            ring_label = f"{label}, ring, Q steps"
            axes.plot(several, ring, f"{marks[1]}--", color=color, mfc="white", label=ring_label)
        for name, gap in gaps.items():
            below = found[name, 1, 0.0]["local"].mean()
            axes.annotate(
                name, (gap, below), (4, -12), textcoords="offset points", fontsize=8, color="0.3"
            )
        axes.set_xscale("log")
        axes.margins(y=0.1)
        axes.set(
            xlabel="spectral gap of a round's mixing, 1 - lambda^Q",
            ylabel="mean accuracy of the clients' models",
        )
        axes.legend(loc="lower right", fontsize=8)
    return drawn


def traffic_figure(found: dict[Any, Any], graphs: list[str], config: Config) -> Any:
    """Local accuracy of DFedSAM over rounds and over megabytes: several steps, and denser graphs."""
    runs = [("ring", steps) for steps in STEPS] + [(name, 1) for name in graphs[1:]]
    named = looks(f"ring, Q = {steps}" if graph == "ring" else graph for graph, steps in runs)
    with figure(9.0, 4.3, ncols=2, sharey=True) as (drawn, axes):
        for (graph, steps), (label, look) in zip(runs, named.items(), strict=True):
            own = found[graph, steps, config.rho]
            rounds = np.arange(1, own["curve"].shape[1] + 1)
            for panel, xs in zip(axes, (rounds, own["megabytes"].mean(0)), strict=True):
                curve(panel, xs, own["curve"], look, label)
        axes[0].set(xlabel="round", ylabel="mean accuracy of the clients' models")
        log_megabytes(axes[1], "megabytes sent per client")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


STUDY = Study(
    Config,
    (Part("digits", radius_steps_and_graphs, needs=(DIGITS,)),),
    quick=Config(seeds=1, rounds=5, local_steps=5),
    seconds=115,
    pictures=(
        Picture(
            name="traffic",
            file="dfedsam.png",
            claim=(
                "Several gossip steps on a ring do what a denser graph does, at the price"
                " of as many megabytes."
            ),
            data=(
                "digits (scikit-learn), {config.clients} clients, Dirichlet "
                "{config.alpha:g}, DFedSAM with rho {config.rho:g}"
            ),
            bands="bands: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
