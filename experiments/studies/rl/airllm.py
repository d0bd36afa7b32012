"""AirLLM: ranks for every transmission by PPO and a diffusion model, against PPO alone and rules."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import evaluation, rl
from dflax.rl.airllm.link import Conditions
from experiments.studies.rl import _airllm_figure as figures
from experiments.tasks import over_the_air, tuned_digits
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

AIRLLM, PAPER, PLAIN = "AirLLM", "AirLLM, gamma 0.95", "AirLLM, no guidance"
PPO, PPO_PAPER, LINEAR = "PPO on all ranks", "PPO on all ranks, gamma 0.95", "PPO, linear decoder"
LARGEST, RANDOM = "largest uniform rank that fits", "random ranks"
IMPORTANT = "budget by importance, mean rank 3"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: of tasks, links and policies.
      seed: the first.
      episodes: of the closed-form task, 15 transmissions each.
      hidden: width of policy and denoiser; 256 and 512 in the paper's code.
      steps: of DDIM; 50 there.
      rate: of the policy's Adam; 1e-4 there.
      decoder_rate: of the denoiser's Adam; 5e-5 there.
      reward_weight: c_r; 0.1 there.
      block: episodes over which curves are averaged.
      digits_seeds: of the digits.
      digits_episodes: of the digits.
      tuning_rate: of AdamW on adapters and head.
      ratios: of the link on the digits, dB.
      learners: which run on the closed form.
      rules: which run there.
      digits_learners: which run on the digits.
      digits_rules: which run there, beside uniform ranks.
    """

    seeds: int = 5
    seed: int = 100
    episodes: int = 3000
    hidden: int = 64
    steps: int = 10
    rate: float = 3e-4
    decoder_rate: float = 5e-4
    reward_weight: float = 0.1
    block: int = 100
    digits_seeds: int = 3
    digits_episodes: int = 200
    tuning_rate: float = 1e-4
    ratios: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0)
    learners: tuple[str, ...] = (AIRLLM, PPO, LINEAR)
    rules: tuple[str, ...] = (LARGEST, RANDOM)
    digits_learners: tuple[str, ...] = (AIRLLM, PPO)
    digits_rules: tuple[str, ...] = (LARGEST, RANDOM, IMPORTANT)


