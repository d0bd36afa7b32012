"""CPTO: plans of 64 scenes as one program, beside OSQP on the same quadratic programs one by one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers
from benchmarks.measure import Row, milliseconds
from dflax import robots
from dflax.robots.planning.subproblems import parts
from experiments.tasks.crossing import crossing

SCENES, ITERATIONS, SAMPLE = 64, 200, 50
CURVES = robots.bernstein()
GIVEN = ([0, 1, 9, 10], [0, 1], [0, 1, 10])


def rows(quick: bool) -> list[Row]:
    """Plans of 200 iterations with two hypotheses of two obstacles."""
    scene = crossing()
    rng = np.random.default_rng(0)
    many = jax.tree.map(lambda leaf: jnp.asarray(np.stack([leaf] * SCENES), jnp.float32), scene)
    moved = rng.normal(scale=0.3, size=(SCENES, 1, 2, 2, 1))
    many = many._replace(centres=many.centres + jnp.asarray(moved, jnp.float32))
    planner = robots.planner(CURVES, 2, 2, ITERATIONS)

    def plan(scene: robots.Scene) -> robots.Plan:
        return planner.plan(robots.straight_guess(CURVES, scene), scene)

    compiled = jax.jit(jax.vmap(plan)).lower(many).compile()
    took = milliseconds(lambda: compiled(many), repeats=3 if quick else 20)
    each = alone()
    count = SCENES * 2 * 3 * ITERATIONS
    name = f"plans of {SCENES} scenes, 2 hypotheses, {ITERATIONS} iterations"
    if each is None:
        return [Row(name, took)]
    solved = f"{each['peer']}, their {count:,} quadratic programs one by one"
    row = Row(f"{name}, everything", took, solved, count * each["ms"])
    return [row, *both(each)]


@functools.cache
def programs() -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
    """The quadratics of heading, x and y, and gradients and ends such as iterations have them."""
    made = parts(CURVES, 2, 5, 5.0, robots.Costs())
    rng = np.random.default_rng(1)
    share = np.linspace(0, 1, 11)
    lines = [np.zeros(11), 28 * share, 3 * share]
    gradients, ends = [], []
    for quadratic, line, given, scale in zip(made, lines, GIVEN, (0.05, 0.3, 0.3), strict=True):
        near = line + scale * rng.normal(size=(SAMPLE, 11))
        Q = np.asarray(matrix(quadratic, given))
        gradients.append(near @ Q)
        kept = np.isin(np.arange(11), given)
        ends.append(np.where(kept, line, 0.0) * np.ones((SAMPLE, 1)))
    return made, gradients, ends


def matrix(quadratic: Any, given: list[int]) -> np.ndarray:
    """Q, up to what does not move the minimum, from its two maps."""
    free = [place for place in range(11) if place not in given]
    inverse = np.asarray(quadratic.of_gradient, np.float64)[np.ix_(free, free)]
    Q = np.eye(11)
    block = np.linalg.inv((inverse + inverse.T) / 2)
    across = -block @ np.asarray(quadratic.of_given, np.float64)[np.ix_(free, given)]
    Q[np.ix_(free, free)] = block
    Q[np.ix_(free, given)], Q[np.ix_(given, free)] = across, across.T
    # The given block is free to choose; this makes Q positive definite.
    Q[np.ix_(given, given)] = across.T @ np.linalg.solve(block, across) + np.eye(len(given))
    return (Q + Q.T) / 2


def alone() -> dict[str, Any] | None:
    """OSQP's milliseconds a program, after a look at whether both find the same."""
    made, gradients, ends = programs()
    found = peers.run(
        "osqp",
        "quadratics_osqp",
        quadratics=[matrix(q, g).tolist() for q, g in zip(made, GIVEN, strict=True)],
        given=list(GIVEN),
        gradients=[q.tolist() for q in gradients],
        ends=[e.tolist() for e in ends],
    )
    if found is None:
        return None
    apart = [
        np.abs(np.asarray(quadratic.minimum(q, e)) - np.asarray(theirs)).max()
        / np.abs(theirs).max()
        for quadratic, q, e, theirs in zip(made, gradients, ends, found["solutions"], strict=True)
    ]
    if max(apart) > 2e-2:
        raise AssertionError(f"solutions must be OSQP's to its tolerance, are apart by {apart}.")
    return found


def both(each: dict[str, Any]) -> list[Row]:
    """The programs alone."""
    made, gradients, ends = programs()
    placed = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (gradients, ends))

    @jax.jit
    def solve(gradients: list[Any], ends: list[Any]) -> list[Any]:
        return [q.minimum(g, e) for q, g, e in zip(made, gradients, ends, strict=True)]

    took = milliseconds(lambda: solve(*placed), repeats=50)
    count = 3 * SAMPLE
    return [
        Row(f"{count} quadratic programs of a plan alone", took, each["peer"], count * each["ms"])
    ]
