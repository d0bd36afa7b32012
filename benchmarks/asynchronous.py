"""Servers that do not wait: events of a large model, and a long timetable as one program."""

import functools
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import peers, rounds
from benchmarks.ceilings import memory_ms
from benchmarks.logistic import logits
from benchmarks.measure import Row, milliseconds
from benchmarks.tasks import MLP
from dflax import asynchronous

CLIENTS, DIMENSION = 20, 421_642
LONG, MANY, SMALL = 100_000, 100, 10
# The network of the row "mlp", at fewer clients.
FEDASYNC = MLP._replace(clients=20, cohort=20)
ALPHA, POWER = 0.9, 0.5


def nearer(x: Any, batch: dx.data.Batch, key: Any) -> tuple[jax.Array, dict[str, Any]]:
    """(1/2) |x - c_i|^2 for a number c_i: a gradient that costs one look at the model."""
    value = 0.5 * jnp.mean(jnp.square(x - batch.inputs.mean()))
    return value, {"loss": value}


def federation(clients: int) -> dx.Federation:
    """A number for each client."""
    data = dx.data.Dataset(jnp.arange(clients, dtype=jnp.float32), jnp.zeros(clients, jnp.int32))
    return dx.Federation(
        data,
        dx.data.from_indices([np.array([i]) for i in range(clients)]),
        local_steps=1,
        batch_size=1,
        replacement=True,
    )


def rows(quick: bool) -> list[Row]:
    """Events at the size of a CNN, a hundred thousand of a small model, and those of a peer."""
    return [
        *large(3.0 if quick else 8.0),
        *long(10_000 if quick else LONG),
        *beside_peer(3.0 if quick else 20.0),
    ]


def large(horizon: float) -> list[Row]:
    """A piece of work is an event: the client copies its model, the server what comes of it."""
    times, key = asynchronous.hardware(CLIENTS, 80), jax.random.key(0)
    source, measured = federation(CLIENTS), []
    for name, table in (
        ("asynchronous FedAvg", asynchronous.immediate(times, horizon)),
        ("FedFix 0.5", asynchronous.fedfix(times, 0.5, horizon)),
        ("FedBuff 5", asynchronous.fedbuff(times, 5, horizon, weights="importance")),
    ):
        cut = asynchronous.waves(table)
        method = asynchronous.asynchronous_server(nearer, optax.sgd(0.1), cut, at_once=1)
        joined = asynchronous.join(source, cut)

        @functools.partial(jax.jit, donate_argnums=0)
        def work(
            state: dx.FederatedState, source: dx.Federation, method: Any = method, cut: Any = cut
        ) -> Any:
            return dx.rollout(method, state, source, key, cut.rounds)[0]

        state = method.init(key, jnp.zeros(DIMENSION))

        def again(work: Any = work, joined: dx.Federation = joined) -> Any:
            nonlocal state
            state = work(state, joined)
            return state.server.params

        events = len(table.clients)
        took = milliseconds(again, units=events)
        # A client reads its model and writes its change, the server reads the change; for each step it
        # reads and writes its model, and writes what it sends.
        moved = 4.0 * DIMENSION * (3 * events + 3 * len(table.time)) / events
        measured.append(
            Row(
                f"an event of {name}, n={CLIENTS}, d={DIMENSION:,}",
                took,
                limit_ms=memory_ms(moved),
                bytes=moved,
            )
        )
    return measured


def long(count: int) -> list[Row]:
    """A timetable of so many events: made, compiled once, and followed."""
    times, key = asynchronous.exponential(MANY, least=0.5, seed=0), jax.random.key(0)
    horizon = count / (1 / times).sum()
    began = time.perf_counter()
    table = asynchronous.immediate(times, horizon)
    cut = asynchronous.waves(table)
    planned = 1e3 * (time.perf_counter() - began)
    method = asynchronous.asynchronous_server(nearer, optax.sgd(0.1), cut)
    joined = asynchronous.join(federation(MANY), cut)
    state = method.init(key, jnp.zeros(SMALL))

    def work(state: dx.FederatedState, source: dx.Federation) -> dx.FederatedState:
        return dx.rollout(method, state, source, key, cut.rounds)[0]

    began = time.perf_counter()
    compiled = jax.jit(work).lower(state, joined).compile()
    compiling = 1e3 * (time.perf_counter() - began)
    memory: Any = compiled.memory_analysis()
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(joined.participation))
    events = len(table.clients)
    name = f"{events:,} events in one program, n={MANY}, d={SMALL}"
    return [
        Row(
            name,
            milliseconds(lambda: compiled(state, joined), repeats=3),
            compile_ms=compiling,
            peak_bytes=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
            bytes=float(stored),
        ),
        Row(f"making the timetable of {events:,} events, and its waves", planned),
    ]


def beside_peer(horizon: float) -> list[Row]:
    """FedAsync of a perceptron, event for event as APPFL's simulation has it; both take turns."""
    n, key = FEDASYNC.clients, jax.random.key(0)
    times = asynchronous.exponential(n, least=0.2, seed=0)
    with warnings.catch_warnings():
        # It leans to the fast clients, there and here.
        warnings.simplefilter("ignore", asynchronous.SurrogateWarning)
        table = asynchronous.immediate(
            times, horizon, local_steps=FEDASYNC.steps, weights=np.full(n, ALPHA / n)
        )
    cut = asynchronous.waves(table)
    method = asynchronous.asynchronous_server(
        dx.losses.classification(logits),
        optax.sgd(FEDASYNC.rate),
        cut,
        discount=asynchronous.polynomial(POWER),
    )
    joined = asynchronous.join(rounds.federation(FEDASYNC), cut)
    state = method.init(key, jax.tree.map(jnp.asarray, FEDASYNC.layers()))
    work = jax.jit(lambda state, source: dx.rollout(method, state, source, key, cut.rounds)[0])
    events, own, theirs = len(table.clients), [], []
    for _ in range(2):
        own.append(milliseconds(lambda: work(state, joined), units=events))
        answer = peers.run(
            "appfl_simulation",
            "events_appfl",
            task=FEDASYNC,
            seconds=list(times),
            events=events,
            alpha=ALPHA,
            power=POWER,
            repeats=2,
        )
        if answer is None:
            break
        require_same(table, answer.pop("history"))
        theirs.append(answer)
    name = f"an event of FedAsync, n={n}, perceptron 784-100-10, {FEDASYNC.steps} local steps"
    return Row(name, min(own)).beside(min(theirs, key=lambda one: one["ms"], default=None))


def require_same(table: asynchronous.Timetable, history: list[list[float]]) -> None:
    """Refuses a peer's schedule that is another one."""
    time_there, clients, staleness = np.array(history).T
    same = np.allclose(time_there, table.time, rtol=1e-6, atol=0)
    same = same and np.array_equal(clients, table.clients)
    if not (same and np.array_equal(staleness, table.staleness)):
        raise ValueError(
            "history must be that of the timetable: times, clients and staleness differ."
        )
