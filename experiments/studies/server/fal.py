"""Federated adversarial learning of digits: accuracy under attack, with and without clipping."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import evaluation
from experiments.tasks.inputs import DIGITS
from experiments.tasks.skewed_digits import drawn_by
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.lanes import stacked
from experiments.tools.study import Claim, Part, Study, Summary

TRAINED = {
    "FedAvg": (0.0, False),
    "FAL 0.5": (0.5, False),
    "FAL 1.0": (1.0, False),
    "FAL 0.5, clipped": (0.5, True),
    "FAL 1.0, clipped": (1.0, True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; all radii are Euclidean, in units of inputs in [0, 1].

    Attributes:
      clients: each with `samples` examples.
      samples: per client, drawn with replacement; label proportions from Dirichlet(alpha).
      alpha: of the label proportions.
      hidden: width of the perceptron's hidden layer.
      rounds: communication rounds.
      local_steps: K.
      batch_size: examples per local step.
      rate: local learning rate.
      steps: P of the attacks in training.
      measured_steps: P of the attacks in evaluation.
      seeds: repetitions, one compiled program.
      seed: the first of them.
    """

    clients: int = 20
    samples: int = 64
    alpha: float = 0.3
    hidden: int = 32
    rounds: int = 100
    local_steps: int = 5
    batch_size: int = 32
    rate: float = 0.2
    steps: int = 5
    measured_steps: int = 10
    seeds: int = 3
    seed: int = 0


class Digits(NamedTuple):
    """One seed's data: the clients' federation, all their examples in a row, and the test set."""

    federation: dx.Federation
    owned: dx.data.Dataset
    test: dx.data.Dataset


def under_attack(config: Config, stage: Stage = in_memory) -> Summary:
    """Trains with and without attacks, measures under attack, and draws two figures."""
    found = on_digits(config, stage)
    rows, claims = _claims(config, found)
    figures = {
        "accuracy_over_radius": _radius_figure(found),
        "attacked_digits": _digits_figure(*found["shown"]),
    }
    return Summary(rows, claims, figures)


def digits(config: Config, seed: int) -> Digits:
    """450 test digits; every client draws its examples from label proportions of its own."""
    data = dx.data.digits(test_fraction=450 / 1797, seed=seed)
    generator = np.random.default_rng(seed)
    labels = np.asarray(data.labels)
    laws = generator.dirichlet(np.full(10, config.alpha), config.clients)
    owned = drawn_by(laws, labels, config.samples, generator)
    federation = dx.Federation(
        data,
        dx.data.from_indices(owned, seed=seed),
        local_steps=config.local_steps,
        batch_size=config.batch_size,
    )
    rows = np.concatenate(owned)
    train = dataclasses.replace(
        data.train, inputs=data.train.inputs[rows], labels=data.train.labels[rows]
    )
    return Digits(federation, train, data.test)


