"""FedSpeed against FedAvg: fewer rounds, longer local intervals, and how its server must average."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import dflax as dx
from experiments.tasks import images as image_task
from experiments.tasks.images import CIFAR10
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tasks.skewed_digits import CLIENTS, accuracies, problems
from experiments.tools.command import main
from experiments.tools.curves import around, rounds_to, spread
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Study, Summary

ALPHAS = (0.1, 0.3)
INTERVALS = (5, 10, 20, 40)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: repetitions on digits; each draws clients, model, cohorts and minibatches anew.
      learning_rate: of the local SGD in round 0; it falls by 0.998 a round.
      pull: FedSpeed's and FedDyn's proximal coefficient (the paper's 1 / lambda).
      rho: radius of the perturbation.
      full: the images with the large CNN, three skews and many rounds, instead of the small CNN.
      image_rounds: rounds on the images; 0 leaves them out.
      image_seeds: repetitions on the images.
    """

    seeds: int = 4
    learning_rate: float = 0.1
    pull: float = 0.1
    rho: float = 0.1
    full: bool = False
    image_rounds: int = 30
    image_seeds: int = 1


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Rounds to an accuracy, longer and longer local intervals, and the server's rules."""
    given = problems(ALPHAS, config.seeds)
    loss, n = given.loss, CLIENTS

    def sgd(t: Any) -> optax.GradientTransformation:
        return optax.sgd(config.learning_rate * 0.998**t)

    def fedspeed(pull: Any = config.pull, average: Any = "code") -> dx.Algorithm:
        return dx.server.fedspeed(loss, sgd, n, pull=pull, radius=config.rho, average=average)

    def fedavg() -> dx.Algorithm:
        return dx.server.fedavg(loss, sgd)

    methods: dict[str, tuple[Callable[[], dx.Algorithm], int]] = {
        "FedAvg": (fedavg, 250),
        "FedSAM": (lambda: dx.server.fedsam(loss, sgd, radius=config.rho), 200),
        "FedDyn": (lambda: dx.server.feddyn(loss, sgd, n, pull=config.pull), 200),
        "FedSpeed": (fedspeed, 200),
    }
    curves = {
        name: stage(name, lambda make=make, r=r: accuracies(given, make, rounds=r)[0])
        for name, (make, r) in methods.items()
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, accuracy in curves.items():
        for alpha in ALPHAS:
            own = accuracy[given.where(alpha)]
            rows[f"{name}, Dir {alpha}"] = {
                f"round {r}": spread(around(own, r), 2) for r in (10, 30, 100, 200)
            } | {"rounds to 90 %": [float(r) for r in rounds_to(own, 0.9)]}
    claims = sooner(given, curves)
    table, intervals = interval_sweep(given, fedavg, fedspeed, curves, stage)
    rows |= table
    claims += intervals
    table, servers = server_rules(given, fedspeed, stage)
    rows |= table
    claims += servers
    figures = {"digits": digits_figure(given, curves, rows)}
    return Summary(rows, claims, figures)


def sooner(given: Any, curves: dict[str, np.ndarray]) -> list[Claim]:
    """FedSpeed's lead at round 30, and how much sooner it reaches 90 %."""
    claims = []
    for alpha, mean_gap, least_gap, least_ratio, mean_ratio in (
        (0.1, 0.12, 0.08, 1.8, 1.8),
        (0.3, 0.04, 0.0, 1.2, 1.5),
    ):
        places = given.where(alpha)
        slow, fast = curves["FedAvg"][places], curves["FedSpeed"][places]
        gap = around(fast, 30) - around(slow, 30)
        ratio = rounds_to(slow, 0.9) / rounds_to(fast, 0.9)
        claims += [
            Claim(
                f"FedSpeed leads FedAvg at round 30 (Dir {alpha}): mean gap, and on every seed",
                gap.mean() >= mean_gap and (gap >= least_gap).all() and (gap > 0).all(),
                [float(gap.mean()), float(gap.min())],
                [mean_gap, least_gap],
            ),
            Claim(
                f"FedSpeed is at 90 % in a fraction of FedAvg's rounds (Dir {alpha}): mean, least",
                ratio.mean() >= mean_ratio and bool((ratio >= least_ratio).all()),
                [float(ratio.mean()), float(ratio.min())],
                [mean_ratio, least_ratio],
            ),
        ]
    return claims


def interval_sweep(
    given: Any,
    fedavg: Callable,
    fedspeed: Callable,
    curves: dict[str, np.ndarray],
    stage: Stage,
) -> tuple[dict[str, Any], list[Claim]]:
    """Rounds to 90 % for longer and longer local intervals, the rate kept."""
    needed: dict[str, dict[int, np.ndarray]] = {"FedAvg": {}, "FedSpeed": {}}
    limits = {"FedAvg": (320, 250, 200, 160), "FedSpeed": (120, 200, 80, 60)}
    for name, method in (("FedAvg", fedavg), ("FedSpeed", fedspeed)):
        for steps, limit in zip(INTERVALS, limits[name], strict=True):
            curve = curves[name]
            if steps != 10:
                curve = stage(
                    f"{name}, K = {steps}",
                    lambda method=method, limit=limit, steps=steps: accuracies(
                        given, method, rounds=limit, local_steps=steps
                    )[0],
                )
            needed[name][steps] = rounds_to(curve, 0.9)
    rows, claims = {}, []
    for alpha in ALPHAS:
        places = given.where(alpha)
        for name in needed:
            rows[f"{name}, Dir {alpha}, K = {', '.join(map(str, INTERVALS))}"] = {
                "rounds to 90 %": [float(needed[name][k][places].mean()) for k in INTERVALS]
            }
        means = np.array([needed["FedSpeed"][steps][places].mean() for steps in INTERVALS])
        claims.append(
            Claim(
                f"a larger local interval takes fewer rounds (Dir {alpha}): K = 40 over K = 5, and the "
                "largest rise of a doubling",
                bool(means[-1] <= 0.65 * means[0] and (means[1:] <= 1.1 * means[:-1]).all()),
                [float(means[-1] / means[0]), float((means[1:] / means[:-1]).max())],
                [0.65, 1.1],
            )
        )
    return rows, claims


def server_rules(
    given: Any, fedspeed: Callable, stage: Stage
) -> tuple[dict[str, Any], list[Claim]]:
    """The rule of the authors' code against the paper's, at two strengths of the pull."""
    pulls = [0.1, 1.0]
    rows, late = {}, {}
    for average in ("code", "active_old", "active_new"):
        curve = stage(
            f"averages: {average}",
            lambda average=average: accuracies(
                given, lambda value: fedspeed(value, average), pulls, rounds=100
            ),
        )
        late[average] = around(curve, 100)
        for row, pull in enumerate(pulls):
            for alpha in ALPHAS:
                own = late[average][row, given.where(alpha)]
                rows[f"FedSpeed {average}, pull {pull:g}, Dir {alpha}"] = {
                    "round 100": spread(own, 2)
                }
    places = given.where(0.1)
    code = late["code"][0, places].mean()
    best = max(late[name][0, places].mean() for name in ("active_old", "active_new"))
    claim = Claim(
        "with 4 of 20, duals must be averaged over all clients: code leads by 0.1 (pull 0.1, Dir 0.1)",
        bool(code >= best + 0.1),
        float(code),
        float(best),
    )
    return rows, [claim]


def skews_of(config: Config) -> tuple[float, ...]:
    """Dirichlet concentrations of the images' labels."""
    return (0.6, 0.3, 0.1) if config.full else (0.3,)


def statements(config: Config) -> list[str]:
    """What is claimed of the images, in the order of the skews.

    A few rounds of one seed order methods by how they begin; that is shown, not claimed.
    """
    return [
        f"on fashion-mnist FedSpeed's best accuracy beats FedAvg's (Dir {alpha})"
        for alpha in skews_of(config)
        if config.full
    ]


def on_images(config: Config, stage: Stage = in_memory) -> Summary:
    """All methods with the repository's settings, and the repository's own results beside ours."""
    skews = skews_of(config)
    size = "large" if config.full else "small"
    tasks = [image_task.load(size, f"dirichlet {alpha}") for alpha in skews]
    best: dict[str, dict[float, np.ndarray]] = {}
    for name, method in repository_settings(tasks[0].loss).items():
        found = stage(
            f"images, {name}",
            lambda method=method: image_task.curves(
                tasks,
                method,
                [config.learning_rate],
                rounds=config.image_rounds,
                seeds=config.image_seeds,
            ),
        )
        best[name] = dict(zip(skews, 100 * found[:, 0].max(-1), strict=True))
        print(f"images: {name} {[float(b.mean()) for b in best[name].values()]}", flush=True)
    rows = {}
    for name in CIFAR10:
        rows[f"{name} on images"] = {
            f"Dir {a}: ours / CIFAR-10": f"{best[name][a].mean():.1f} / {CIFAR10[name][a]:.1f}"
            for a in skews
        }
    claims = []
    for alpha in skews:
        ranks = image_task.rank_correlation(
            {name: float(best[name][alpha].mean()) for name in CIFAR10}, alpha
        )
        rows[f"rank correlation with the repository, Dir {alpha}"] = {
            f"Dir {alpha}: ours / CIFAR-10": f"{ranks:.2f}"
        }
    for text, alpha in zip(statements(config), skews, strict=False):
        ours, theirs = (float(best[name][alpha].mean()) for name in ("FedSpeed", "FedAvg"))
        claims.append(Claim(text, ours > theirs, ours, theirs))
    return Summary(rows, claims)


def repository_settings(loss: Any) -> dict[str, Callable[[Any], dx.Algorithm]]:
    """The methods with the hyper-parameters of the repository's table, of the first round's rate."""
    server, clip, n = dx.server, dx.local.clipped(loss, 10.0), image_task.CLIENTS
    adam = optax.adam(0.1, b1=0.9, b2=0.99, eps=0.01)

    def sgd(rate: Any) -> Callable[[Any], optax.GradientTransformation]:
        decay = optax.add_decayed_weights(1e-3)
        return lambda t: optax.chain(decay, optax.sgd(rate * 0.998**t))

    return {
        "FedAvg": lambda r: server.fedavg(clip, sgd(r)),
        "FedProx": lambda r: server.fedprox(clip, sgd(r), pull=0.1),
        "FedAdam": lambda r: server.fedavg(clip, sgd(r), adam),
        "SCAFFOLD": lambda r: server.scaffold(clip, sgd(r), n),
        "FedDyn": lambda r: server.feddyn(clip, sgd(r), n, pull=0.1),
        "FedCM": lambda r: server.fedcm(clip, sgd(r), beta=0.1),
        "FedGamma": lambda r: server.fedgamma(clip, sgd(r), n, radius=0.01),
        "MoFedSAM": lambda r: server.mofedsam(clip, sgd(r), radius=0.1, beta=0.1),
        "FedSpeed": lambda r: server.fedspeed(clip, sgd(r), n, pull=0.1, radius=0.1),
        "FedSMOO": lambda r: server.fedsmoo(clip, sgd(r), n, pull=0.1, radius=0.1),
    }


def digits_figure(given: Any, curves: dict[str, np.ndarray], rows: dict[str, Any]) -> Any:
    """Accuracy over rounds on both skews, and rounds to 90 % over the local interval."""
    with figure(11.0, 3.4, ncols=3) as (drawn, axes):
        for panel, alpha in zip(axes, ALPHAS, strict=False):
            for name, look in looks(curves).items():
                own = curves[name][given.where(alpha)][:, :120]
                curve(panel, 1 + np.arange(own.shape[1]), own, look, name)
            panel.axhline(0.9, color="0.6", linewidth=0.8, linestyle="--")
            panel.set(xlabel="round", title=f"Dirichlet {alpha}", ylim=(0.1, 1.0))
        axes[0].set_ylabel("test accuracy")
        axes[0].legend(loc="lower right")
        for name, color, mark in (("FedAvg", "C0", "o"), ("FedSpeed", "C3", "s")):
            for alpha, line in zip(ALPHAS, ("-", "--"), strict=True):
                needed = rows[f"{name}, Dir {alpha}, K = {', '.join(map(str, INTERVALS))}"]
                axes[2].plot(
                    INTERVALS,
                    needed["rounds to 90 %"],
                    line,
                    marker=mark,
                    color=color,
                    label=f"{name}, Dir {alpha}",
                )
        axes[2].set_xscale("log", base=2)
        axes[2].set_xticks(INTERVALS, [str(k) for k in INTERVALS])
        axes[2].set(xlabel="local steps per round", ylabel="rounds to 90 %", ylim=(0, None))
        axes[2].legend()
    return drawn


STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part(
            "images",
            on_images,
            needs=(FASHION_MNIST,),
            states=statements,
            wanted=lambda config: config.image_rounds > 0,
        ),
    ),
    quick=Config(seeds=1, image_rounds=3),
)


if __name__ == "__main__":
    main(STUDY, __file__)
