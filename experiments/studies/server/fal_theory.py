"""Federated adversarial learning in its theory's setting: two layers on separated points."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.lanes import stacked
from experiments.tools.study import Claim, Part, Study, Summary

SEPARATIONS = (0.1, 0.6)
RADII = (0.0, 0.05, 0.15)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; all radii are Euclidean.

    Attributes:
      clients: N.
      samples: J of each client.
      dimension: of the inputs.
      width: units of the two-layer network.
      rounds: T.
      local_steps: K.
      rate: local learning rate.
      steps: P of the attacks in training, without a random start.
      measured_steps: P of the attacks in evaluation, with one.
      seeds: repetitions, one compiled program.
      seed: the first of them.
    """

    clients: int = 5
    samples: int = 20
    dimension: int = 8
    width: int = 512
    rounds: int = 200
    local_steps: int = 5
    rate: float = 0.1
    steps: int = 5
    measured_steps: int = 10
    seeds: int = 3
    seed: int = 0


def theory(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs all separations and radii, states what the theorem says of them and draws the curves."""
    found = stage("all separations and radii", lambda: on_separated(config))
    rows, claims = _claims(found)
    return Summary(rows, claims, {"theory_curves": _figure(found)})


def on_separated(config: Config) -> dict[str, np.ndarray]:
    """The robust loss of the theory's network after every round, for all separations and radii."""
    model = dx.models.TwoLayer(config.width)
    loss = dx.losses.absolute_error(model.apply)
    seeds = range(config.seed, config.seed + config.seeds)
    tasks = []
    for separation in SEPARATIONS:
        drawn = [
            dx.data.separated(
                jax.random.key(seed), config.clients, config.samples, config.dimension, separation
            )
            for seed in seeds
        ]
        federations = [
            dx.Federation(
                data.data,
                data.partition,
                local_steps=config.local_steps,
                batch_size=config.samples,
            )
            for data in drawn
        ]
        tasks.append(stacked(federations))

    def one(federation: dx.Federation, key: jax.Array, radius: jax.Array) -> dict[str, jax.Array]:
        start_key, init_key, run_key, attack_key = jax.random.split(key, 4)
        weak = dx.local.projected_gradient(loss, radius, config.steps, random_start=False)
        strong = dx.local.projected_gradient(loss, radius, config.measured_steps)
        algorithm = dx.server.fal(loss, optax.sgd(config.rate), weak)
        params = model.init(start_key, federation.data.example)["params"]
        whole = federation.data.fetch(jnp.arange(len(federation.data)))

        def risk(params: Any) -> tuple[jax.Array, Any]:
            value, slope = jax.value_and_grad(loss, has_aux=True)(
                params, strong(params, whole, attack_key), None
            )
            return value[0], slope

        def advance(state: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            value, slope = risk(state.server.params)
            after, _ = algorithm.step(state, federation.draw(run_key, t))
            change = jax.tree.map(jnp.subtract, after.server.params, state.server.params)
            lengths = optax.tree.norm(slope) * optax.tree.norm(change)
            alignment = -optax.tree.vdot(slope, change) / lengths
            return after, {"loss": value, "alignment": alignment}

        state, curves = jax.lax.scan(
            advance, algorithm.init(init_key, params), jnp.arange(config.rounds)
        )
        outputs = jnp.asarray(model.apply({"params": params}, whole.inputs))
        last, _ = risk(state.server.params)
        return {
            "loss": jnp.append(curves["loss"], last),
            "alignment": curves["alignment"],
            "start": jnp.abs(outputs).max(),
        }

    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    each = jax.vmap(one, in_axes=(None, None, 0))
    each = jax.vmap(each, in_axes=(0, 0, None))
    each = jax.jit(jax.vmap(each, in_axes=(0, None, None)))
    found = each(stacked(tasks), keys, jnp.asarray(RADII))
    return {name: np.asarray(values) for name, values in found.items()}


def _claims(found: dict) -> tuple[dict[str, dict], list[Claim]]:
    # Axes: separations, seeds, radii, rounds 0 ... T.
    lowest = np.minimum.accumulate(found["loss"], axis=-1)
    mean = lowest.mean(1)
    last = mean.shape[-1] - 1
    milestones = [last // 10, last // 2, last]
    rows = {
        f"net {separation}, at {radius}": {
            "robust loss": float(mean[i, k, -1]),
            **{f"T={t}": float(mean[i, k, t]) for t in milestones[:2]},
            "lowest": float(lowest[i, :, k, -1].min()),
            "highest": float(lowest[i, :, k, -1].max()),
            "alignment": float(found["alignment"][i, :, k].mean()),
        }
        for i, separation in enumerate(SEPARATIONS)
        for k, radius in enumerate(RADII)
    }
    steps = np.diff(mean[..., -1], axis=1)
    falls = np.diff(mean[..., milestones], axis=-1)
    claims = [
        Claim(
            "the symmetric network is 0 at its start (1e-5)",
            bool((found["start"] <= 1e-5).all()),
            float(found["start"].max()),
            0.0,
        ),
        Claim(
            f"the least robust loss at radius 0.05 falls below 0.7 by T={last}",
            bool((mean[:, 1, -1] < 0.7).all()),
            mean[:, 1, -1].tolist(),
            0.7,
        ),
        Claim(
            "it grows with the radius, by 0.05 or more between the three",
            bool((steps >= 0.05).all()),
            float(steps.min()),
            0.05,
        ),
        Claim(
            f"it falls with T ({', '.join(map(str, milestones))}) for every radius and separation",
            bool((falls < 0).all()),
            float(falls.max()),
            0.0,
        ),
    ]
    return rows, claims


def _figure(found: dict) -> Any:
    with figure(8.4, 3.6, ncols=2) as (drawn, axes):
        for i, (separation, dashes) in enumerate(zip(SEPARATIONS, ("--", "-"), strict=True)):
            for k, radius in enumerate(RADII):
                curves = np.minimum.accumulate(found["loss"][i, :, k], axis=-1)
                label = f"radius {radius}" if separation == SEPARATIONS[-1] else None
                axes[0].plot(curves.mean(0), dashes, color=f"C{k}", label=label, lw=1.5)
                if label:
                    axes[0].fill_between(
                        range(curves.shape[1]),
                        curves.min(0),
                        curves.max(0),
                        color=f"C{k}",
                        alpha=0.15,
                        lw=0,
                    )
                    axes[1].plot(found["alignment"][i, :, k].mean(0), color=f"C{k}", lw=1.0)
        axes[0].set(xlabel="round", ylabel="least robust loss so far", ylim=(0.3, 1.02))
        axes[0].set_title(f"separation {SEPARATIONS[1]}; dashed {SEPARATIONS[0]}")
        axes[0].legend()
        axes[1].set(xlabel="round", ylabel="cosine", title="change and negative gradient")
        axes[1].set_ylim(0.0, 1.02)
    return drawn


STUDY = Study(
    Config,
    (Part("separated points", theory, needs=()),),
    seconds=11,
    quick=Config(width=64, rounds=20, seeds=1),
)


if __name__ == "__main__":
    main(STUDY, __file__)