def adam(rate: float) -> optax.GradientTransformation:
    """Adam after a clip of the gradient's norm."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def learner(config: Config, kind: str, options: Any, task: Any, link: Any) -> dx.Algorithm:
    """AirLLM, PPO on all ranks or PPO with a linear decoder; options are gamma, g and the drop."""
    discount, guidance, drop = options
    decoders = {
        AIRLLM: lambda: rl.diffusion_decoder(
            hidden=config.hidden,
            steps=config.steps,
            guidance=guidance,
            drop=drop,
            reward_weight=config.reward_weight,
            optimizer=adam(config.decoder_rate),
        ),
        PPO: rl.identity_decoder,
        LINEAR: rl.linear_decoder,
    }
    return rl.airllm(
        task,
        link,
        decoder=decoders[kind](),
        discount=discount,
        hidden=config.hidden,
        optimizer=adam(config.rate),
    )


# What is compiled once, and the gammas, guidances and drops that run in it.
LEARNERS = {
    AIRLLM: {AIRLLM: (0.0, 1.5, 0.1), PAPER: (0.95, 1.5, 0.1), PLAIN: (0.0, 1.0, 0.0)},
    PPO: {PPO: (0.0, 1.0, 0.0), PPO_PAPER: (0.95, 1.0, 0.0)},
    LINEAR: {LINEAR: (0.0, 1.0, 0.0)},
}
RULES: dict[str, Callable[[], Any]] = {
    LARGEST: rl.largest_uniform,
    RANDOM: rl.random_ranks,
    IMPORTANT: functools.partial(rl.important_ranks, 3.0),
}


def ruled(name: str, options: Any, task: Any, link: Any) -> dx.Algorithm:
    """A rule that learns nothing."""
    return rl.fixed_ranks(task, link, RULES[name]())


class Closed:
    """Everything on the closed-form task: tasks of all seeds, what is best, and what methods reach.

    Args:
      config: the study's.
    """

    def __init__(self, config: Config):
        self.config = config
        self.seeds = np.arange(config.seed, config.seed + config.seeds)
        self.tasks = [over_the_air.closed(int(seed)) for seed in self.seeds]
        self.sizes, self.rank = self.tasks[0].sizes, self.tasks[0].rank
        self.link = over_the_air.scaled_link(self.sizes)
        conditions = [Conditions(jnp.int32(i), jnp.int32(0)) for i in range(len(self.link.ratios))]
        self.budgets = [float(self.link.budget(each)) for each in conditions]
        self.best = np.array(
            [[over_the_air.best(task, b, 0.1)[0] for b in self.budgets] for task in self.tasks]
        )

    def lane(self, build: Any, options: Any, weights: Any, decays: Any, key: Any) -> Any:
        """Metrics of one seed under one setting."""
        task = rl.separable(weights, decays, self.sizes, self.rank)
        algorithm = build(options, task, self.link)
        start_key, key = jax.random.split(key)
        state = algorithm.init(start_key)
        metrics = dx.rollout(algorithm, state, dx.Population(1), key, self.config.episodes)[1]
        kept = ("steps_under", "reward_under", "violations_under", "transmitted")
        return {name: metrics[name] for name in kept}

    def run(self, build: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """Metrics of all settings and seeds in one program, leaves `[S, episodes, ...]` by setting."""
        count, several = len(settings), self.config.seeds
        options = jnp.repeat(jnp.asarray(list(settings.values())), several, axis=0)
        weights = jnp.tile(np.stack([task.weights for task in self.tasks]), (count, 1))
        decays = jnp.tile(np.stack([task.decays for task in self.tasks]), (count, 1))
        keys = jnp.tile(jax.vmap(jax.random.key)(self.seeds), count)
        run = jax.jit(jax.vmap(functools.partial(self.lane, build)))
        found = jax.device_get(run(options, weights, decays, keys))
        return {
            name: jax.tree.map(lambda leaf, i=i: leaf[i * several : (i + 1) * several], found)
            for i, name in enumerate(settings)
        }

    def regret(self, found: dict[str, Any]) -> np.ndarray:
        """Of each episode, a step, `[S, episodes]`: below what the best ranks would have earned."""
        earned = found["reward_under"].sum(-1)
        possible = np.einsum("sec,sc->se", found["steps_under"], self.best)
        return (possible - earned) / found["steps_under"].sum(-1)


def closed_form(config: Config, stage: Stage = in_memory) -> Summary:
    """Regret and violations of all methods where the best ranks are known exactly."""
    work = Closed(config)
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind in config.learners:
        build = functools.partial(learner, config, kind)
        found |= stage(f"closed form, {kind}", functools.partial(work.run, build, LEARNERS[kind]))
    for name in config.rules:
        build = functools.partial(ruled, name)
        found |= stage(f"closed form, {name}", functools.partial(work.run, build, {name: (0.0,)}))
    report, last = Report(), max(1, config.episodes // 10)
    curves = {name: work.regret(metrics) for name, metrics in found.items()}
    regret = {name: curve[:, -last:].mean(1) for name, curve in curves.items()}
    violated = {}
    for name, metrics in found.items():
        ended = {key: value[:, -last:].sum(1) for key, value in metrics.items() if "under" in key}
        violated[name] = ended["violations_under"].sum(1) / ended["steps_under"].sum(1)
        report.row(
            "closed form",
            name,
            None,
            regret=regret[name],
            std=regret[name].std(),
            violations=violated[name],
            violations_at_lowest_ratio=ended["violations_under"][:, 0].sum()
            / ended["steps_under"][:, 0].sum(),
            transmitted=metrics["transmitted"][:, -last:],
        )
    _claims_of_closed_form(report, work, regret, violated)
    return report.summary({"airllm": figures.regrets(curves, violated, config.block)})


def _claims_of_closed_form(
    report: Report, work: Closed, regret: dict[str, np.ndarray], violated: dict[str, np.ndarray]
) -> None:
    nearly = [
        _reward(task, over_the_air.greedy(task, b, 0.1), b)
        for task in work.tasks
        for b in work.budgets
    ]
    gap = float(np.max(work.best.reshape(-1) - nearly))
    report.claim(
        "greedy allocation is within 0.02 of the exact best", 0 <= gap + 1e-9 < 0.02, gap, 0.02
    )
    learned = [name for name in (AIRLLM, PPO) if name in regret]
    for name in learned:
        report.claim(
            f"{name} has less than half of the regret of random ranks on every seed",
            np.all(regret[name] < 0.5 * regret[RANDOM]),
            regret[name].tolist(),
            regret[RANDOM].tolist(),
        )
        report.claim(
            f"{name} violates in less than 5 % of the last steps, the mean over seeds",
            violated[name].mean() < 0.05,
            violated[name].tolist(),
            0.05,
        )
    # The sheet expects AirLLM below the largest uniform rank. It is not: ranks stay low where more fits.
    ahead = (
        (AIRLLM, PLAIN),
        (PPO, PPO_PAPER),
        (AIRLLM, LINEAR),
        (PPO, AIRLLM),
        (LARGEST, PPO),
    )
    for better, worse in ahead:
        if better not in regret or worse not in regret:
            continue
        report.claim(
            f"'{better}' has less regret than '{worse}' on every seed",
            np.all(regret[better] < regret[worse]),
            regret[better].tolist(),
            regret[worse].tolist(),
        )


def _reward(task: over_the_air.Closed, ranks: np.ndarray, budget: float) -> float:
    loss = np.sum(task.weights * np.exp(-ranks / task.decays))
    return float(-loss - 0.1 * (ranks @ task.sizes) / budget)


class Digits:
    """Everything on the digits.

    Args:
      config: the study's.
    """

    def __init__(self, config: Config):
        self.config, self.split = config, dx.data.digits()
        keys = jax.vmap(jax.random.key)(np.arange(config.seed, config.seed + config.digits_seeds))
        self.keys = keys
        train = self.split.train
        self.base = jax.jit(
            jax.vmap(lambda key, data: tuned_digits.pretrained(data, key), (0, None))
        )(keys, train)
        one = jax.tree.map(lambda leaf: leaf[0], self.base)
        self.task = tuned_digits.tuning(one, 8, config.tuning_rate)
        self.link = tuned_digits.link(self.task.sizes, config.ratios)
        partition = dx.data.from_indices([np.arange(len(train))])
        self.source = dx.Federation(train, partition, local_steps=15, batch_size=32)

    def run(self, build: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """Of all settings and seeds the accuracy in the end, and what was sent over the episodes."""
        count, several = len(settings), self.config.digits_seeds
        options = jnp.repeat(jnp.asarray(list(settings.values())), several, axis=0)
        base = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * count), self.base)
        keys = jnp.tile(self.keys, count)

        def lane(options: Any, base: Any, key: Any, source: Any, test: Any) -> dict[str, Any]:
            algorithm = build(options, self.task, self.link)
            start_key, key = jax.random.split(key)
            state = algorithm.init(start_key, base)
            state, metrics = dx.rollout(algorithm, state, source, key, self.config.digits_episodes)
            model = jax.tree.map(lambda leaf: leaf[0], rl.tuned_models(self.task, state))
            accuracy = evaluation.on(tuned_digits.LOSS, test)(model)["accuracy"]
            kept = ("transmitted", "violations", "reward", "task_loss")
            return {"accuracy": accuracy} | {name: metrics[name] for name in kept}

        run = jax.jit(jax.vmap(lane, in_axes=(0, 0, 0, None, None)))
        found = jax.device_get(run(options, base, keys, self.source, self.split.test))
        return {
            name: jax.tree.map(lambda leaf, i=i: leaf[i * several : (i + 1) * several], found)
            for i, name in enumerate(settings)
        }


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Accuracy against what was sent, where adapters and policy learn at the same time."""
    work = Digits(config)
    found: dict[str, dict[str, np.ndarray]] = {}

    def uniform(options: Any, task: Any, link: Any) -> dx.Algorithm:
        def rule(environment: Any, state: Any, key: Any) -> Any:
            return jnp.full(environment.matrices, options[0].astype(jnp.int32))

        return rl.fixed_ranks(task, link, rule)

    fixed = {f"uniform rank {rank}": (float(rank),) for rank in (1, 2, 4, 8)}
    found |= stage("digits, uniform ranks", functools.partial(work.run, uniform, fixed))
    for name in config.digits_rules:
        build = functools.partial(ruled, name)
        found |= stage(f"digits, {name}", functools.partial(work.run, build, {name: (0.0,)}))
    for kind in config.digits_learners:
        build = functools.partial(learner, config, kind)
        settings = {kind: LEARNERS[kind][kind]}
        found |= stage(f"digits, {kind}", functools.partial(work.run, build, settings))
    report = Report()
    for name, metrics in found.items():
        report.row(
            "digits",
            f"{name} (digits)",
            metrics["accuracy"],
            transmitted=metrics["transmitted"],
            violations=metrics["violations"],
            reward=metrics["reward"],
        )
    accuracy = {name: metrics["accuracy"] for name, metrics in found.items()}
    sent = {name: metrics["transmitted"].mean(1) for name, metrics in found.items()}
    _claims_on_digits(report, found)
    return report.summary({"airllm_digits": figures.accuracies(accuracy, sent)})


