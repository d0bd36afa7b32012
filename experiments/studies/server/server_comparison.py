"""All methods with a server on one task: rounds to a target accuracy and final accuracy, rates tuned."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

import dflax as dx
from experiments.tasks import images
from experiments.tasks.inputs import FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.curves import rounds_to, spread
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary

SKEWS = ("dirichlet 0.3", "shards 2")
# On the CNNs ten local steps along what was measured before them overshoot, unless they are so short
# that a few dozen rounds lead nowhere; nothing is claimed of these.
AT_THE_LAST_MODEL = ("MimeLite", "FedAvg-M-VR", "SCAFFOLD-M-VR", "FedAMD")


class Setting(NamedTuple):
    """What goes with a network.

    Attributes:
      batch_size: of a local step.
      rounds: how long every method runs.
      target: accuracy to be reached.
      rates: of the local SGD, the best of which each method gets on each skew.
    """

    batch_size: int
    rounds: int
    target: float
    rates: tuple[float, ...]


SETTINGS = {
    "perceptron": Setting(10, 25, 0.6, (0.03, 0.1, 0.3)),
    "halved": Setting(20, 40, 0.6, (0.03, 0.1, 0.3)),
    "small": Setting(20, 40, 0.7, (0.03, 0.1, 0.3)),
    "large": Setting(20, 200, 0.8, (0.01, 0.03, 0.1, 0.3, 1.0)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; every method has the same clients, rounds, local steps and minibatches.

    Attributes:
      network: a perceptron with 32 hidden units (minutes); a CNN with channels 8 and 16 on images
        averaged to half their size, "halved" (half an hour on two cores), or as they are, "small" (two
        hours); or the CNN with 421,642 parameters, "large" (for an accelerator; on two cores half an
        hour to two hours for one skew, 40 rounds and rates chosen on one seed, as in the gallery).
      rounds: communication rounds; None takes those that go with the network.
      rates: of the local SGD; empty takes those that go with the network.
      seeds: repetitions, paired over methods and rates.
      target: accuracy to be reached; None takes that which goes with the network.
      tuned_by: the number of seeds by which each method's rate is chosen, one for both skews; the others
        run at that rate alone, a fraction of the time. None: all seeds, and a rate for each skew.
      one_skew: two label shards a client alone.
    """

    network: Literal["perceptron", "halved", "small", "large"] = "perceptron"
    rounds: int | None = None
    rates: tuple[float, ...] = ()
    seeds: int = 3
    target: float | None = None
    tuned_by: int | None = None
    one_skew: bool = False

    @property
    def skews(self) -> tuple[str, ...]:
        """How labels are dealt to clients, each a column of the comparison."""
        return SKEWS[1:] if self.one_skew else SKEWS


def methods(loss: Any) -> dict[str, Callable[[Any], dx.Algorithm]]:
    """Every method as a function of the local rate, other hyper-parameters as their papers have them."""
    s, n, sgd = dx.server, images.CLIENTS, optax.sgd
    return {
        "FedAvg": lambda rate: s.fedavg(loss, sgd(rate)),
        "FedAvgM": lambda rate: s.fedavg(loss, sgd(rate), sgd(0.3, momentum=0.7)),
        "FedAdam": lambda rate: s.fedadam(loss, sgd(rate), 0.01),
        "FedYogi": lambda rate: s.fedyogi(loss, sgd(rate), 0.01),
        "FedAdagrad": lambda rate: s.fedadagrad(loss, sgd(rate), 0.03),
        "FedNova": lambda rate: s.fednova(loss, sgd(rate)),
        "MimeLite": lambda rate: s.mimelite(loss, sgd(rate), s.fixed_momentum(0.9)),
        "FedProx": lambda rate: s.fedprox(loss, sgd(rate), pull=0.1),
        "FedSAM": lambda rate: s.fedsam(loss, sgd(rate), radius=0.05),
        "FedCM": lambda rate: s.fedcm(loss, sgd(rate), beta=0.1),
        "MoFedSAM": lambda rate: s.mofedsam(loss, sgd(rate), radius=0.05, beta=0.1),
        "SCAFFOLD": lambda rate: s.scaffold(loss, sgd(rate), n),
        "FedGamma": lambda rate: s.fedgamma(loss, sgd(rate), n, radius=0.05),
        "SCAFFOLD-M": lambda rate: s.scaffold_m(loss, sgd(rate), n, beta=0.2),
        # These diverge on networks unless eta K and gamma are small.
        "FedAvg-M-VR": lambda rate: s.fedavg_m_vr(loss, sgd(0.1 * rate), beta=0.2),
        "SCAFFOLD-M-VR": lambda rate: s.scaffold_m_vr(loss, sgd(0.1 * rate), n, beta=0.2),
        # Cached gradients are 20 rounds old before all clients have been anchors: smaller steps as well.
        "FedAMD": lambda rate: s.fedamd(
            loss, sgd(0.1 * rate), s.anchors.constant(0.5), examples=100, batch_size=100
        ),
        "FedDyn": lambda rate: s.feddyn(loss, sgd(rate), n, pull=0.1),
        "FedSpeed": lambda rate: s.fedspeed(loss, sgd(rate), n, pull=0.1, radius=0.05),
        "FedSMOO": lambda rate: s.fedsmoo(loss, sgd(rate), n, pull=0.1, radius=0.05),
        # The exact z-step: a server rate of 1, as in its paper, or of 0.3 makes the CNN diverge, for the
        # local models that it moves away from are ten rounds old.
        "FedADMM": lambda rate: s.fedadmm(loss, sgd(rate), n, pull=0.1),
    }


