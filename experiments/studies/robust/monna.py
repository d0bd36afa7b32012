"""MoNNA: momentum and averages of the nearest bear hostile peers at a batch of fixed size."""

import dataclasses
from typing import Any, Literal

import numpy as np

from experiments.studies.robust import _monna_gradients, _monna_images, _monna_mixing
from experiments.studies.robust._monna_methods import (
    clipping,
    labelled,
    learn_along,
    learning,
    mixer,
    momentum,
    rules,
)
from experiments.tasks import robust_peers
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tasks.robust_peers import ATTACKS, FAULTY, Attack, Found
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary

NONE = "none"
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      rounds: steps T, a multiple of ten and at least 50.
      seeds: repetitions with data, minibatches and arrivals of their own.
      seed: of the first repetition.
      faulty: numbers of faulty peers whose price in gradients is looked at; 0 and others.
      trials: configurations of each search for the constants of a mixing; three searches.
      network: on Fashion-MNIST afterwards: "small" a CNN whose 200 steps take some 15 minutes, "cnn"
        that of the authors, eight times as long, "none" nothing.
      image_rounds: steps on Fashion-MNIST, a multiple of 20.
      image_seeds: repetitions on Fashion-MNIST.
    """

    rounds: int = 300
    seeds: int = 5
    seed: int = 100
    faulty: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    trials: int = 600
    network: Literal["none", "small", "cnn"] = "none"
    image_rounds: int = 200
    image_seeds: int = 3


RADII = (0.05, 2.0)


def learn_rounds(config: Config) -> int:
    """Two for each of T steps whose T (T + 1) / 2 gradients are no more than the others' 16 a step."""
    steps = int(np.sqrt(2 * BATCH * config.rounds) - 0.5)
    return 2 * steps // 10 * 10


