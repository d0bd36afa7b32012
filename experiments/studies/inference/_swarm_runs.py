"""Runs of swarms: of simulated nodes by thousands of rounds a program, and of classifiers of digits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import inference
from experiments.tasks import swarm_digits

NODES = 15
# Runs side by side in one program; what is asked for is filled up to a multiple of it.
LANES = 24
RULES = {
    "unweighted": inference.by_strength(weighted=False),
    "majority": inference.by_majority(),
    "weighted majority": inference.by_majority(weighted=True),
    "Borda": inference.by_win_rate(),
    "Elo": inference.by_elo(),
    "clustered": inference.clustered(inference.by_strength()),
}


def _summed(metrics: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Accuracies, the best node's in hindsight, reputations in the last third of rounds, earnings."""
    found = {name: jnp.mean(metrics[name].astype(jnp.float32)) for name in names}
    found["best"] = jnp.max(jnp.mean(metrics["right"].astype(jnp.float32), axis=0))
    for side in ("honest", "liar"):
        # A moving average of few rounds: at any one of them it scatters.
        reputation = metrics[f"{side}_reputation"]
        found[side] = jnp.mean(reputation[-(len(reputation) // 3) :])
        found[f"{side} earns"] = metrics[f"{side}_balance"][-1] / len(metrics["correct"])
    return found


@functools.cache
def _latent(rounds: int, others: tuple[str, ...]) -> Any:
    def run(case: Any, key: Any) -> dict[str, Any]:
        sharpness, liars, gamma, audit = case
        swarm = inference.latent_swarm(
            NODES, sharpness=sharpness, liars=jnp.arange(NODES) >= NODES - liars
        )
        algorithm = inference.fortytwo(
            swarm,
            pairs=3 * NODES,
            gamma=gamma,
            audit=audit,
            track=inference.dual_track(0.5, decay=0.0),
            beside={name: RULES[name] for name in others},
        )
        source = inference.Questions(NODES, inference.latent_questions())
        _, metrics = dx.rollout(algorithm, algorithm.init(key), source, key, rounds)
        return _summed(metrics, ("correct", "single", *others))

    return jax.jit(jax.vmap(run))


def simulated(
    cases: list[tuple[float, int, float, float]],
    seeds: int,
    first: int,
    rounds: int,
    others: tuple[str, ...] = ("unweighted", "majority"),
) -> dict[str, np.ndarray]:
    """Runs of `(J, liars, gamma, audit)` with the sheet's conventions, `[cases, seeds]`.

    Args:
      cases: settings.
      seeds: of each; seed s of all settings has the same abilities and questions.
      first: of the seeds.
      rounds: of each run.
      others: rules of `RULES` on the same verdicts.
    """
    every = np.repeat(np.array(cases, np.float32), seeds, axis=0)
    keys = jax.random.split(jax.random.key(first), seeds)
    places = np.arange(len(every) + -len(every) % LANES) % len(every)
    run, found = _latent(rounds, others), []
    for lanes in places.reshape(-1, LANES):
        found.append(run(tuple(jnp.asarray(every[lanes].T)), keys[lanes % seeds]))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(every)], *found)
    return {name: leaf.reshape(len(cases), seeds) for name, leaf in joined.items()}


def entered(
    capabilities: tuple[float, ...], seeds: int, first: int, rounds: int, questions: int
) -> dict[str, np.ndarray]:
    """Candidates that all answer rightly with one probability: tests taken and nodes admitted.

    Returns:
      `tests` and `admitted`, counts `[capabilities, seeds]`, and `spent`, costs and stakes.
    """
    candidates = 300

    def run(capability: Any, key: Any) -> dict[str, Any]:
        # Nothing is paid for rounds: what is spent are tests and stakes.
        skill = jnp.log(capability / (1.0 - capability))
        swarm = inference.latent_swarm(candidates, skill=skill, skill_deviation=0.0)
        algorithm = inference.fortytwo(
            swarm,
            pairs=1,
            rule=inference.by_majority(),
            track=inference.dual_track(least=0.0),
            test=inference.capability_test(),
            pay=inference.round_rewards(0.0),
        )
        ask = inference.latent_questions(deviation=0.0)
        source = inference.Questions(candidates, ask, exam=questions)
        state, metrics = dx.rollout(algorithm, algorithm.init(key), source, key, rounds)
        waiting = candidates - jnp.append(0, metrics["active"][:-1])
        ledger = state.clients.ledger
        answered = jnp.sum(metrics["present"])
        return {
            "tests": jnp.sum(waiting),
            "admitted": metrics["active"][-1],
            "spent": -jnp.sum(ledger.balance) - answered,
        }

    several = jax.jit(jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(first), seeds)
    return jax.tree.map(np.asarray, several(np.array(capabilities, np.float32), keys))


@functools.cache
def _digits(rounds: int) -> Any:
    def run(task: Any, inputs: Any, liars: Any, audit: Any, key: Any) -> dict[str, Any]:
        swarm = inference.classifier_swarm(
            swarm_digits.apply, NODES, liars=jnp.arange(NODES) >= NODES - liars
        )
        algorithm = inference.fortytwo(
            swarm,
            pairs=3 * NODES,
            audit=audit,
            track=inference.dual_track(0.5, decay=0.0),
            beside={name: RULES[name] for name in ("unweighted", "majority", "clustered")},
        )
        ask = inference.example_questions(inputs, task.labels, classes=swarm_digits.CLASSES)
        source = inference.Questions(NODES, ask)
        state = algorithm.init(key, task.params)
        _, metrics = dx.rollout(algorithm, state, source, key, rounds)
        return _summed(metrics, ("correct", "single", "unweighted", "majority", "clustered"))

    several = jax.vmap(run, in_axes=(None, None, 0, 0, None))
    return jax.jit(jax.vmap(several, in_axes=(0, 0, None, None, 0)))


def of_digits(
    task: swarm_digits.Classifiers,
    liars: list[int],
    audits: list[float],
    first: int,
    rounds: int,
    *,
    injection: int | None = None,
) -> dict[str, np.ndarray]:
    """Runs of classifiers, `[cases, seeds]`.

    Args:
      task: of all seeds.
      liars: how many lie, in each case.
      audits: their rate, in each case.
      first: of the seeds.
      rounds: of each run.
      injection: which of the injected sets is asked; None: the plain one.
    """
    inputs = task.inputs if injection is None else task.injected[:, injection]
    keys = jax.random.split(jax.random.key(first), len(inputs))
    task = task._replace(injected=())
    shared = (np.array(liars, np.float32), np.array(audits, np.float32))
    found = _digits(rounds)(task, jnp.asarray(inputs), *shared, keys)
    return {name: np.asarray(leaf).T for name, leaf in found.items()}