def every_method(config: Config, stage: Stage = in_memory) -> Summary:
    """Sweeps the rate for each method on both skews and reports each method at its best.

    The last row is the rank correlation of the final accuracies with those that FL-Simulator reports
    for ten of the methods on CIFAR-10, Dirichlet 0.3.
    """
    setting = SETTINGS[config.network]
    rounds, swept_rates, target = (
        config.rounds or setting.rounds,
        config.rates or setting.rates,
        config.target or setting.target,
    )

    tasks = [
        images.load(config.network, skew, batch_size=setting.batch_size) for skew in config.skews
    ]

    def sweep(name: str, rates: tuple[float, ...], first: int, seeds: int) -> np.ndarray:
        return images.curves(
            tasks,
            methods(tasks[0].loss)[name],
            rates,
            rounds=rounds,
            seeds=seeds,
            seed=first,
            with_gradients=name.endswith("VR") or name == "FedAMD",
        )

    by = config.seeds if config.tuned_by is None else config.tuned_by
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {skew: {} for skew in config.skews}
    for name in methods(None):
        curves = stage(name, lambda name=name: sweep(name, swept_rates, 0, by))
        rates = swept_rates
        if by < config.seeds:
            best = int(curves[..., -5:].mean((0, 2, 3)).argmax())
            rates = rates[best : best + 1]
            others = stage(
                f"{name}, more seeds",
                lambda name=name, rates=rates: sweep(name, rates, by, config.seeds - by),
            )
            curves = np.concatenate([curves[:, best : best + 1], others], axis=2)
        rows[name] = {}
        for skew, swept in zip(config.skews, curves, strict=True):
            final = swept[..., -5:].mean(-1)
            best = int(final.mean(1).argmax())
            needed = rounds_to(swept[best], target)
            found[skew][name] = needed, final[best]
            rows[name] |= {
                f"rate, {skew}": rates[best],
                f"rounds to {target:g}, {skew}": _spread(needed),
                f"final, {skew}": spread(final[best]),
            }
        print(f"{name:<14} {list(rows[name].values())}", flush=True)
    for skew in config.skews:
        ours = {name: float(final.mean()) for name, (_, final) in found[skew].items()}
        ranks = images.rank_correlation(ours, alpha=0.3)
        rows.setdefault("order, with CIFAR-10's", {})[f"final, {skew}"] = f"{ranks:.2f}"
    drawn = comparison_figure(found, rounds, target)
    return Summary(rows, claims(found, config.network), {"comparison": drawn})


def _spread(needed: np.ndarray) -> str:
    """Mean and deviation over seeds, if all of them got there."""
    if not np.isfinite(needed).all():
        return f"{int(np.isfinite(needed).sum())} of {len(needed)} did"
    return spread(needed, 0)


