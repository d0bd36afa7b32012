"""SFPrompt on a small transformer: accuracy against bytes, and what it would cost with ViT-B and L."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import evaluation, models
from experiments.studies.split._sfprompt_costs import FLOAT, Shape, on_paper
from experiments.tasks import turned_digits
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, log_megabytes, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.lanes import each, stacked
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

LINEAR, PROMPTS, HALF, QUARTER = "linear probing", "prompts", "prompts, 1/2", "prompts, 1/4"
LOCAL, GENTLE, SFPROMPT, FULL = "local loss", "local loss, rate / 10", "SFPrompt", "whole model"
LONG, TRAINED_PASS = "12 prompts", 3
PRUNED = {PROMPTS: 1.0, HALF: 0.5, QUARTER: 0.25}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      width: of the transformer.
      depth: its blocks, of which the first is the head's.
      heads: of attention.
      epochs: on the first half of the digits, Adam.
      first_rate: there.
      clients: with the other half, transposed and renumbered.
      cohort: of a round.
      samples: of each client; a multiple of the minibatch.
      batch_size: of a minibatch.
      alpha: of the Dirichlet law of a client's classes.
      local_epochs: U of the local loss; and those of whole models.
      prompts: p.
      rate: of Adam on prompts and tail.
      whole_rate: of Adam on whole models.
      rounds: T.
      last: rounds whose mean accuracy is told.
      seeds: repetitions with halves, weights and clients of their own.
      seed: of the first one.
    """

    width: int = 32
    depth: int = 4
    heads: int = 4
    epochs: int = 10
    first_rate: float = 1e-3
    clients: int = 10
    cohort: int = 5
    samples: int = 96
    batch_size: int = 16
    alpha: float = 0.5
    local_epochs: int = 2
    prompts: int = 4
    rate: float = 5e-3
    whole_rate: float = 1e-3
    rounds: int = 40
    last: int = 10
    seeds: int = 3
    seed: int = 10


class Method(NamedTuple):
    """Arguments of SFPrompt.

    Attributes:
      prompts: p.
      keep: gamma.
      local: the local loss's rate over that of the pass; 0 for no local loss.
    """

    prompts: int
    keep: float = 1.0
    local: float = 0.0


def methods(config: Config) -> dict[str, Method]:
    """What is compared, beside FedAvg of whole models."""
    p = config.prompts
    return {
        LINEAR: Method(0),
        PROMPTS: Method(p),
        LONG: Method(3 * p),
        HALF: Method(p, 0.5),
        QUARTER: Method(p, 0.25),
        LOCAL: Method(p, local=1.0),
        GENTLE: Method(p, local=0.1),
        SFPROMPT: Method(p, 0.5, 0.1),
    }


def network(config: Config) -> models.TransformerClassifier:
    """The transformer."""
    return models.TransformerClassifier(
        classes=10, patch=2, width=config.width, depth=config.depth, heads=config.heads
    )


def run(config: Config, method: Method | None, tasks: Any) -> dict[str, np.ndarray]:
    """Accuracy and counts after every round, `[S, T]`; None trains whole models."""
    net = network(config)
    split = models.split_transformer(net, prompts=method.prompts if method else 0)
    if method is None:
        algorithm = dx.server.fedavg(
            dx.losses.classification(net.apply), optax.adam(config.whole_rate)
        )
    else:
        algorithm = dx.server.sfprompt(
            split,
            dx.losses.classification,
            optax.adam(config.rate),
            local_loss=method.local > 0,
            local_optimizer=optax.adam(config.rate * method.local) if method.local else None,
            keep=method.keep,
        )

    def accuracy(state: Any, test: Any) -> Any:
        if method is None:
            measure = evaluation.on(dx.losses.classification(net.apply), test)
            return measure(state.server.params)["accuracy"]
        measure = evaluation.on(dx.losses.classification(split.apply), test)
        return measure(dx.server.tuned_parts(state))["accuracy"]

    def one(task: turned_digits.Task) -> dict[str, Any]:
        start_key, run_key = jax.random.split(task.key)

        def advance(state: Any, number: Any) -> tuple[Any, dict[str, Any]]:
            state, metrics = algorithm.step(state, task.federation.draw(run_key, number))
            counted = {name: v for name, v in metrics.items() if name.startswith("examples_")}
            return state, {
                "accuracy": accuracy(state, task.test),
                "loss": metrics["loss"],
            } | counted

        state = algorithm.init(start_key, task.params)
        return jax.lax.scan(advance, state, jnp.arange(config.rounds))[1]

    return jax.tree.map(np.asarray, jax.jit(lambda tasks: each(one, tasks))(tasks))


