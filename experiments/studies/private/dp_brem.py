"""DP-BREM: private learning that stands where clients lie, and what its privacy rests on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import privacy
from experiments.studies.private import _dp_brem_curve
from experiments.studies.private._dp_brem_methods import (
    BETA,
    BREM,
    CLIP,
    LDP,
    MEAN,
    MEDIAN,
    OTHERS,
    SHEET,
    Numbers,
    counter_check,
    methods,
)
from experiments.tasks import private_records
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tasks.private_records import ATTACKS, CLIENTS
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Input, Part, Picture, Study, Summary

PIXELS = {name: ATTACKS[name] for name in ("IPM 2", "IPM 20")}
COUNTER = "more noise than C"
# sigma, rounds, epsilon at delta 1e-6, p = 0.05, b = 30: what is printed.
REFERENCE = (
    (0.05, 1000, 6.67),
    (0.05, 2000, 9.78),
    (0.1, 1000, 2.71),
    (0.1, 2000, 3.94),
    (0.02, 1000, 42.9),
    (0.02, 2000, 64.3),
)
BITS = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; 20 clients of which the first 5 lie.

    Attributes:
      rounds: T on digits, a multiple of ten.
      seeds: repetitions on digits, each with clients of its own.
      other_seeds: repetitions of what is reported beside the five methods compared.
      seed: of the first repetition.
      images: whether Fashion-MNIST is learned as well.
      image_rounds: T there, a multiple of ten.
      image_seeds: repetitions there.
    """

    rounds: int = 300
    seeds: int = 5
    other_seeds: int = 3
    seed: int = 100
    images: bool = True
    image_rounds: int = 150
    image_seeds: int = 3


