"""Methods on timetables: runs of several seeds in one program, and curves over simulated seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

import dflax as dx
from dflax import asynchronous, evaluation
from experiments.tools.lanes import each

Timetable = asynchronous.Timetable
CONTRIBUTED = ("contributors", "staleness", "largest_staleness")


def follow(
    make: Callable[..., dx.Algorithm],
    federations: Sequence[dx.Federation],
    tables: Timetable | Sequence[Timetable],
    start: Callable[[jax.Array], Any],
    measure: Callable[..., dict[str, Any]],
    *hyper: Sequence[float],
    own: PyTree[Array] = (),
    first_seed: int = 0,
    width: int | None = None,
    steps: int | None = None,
) -> dict[str, np.ndarray]:
    """A method at G points and S seeds, as one program, measured after every wave of its timetable.

    Args:
      make: `(waves, *values) -> Algorithm`, of one value of each of `hyper`.
      federations: S of them, of equal shapes.
      tables: one for all seeds, or S.
      start: `key -> ` the first model.
      measure: `(params, federation, own) -> ` numbers, a `Partial` that holds what is large.
      *hyper: hyper-parameters, each a list of G values; none: G is 1.
      own: what `measure` is told of a seed besides, leaves `[S, ...]`.
      first_seed: seed s has the key of `first_seed + s`, by which methods are paired.
      width: see `dflax.asynchronous.waves`.
      steps: the same.

    Returns:
      What is measured, and "time", `[G, S, W + 1]`, the first entry that of the start at second 0; and
      `[G, S, W]` the algorithm's "contributors", "staleness" and "largest_staleness".
    """
    if isinstance(tables, Timetable):
        cuts = [asynchronous.waves(tables, width, steps=steps)] * len(federations)
    else:
        room = tables[0].population if width is None else width
        cuts = asynchronous.alike([asynchronous.waves(t, room, steps=steps) for t in tables])
    if isinstance(tables, Timetable):
        # Their participation must be one object to be stored once.
        joined = asynchronous.join(federations[0], cuts[0])
        sources = [one.replace(participation=joined.participation) for one in federations]
    else:
        sources = [asynchronous.join(one, cut) for one, cut in zip(federations, cuts, strict=True)]
    together = dx.side_by_side(sources)

    def run(lane: Any, together: dx.SideBySide, measure: Any) -> dict[str, Array]:
        values, key, mine, extra = lane
        source = together.source(mine)
        algorithm = make(cuts[0], *values)
        model_key, init_key, run_key = jax.random.split(key, 3)
        state = algorithm.init(init_key, start(model_key))

        def step(state: Any, round: dx.Round) -> tuple[Any, Any]:
            state, metrics = algorithm.step(state, round)
            kept = {name: metrics[name] for name in CONTRIBUTED}
            seen = measure(state.server.params, source, extra) | {"time": metrics["time"]}
            return state, (seen, kept)

        first = measure(state.server.params, source, extra) | {"time": 0.0}
        watched = dx.Algorithm(algorithm.init, step)
        _, (seen, kept) = dx.rollout(watched, state, source, run_key, cuts[0].rounds)
        curves = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, seen)
        return curves | kept

    count = len(hyper[0]) if hyper else 1
    points = tuple(jnp.asarray(entry, jnp.float32) for entry in hyper)
    numbers = jnp.arange(first_seed, first_seed + len(sources))
    seeds = (jax.vmap(jax.random.key)(numbers), together.own, own)
    lanes = (
        jax.tree.map(lambda leaf: jnp.repeat(leaf, len(sources), axis=0), points),
        *jax.tree.map(lambda leaf: jnp.concatenate([leaf] * count), seeds),
    )
    program = jax.jit(lambda lanes, *shared: each(run, lanes, *shared))
    found = program(lanes, together, measure)
    return {name: np.asarray(leaf).reshape(count, len(sources), -1) for name, leaf in found.items()}


def plain(loss: Any) -> Callable[[asynchronous.Waves, Any], dx.Algorithm]:
    """Plain SGD on the clients, of a rate, and a server that adds what arrives."""
    return lambda cut, rate: asynchronous.asynchronous_server(loss, optax.sgd(rate), cut)


def accuracy(loss: Any, test: dx.data.Dataset, examples: int | None = None) -> Any:
    """Measures accuracy on test examples, for `follow`."""
    return Partial(_accuracy, evaluation.on(loss, test, examples=examples))


def _accuracy(measure: Any, params: Any, source: Any, own: Any) -> dict[str, Any]:
    return {"accuracy": measure(params)["accuracy"]}


def distance(params: Any, source: Any, own: Any) -> dict[str, Any]:
    """The model itself, of one number or vector: its first entry, for `follow` on quadratics."""
    return {"model": jnp.ravel(params)[0]}


def quadratics(targets: Float[np.ndarray, " n"], local_steps: int) -> dx.Federation:
    """`f_i = (x - b_i)^2 / 2`, exact gradients."""
    n = len(targets)
    data = dx.data.Dataset(
        {"A": jnp.ones((n, 1, 1)), "b": jnp.asarray(targets, jnp.float32)[:, None]},
        jnp.arange(n, dtype=jnp.int32),
    )
    return dx.Federation(
        data,
        dx.data.from_indices([np.array([i]) for i in range(n)]),
        batch_size=1,
        local_steps=local_steps,
        weights=jnp.ones(n),
        replacement=True,
    )


def with_classes(
    labels: Int[np.ndarray, " N"], clients: int, classes: int, seed: int
) -> dx.data.Partition:
    """Each client holds parts of so many classes: every class is cut into as many, and none comes twice.

    All clients hold equally many examples, as many as the rarest class gives.
    """
    generator = np.random.default_rng([seed, classes])
    kinds = int(labels.max()) + 1
    if clients * classes % kinds:
        raise ValueError(
            f"classes must let {clients} clients share {kinds} classes evenly, got {classes}."
        )
    copies = clients * classes // kinds
    while True:
        dealt = generator.permutation(np.repeat(np.arange(kinds), copies)).reshape(clients, classes)
        if (np.diff(np.sort(dealt, axis=1), axis=1) > 0).all():
            break
    parts = [
        np.array_split(generator.permutation(np.flatnonzero(labels == c)), copies)
        for c in range(kinds)
    ]
    owned = [np.concatenate([parts[c].pop() for c in own]) for own in dealt]
    least = classes * (int(np.bincount(labels).min()) // copies)
    return dx.data.from_indices([generator.permutation(rows)[:least] for rows in owned], seed=seed)


def perceptron(key: jax.Array) -> dict[str, Any]:
    """64-64-10 with weights N(0, 1 / 64) and biases 0."""
    first, second = jax.random.split(key)
    return {
        "Dense_0": {"kernel": jax.random.normal(first, (64, 64)) / 8, "bias": jnp.zeros(64)},
        "Dense_1": {"kernel": jax.random.normal(second, (64, 10)) / 8, "bias": jnp.zeros(10)},
    }
