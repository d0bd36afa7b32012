"""Accuracy over bytes sent: what compressed uplinks save, with error feedback and without."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import aggregation, channel, evaluation
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Study, Summary

FEEDBACK = {
    "top-k 1 %": channel.error_feedback(channel.top_k(0.01)),
    "random-k 10 %": channel.error_feedback(channel.random_k(0.1, unbiased=False)),
    "sign": channel.error_feedback(channel.sign()),
    "PowerSGD rank 1": channel.error_feedback(channel.powersgd(1)),
}
PLAIN = {
    "uncompressed": channel.uncompressed(),
    "top-k 1 %, forgetting": channel.top_k(0.01),
    "QSGD 7 levels": channel.qsgd(7),
}
VOTE = "sign, majority vote"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      clients: of scikit-learn's digits.
      cohort: clients invited in a round.
      alpha: Dirichlet concentration of the label split.
      hidden: width of the perceptron's hidden layer.
      rounds: communication rounds.
      every: rounds between evaluations.
      local_steps: K.
      batch_size: examples per local step.
      rate: local learning rate.
      vote_rate: server's learning rate under the majority vote, at the start; it falls linearly to 0.
      seeds: repetitions, one compiled program per method.
      seed: the first of them.
    """

    clients: int = 20
    cohort: int = 10
    alpha: float = 0.3
    hidden: int = 64
    rounds: int = 200
    every: int = 10
    local_steps: int = 5
    batch_size: int = 32
    rate: float = 0.2
    vote_rate: float = 0.01
    seeds: int = 3
    seed: int = 0


def runs(config: Config, rule: dx.channel.Channel, vote: bool) -> dict[str, np.ndarray]:
    """Accuracies `[seeds, evaluations]` and megabytes sent until then, all seeds as one program."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    splits = [
        dx.data.dirichlet(labels, config.clients, config.alpha, seed=seed)
        for seed in range(config.seed, config.seed + config.seeds)
    ]
    first = dx.Federation(
        data,
        splits[0],
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        participation=dx.participation.uniform(config.cohort),
    )
    sources = dx.side_by_side([first.replace(partition=split) for split in splits])
    model = dx.models.MLP((config.hidden,), classes=10)
    loss = dx.losses.classification(model.apply)
    measure = evaluation.on(loss, data.test)
    falling = optax.linear_schedule(config.vote_rate, 0.0, config.rounds)
    algorithm = dx.server.fedavg(
        loss,
        optax.sgd(config.rate),
        optax.sgd(falling) if vote else None,
        channel=rule,
        aggregator=aggregation.majority_vote() if vote else None,
        clients=config.clients,
    )

    def one(own: Any, key: jax.Array, sources: dx.SideBySide) -> dict[str, jax.Array]:
        federation = sources.source(own)
        start_key, init_key, run_key = jax.random.split(key, 3)
        state = algorithm.init(init_key, model.init(start_key, data.example)["params"])

        def several(state: Any, start: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            state, metrics = dx.rollout(
                algorithm, state, federation, run_key, config.every, start=start
            )
            measured = measure(state.server.params)
            return state, {
                "accuracy": measured["accuracy"],
                "sent": metrics["bytes_sent"].sum() / 1e6,
            }

        starts = jnp.arange(0, config.rounds, config.every)
        _, found = jax.lax.scan(several, state, starts)
        return found | {"sent": jnp.cumsum(found["sent"])}

    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    found = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))(sources.own, keys, sources)
    return {name: np.asarray(values) for name, values in found.items()}


def every_channel(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs every channel on the same splits and draws accuracy over megabytes."""
    rules = PLAIN | FEEDBACK | {VOTE: channel.sign(scaled=False)}
    found = {
        name: stage(name, lambda name=name, rule=rule: runs(config, rule, name == VOTE))
        for name, rule in rules.items()
    }
    rows = {}
    goal = float(found["uncompressed"]["accuracy"][:, -1].mean()) - 0.03
    for name, values in found.items():
        last = values["accuracy"][:, -1]
        mean = values["accuracy"].mean(0)
        reached = np.flatnonzero(mean >= goal)
        rows[name] = {
            "accuracy": float(last.mean()),
            "lowest": float(last.min()),
            "highest": float(last.max()),
            "MB in all": float(values["sent"][:, -1].mean()),
            "MB to goal": float(values["sent"][:, reached[0]].mean()) if len(reached) else np.nan,
        }
    plain = rows["uncompressed"]
    factor = {name: plain["MB in all"] / rows[name]["MB in all"] for name in FEEDBACK}
    forgetting = rows["top-k 1 %, forgetting"]["accuracy"]
    claims = [
        Claim(
            "with error feedback every compressor ends within 3 points of the uncompressed run",
            all(rows[name]["accuracy"] >= goal for name in FEEDBACK),
            [rows[name]["accuracy"] for name in FEEDBACK],
            goal,
        ),
        Claim(
            "each of them sends an eighth of the bytes or less",
            min(factor.values()) >= 8,
            list(factor.values()),
            8,
        ),
        Claim(
            "each of them reaches that accuracy with fewer bytes than the uncompressed run",
            all(rows[name]["MB to goal"] < plain["MB to goal"] for name in FEEDBACK),
            [rows[name]["MB to goal"] for name in FEEDBACK],
            plain["MB to goal"],
        ),
        Claim(
            "unbiased rounding to 4 bits a number needs no memory: it ends within a point",
            abs(rows["QSGD 7 levels"]["accuracy"] - plain["accuracy"]) <= 0.01,
            rows["QSGD 7 levels"]["accuracy"],
            plain["accuracy"],
        ),
        Claim(
            "top-k without a memory ends lower than with one",
            rows["top-k 1 %"]["accuracy"] > forgetting,
            rows["top-k 1 %"]["accuracy"],
            forgetting,
        ),
    ]
    return Summary(rows, claims, {"accuracy_over_bytes": _figure(found)})


def _figure(found: dict[str, dict[str, np.ndarray]]) -> Any:
    with figure(7.2, 4.2) as (drawn, axes):
        for name, look in looks(found).items():
            sent, accuracy = found[name]["sent"].mean(0), found[name]["accuracy"]
            curve(axes, sent, accuracy, look, name)
        axes.set(xscale="log", xlabel="megabytes sent by all clients", ylabel="test accuracy")
        axes.set_ylim(0.4, 1.0)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


STUDY = Study(
    Config,
    (Part("every channel", every_channel, needs=(DIGITS,)),),
    seconds=38,
    quick=Config(rounds=20, seeds=2),
)


if __name__ == "__main__":
    main(STUDY, __file__)