def accuracies(
    config: Config, stage: Stage, title: str, given: Any, made: Any, names: Any, attacks: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Of each method under each attack, `[seeds, T / 10]`."""
    seeds = len(given.keys)
    points = [(seed, 0.0, attack) for attack in attacks.values() for seed in range(seeds)]
    found = {}
    for name in names:
        curves = stage(
            f"{name}, {title}",
            lambda name=name: private_records.run(given, made[name], points, config.rounds)[
                "accuracy"
            ],
        )
        lanes = np.asarray(curves).reshape(len(attacks), seeds, -1)
        found[name] = dict(zip(attacks, lanes, strict=True))
    return found


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """The table of methods and attacks, at two scales of the pixels, and where C is too small."""
    seeds = range(config.seed, config.seed + config.seeds)
    few = seeds[: config.other_seeds]
    made = methods(Numbers(), config.rounds)
    given, small = private_records.digits(seeds), private_records.digits(few)
    scaled = private_records.digits(few, "sixteenths")
    found = accuracies(config, stage, "standardised", given, made, SHEET, ATTACKS)
    found |= accuracies(config, stage, "standardised", small, made, OTHERS, ATTACKS)
    raw = accuracies(config, stage, "pixels / 16", scaled, made, SHEET, PIXELS)
    noisy = accuracies(
        config,
        stage,
        COUNTER,
        small,
        counter_check(config.rounds),
        (BREM, MEAN, CLIP),
        {name: ATTACKS[name] for name in ("none", "IPM 20")},
    )
    groups = {"": found, "pixels / 16: ": raw, f"{COUNTER}: ": noisy}
    rows = {
        f"{group}{name}": {
            key: value
            for attack, curves in by.items()
            for key, value in (
                (attack, float(curves[:, -1].mean())),
                (f"{attack} least", float(curves[:, -1].min())),
            )
        }
        for group, many in groups.items()
        for name, by in many.items()
    }
    claims = _claims({name: _ends(by) for name, by in found.items()})
    claims += _reported({n: _ends(by) for n, by in raw.items()}, noisy)
    tables = {
        "digits, standardised": list(found),
        "digits, pixels / 16": [f"pixels / 16: {name}" for name in raw],
        f"digits, {COUNTER} follows": [f"{COUNTER}: {name}" for name in noisy],
    }
    return Summary(rows, claims, {"dp_brem": _draw(found, raw, config)}, tables)


def _ends(by: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {attack: curves[:, -1] for attack, curves in by.items()}


def _claims(ends: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    ours = ends[BREM]
    behind = {
        attack: ours[attack] - np.max([ends[name][attack] for name in SHEET], axis=0)
        for attack in ATTACKS
    }
    worst = {attack: float(lag.min()) for attack, lag in behind.items()}
    stands = np.stack([ours["IPM 2"], ours["IPM 20"]])
    lost = [float((ends[MEDIAN]["none"] - ends[MEDIAN][a]).mean()) for a in PIXELS]
    lead = ours["IPM 2"] - ends[LDP]["IPM 2"]
    # On one seed 0.02 are 8 of 400 test images: less than the luckiest of four others may be ahead.
    means = {
        attack: float(ours[attack].mean() - max(ends[name][attack].mean() for name in SHEET))
        for attack in ATTACKS
    }
    most = min(worst.values())
    return [
        Claim(
            "DP-BREM is within 0.02 of the best of the five under every attack, means over seeds",
            min(means.values()) >= -0.02,
            means,
            -0.02,
        ),
        Claim("and within 0.03 on every seed", most >= -0.03, worst, -0.03),
        Claim(
            "DP-BREM stands above 0.8 under IPM 2 and IPM 20, every seed",
            bool((stands > 0.8).all()),
            stands.tolist(),
            0.8,
        ),
        Claim(
            "the mean ends below 0.15 under IPM 20, every seed",
            bool((ends[MEAN]["IPM 20"] < 0.15).all()),
            ends[MEAN]["IPM 20"].tolist(),
            0.15,
        ),
        Claim(
            "the median loses more than 0.1 to IPM 2 and to IPM 20, mean over seeds",
            min(lost) > 0.1,
            lost,
            0.1,
        ),
        Claim(
            "DP-BREM is more than 0.015 above LDP under IPM 2, mean over seeds",
            bool(lead.mean() > 0.015),
            [float(lead.mean()), *lead.tolist()],
            0.015,
        ),
    ]


def _reported(
    raw: dict[str, dict[str, np.ndarray]], noisy: dict[str, dict[str, np.ndarray]]
) -> list[Claim]:
    """Where it is not the best."""
    ahead = raw[MEAN]["IPM 2"] - raw[BREM]["IPM 2"]
    behind = [float(noisy[name]["IPM 20"][:, -1].mean()) for name in (BREM, CLIP)]
    return [
        Claim(
            "pixels / 16: the noisy mean is ahead of DP-BREM under IPM 2, mean over seeds",
            bool(ahead.mean() > 0),
            [float(ahead.mean()), *ahead.tolist()],
            0.0,
        ),
        Claim(
            "with noise of a norm above C DP-BREM is 0.2 behind clipping under IPM 20, mean over seeds",
            behind[1] - behind[0] > 0.2,
            behind,
            0.2,
        ),
    ]


def by_secure_aggregation(config: Config, stage: Stage = in_memory) -> Summary:
    """DP-BREM+ against DP-BREM, one round at a time from the same state."""
    seeds = range(config.seed, config.seed + config.other_seeds)
    given = private_records.digits(seeds)
    rounds = min(config.rounds, 60)
    numbers = Numbers()
    secure = privacy.secure_aggregation(
        jax.random.key(config.seed), CLIENTS, bound=numbers.radius, scale_bits=BITS
    )
    options: dict[str, Any] = {
        "rate": numbers.rate,
        "record_clip": numbers.record_clip,
        "radius": numbers.radius,
        "noise": numbers.noise,
        "beta": BETA,
    }

    def gaps(source: dx.Federation, key: Any, factor: Any) -> Any:
        channel = private_records.liars(factor, jnp.float32(0))
        loss = private_records.loss
        trusted = dx.server.dp_brem(loss, CLIENTS, joint=True, channel=channel, **options)
        jointly = dx.server.dp_brem_plus(loss, CLIENTS, secure, channel=channel, **options)

        def step(state: Any, index: Any) -> Any:
            round = source.draw(key, index)
            after, _ = trusted.step(state, round)
            other, metrics = jointly.step(state, round)
            gap = jnp.abs(after.server.memory - other.server.memory).max()
            return after, (gap, metrics["bytes_sent"] + metrics["bytes_received"])

        state = trusted.init(key, jnp.zeros((65, 10)))
        return jax.lax.scan(step, state, jnp.arange(rounds))[1]

    program = jax.jit(gaps)

    def compute() -> dict[str, np.ndarray]:
        made = [
            program(source, key, jnp.float32(factor))
            for source, key in zip(given.federations, given.keys, strict=True)
            for factor in (0.0, 20.0)
        ]
        gap, sent = zip(*made, strict=True)
        return {"gap": np.stack(gap), "bytes": np.stack(sent)}

    found = stage("DP-BREM+ against DP-BREM, round by round", compute)
    largest = np.asarray(found["gap"]).max(1)
    limit = 2.0 ** -(BITS + 1)
    row = {
        "largest difference": float(largest.max()),
        "2^-17": limit,
        "bytes per client": float(np.asarray(found["bytes"]).mean() / CLIENTS),
        "bytes as float32": 4.0 * 650,
    }
    claim = Claim(
        "DP-BREM+ and DP-BREM differ by the rounding to 16 binary places in one round, every seed and "
        "attack",
        # Both round to float32 on the way.
        bool((largest <= limit * 1.01 + 1e-7).all()),
        largest.tolist(),
        limit,
    )
    return Summary({"DP-BREM+": row}, [claim], {}, {"DP-BREM+, one round": ["DP-BREM+"]})


def by_the_accountant(config: Config, stage: Stage = in_memory) -> Summary:
    """Both bounds: the printed ones, and those of the runs on digits."""
    source = _accounted()
    rows, apart, always = {}, {}, {}
    for sigma, rounds, printed in REFERENCE:
        plans = privacy.momentum_plans(source, sigma, rounds, beta=BETA)
        name = f"sigma {sigma:g}, T {rounds}"
        row = {
            "printed": printed,
            "unclipped, RDP": privacy.epsilon(plans.unclipped, 1e-6),
            "unclipped, PLD": privacy.epsilon(plans.unclipped, 1e-6, accountant="pld"),
            "always": privacy.epsilon(plans.always, 1e-6),
        }
        rows[name] = row
        apart[name] = row["unclipped, RDP"] / printed - 1
        always[name] = row["always"]
    whole = privacy.momentum_plans(source, 0.05, 1000, beta=BETA).always
    rho = whole.rounds / (2 * (whole.noise_multiplier or 0.0) ** 2)
    seeds = range(config.seed, config.seed + config.seeds)
    given = private_records.digits(seeds)
    spent = [
        [
            privacy.epsilon(plan, 1e-5)
            for plan in privacy.momentum_plans(one, 0.05, config.rounds, beta=BETA)
        ]
        for one in given.federations
    ]
    for seed, (every, unclipped) in zip(seeds, spent, strict=True):
        rows[f"digits, seed {seed}"] = {"unclipped, RDP": unclipped, "always": every}
    large = {name: value for name, value in apart.items() if "0.02" not in name}
    small = {name: value for name, value in apart.items() if "0.02" in name}
    claims = [
        Claim(
            "epsilon without clipping is the printed one to 1 %, sigma 0.05 and 0.1",
            max(map(abs, large.values())) < 0.01,
            large,
            0.01,
        ),
        Claim(
            "at sigma 0.02 dp-accounting leaves out the best orders: its epsilon is 2 to 8 % above the "
            "printed one, which privacy loss distributions undercut",
            all(0.02 < value < 0.08 for value in small.values())
            and all(rows[name]["unclipped, PLD"] < rows[name]["printed"] for name in small),
            small,
            [0.02, 0.08],
        ),
        Claim(
            "the bound that always holds: rho 219.2, epsilon 329 to 1 % at sigma 0.05, T 1000",
            abs(rho / 219.2 - 1) < 0.01 and abs(always["sigma 0.05, T 1000"] / 329 - 1) < 0.01,
            [rho, always["sigma 0.05, T 1000"]],
            [219.2, 329],
        ),
        Claim(
            "and costs more than the other one in every run",
            all(row["always"] > row["unclipped, RDP"] for row in rows.values()),
            always,
            "unclipped",
        ),
    ]
    return Summary(rows, claims, {}, {"epsilon": list(rows)})


def _accounted() -> dx.Federation:
    """One client with b = 30 of 600 records."""
    data = dx.data.Dataset(jnp.zeros((600, 1)), jnp.zeros(600, jnp.int32))
    sampled = privacy.poisson_sampled(dx.data.from_indices([np.arange(600)]), 0.05)
    return dx.Federation(data, sampled, batch_size=600, local_steps=1)


def _draw(found: Any, raw: Any, config: Config) -> Any:
    with figure(12.0, 4.2, ncols=2, width_ratios=(5, 2), sharey=True) as (drawn, panels):
        for panel, many, attacks in zip(panels, (found, raw), (ATTACKS, PIXELS), strict=True):
            width = 0.8 / len(many)
            for place, ((name, by), mark) in enumerate(
                zip(many.items(), "os^vDPX*h", strict=False)
            ):
                ends = np.stack([by[attack][:, -1] for attack in attacks])
                where = np.arange(len(attacks)) + (place - (len(many) - 1) / 2) * width
                apart = np.stack([ends.mean(1) - ends.min(1), ends.max(1) - ends.mean(1)])
                panel.errorbar(where, ends.mean(1), apart, fmt=mark, ms=5, capsize=2, label=name)
            panel.set_xticks(range(len(attacks)), list(attacks))
            panel.set_xlabel("what 5 of 20 clients do")
        panels[0].set(ylabel="test accuracy (mean, least and most)", ylim=(-0.02, 1.0))
        panels[0].set_title("digits, standardised pixels", fontsize=10)
        panels[1].set_title("digits, pixels / 16", fontsize=10)
        counts = f"{config.seeds} seeds; the last four and the right side {config.other_seeds}"
        drawn.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=9,
            title=f"{config.rounds} rounds, sigma 0.05, R 0.5, C 0.1; {counts}",
        )
    return drawn


def _dp_accounting(config: Any) -> Any:
    import dp_accounting

    return dp_accounting


DP_ACCOUNTING = Input("dp-accounting", _dp_accounting)

STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part("secure aggregation", by_secure_aggregation, needs=(DIGITS,)),
        Part("accounting", by_the_accountant, needs=(DIGITS, DP_ACCOUNTING)),
        Part(
            "Fashion-MNIST",
            _dp_brem_curve.on_images,
            needs=(FASHION_MNIST, DP_ACCOUNTING),
            states=_dp_brem_curve.statements,
            wanted=lambda config: config.images,
        ),
    ),
    quick=Config(rounds=50, seeds=1, other_seeds=1, image_rounds=10, image_seeds=1),
    pictures=(
        Picture(
            name="dp_brem",
            file="dp_brem.png",
            claim=(
                "Where 5 of 20 clients lie, DP-BREM stays within 0.03 of the best of five"
                " private methods and the noisy mean falls; DP-FedAvg, DP-FTRL and DP-RSA"
                " bear the same noise and promise something else by it."
            ),
            data="digits (scikit-learn), 20 clients",
            bands=(
                "bars: least to largest of {config.seeds} seeds, of {config.other_seeds} "
                "for the last four methods and at the right"
            ),
            headed=False,
        ),
        Picture(
            name="dp_brem_curve",
            file="dp_brem_curve.png",
            claim=(
                "Without liars a small epsilon costs little; under attack noise uses up "
                "the radius that bounds a liar, and below epsilon 1 clipping alone holds "
                "better."
            ),
            data="Fashion-MNIST at 14 x 14, 20 clients",
            bands="bars: least to largest of {config.image_seeds} seeds",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
