"""Real running times of five ways to serve a small transformer, for selectors to learn from.

The measuring command, with "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" as the
environment's XLA_FLAGS:

    python -m experiments.tasks.accelerated_decoding --path measured.csv

It writes the columns of `dflax.inference.selection.read_measurements`. Requests are served by
`dflax.inference.decoding`, jitted, and timed until the last token is there:

    none             requests one after another; a prompt is padded to a power of two and prefilled
    prefix caching   the shared prefix is prefilled once, its keys and values are copied
    batching         up to 8 requests in one decode loop; a waiting one joins where one has ended, every
                     8 tokens
    chunked prefill  a prompt in chunks of 32 tokens, as many as it needs
    all              all three

Times are CPU seconds of the process, the least of several repeats that take turns with one another, so
that who else uses the machine matters little; with XLA on one thread they are the seconds that a free
core takes.
"""

import argparse
import collections
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax.inference import decoding, selection

# XLA on one thread: its CPU time is then that of one core.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
SLOTS, SEGMENT, CHUNK, LENGTH, VOCABULARY = 8, 8, 32, 640, 256
PREFIX = SLOTS
SIZES = ((64, 2), (64, 6), (128, 2), (128, 6), (192, 3), (256, 2))
PROMPTS = (48, 96, 160, 224, 320, 448)
SHARED = (0.0, 0.3, 0.6, 0.9)
LONGEST = 128


class Way(NamedTuple):
    """Which accelerations are on."""

    prefix: bool
    batching: bool
    chunked: bool


WAYS = {
    "none": Way(False, False, False),
    "prefix caching": Way(True, False, False),
    "batching": Way(False, True, False),
    "chunked prefill": Way(False, False, True),
    "all": Way(True, True, True),
}


class Task(NamedTuple):
    """Requests that wait together: prompts of one length, a prefix they share, answers of their own."""

    batch: int
    prompt: int
    output: float
    shared: float
    variation: float
    answers: np.ndarray


class Engine(NamedTuple):
    """One model's compiled programs.

    Attributes:
      params: the model's.
      join: `(params, cache, tokens, slot, prompt, length) -> (tokens, cache)`: a prompt into a slot.
      chunks: the same in chunks.
      share: `(cache, slot, tokens) -> cache`: the prefix into a slot.
      decode: `(params, cache, slots, tokens, counts) -> (tokens, cache)`: the next segment.
      empty: `() -> cache`.
    """

    params: Any
    join: Callable[..., Any]
    chunks: Callable[..., Any]
    share: Callable[..., Any]
    decode: Callable[..., Any]
    empty: Callable[[], decoding.Cache]


def engine(width: int, depth: int) -> Engine:
    """A transformer of random weights; times do not depend on what it says."""
    model = transformer(width, depth)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    whole, chunked = decoding.decoder(model), decoding.decoder(model, chunk=CHUNK)

    def joined(served: decoding.Decoder) -> Callable[..., Any]:
        def join(params: Any, cache: Any, tokens: Any, slot: Any, prompt: Any, length: Any) -> Any:
            logits, cache = served.prefill(params, cache, slot[None], prompt[None], length[None])
            return tokens.at[slot].set(jnp.argmax(logits[0]).astype(jnp.int32)), cache

        return jax.jit(join, donate_argnums=(1, 2))

    def share(cache: Any, slot: Any, tokens: int) -> Any:
        return decoding.share_prefix(cache, PREFIX, slot[None], tokens)

    def segment(params: Any, cache: Any, slots: Any, tokens: Any, counts: Any) -> Any:
        key = jax.random.key(0)
        made, cache = whole.decode(params, cache, slots, tokens[slots], counts, key, SEGMENT)
        return tokens.at[slots].set(made[:, -1]), cache

    return Engine(
        params,
        joined(whole),
        joined(chunked),
        jax.jit(share, donate_argnums=0, static_argnums=2),
        jax.jit(segment, donate_argnums=(1, 3)),
        lambda: decoding.empty_cache(model, SLOTS + 1, LENGTH),
    )


