"""Sweeps over real hyper-parameters and seeds as one compiled program."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import (
    Algorithm,
    Metrics,
    Source,
    State,
    stepped,
    verify_algorithm,
    verify_source,
)
from dflax.metrics import disjoint
from dflax.running.history import History
from dflax.running.run import run
from dflax.side_by_side import SideBySide, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = "points"
OPTIONS = ("progress", "title", "sinks", "chunk", "checkpoint", "limit")
REASONS = {
    "mesh": " A sweep deals its points, not the clients, over devices: pass devices.",
    "donate": " A sweep makes its states itself and always donates them.",
    "stop": " The points of a sweep are one program and end together: stop the run of one point.",
    "keep_best": " Each point has a best round of its own: run the point that is wanted by itself.",
}


class Sweep(NamedTuple):
    """What a sweep measured, labelled.

    Attributes:
      axes: the swept values by name, in order, the last one "seed"; their lengths are the leading
        shape `[g_1, ..., g_k, s]` of everything below.
      metrics: the algorithm's metrics, leaves `[g_1, ..., g_k, s, T, ...]`.
      evaluated: `[E]` the rounds after which the states were evaluated, counted from 1.
      evaluations: the evaluation's metrics, leaves `[g_1, ..., g_k, s, E, ...]`.
      states: the final states, leaves `[g_1, ..., g_k, s, ...]`.
      seconds: time spent in rounds and evaluations.
      compile_seconds: time spent tracing and compiling, once for all points.
    """

    axes: dict[str, np.ndarray]
    metrics: PyTree[np.ndarray]
    evaluated: Int[np.ndarray, " E"]
    evaluations: PyTree[np.ndarray]
    states: State
    seconds: float
    compile_seconds: float

    def table(self) -> list[dict[str, Any]]:
        """One row per point: its values, and mean and deviation over seeds of the last evaluation.

        A row has every swept value under its own name, and of every measured `x` the entries "mean x"
        and "std x", means and deviations over seeds: numbers, or arrays where `x` is one. Metrics
        within metrics are named by their path, "outer/inner". No two columns can have one name, since
        the swept names are identifiers, without a space.

        Without an evaluation the metrics of the last round take its place.
        """
        measured = self.evaluations if len(jax.tree.leaves(self.evaluations)) else self.metrics
        names = list(self.axes)[:-1]
        over = len(names)
        last = {
            name: np.asarray(values, np.result_type(values, np.float32)).take(-1, axis=over + 1)
            for name, values in _named(measured).items()
            if values.shape[over + 1]
        }
        rows = []
        for place in np.ndindex(*(len(self.axes[name]) for name in names)):
            row: dict[str, Any] = {
                name: float(self.axes[name][i]) for name, i in zip(names, place, strict=True)
            }
            for name, values in last.items():
                for of, found in (("mean", values[place].mean(0)), ("std", values[place].std(0))):
                    row[f"{of} {name}"] = float(found) if found.ndim == 0 else found
            rows.append(row)
        return rows

    def plot(self, *names: str, **options: Any) -> "Figure":
        """Draws every point of the grid as a line, its seeds as a band; see `dflax.plots.curves`.

        Args:
          *names: of evaluations or metrics; default: all evaluations that are single numbers, or all
            such metrics where there are none.
          **options: of `dflax.plots.curves`: `over`, `megabytes`, `only`, `ax`.

        Returns:
          The matplotlib figure.

        Raises:
          TypeError, ValueError: naming the argument.
          ImportError: matplotlib is not installed.
        """
        from dflax.running.plots import curves

        return curves({"": self}, *names, **options)


class _Points(NamedTuple):
    """The state of a sweep: every leaf leads with the P points, but for the round they share."""

    round: Int[Array, ""]
    values: dict[str, Float[Array, " P"]]
    keys: Key[Array, " P"]
    states: State


class _Shared(NamedTuple):
    """Hands the sources to all points; each draws from its own with its own key.

    Attributes:
      sources: all of them.
      own: of every point the leaves of its own source, each `[P, ...]`.
    """

    sources: SideBySide
    own: tuple[Array, ...]

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Any:
        return self.sources, self.own, index


def sweep(
    factory: Callable[..., Algorithm],
    start: Callable[[Algorithm, Key[Array, ""]], State],
    source: Source | None = None,
    *,
    sources: Sequence[Source] | None = None,
    grid: Mapping[str, Sequence[float]],
    key: Key[Array, ""],
    rounds: int,
    seeds: int | None = None,
    evaluate: Callable[[State], Metrics] | None = None,
    every: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> Sweep:
    """Runs an algorithm at every point of a grid, with several seeds, as one compiled program.

    Point (v_1, ..., v_k, seed) is `factory(name_1=v_1, ..., name_k=v_k)` run on `source` with the key
    `jax.random.fold_in(key, seed)`: for each of them the result is that of its own
    `run(algorithm, start(algorithm, own_key), source, rounds=rounds, key=own_key)`, up to
    floating-point rounding. Seeds are paired: all points share the seeds' draws. With `sources` seed s
    runs on `sources[s]`, so that every seed has a split of its own.

    Args:
      factory: makes the algorithm from the swept values, passed by name as traced scalars; whatever
        is not real-valued it closes over.
      start: `(algorithm, key) -> state`, for example
        `lambda algorithm, key: algorithm.init(key, params)`.
      source: hands out the rounds of all seeds, for example a `Federation`.
      sources: instead of it, one source for each seed, of equal shapes. What all of them share, such
        as the data set of federations made with `federation.replace(partition=...)`, is stored once;
        what differs is stored once for every point.
      grid: for each name the real values to try, at least one; "seed" is taken by `seeds`.
      key: the sweep's typed key.
      rounds: how many, >= 0.
      seeds: repetitions of every point, >= 1; default 1, or one for each of `sources`.
      evaluate: `state -> metrics` of one point, see `dflax.evaluation`.
      every: rounds between evaluations; default only after the last.
      devices: devices to split the points over; default all. Points are padded to fill them evenly.
      **options: of `dflax.run`: `progress`, `title`, `sinks`, `chunk`, `checkpoint`, with which a
        killed sweep is taken up again by the same call, and `limit`, at which all points end together:
        make it for the point that may do the fewest rounds.

    Returns:
      A `Sweep`.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      dflax.interrupt.LimitReached: the limit came before the last round that was asked for.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> make = lambda rate: dx.server.fedavg(dx.data.quadratic_loss, optax.sgd(rate))
      >>> start = lambda algorithm, key: algorithm.init(key, jnp.zeros(3))
      >>> rates = {"rate": [0.1, 0.5]}
      >>> swept = dx.sweep(make, start, federation, grid=rates, key=jax.random.key(1), rounds=4)
      >>> swept.metrics["loss"].shape  # rates, seeds, rounds
      (2, 1, 4)
    """
    _verify_options(options)
    if devices is not None and any(map(_is_elsewhere, _devices(devices))):
        raise ValueError(
            "devices must be of this machine, got some that are not here. dflax.profile.sweep "
            "compiles for them."
        )
    ready = prepared(
        factory, start, source, sources=sources, grid=grid, key=key, rounds=rounds, seeds=seeds,
        evaluate=evaluate, every=every, devices=devices,
    )  # fmt: skip
    mesh = ready.split.mesh
    # Laid out as the program returns it, or the second call would compile it once more.
    whole = NamedSharding(mesh, PartitionSpec())
    split = whole if mesh.size == 1 else ready.split
    values, keys, own = jax.device_put(ready.given, split)
    points, shared = ready.points(values, keys, own, jax.jit(ready.begin)(values, keys))
    points = points._replace(round=jax.device_put(points.round, whole))
    points, history = run(
        ready.algorithm,
        points,
        shared,
        rounds=rounds,
        key=key,
        evaluate=ready.measure,
        every=every,
        donate=True,
        **options,
    )
    return _labelled(ready.axes, points, history, ready.number, ready.shape)


class Prepared(NamedTuple):
    """A sweep before anything is computed.

    Attributes:
      algorithm: all points as one.
      given: values and keys of the points, and their own leaves of the sources, each `[P, ...]`.
      begin: `(values, keys) -> states`.
      together: the sources.
      measure: the evaluation of all points.
      axes: as in `Sweep`.
      number: of points without the padding.
      shape: of the grid.
      split: where the points lie.
    """

    algorithm: Algorithm
    given: tuple[dict[str, Array], Key[Array, " P"], tuple[Array, ...]]
    begin: Callable[..., State]
    together: SideBySide
    measure: Partial | None
    axes: dict[str, np.ndarray]
    number: int
    shape: tuple[int, ...]
    split: NamedSharding

    def points(self, values: Any, keys: Any, own: Any, states: State) -> tuple[Any, Any]:
        """The state and the source of the algorithm."""
        # What is each point's own travels with the points; the stack of it need not come along.
        shared = _Shared(dataclasses.replace(self.together, own=()), own)
        return _Points(jnp.int32(0), values, keys, states), shared


def prepared(
    factory: Callable[..., Algorithm],
    start: Callable[[Algorithm, Key[Array, ""]], State],
    source: Source | None,
    *,
    sources: Sequence[Source] | None,
    grid: Mapping[str, Sequence[float]],
    key: Key[Array, ""],
    rounds: int,
    seeds: int | None,
    evaluate: Callable[[State], Metrics] | None,
    every: int | None,
    devices: Sequence[jax.Device] | None,
) -> Prepared:
    """What `sweep` runs; the arguments are its own."""
    validation.function("factory", factory)
    validation.function("start", start)
    validation.typed_key("key", key)
    validation.integer("rounds", rounds, low=0)
    together, seeds = _sources(source, sources, seeds, rounds)
    if evaluate is not None:
        validation.function("evaluate", evaluate, takes=1)
    elif every is not None:
        raise ValueError(
            f"every needs evaluate, got every={validation.shown(every)} and nothing to evaluate."
        )
    if every is not None:
        validation.integer("every", every, low=1)
    devices = _devices(devices)
    validation.instance("grid", grid, Mapping, 'For example {"rate": [0.1, 0.3]}.')
    if not grid:
        raise ValueError("grid must name at least one hyper-parameter, got an empty one.")
    for name, tried in grid.items():
        validation.real(f"grid[{name!r}]", tried)
        if np.ndim(tried) != 1 or len(tried) == 0:
            raise ValueError(
                f"grid[{name!r}] must list at least one number, got {validation.shown(tried)}."
            )
    _verify_names(factory, list(grid))
    axes = {name: np.asarray(tried) for name, tried in grid.items()} | {"seed": np.arange(seeds)}
    shape = tuple(len(tried) for tried in axes.values())
    mesh = jax.make_mesh((len(devices),), (POINTS,), axis_types=(AxisType.Auto,), devices=devices)
    count = int(np.prod(shape))
    # The last point is repeated until every device has as many.
    places = np.minimum(np.arange(count + -count % len(devices)), count - 1)
    index = np.unravel_index(places, shape)
    split, whole = PartitionSpec(POINTS), PartitionSpec()

    def over_points(function: Callable[..., Any], *specs: PartitionSpec) -> Callable[..., Any]:
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)

    def build(values: dict[str, Array]) -> Algorithm:
        algorithm = factory(**values)
        verify_algorithm("what factory returns", algorithm)
        return algorithm

    def begin(values: dict[str, Array], own_key: Key[Array, ""]) -> State:
        return start(build(values), own_key)

    def step(points: _Points, drawn: Any) -> tuple[_Points, Metrics]:
        sources, own, number = drawn

        def several(values: Any, keys: Any, states: Any, own: Any, shared: Any, number: Any) -> Any:
            def one(values: Any, own_key: Any, state: Any, own: Any) -> Any:
                source = dataclasses.replace(sources, shared=shared).source(own)
                return stepped(build(values), state, source.draw(own_key, number))

            return jax.vmap(one)(values, keys, states, own)

        states, metrics = over_points(several, split, split, split, split, whole, whole)(
            points.values, points.keys, points.states, own, sources.shared, number
        )
        return points._replace(round=points.round + 1, states=states), metrics

    values = {
        name: jnp.asarray(axes[name][own], jnp.float32)
        for name, own in zip(grid, index, strict=False)
    }
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(index[-1]))
    own = () if sources is None else tuple(leaf[index[-1]] for leaf in together.own)
    return Prepared(
        Algorithm(init=begin, step=step),
        (values, keys, own),
        over_points(jax.vmap(begin), split, split),
        together,
        None if evaluate is None else _measure(evaluate, over_points, split, whole),
        axes,
        count,
        shape,
        NamedSharding(mesh, split),
    )


def _sources(
    source: Source | None, sources: Sequence[Source] | None, seeds: int | None, rounds: int
) -> tuple[SideBySide, int]:
    """The sources side by side, and how many seeds there are."""
    if (source is None) == (sources is None):
        raise ValueError(
            f"give exactly one of source and sources, got {'neither' if source is None else 'both'}."
            " Pass one source for all seeds, or sources=[...] with one for each."
        )
    if seeds is not None:
        validation.integer("seeds", seeds, low=1)
    if source is not None:
        verify_source(source, rounds)
        return side_by_side([source]), 1 if seeds is None else seeds
    assert sources is not None  # as exactly one of the two is given
    together = side_by_side(sources)
    for own in sources:
        verify_source(own, rounds)
    if seeds is not None and seeds != len(sources):
        raise ValueError(
            f"seeds must be the number of sources, {len(sources)}, got {seeds}. Leave it out, or pass "
            "one source for each seed."
        )
    return together, len(sources)


def _named(metrics: Metrics) -> dict[str, np.ndarray]:
    """The leaves by their path; refuses paths that read the same."""
    leaves = jax.tree_util.tree_leaves_with_path(metrics)
    parts = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)}
        for path, leaf in leaves
    ]
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return disjoint(**dict(zip(names, parts, strict=True)))


def _verify_names(factory: Callable[..., Algorithm], names: list[str]) -> None:
    """Refuse names that the factory does not know, and the one that the seeds have."""
    for name in names:
        if not name.isidentifier():
            raise ValueError(
                f"grid must name arguments of factory, which are identifiers, got {name!r}."
            )
    if "seed" in names:
        raise ValueError(
            'grid must not name "seed", the axis of the repetitions. Say how many with seeds, or '
            "rename the factory's argument."
        )
    try:
        signature = inspect.signature(factory)
    except ValueError:
        # Some functions written in C do not tell.
        return
    try:
        signature.bind(**dict.fromkeys(names, 0.0))
    except TypeError as error:
        raise TypeError(
            f"grid must name the arguments of factory{signature}, got {names}: {error}. Close over "
            "arguments that are not swept."
        ) from error


def _verify_options(options: dict[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise TypeError(
                f"{name} is no option of a sweep, got {validation.shown(options[name])}. "
                f"Allowed are "
                f"{', '.join(OPTIONS)}.{REASONS.get(name, '')}"
            )


def _devices(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    """All devices by default; else the ones given, at least one."""
    if devices is None:
        return jax.devices()
    fix = "Pass for example jax.devices()[:2]."
    validation.instance("devices", devices, Sequence, fix)
    for place, device in enumerate(devices):
        validation.instance(f"devices[{place}]", device, jax.Device, fix)
    if not devices:
        raise ValueError(f"devices must list at least one device, got none. {fix}")
    return list(devices)


def _is_elsewhere(device: jax.Device) -> bool:
    return device.client.runtime_type == "compile_only_runtime"


def _measure(
    evaluate: Callable[[State], Metrics], over_points: Any, split: Any, whole: Any
) -> Partial:
    """The evaluation of all points at once; its test set stays an argument of the program."""
    evaluate = evaluate if isinstance(evaluate, Partial) else Partial(evaluate)

    def measure(evaluate: Partial, points: _Points) -> Metrics:
        def several(states: State, evaluate: Partial) -> Metrics:
            return jax.vmap(evaluate)(states)

        return over_points(several, split, whole)(points.states, evaluate)

    return Partial(measure, evaluate)


def _labelled(
    axes: dict[str, np.ndarray], points: _Points, history: History, count: int, shape: Any
) -> Sweep:
    def grid_first(leaf: np.ndarray) -> np.ndarray:
        # From [T, P, ...] to [g_1, ..., g_k, s, T, ...], without the points of the padding.
        leaf = np.moveaxis(leaf[:, :count], 1, 0)
        return leaf.reshape(*shape, *leaf.shape[1:])

    return Sweep(
        axes,
        jax.tree.map(grid_first, history.metrics),
        history.evaluated,
        jax.tree.map(grid_first, history.evaluations),
        jax.tree.map(lambda leaf: leaf[:count].reshape(*shape, *leaf.shape[1:]), points.states),
        history.seconds,
        history.compile_seconds,
    )
