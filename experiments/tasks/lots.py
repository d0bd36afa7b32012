"""Agents that plan lots: the published settings of PDPPO and PPO, at any size."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import rl
from experiments.tools.finished import Stage

# What the authors use in all of their runs.
ACTOR, CRITICS = 5.5e-4, 1e-3


class Setting(NamedTuple):
    """Sizes of a run.

    Attributes:
      items: I.
      machines: J.
      horizon: T periods an episode.
      episodes: of a window, each in an environment of its own.
      width: of both hidden layers of each network.
      epochs: of each window.
    """

    items: int
    machines: int
    horizon: int
    episodes: int
    width: int
    epochs: int


def rules() -> dict[str, rl.Critics]:
    """The methods by their names."""
    return {
        "PPO": rl.state_critic(),
        "PDPPO": rl.larger_part(),
        "one critic": rl.post_critic(),
        "noiseless": rl.noiseless(),
    }


def agent(
    name: str, setting: Setting, instance: rl.LotSizing, *, train_trunk: bool, **options: Any
) -> tuple[rl.Learner, Any]:
    """A learner of a method, and the start of its networks, `key -> params`."""
    environment = rl.time_limit(rl.lot_sizing(instance), setting.horizon)
    networks = rl.decision_networks(
        setting.items + 1, choices=setting.machines, features=(setting.width, setting.width)
    )
    optimizer = rl.separate_optimizers(
        optax.adam(ACTOR), optax.adam(CRITICS), train_trunk=train_trunk
    )
    if name == "one critic":
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
        options = {"entropy_weight": 0.012, **options}
    learner = rl.pdppo(
        environment,
        networks,
        optimizer,
        critics=rules()[name],
        environments=setting.episodes,
        steps=setting.horizon,
        epochs=setting.epochs,
        **options,
    )
    seen = jnp.zeros(setting.items)
    return learner, lambda key: networks.init(key, seen, seen)


def curves(
    learner: rl.Learner, start: Any, *, seeds: int, rounds: int, seed: int
) -> dict[str, np.ndarray]:
    """What agents that differ by their keys alone measured, `[rounds, seeds]`."""
    # One agent after another: its networks and windows then stay in a core's cache.
    algorithm = rl.alone(learner, seeds, at_once=1)
    begin_key, run_key = jax.random.split(jax.random.key(seed))
    state = jax.jit(algorithm.init, static_argnums=1)(begin_key, start)
    source = dx.Population(seeds)
    _, history = dx.run(algorithm, state, source, rounds=rounds, key=run_key, progress=False)
    return {name: np.asarray(value) for name, value in history.metrics.items()}


def curves_in_parts(
    learner: rl.Learner,
    start: Any,
    *,
    seeds: int,
    rounds: int,
    seed: int,
    part: int,
    stage: Stage,
    name: str,
) -> dict[str, np.ndarray]:
    """`curves` of a run of hours: each `part` rounds are a stage, with the agents as they then are.

    Args:
      learner: as for `curves`.
      start: as for `curves`.
      seeds: as for `curves`.
      rounds: as for `curves`; a multiple of `part`.
      seed: as for `curves`.
      part: >= 1.
      stage: which keeps a part.
      name: of the method, in the stages' names.
    """
    algorithm, source = rl.alone(learner, seeds, at_once=1), dx.Population(seeds)
    begin_key, run_key = jax.random.split(jax.random.key(seed))
    state = jax.jit(algorithm.init, static_argnums=1)(begin_key, start)
    structure = jax.tree.structure(state)

    @jax.jit
    def advanced(state: Any, first: Any) -> Any:
        state, metrics = dx.rollout(algorithm, state, source, run_key, part, first)
        return {"agents": jax.tree.leaves(state), "metrics": metrics}

    parts = []
    for first in range(0, rounds, part):
        found = stage(
            f"{name}, windows {first} to {first + part}", functools.partial(advanced, state, first)
        )
        state = jax.tree.unflatten(structure, found["agents"])
        parts.append(found["metrics"])
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def idle(instance: rl.LotSizing, setting: Setting, seed: int) -> np.ndarray:
    """Rewards of episodes in which no machine ever does anything, `[200]`."""
    environment = rl.time_limit(rl.lot_sizing(instance), setting.horizon)

    def act(seen: jax.Array, key: jax.Array) -> tuple[Any, tuple[()]]:
        return jnp.zeros((len(seen), setting.machines), jnp.int32), ()

    played = jax.jit(
        lambda key: rl.evaluate(
            environment, environment.task, act, key, episodes=200, horizon=setting.horizon
        )
    )
    return np.asarray(played(jax.random.key(seed)).returns)


def bounds(
    instance: rl.LotSizing, horizon: int, *, paths: int, seed: int, seconds: float
) -> dict[str, np.ndarray]:
    """Bounds and plans with perfect information for episodes that begin as the agents' do, `[paths]`."""
    draw = np.random.default_rng(seed)
    environment = rl.lot_sizing(instance)
    counts = np.shape(instance.demand)[1]
    found = []
    for key in jax.random.split(jax.random.key(seed), paths):
        begun = environment.reset(environment.task, key)
        demand = np.stack(
            [draw.choice(counts, horizon, p=row / row.sum()) for row in instance.demand], axis=1
        )
        found.append(
            rl.perfect_information(
                instance,
                np.asarray(begun.inventory),
                np.asarray(begun.setup),
                demand,
                seconds=seconds,
            )
        )
    return {
        "bound": np.array([plan.bound for plan in found]),
        "plan": np.array([plan.reward for plan in found]),
    }