def on_digits(config: Config, stage: Stage) -> dict[str, np.ndarray]:
    """Trains all of `TRAINED` and measures each over a range of radii, under its rule of clipping."""
    model = dx.models.MLP((config.hidden,), classes=10)
    loss = dx.losses.classification(model.apply)
    radii = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    tasks = stacked([digits(config, config.seed + s) for s in range(config.seeds)])
    trained = np.array([radius for radius, _ in TRAINED.values()])
    # Infinite bounds clip nothing; as data they let one program train with and without.
    bounds = np.array([(0.0, 1.0) if clip else (-np.inf, np.inf) for _, clip in TRAINED.values()])

    def one(task: Digits, key: jax.Array, radius: jax.Array, bounds: jax.Array) -> Any:
        start_key, init_key, run_key = jax.random.split(key, 3)
        attack = dx.local.projected_gradient(
            loss, radius, config.steps, bounds=(bounds[0], bounds[1])
        )
        algorithm = dx.server.fal(loss, optax.sgd(config.rate), attack)
        params = model.init(start_key, task.test.example)["params"]
        # From the model's own law to He's; biases are 0.
        params = jax.tree.map(lambda leaf: 2.0**0.5 * leaf, params)
        state, metrics = dx.rollout(
            algorithm, algorithm.init(init_key, params), task.federation, run_key, config.rounds
        )
        return state.server.params, metrics["perturbation"].max()

    def measured(
        task: Digits, key: jax.Array, params: Any, radius: jax.Array, bounds: jax.Array
    ) -> dict[str, jax.Array]:
        attack = dx.local.projected_gradient(
            loss, radius, config.measured_steps, bounds=(bounds[0], bounds[1])
        )
        on_test = evaluation.attacked(loss, attack, task.test, key)(params)
        on_train = evaluation.attacked(loss, attack, task.owned, key)(params)
        return {"accuracy": on_test["robust_accuracy"], "loss": on_train["robust_loss"]}

    keys = jax.random.split(jax.random.key(config.seed), (2, config.seeds))
    each = jax.vmap(jax.vmap(one, in_axes=(None, None, 0, 0)), in_axes=(0, 0, None, None))
    train = jax.jit(each)
    params, largest = stage(
        "training", lambda: train(tasks, keys[0], jnp.asarray(trained), jnp.asarray(bounds))
    )
    # Every model under both rules: axes seeds, models, rules, radii.
    rules = jnp.asarray([(-np.inf, np.inf), (0.0, 1.0)])
    over = jax.vmap(measured, in_axes=(None, None, None, 0, None))
    over = jax.vmap(over, in_axes=(None, None, None, None, 0))
    over = jax.vmap(over, in_axes=(None, None, 0, None, None))
    over = jax.jit(jax.vmap(over, in_axes=(0, 0, 0, None, None)))
    found = stage("attacks", lambda: over(tasks, keys[1], params, jnp.asarray(radii), rules))
    first = jax.tree.map(lambda leaf: leaf[0], (tasks, params))
    return {
        "radii": radii,
        "accuracy": np.asarray(found["accuracy"]),
        "loss": np.asarray(found["loss"]),
        "excess": np.asarray(largest - trained),
        "shown": _attacked_digits(config, loss, model, *first),
    }


def _attacked_digits(config: Config, loss: Any, model: Any, task: Digits, params: Any) -> Any:
    """Six test digits: clean, and attacked at FedAvg's and at FAL's model; with what each reads."""
    batch = task.test.fetch(jnp.arange(6))
    attack = dx.local.projected_gradient(loss, 1.0, config.measured_steps)
    rows: list[tuple[str, Any, Any]] = [("clean", batch.inputs, None)]
    for place, name in ((0, "FedAvg"), (2, "FAL 1.0")):
        own = jax.tree.map(lambda leaf, place=place: leaf[place], params)
        moved = attack(own, batch, jax.random.key(config.seed)).inputs
        rows.append((name, moved, np.asarray(model.apply({"params": own}, moved).argmax(1))))
    return [(name, np.asarray(images)[..., 0], read) for name, images, read in rows], np.asarray(
        batch.labels
    )