def network(width: int, depth: int) -> dx.inference.Network:
    """The model by its sizes, in 32 bits."""
    shapes = jax.eval_shape(
        transformer(width, depth).init, jax.random.key(0), np.zeros((1, 2), int)
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    cache = 2.0 * depth * width * 4
    return dx.inference.network(float(size), cache, layers=depth, width=width, parameter_bytes=4.0)


def transformer(width: int, depth: int) -> dx.models.TransformerLM:
    """Heads of 32 numbers."""
    return dx.models.TransformerLM(
        VOCABULARY, length=LENGTH, width=width, depth=depth, heads=width // 32
    )


def serve(own: Engine, task: Task, way: Way, prompts: np.ndarray) -> int:
    """Serves all requests of a task; how many tokens came out."""
    cache, tokens = own.empty(), jnp.zeros(SLOTS + 1, jnp.int32)
    slots = np.arange(min(task.batch, SLOTS) if way.batching else 1, dtype=np.int32)
    known = int(task.shared * task.prompt) if way.prefix else 0

    def fill(cache: Any, tokens: Any, slot: int, prompt: np.ndarray) -> tuple[Any, Any]:
        room = 512 if way.chunked else max(32, 2 ** int(np.ceil(np.log2(len(prompt)))))
        padded = np.zeros(room, np.int32)
        padded[: len(prompt)] = prompt
        join = own.chunks if way.chunked else own.join
        at, length = np.int32(slot), np.int32(len(prompt))
        tokens, cache = join(own.params, cache, tokens, at, padded, length)
        return cache, tokens

    if known:
        cache, tokens = fill(cache, tokens, PREFIX, prompts[0, :known])
    waiting = collections.deque(range(task.batch))
    left = np.zeros(len(slots), np.int32)
    made = 0
    while waiting or left.any():
        for slot in np.flatnonzero(left == 0).tolist():
            if not waiting:
                break
            request = waiting.popleft()
            if known:
                cache = own.share(cache, np.int32(slot), known)
            else:
                cache = cache._replace(lengths=cache.lengths.at[slot].set(0))
            cache, tokens = fill(cache, tokens, slot, prompts[request, known:])
            left[slot] = task.answers[request] - 1
            made += int(task.answers[request])
        counts = np.minimum(left, SEGMENT)
        if counts.any():
            tokens, cache = own.decode(own.params, cache, slots, tokens, counts)
            left -= counts
    jax.block_until_ready((tokens, cache))
    return made


def random_task(generator: np.random.Generator) -> Task:
    """Batch 2^0..2^4, prompts of 48 to 448 tokens, answers of 8 to 90 on average."""
    batch = int(2 ** generator.integers(0, 5))
    output, variation = float(np.round(2 ** generator.uniform(3, 6.5))), float(generator.random())
    shape = 1.0 / max(variation, 1e-2) ** 2
    answers = np.clip(np.round(generator.gamma(shape, output / shape, batch)), 1, LONGEST)
    return Task(
        batch,
        int(generator.choice(PROMPTS)),
        output,
        float(generator.choice(SHARED)),
        variation,
        answers.astype(np.int32),
    )


def timed(own: Engine, task: Task, seed: int, repeats: int) -> np.ndarray:
    """`[repeats, ways]` CPU seconds; the ways take turns."""
    generator = np.random.default_rng(seed)
    prompts = generator.integers(0, VOCABULARY, (task.batch, task.prompt), np.int32)
    prompts[:, : int(task.shared * task.prompt)] = prompts[0, : int(task.shared * task.prompt)]
    found = np.zeros((repeats, len(WAYS)))
    for repeat in range(repeats):
        for column, way in enumerate(WAYS.values()):
            began = time.process_time()
            serve(own, task, way, prompts)
            found[repeat, column] = time.process_time() - began
    return found


class Timing(NamedTuple):
    """One task's measurement: the model's number, the task, and `[repeats, ways]` seconds, sorted."""

    model: int
    task: Task
    seconds: np.ndarray


def measured(tasks: int, repeats: int, seed: int) -> Iterator[list[Timing]]:
    """So many random tasks, dealt over the models: those of one model after those of another."""
    for number, (width, depth) in enumerate(SIZES):
        own, began = engine(width, depth), time.perf_counter()
        generator = np.random.default_rng([seed, number])
        drawn = [random_task(generator) for _ in range(tasks // len(SIZES))]
        # What is compiled in a first repeat makes it long, and the least is taken.
        found = [
            Timing(number, task, np.sort(timed(own, task, at, repeats), 0))
            for at, task in enumerate(drawn)
        ]
        print(f"{width} x {depth}: {time.perf_counter() - began:.0f} s", flush=True)
        yield found


def as_table(found: list[Timing]) -> selection.Measurements:
    """The least times, as a table that can be written."""
    count = len(found)
    models = jnp.array([one.model for one in found], jnp.int32)
    networks = [network(*SIZES[one.model]) for one in found]
    core = dx.inference.accelerator(
        *(jnp.full(count, value) for value in (75e9, 9e9, 16e9)), price=jnp.full(count, 0.05)
    )
    return selection.Measurements(
        selection.Tasks(
            models,
            jnp.zeros(count, jnp.int32),
            jax.tree.map(lambda *leaves: np.array(leaves, np.float32), *networks),
            core,
            selection.workload(*np.array([one.task[:5] for one in found], np.float32).T),
        ),
        selection.performance(np.array([one.seconds[0] for one in found], np.float32)),
        tuple(WAYS),
        tuple(f"{width} x {depth}" for width, depth in SIZES),
        ("one core",),
    )


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True)
    parser.add_argument("--tasks", type=int, default=168)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    found: list[Timing] = []
    for part in measured(settings.tasks, settings.repeats, settings.seed):
        found += part
        selection.write_measurements(settings.path, as_table(found))
    spread = np.stack([one.seconds[1] / one.seconds[0] for one in found])
    print(f"second least time over the least: median {np.median(spread):.3f}, ", end="")
    print(f"95 % {np.quantile(spread, 0.95):.3f}")
    best = selection.best_method(as_table(found).table)
    print("fastest:", dict(zip(WAYS, np.bincount(best, minlength=len(WAYS)).tolist(), strict=True)))


if __name__ == "__main__":
    if ONE_THREAD not in os.environ.get("XLA_FLAGS", ""):
        raise SystemExit(f'Set XLA_FLAGS="{ONE_THREAD}" first.')
    main()