def shape(config: Config) -> Shape:
    """The small transformer."""
    return Shape(16, 4, config.width, config.depth, 10)


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """All methods on all seeds."""
    net = network(config)
    seeds = range(config.seed, config.seed + config.seeds)
    made = [
        turned_digits.task(
            net,
            seed,
            epochs=config.epochs,
            rate=config.first_rate,
            clients=config.clients,
            samples=config.samples,
            alpha=config.alpha,
            stage=stage,
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            participation=dx.participation.uniform(config.cohort),
        )
        for seed in seeds
    ]
    tasks = stacked(made)
    found = {
        name: stage(name, lambda method=method: run(config, method, tasks))
        for name, method in [*methods(config).items(), (FULL, None)]
    }
    sent = {
        name: FLOAT * np.cumsum(numbers(config, name, found[name], made[0]), -1) for name in found
    }
    report = Report()
    last = {name: values["accuracy"][:, -config.last :].mean(1) for name, values in found.items()}
    for name, accuracy in last.items():
        megabytes = sent[name][:, -1] / config.rounds / config.cohort / 1e6
        report.row("digits", name, accuracy, megabytes_a_round=megabytes)
    costs(config, report, found, made[0])
    accuracies(report, found, last, sent)
    return report.summary({"sfprompt": _draw(found, sent, config)})


def numbers(config: Config, name: str, found: dict[str, Any], task: Any) -> np.ndarray:
    """Numbers that the cohort sent and got in every round, `[S, T]`, by the traced shapes."""
    if name == FULL:
        return np.full(found["accuracy"].shape, 2 * shape(config).whole * config.cohort)
    cost = measured_cost(config, methods(config)[name].prompts, task)
    counted = found["examples_kept"].astype(int)
    return np.vectorize(lambda kept: cost.numbers(int(kept), config.cohort))(counted)


def measured_cost(config: Config, prompts: int, task: Any) -> models.SplitCost:
    """The traced shapes and products of the small transformer."""
    split = models.split_transformer(network(config), prompts=prompts)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    return models.split_cost(split, task.params, image)


def costs(config: Config, report: Report, found: dict[str, Any], task: Any) -> None:
    """What was counted against the cost model: equal, in every round of every seed."""
    form, wrong_numbers, wrong_products = shape(config), [], []
    for name, method in methods(config).items():
        kept, scored, local = (
            found[name].get(f"examples_{what}", np.zeros((1, 1))).astype(int)
            for what in ("kept", "scored", "local")
        )
        cost = measured_cost(config, method.prompts, task)
        share = config.cohort * int(method.keep * config.samples)
        expected = form.sent(method.prompts, share, config.cohort)
        wrong_numbers += [cost.numbers(int(k), config.cohort) - expected for k in np.unique(kept)]
        passes = config.cohort * config.samples * (method.keep < 1)
        passes += TRAINED_PASS * (
            share + config.cohort * config.samples * config.local_epochs * (method.local > 0)
        )
        products = {
            cost.client_products(int(k) + int(u), int(e))
            for k, u, e in zip(*np.broadcast_arrays(kept, local, scored), strict=True)
            for k, u, e in zip(*np.broadcast_arrays(k, u, e), strict=True)
        }
        wrong_products += [p - passes * form.ends(method.prompts) for p in products]
    report.claim(
        "numbers sent are the cost model's, all methods, rounds and seeds",
        not any(wrong_numbers),
        max(map(abs, wrong_numbers)),
        0,
    )
    report.claim(
        "products on clients are the cost model's, all methods, rounds and seeds",
        not any(wrong_products),
        max(map(abs, wrong_products)),
        0,
    )
    fixed = 2 * (form.tail + config.prompts * config.width) * config.cohort
    crossing = [int(numbers(config, name, found[name], task)[0, 0]) - fixed for name in PRUNED]
    report.claim(
        "what crosses the cuts is linear in the share that is kept",
        crossing[0] == 2 * crossing[1] == 4 * crossing[2],
        crossing,
        "4 : 2 : 1",
    )