def _claims(config: Config, found: dict) -> tuple[dict[str, dict], list[Claim]]:
    radii, accuracy, loss = found["radii"], found["accuracy"], found["loss"]
    rows: dict[str, dict] = {}
    for place, (name, (radius, clip)) in enumerate(TRAINED.items()):
        for rule in (0, 1) if name == "FedAvg" else (int(clip),):
            for at in (0.5, 1.0) if name == "FedAvg" else (radius,):
                own = int(np.flatnonzero(radii == at)[0])
                robust = accuracy[:, place, rule, own]
                trained = name.split(",")[0]
                rows[f"{trained} at {at}{', clipped' if rule else ''}"] = {
                    "clean": float(accuracy[:, place, rule, 0].mean()),
                    "robust": float(robust.mean()),
                    "robust loss": float(loss[:, place, rule, own].mean()),
                    "lowest": float(robust.min()),
                    "highest": float(robust.max()),
                    "gradients": float(
                        config.clients
                        * config.local_steps
                        * (1 if name == "FedAvg" else config.steps + 1)
                    ),
                }
    claims = []
    for clip, points, share in ((False, 0.08, 0.20), (True, 0.04, 0.15)):
        ending = ", clipped" if clip else ""
        plain, robust = rows[f"FedAvg at 0.5{ending}"], rows[f"FAL 0.5 at 0.5{ending}"]
        kind = "clipped to [0, 1]" if clip else "inputs not clipped"
        claims += [
            Claim(
                f"robust accuracy at 0.5 is {100 * points:.0f} points higher or more, {kind}",
                robust["robust"] >= plain["robust"] + points,
                robust["robust"],
                plain["robust"],
            ),
            Claim(
                f"robust training loss at 0.5 is {100 * share:.0f} % lower or more, {kind}",
                robust["robust loss"] <= (1 - share) * plain["robust loss"],
                robust["robust loss"],
                plain["robust loss"],
            ),
            Claim(
                f"clean accuracy is at most 5 points lower when trained at 0.5, {kind}",
                robust["clean"] >= plain["clean"] - 0.05,
                robust["clean"],
                plain["clean"],
            ),
        ]
    claims.append(
        Claim(
            "no example is ever moved further than its radius (1e-6)",
            bool((found["excess"] <= 1e-6).all()),
            float(found["excess"].max()),
            0.0,
        )
    )
    return rows, claims


def _radius_figure(found: dict) -> Any:
    styles = {"FedAvg": "C7", "FAL 0.5": "C0", "FAL 1.0": "C3"}
    with figure(8.4, 3.6, ncols=2, sharey=True) as (drawn, axes):
        for rule, panel in enumerate(axes):
            for place, (name, (_, clip)) in enumerate(TRAINED.items()):
                if name != "FedAvg" and int(clip) != rule:
                    continue
                values = found["accuracy"][:, place, rule]
                label = name.split(",")[0]
                panel.plot(
                    found["radii"], values.mean(0), "o-", color=styles[label], label=label, ms=3.5
                )
                panel.fill_between(
                    found["radii"],
                    values.min(0),
                    values.max(0),
                    color=styles[label],
                    alpha=0.2,
                    lw=0,
                )
            title = "inputs clipped to [0, 1]" if rule else "inputs not clipped"
            panel.set(xlabel="radius of the attack", title=title, ylim=(0.0, 1.0))
        axes[0].set_ylabel("accuracy on attacked test digits")
        axes[1].legend(title="trained by")
    return drawn


def _digits_figure(rows: Any, labels: np.ndarray) -> Any:
    with figure(6.0, 3.3, nrows=len(rows), ncols=len(labels)) as (drawn, axes):
        for line, (name, images, read) in zip(axes, rows, strict=True):
            for place, (panel, image) in enumerate(zip(line, images, strict=True)):
                panel.imshow(image, cmap="gray_r", vmin=-0.3, vmax=1.3)
                panel.set(xticks=[], yticks=[])
                panel.grid(False)
                for spine in panel.spines.values():
                    spine.set_visible(False)
                if read is None:
                    panel.set_title(f"{labels[place]}", fontsize=9)
                else:
                    right = read[place] == labels[place]
                    color = "black" if right else "C3"
                    panel.set_title(f"read as {read[place]}", fontsize=9, color=color)
            line[0].set_ylabel(name)
        drawn.suptitle("attacked at radius 1, each at its own model", fontsize=10)
    return drawn


STUDY = Study(
    Config,
    (Part("digits", under_attack, needs=(DIGITS,)),),
    seconds=25,
    quick=Config(rounds=10, measured_steps=3, seeds=1),
)


if __name__ == "__main__":
    main(STUDY, __file__)
