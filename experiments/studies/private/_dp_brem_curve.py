"""Privacy against accuracy on Fashion-MNIST, with and without liars."""

from typing import Any

import numpy as np

from dflax import privacy
from experiments.studies.private._dp_brem_methods import (
    BETA,
    BREM,
    CLIP,
    LDP,
    MEAN,
    Numbers,
    methods,
)
from experiments.tasks import private_records
from experiments.tasks.private_records import Attack
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Summary

EPSILONS = (0.1, 0.3, 1.0, 3.0)
DELTA = 1e-5
STATES = {"none": Attack(), "IPM 20": Attack(factor=20.0)}
SHOWN = (BREM, MEAN, CLIP, LDP)
# R = 0.5 and C = 0.1 as on digits.
NUMBERS = Numbers(rate=2.0, record_clip=0.5, radius=0.1, noise=0.0)


def on_images(config: Any, stage: Stage = in_memory) -> Summary:
    """Four methods, four budgets and none, without liars and with 5 of 20."""
    seeds = range(config.seed, config.seed + config.image_seeds)
    given = private_records.fashion(seeds, images=60_000, probability=0.01)
    multipliers = _multipliers(given, config)
    # Of each seed's smallest client; the last one without noise.
    noises = np.append(multipliers, 0.0)[:, None] / given.smallest
    points = [
        (seed, float(noises[place, seed]), attack)
        for attack in STATES.values()
        for place in range(len(noises))
        for seed in range(len(seeds))
    ]
    made, found = methods(NUMBERS, config.image_rounds), {}
    for name in SHOWN:
        ends = stage(
            f"{name} on Fashion-MNIST",
            lambda name=name: private_records.run(given, made[name], points, config.image_rounds)[
                "accuracy"
            ][:, -1],
        )
        found[name] = np.asarray(ends).reshape(len(STATES), len(noises), len(seeds))
    source, smallest = given.federations[0], given.smallest[0]
    always = {
        f"epsilon {epsilon:g}": privacy.epsilon(
            privacy.momentum_plans(source, z / smallest, config.image_rounds, beta=BETA).always,
            DELTA,
        )
        for epsilon, z in zip(EPSILONS, multipliers, strict=True)
    }
    rows = {
        f"Fashion-MNIST: {name}, {attack}": {
            f"epsilon {epsilon:g}": float(ends[number, place].mean())
            for place, epsilon in enumerate((*EPSILONS, np.inf))
        }
        for name, ends in found.items()
        for number, attack in enumerate(STATES)
    }
    rows["Fashion-MNIST: DP-BREM, the bound that always holds"] = always
    return Summary(rows, _claims(found, config), {"dp_brem_curve": _draw(found, config)})


def _multipliers(given: private_records.Task, config: Any) -> np.ndarray:
    """Z of DP-SGD for every epsilon, enough for the clients of every seed."""
    plans = [privacy.examples_plan(one, None, config.image_rounds) for one in given.federations]
    return np.array(
        [max(privacy.noise_for(plan, epsilon, DELTA) for plan in plans) for epsilon in EPSILONS]
    )


def statements(config: Any) -> list[str]:
    """What is claimed of Fashion-MNIST."""
    return [
        "Fashion-MNIST: without liars DP-BREM at epsilon 1 loses less than 0.02 to no noise, every seed",
        "Fashion-MNIST: IPM 20, epsilon 1: DP-BREM ends above 0.4, the mean below 0.15, every seed",
        "Fashion-MNIST: IPM 20: clipping alone is ahead of DP-BREM at epsilon 0.1 and 0.3, whose noise "
        "uses up C, mean over seeds",
    ]


def _claims(found: dict[str, np.ndarray], config: Any) -> list[Claim]:
    ours, mean = found[BREM], found[MEAN]
    at = EPSILONS.index(1.0)
    lost = ours[0, -1] - ours[0, at]
    stands = bool((ours[1, at] > 0.4).all() and (mean[1, at] < 0.15).all())
    ahead = (found[CLIP][1] - ours[1]).mean(1)
    first, second, third = statements(config)
    return [
        Claim(first, bool((lost < 0.02).all()), lost.tolist(), 0.02),
        Claim(second, stands, [ours[1, at].tolist(), mean[1, at].tolist()], [0.4, 0.15]),
        Claim(third, bool((ahead[:2] > 0).all()), ahead.tolist(), "by epsilon, the last without"),
    ]


def _draw(found: dict[str, np.ndarray], config: Any) -> Any:
    places = np.arange(len(EPSILONS) + 1)
    with figure(10.0, 4.0, ncols=2, sharey=True) as (drawn, axes):
        for number, (attack, panel) in enumerate(zip(STATES, axes, strict=True)):
            for mark, (name, ends) in zip("osv^", found.items(), strict=True):
                lanes = ends[number]
                apart = np.stack([lanes.mean(1) - lanes.min(1), lanes.max(1) - lanes.mean(1)])
                panel.errorbar(places, lanes.mean(1), apart, marker=mark, capsize=2, label=name)
            panel.set_xticks(places, [*(f"{e:g}" for e in EPSILONS), "no noise"])
            panel.set_xlabel(f"epsilon of DP-SGD with this noise (delta {DELTA:g})")
            liars = "no liars" if attack == "none" else "5 of 20 clients: IPM 20"
            panel.set_title(f"Fashion-MNIST at 14 x 14: {liars}", fontsize=10)
        axes[0].set(ylabel="test accuracy (mean, least and most)", ylim=(0, 0.9))
        axes[0].legend(title=f"{config.image_seeds} seeds, {config.image_rounds} rounds")
    return drawn