def all_runs(config: Config, stage: Stage) -> dict[str, dict[str, Found]]:
    """Every method under every attack and under none: lanes are the seeds."""
    seeds = range(config.seed, config.seed + config.seeds)
    pieces = -(-learn_rounds(config) // 2 // BATCH)
    found: dict[str, dict[str, Found]] = {}
    for faulty in (0, FAULTY):
        given = robust_peers.peers(seeds, faulty=faulty)
        many = robust_peers.peers(seeds, faulty=faulty, pieces=pieces)
        attacks = ATTACKS if faulty else {NONE: Attack(1.0)}
        methods: dict[str, tuple[Any, tuple[float, ...], Any, int]] = {
            name: (momentum(mixer(rule, faulty)), betas, given, config.rounds)
            for name, (rule, betas) in rules().items()
        }
        methods["SCC"] = clipping(faulty), RADII, given, config.rounds
        methods["LEARN"] = learning(faulty, FAULTY), (0.0,), many, learn_rounds(config)
        for name, (method, values, source, rounds) in methods.items():
            points = [
                (seed, value, attack)
                for value in values
                for attack in attacks.values()
                for seed in range(config.seeds)
            ]
            along = learn_along if name == "LEARN" else robust_peers.back
            title = f"{name} {'under attacks' if faulty else 'without hostile peers'}"
            seen = stage(
                title,
                lambda m=method, s=source, p=points, r=rounds, a=along: robust_peers.run(
                    s, m, p, r, a
                )._asdict(),
            )
            shape = len(values), len(attacks), config.seeds, -1
            cut = {key: np.asarray(value).reshape(shape) for key, value in seen.items()}
            for place, value in enumerate(values):
                label = labelled(name, value)
                for number, attack in enumerate(attacks):
                    lanes = {key: array[place, number] for key, array in cut.items()}
                    found.setdefault(label, {})[attack] = Found(**lanes)
    return found


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """The table of rules and attacks, what momentum does to disagreement, and gradients."""
    found = all_runs(config, stage)
    seeds = range(config.seed, config.seed + config.seeds)
    noisy = robust_peers.peers(seeds, alpha=5.0, batch=4)
    points = [
        (seed, beta, Attack(1.0, deviations))
        for deviations in (3.0, 10.0)
        for beta in (0.9, 0.0)
        for seed in range(config.seeds)
    ]
    one = momentum(mixer(rules()["NNA"][0], FAULTY))
    seen = stage(
        "NNA under far ALIE, batch 4",
        lambda: robust_peers.run(noisy, one, points, config.rounds)._asdict(),
    )
    apart = np.asarray(seen["apart"]).reshape(2, 2, config.seeds, -1)
    rows = {
        f"{name}, {attack}": _row(name, f) for name, by in found.items() for attack, f in by.items()
    }
    tables = {
        f"under {attack}" if attack != NONE else "without hostile peers": [
            f"{name}, {attack}" for name in found
        ]
        for attack in (NONE, *ATTACKS)
    }
    return Summary(rows, _claims(found, apart), {"monna": _draw(found, config)}, tables)


def _row(name: str, found: Found) -> dict[str, float]:
    ends = robust_peers.final(found)
    # From what is measured every tenth round on.
    reached = np.flatnonzero(found.accuracy.mean(0) >= 0.9)
    rounds = 10 * (reached[0] + 1) if len(reached) else np.nan
    gradients = rounds / 2 * (rounds / 2 + 1) / 2 if name == "LEARN" else BATCH * rounds
    return {
        "accuracy": float(ends["accuracy"].mean()),
        "std": float(ends["accuracy"].std()),
        "worst": float(ends["worst"].mean()),
        "disagreement": float(ends["disagreement"].mean()),
        "hostile used": float(ends["hostile used"].mean()),
        "gradients to 0.9": float(gradients),
    }


def _claims(found: dict[str, dict[str, Found]], noisy: np.ndarray) -> list[Claim]:
    """The sheet's statements on every seed, or on their mean where it says so."""
    accuracy = {
        name: {attack: f.accuracy[:, -1] for attack, f in by.items()} for name, by in found.items()
    }
    ours = accuracy["NNA 0.9"]
    claims: list[Claim] = []

    def least(text: str, values: np.ndarray, limit: float) -> None:
        claims.append(
            Claim(f"{text}, every seed", bool((values > limit).all()), values.tolist(), limit)
        )

    def most(text: str, values: np.ndarray, limit: float) -> None:
        claims.append(
            Claim(f"{text}, every seed", bool((values < limit).all()), values.tolist(), limit)
        )

    for attack in ("sign flip", "FoE", "ALIE"):
        lost = ours[NONE] - ours[attack]
        most(f"MoNNA loses less than 0.02 under {attack}", lost, 0.02)
    lost = ours[NONE] - ours["label flip"]
    claims.append(
        Claim(
            "MoNNA loses less than 0.03 to flipped labels, mean over seeds",
            bool(lost.mean() < 0.03),
            [float(lost.mean()), *lost.tolist()],
            0.03,
        )
    )
    most("the mean ends below 0.45 under sign flip", accuracy["mean 0.9"]["sign flip"], 0.45)
    most("the mean ends below 0.65 under FoE", accuracy["mean 0.9"]["FoE"], 0.65)
    for attack in ("sign flip", "FoE"):
        behind = ours[attack] - accuracy["CWTM 0.9"][attack]
        least(f"the trimmed mean is 0.03 behind MoNNA under {attack}", behind, 0.03)
    ends = {beta: robust_peers.final(found[f"NNA {beta}"]["sign flip"]) for beta in ("0", "0.9")}
    ratio = ends["0"]["disagreement"] / ends["0.9"]["disagreement"]
    least("without momentum peers disagree 1.5 times as much under sign flip", ratio, 1.5)
    last = noisy[:, 1, :, -1] / noisy[:, 0, :, -1]
    least("under far ALIE with a batch of 4, 4 times as much", last.reshape(-1), 4.0)
    for attack in ("sign flip", "FoE"):
        used = found["NNA 0.9"][attack].used[:, -50:].mean(1)
        most(f"MoNNA uses no hostile message of {attack}", used, 1e-6)
    kept = found["NNA 0.9"]["ALIE"].used.mean(1)
    least("of ALIE's it uses a quarter and more", kept, 0.25)
    for attack in ("sign flip", "FoE"):
        behind = ours[attack] - accuracy["LEARN"][attack]
        least(f"for as many gradients LEARN gets less under {attack}", behind, 0.0)
    return claims


def _draw(found: dict[str, dict[str, Found]], config: Config) -> Any:
    shown = ("mean 0.9", "NNA 0.9", "NNA 0", "CWTM 0.9", "GM 0.9", "SCC, radius 0.05", "LEARN")
    with figure(13.0, 6.6, nrows=2, ncols=3) as (drawn, axes):
        for panel, attack in zip(axes.flat, (NONE, *ATTACKS), strict=False):
            for name, look in looks(shown).items():
                lanes = found[name][attack].accuracy
                rounds = 10 * np.arange(1, lanes.shape[1] + 1)
                spent = rounds / 2 * (rounds / 2 + 1) / 2 if name == "LEARN" else BATCH * rounds
                curve(panel, spent, lanes, look, name)
            title = "no hostile peers" if attack == NONE else f"3 hostile among 15: {attack}"
            panel.set(title=title, ylim=(0, 1), xlabel="gradients of a peer")
        for beta, look in looks(("0.99", "0.9", "0")).items():
            lanes = found[f"NNA {beta}"]["sign flip"].apart
            rounds = 10 * np.arange(1, lanes.shape[1] + 1)
            curve(axes[1, 2], rounds, lanes.mean(0, keepdims=True), look, f"NNA, beta {beta}")
        axes[1, 2].set(yscale="log", xlabel="step", title="disagreement of the honest, sign flip")
        axes[1, 2].set_ylabel("squared distance to their mean model")
        axes[1, 2].legend()
        for panel in axes[:, 0]:
            panel.set_ylabel("test accuracy, mean of the honest")
        handles = axes[0, 0].get_legend_handles_labels()
        drawn.legend(
            *handles,
            loc="outside lower center",
            ncols=len(shown),
            title="rule and beta",
        )
    return drawn


STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part("gradients", _monna_gradients.on_faulty, needs=(DIGITS,)),
        Part("constants of the mixing", _monna_mixing.constants, needs=()),
        Part(
            "Fashion-MNIST",
            _monna_images.on_images,
            needs=(FASHION_MNIST,),
            states=_monna_images.statements,
            wanted=lambda config: config.network != "none",
        ),
    ),
    seconds=268,
    quick=Config(rounds=50, seeds=1, trials=60, faulty=(0, 3), image_rounds=20, image_seeds=1),
    pictures=(
        Picture(
            name="monna",
            file="monna.png",
            claim=(
                "With 3 of 15 peers hostile, momentum and averages of the nearest stay "
                "where no hostile peer would leave them; other rules lose accuracy under "
                "some attack, LEARN at as many gradients."
            ),
            data="digits (scikit-learn), 12 honest peers",
            bands="bands: least to largest of {config.seeds} seeds",
        ),
        Picture(
            name="monna_gradients",
            file="monna_gradients.png",
            claim=(
                "Up to 3 faulty peers beside 12 honest ones each add a seventh to the "
                "gradients that MoNNA needs, and LEARN needs up to 14 times as many; with"
                " 4 or 5 sign flips and FoE break MoNNA."
            ),
            data="digits (scikit-learn), 12 honest peers",
            bands=(
                "bands and bars: least to largest of {config.seeds} seeds; hollow marks: "
                "not reached on all"
            ),
            headed=False,
        ),
        Picture(
            name="monna_fashion",
            file="monna_fashion.png",
            claim=(
                "On images, sign flips, FoE and flipped labels cost MoNNA at most .003, "
                "ALIE .035 on the mean; trimmed means lose .23 and more to sign flips."
            ),
            data="Fashion-MNIST, a CNN, 5 of 26 peers hostile",
            bands="bands: least to largest of {config.image_seeds} seeds",
            flags="--network small",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