def _claims_on_digits(report: Report, found: dict[str, dict[str, np.ndarray]]) -> None:
    accuracy = {name: metrics["accuracy"] for name, metrics in found.items()}
    reward = {name: metrics["reward"].mean(1) for name, metrics in found.items()}
    small, large = (accuracy[f"uniform rank {rank}"] for rank in (1, 8))
    report.claim(
        "on the digits the uniform rank 8, which fits in a quarter of the steps, is behind rank 1 on "
        "every seed",
        np.all(large < small),
        large.tolist(),
        small.tolist(),
    )
    if LARGEST in accuracy:
        report.claim(
            "on the digits the largest uniform rank that fits is ahead of rank 1, which sends less than "
            "a quarter of it, on every seed",
            np.all(accuracy[LARGEST] > small),
            accuracy[LARGEST].tolist(),
            small.tolist(),
        )
    for name in (AIRLLM, PPO):
        if name in accuracy and RANDOM in accuracy:
            report.claim(
                f"on the digits {name} earns more than random ranks on every seed",
                np.all(reward[name] > reward[RANDOM]),
                reward[name].tolist(),
                reward[RANDOM].tolist(),
            )


STUDY = Study(
    Config,
    (
        Part("closed form", closed_form, needs=()),
        Part("digits", on_digits, needs=(DIGITS,)),
    ),
    seconds=200,
    quick=Config(
        seeds=2,
        episodes=40,
        block=10,
        digits_seeds=1,
        digits_episodes=10,
        learners=(AIRLLM,),
        digits_learners=(PPO,),
        digits_rules=(),
    ),
    pictures=(
        Picture(
            name="airllm",
            file="airllm.png",
            claim=(
                "AirLLM's regret falls from 8 to 0.9 a step and 3 % of its transmissions "
                "do not fit, without guidance 13 %; PPO on all ranks ends at 0.2, the "
                "largest uniform rank that fits is at 0.14; with a gamma of 0.95 in place"
                " of 0 PPO learns nothing."
            ),
            data="closed-form loss of the ranks of 24 matrices, a link of -5 to 15 dB",
            bands="curves: means of {config.seeds} seeds, dots: each seed",
            headed=False,
        ),
        Picture(
            name="airllm_digits",
            file="airllm_digits.png",
            claim=(
                "The largest uniform rank that fits is 2.5 points ahead of rank 1 and "
                "sends 4.5 times as much; learned ranks are not ahead of a budget by "
                "importance after so few episodes."
            ),
            data="digits (scikit-learn): a network of 0 to 4, tuned for 0 to 9",
            bands="bars: one standard deviation of {config.digits_seeds} seeds, both ways",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
