"""One algorithm's rounds as a row: what they take, what they cost, what the hardware would need."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import peers
from benchmarks.ceilings import arithmetic_ms
from benchmarks.measure import Row, milliseconds
from benchmarks.tasks import Task

# Rounds in one compiled call: of 0.1 s each, what `dflax.run` makes of its half a second. Memory that
# a call needs is then fresh for one round in four.
CHUNK = 4


def federation(task: Task) -> dx.Federation:
    """The task's data and clients: m of n clients a round, all of them where m is n."""
    inputs, labels = task.examples()
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels), classes=task.classes)
    rule = None if task.cohort == task.clients else dx.participation.uniform(task.cohort)
    return dx.Federation(
        data,
        dx.data.from_indices(task.dealt()),
        local_steps=task.steps,
        batch_size=task.batch,
        participation=rule,
    )


def row(
    name: str,
    algorithm: dx.Algorithm,
    params: Any,
    source: dx.Federation,
    *,
    rounds: int,
    repeats: int = 5,
    flops: float | None = None,
    devices: int = 1,
) -> Row:
    """Steady time per round of `rounds` rounds in one compiled call, against the arithmetic's limit.

    Compile time, memory and traffic are those of one round's program, and so are its operations
    unless `flops` says how many the work has. On more than one device the clients are dealt over a mesh.
    """
    key = jax.random.key(0)
    state = algorithm.init(key, params)
    mesh = dx.client_mesh(jax.devices()[:devices]) if devices > 1 else None
    cost = dx.profile.round(algorithm, state, source, mesh=mesh)
    flops = cost.flops if flops is None else flops
    if mesh is not None:
        name = f"{name}, mesh of {devices}"
        state, source = dx.mesh.shard(state, mesh), dx.mesh.replicate_source(source, mesh)
    rollout = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        took = milliseconds(lambda: rollout(state, source, key), repeats=repeats, units=rounds)
    return Row(
        name,
        took,
        limit_ms=arithmetic_ms(flops),
        compile_ms=1e3 * cost.compile_seconds,
        peak_bytes=cost.peak_bytes,
        flops=flops,
        bytes=cost.bytes_accessed,
    )


def meshes() -> tuple[int, ...]:
    """The numbers of devices that a round is timed on: one, and all where there are more."""
    return (1, jax.device_count())[: jax.device_count()]


def beside_each(own: list[Row], *measured: dict[str, Any] | None) -> list[Row]:
    """`Row.beside` of each of several rows that have the same peers."""
    return [row for one in own for row in one.beside(*measured)]


def losses(
    algorithm: dx.Algorithm, params: Any, source: dx.Federation, loss: Callable[..., Any]
) -> list[float]:
    """The mean loss of all examples after each of three rounds."""
    key = jax.random.key(0)
    state = algorithm.init(key, params)
    everything = dx.data.Batch(source.data.inputs, source.data.labels)
    found = []
    for number in range(3):
        state, _ = dx.rollout(algorithm, state, source, key, 1, start=number)
        found.append(float(loss(state.server.params, everything, key)[0]))
    return found


def agreeing(ours: list[float], *measured: dict[str, Any] | None) -> list[dict[str, Any] | None]:
    """What peers measured, refused where their rounds of the task without chance are not ours."""
    for peer in measured:
        if peer is not None and not np.allclose(peer["losses"], ours, rtol=1e-3, atol=0.0):
            raise AssertionError(
                f"{peer['peer']}: rounds without chance must lead to the same losses, got "
                f"{peer['losses']} in place of {ours}."
            )
    return list(measured)


def of_flower(task: Task, network: str, count: int, ours: list[float]) -> dict[str, Any] | None:
    """What Flower's rounds take, once those of the task without chance have our losses."""
    options: dict[str, Any] = {"peer": "flower", "script": "rounds_flower", "network": network}
    (whole,) = agreeing(ours, peers.run(**options, task=task.whole(), rounds=1))
    return None if whole is None else peers.run(**options, task=task, rounds=count)


def beside_first(
    known: dict[str, Callable[[], dx.Algorithm]],
    start: Callable[[dx.Algorithm], dx.FederatedState],
    source: dx.Federation,
    repeats: int,
    what: str,
) -> list[Row]:
    """A row for every method but the first, whose round is the peer of the others'.

    Args:
      known: by name, made when their turn comes.
      start: from an algorithm to its first state.
      source: of the rounds.
      repeats: see `in_turns`.
      what: what follows the names in the rows.
    """
    works = {}
    for name, make in known.items():
        algorithm = make()
        works[name] = in_chunks(algorithm, start(algorithm), source)
    least = {name: took / CHUNK for name, took in in_turns(works, repeats).items()}
    first = next(iter(known))
    base = least.pop(first)
    return [Row(f"{name} {what}", took, first, base) for name, took in least.items()]


def noise(
    clients: int,
    owned: int,
    steps: int,
    batch: int,
    cohort: int | None = None,
    *,
    model: Any = None,
) -> tuple[dx.Federation, Any, Callable[..., Any]]:
    """A federation of clients with images 28x28 of noise, a model at its start, and its loss.

    The model is `dflax.models.CNN` unless another one is given.
    """
    generator = np.random.default_rng(0)
    images = generator.normal(size=(clients * owned, 28, 28, 1)).astype(np.float32)
    labels = generator.integers(0, 10, clients * owned)
    data = dx.data.Dataset(jnp.asarray(images), jnp.asarray(labels, jnp.int32), classes=10)
    source = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(clients * owned), clients)),
        local_steps=steps,
        batch_size=batch,
        participation=None if cohort is None else dx.participation.uniform(cohort),
    )
    model = dx.models.CNN(classes=10) if model is None else model
    params = model.init(jax.random.key(0), data.example)["params"]
    return source, params, dx.losses.classification(model.apply)


def in_turns(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The least milliseconds of each of several works, after a first call that warms up.

    Taken in turns, so that whatever else slows the machine down slows them all.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            jax.block_until_ready(work())
            if repeat:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: min(times) for name, times in taken.items()}


def in_chunks(
    algorithm: dx.Algorithm, state: dx.FederatedState, source: dx.Federation
) -> Callable[[], Any]:
    """`CHUNK` more rounds at every call, the state donated from call to call, as in `dflax.run`."""
    key = jax.random.key(0)
    advance = jax.jit(functools.partial(dx.rollout, algorithm, rounds=CHUNK), donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    numbers = itertools.count(step=CHUNK)

    def once() -> Any:
        nonlocal state
        state, metrics = advance(state, source, key, start=jnp.int32(next(numbers)))
        return metrics

    return once