def claims(found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], network: str) -> list[Claim]:
    """Corrections for drift pay on the stronger skew, against FedAvg at its own best rate.

    SCAFFOLD's do not on the large CNN: to 70 % three seeds took 32, 30 and 29 rounds at 0.02, 29, 23 and
    more than 40 at 0.03, 30, 38 and more than 40 at 0.01, where FedAvg took 27 (4). One client in ten
    takes part, so the variates are ten rounds old.
    """
    corrected = ("FedDyn", "FedSpeed") if network == "large" else ("FedDyn", "FedSpeed", "SCAFFOLD")
    stated = []
    for skew, by_method in found.items():
        base, _ = by_method["FedAvg"]
        for name in corrected if skew == SKEWS[1] else ():
            needed, _ = by_method[name]
            stated.append(
                Claim(
                    f"{name} reaches the target in fewer rounds than FedAvg ({skew})",
                    bool(needed.mean() < base.mean()),
                    float(needed.mean()),
                    float(base.mean()),
                )
            )
        there = [name for name in by_method if name not in AT_THE_LAST_MODEL]
        worst = min(there, key=lambda name: by_method[name][1].mean())
        stated.append(
            Claim(
                f"every method with gradients of where it stands learns ({skew}): the worst",
                bool(by_method[worst][1].mean() > 0.5),
                [worst, float(by_method[worst][1].mean())],
                0.5,
            )
        )
    return stated


def statements(config: Config) -> list[str]:
    """What is claimed, whatever the numbers."""
    blank = {name: (np.ones(1), np.ones(1)) for name in methods(None)}
    found = dict.fromkeys(config.skews, blank)
    return [claim.claim for claim in claims(found, config.network)]


def comparison_figure(found: dict[str, Any], rounds: int, target: float) -> Any:
    """A dot per method and skew: rounds to the target, and final accuracy, with their spread."""
    order = sorted(found[SKEWS[1]], key=lambda name: found[SKEWS[1]][name][1].mean())
    with figure(8.0, 5.6, ncols=2, sharey=True) as (drawn, axes):
        for shift, color, mark, skew in ((0.16, "C0", "o", SKEWS[0]), (-0.16, "C3", "s", SKEWS[1])):
            if skew not in found:
                continue
            shift = shift if len(found) > 1 else 0.0
            label = {"d": "Dirichlet 0.3", "s": "2 label shards"}[skew[0]]
            for place, name in enumerate(order):
                needed, final = found[skew][name]
                reached = needed[np.isfinite(needed)]
                options: dict[str, Any] = {
                    "color": color,
                    "fmt": mark,
                    "markersize": 5,
                    "capsize": 2,
                    "markerfacecolor": color if mark == "o" else "white",
                    "label": label if place == 0 else None,
                }
                if len(reached) == len(needed):
                    axes[0].errorbar(reached.mean(), place + shift, xerr=reached.std(), **options)
                else:
                    arrow = {"color": color, "markerfacecolor": options["markerfacecolor"]}
                    axes[0].plot(rounds, place + shift, ">", **arrow)
                axes[1].errorbar(final.mean(), place + shift, xerr=final.std(), **options)
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set(xlabel=f"rounds to {target:.0%} (arrow: not within {rounds})")
        axes[1].set(xlabel="test accuracy, mean of the last 5 rounds")
        drawn.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


STUDY = Study(
    Config,
    (Part("every method", every_method, needs=(FASHION_MNIST,), states=statements),),
    quick=Config(rounds=6, rates=(0.1,), seeds=1),
    pictures=(
        Picture(
            name="comparison",
            file="server_comparison.png",
            claim=(
                "Twenty-one methods with a server on the CNN with 421,642 parameters, two label "
                "shards a client, rates chosen of 0.03, 0.1 and 0.3 on one seed: SCAFFOLD-M reaches "
                "70 % in 14 rounds, FedDyn, FedSpeed, FedSMOO and FedAdagrad in 18, FedAvg in 27; "
                "SCAFFOLD loses one seed of three; steps along what was measured before (FedAMD, "
                "MimeLite, the VR variants) do not get there in 40."
            ),
            data="Fashion-MNIST, network: {config.network}, 100 clients, 10 a round",
            bands="bars: one standard deviation of {config.seeds} seeds",
            flags=(
                "--network large --rounds 40 --rates 0.03 0.1 0.3 --tuned-by 1 --one-skew --target 0.7"
            ),
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