def accuracies(
    report: Report, found: dict[str, Any], last: dict[str, np.ndarray], sent: dict[str, np.ndarray]
) -> None:
    """What prompts, pruning and the local loss do to accuracy."""
    ahead = last[PROMPTS] - last[LINEAR]
    report.claim(
        "prompts without local loss are 0.05 above linear probing, mean over seeds",
        ahead.mean() >= 0.05,
        [float(ahead.mean()), *ahead.tolist()],
        0.05,
    )
    report.claim(
        "prompts are above linear probing, every seed", (ahead > 0).all(), ahead.tolist(), 0.0
    )
    # At the bytes of the whole run that keeps a quarter.
    budget = sent[QUARTER][:, -1]
    reached = {name: at_bytes(found[name]["accuracy"], sent[name], budget) for name in PRUNED}
    gap = reached[PROMPTS] - np.maximum(reached[HALF], reached[QUARTER])
    report.claim(
        "at equal bytes pruning gains at most 0.05, mean over seeds",
        -gap.mean() <= 0.05,
        [float(-gap.mean()), *(-gap).tolist()],
        0.05,
    )
    lost = last[PROMPTS] - last[HALF]
    report.claim(
        "at equal rounds pruning to a half costs accuracy, every seed",
        (lost > 0).all(),
        lost.tolist(),
        0.0,
    )
    for name in (LOCAL, GENTLE):
        gained = last[name] - last[PROMPTS]
        report.claim(
            f"{name}: at most 0.05 from prompts alone, mean over seeds",
            abs(gained.mean()) <= 0.05,
            [float(gained.mean()), *gained.tolist()],
            0.05,
        )


def at_bytes(accuracy: np.ndarray, sent: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Of each seed the mean accuracy of up to three rounds that end at its budget of bytes."""
    ends = (sent <= budget[:, None]).sum(1)
    return np.array(
        [row[max(end - 3, 0) : end].mean() for row, end in zip(accuracy, ends, strict=True)]
    )


LOOKS = looks((LINEAR, PROMPTS, LONG, HALF, QUARTER, LOCAL, GENTLE, SFPROMPT, FULL))


def _draw(found: dict[str, Any], sent: dict[str, np.ndarray], config: Config) -> Any:
    with figure(10.5, 4.6, ncols=2, sharey=True) as (drawn, axes):
        for name, look in LOOKS.items():
            # Single rounds differ by more than methods do.
            width = min(5, config.rounds)
            windows = np.lib.stride_tricks.sliding_window_view(found[name]["accuracy"], width, 1)
            curves = windows.mean(-1)
            megabytes = sent[name].mean(0)[width - 1 :] / config.cohort / 1e6
            rounds = np.arange(width, config.rounds + 1)
            for panel, at in zip(axes, (rounds, megabytes), strict=True):
                curve(panel, at, curves, look, name)
        axes[0].set(xlabel="round", ylabel="test accuracy, mean of 5 rounds", ylim=(0, 1))
        log_megabytes(axes[1], "megabytes sent and received per client of the cohort")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        drawn.suptitle(
            f"digits, transposed and renumbered; mean and range over {config.seeds} seeds"
        )
    return drawn


STUDY = Study(
    Config,
    (Part("digits", on_digits, needs=(DIGITS,)), Part("vision transformers", on_paper, needs=())),
    quick=Config(rounds=3, epochs=1, seeds=1, last=1, samples=32),
    seconds=340,
    pictures=(
        Picture(
            name="sfprompt",
            file="sfprompt.png",
            claim=(
                "Prompts are ahead of a linear probe; pruning costs accuracy per round "
                "and gains at most .05 at equal bytes; a model this small is better and "
                "cheaper sent whole."
            ),
            data="digits (scikit-learn), transposed and renumbered",
            bands="bands: least to largest of {config.seeds} seeds",
            headed=False,
        ),
        Picture(
            name="sfprompt_cost",
            file="sfprompt_cost.png",
            claim=(
                "With ViT-B/16 a round of SFPrompt sends less than the whole model up to "
                "278 examples a client, with ViT-L/16 up to 737."
            ),
            data="closed forms for vision transformers of 196 patches, no data",
            bands="no bands: nothing is drawn at random",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
