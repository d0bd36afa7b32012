"""A small transformer that is served for real: its calls are timed, and a loop serves a trace."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import inference
from dflax.inference import decoding

# Processor seconds of this program: other programs on the machine disturb them less than the wall's.
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


class Sizes(NamedTuple):
    """Of the model and of its cache.

    Attributes:
      width: of the layers.
      depth: layers.
      length: tokens of its context and of a slot.
      slots: requests that decode at the same time.
      chunk: tokens of a prompt that are computed at a time.
    """

    width: int = 256
    depth: int = 2
    length: int = 512
    slots: int = 6
    chunk: int = 32


class Engine:
    """The model behind compiled calls. Contents do not change how long a call takes; weights are drawn.

    Attributes:
      sizes: of it.
      seconds: the clock.
    """

    def __init__(self, sizes: Sizes, clock: str = "cpu") -> None:
        self.sizes, self.seconds = sizes, CLOCKS[clock]
        model = dx.models.TransformerLM(
            256, length=sizes.length, width=sizes.width, depth=sizes.depth, heads=4
        )
        tokens = jnp.zeros((1, 2), jnp.int32)
        self._params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        self._model = decoding.compiled(decoding.decoder(model, chunk=sizes.chunk))
        self._cache = decoding.empty_cache(model, sizes.slots, sizes.length)
        self._key = jax.random.key(1)
        for batch in range(1, sizes.slots + 1):
            self.decode(np.full(batch, 8))
        self.prefill(8)

    def prefill(self, length: int, slot: int = 0) -> float:
        """Seconds of one prompt."""
        self._cache = decoding.release(self._cache, jnp.array([slot]))
        prompt = np.zeros((1, self.sizes.length), np.int32)
        began = self.seconds()
        logits, self._cache = self._model.prefill(
            self._params, self._cache, np.array([slot]), prompt, np.array([length])
        )
        jax.block_until_ready(logits)
        return self.seconds() - began

    def decode(self, contexts: np.ndarray, slots: np.ndarray | None = None) -> float:
        """Seconds of one iteration of a batch with these contexts, the newest token included."""
        batch = len(contexts)
        slots = np.arange(batch) if slots is None else slots
        seen = np.asarray(self._cache.lengths).copy()
        seen[slots] = contexts - 1
        self._cache = self._cache._replace(lengths=jnp.asarray(seen))
        ones = np.ones(batch, np.int32)
        began = self.seconds()
        tokens, self._cache = self._model.decode(
            self._params, self._cache, slots, ones, ones, self._key, 1
        )
        jax.block_until_ready(tokens)
        return self.seconds() - began


def points(sizes: Sizes, seed: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random prompts, and twice as many batches whose rows have different contexts."""
    draw = np.random.default_rng(seed)
    most = sizes.length - 64
    lengths = draw.integers(8, most, (count, 1))
    # Contexts of a batch share a mean, else that of large batches would hardly differ.
    batches = [
        np.clip(draw.integers(8, most) * draw.uniform(0.5, 1.5, size), 8, most).astype(int)
        for size in draw.integers(1, sizes.slots + 1, 2 * count)
    ]
    return list(lengths), batches


def timed(
    engine: Engine, prompts: list[np.ndarray], batches: list[np.ndarray], repeats: int, seed: int
) -> inference.Measured:
    """Medians of several timings, taken in random order so that slow moments meet all points.

    An iteration is timed behind another one of the same batch, as most are in a run.
    """
    tasks = [(engine.prefill, int(p[0])) for p in prompts] + [(engine.decode, b) for b in batches]
    found = np.zeros((repeats, len(tasks)))
    draw = np.random.default_rng(seed)
    for row in found:
        for number in draw.permutation(len(tasks)):
            call, what = tasks[number]
            if number >= len(prompts):
                call(what)
            row[number] = call(what)
    seconds = np.median(found, axis=0)
    lengths = np.array([p[0] for p in prompts], float)
    return inference.Measured(
        lengths,
        np.square(lengths),
        seconds[: len(prompts)],
        np.array([len(b) for b in batches], float),
        np.array([b.sum() for b in batches], float),
        seconds[len(prompts) :],
    )


def serve(engine: Engine, requests: inference.Requests) -> inference.Served:
    """Serves a trace for real: prompts one at a time before answers, first come, first served.

    Time passes while the model computes, by the engine's clock, and idle time until the next arrival is
    skipped.
    """
    count = len(requests.arrived)
    first, last = np.full(count, np.inf), np.full(count, np.inf)
    free, running = list(range(engine.sizes.slots)), dict[int, list[int]]()
    now, head = 0.0, 0
    while head < count or running:
        if not running:
            now = max(now, float(requests.arrived[head]))
        if head < count and free and requests.arrived[head] <= now:
            slot = free.pop()
            now += engine.prefill(int(requests.prompt[head]), slot)
            first[head] = now
            running[slot] = [head, 1]
            head += 1
        else:
            slots = np.array(sorted(running))
            held = [running[slot] for slot in slots]
            contexts = np.array([int(requests.prompt[row]) + made for row, made in held])
            now += engine.decode(contexts, slots)
            for row_and_made in held:
                row_and_made[1] += 1
        for slot, (row, made) in list(running.items()):
            if made == requests.output[row]:
                last[row] = now
                free.append(slot)
                del running[slot]
    return inference.Served(jnp.asarray(first), jnp.asarray(last))


def trace(sizes: Sizes, seed: int, count: int, load: float, costs: Any) -> inference.Requests:
    """Poisson arrivals at a share of what the costs allow, with log-normal lengths."""
    draw = np.random.default_rng(seed)
    prompt = np.clip(draw.lognormal(4.6, 0.7, count), 8, sizes.length - 160).astype(int)
    output = np.clip(draw.lognormal(3.2, 0.6, count), 1, 150).astype(int)
    batch, context = sizes.slots, float(np.mean(prompt) + np.mean(output) / 2)
    an_answer = float(costs.decode(batch, batch * context)) / batch * float(np.mean(output))
    a_prompt = float(np.mean(costs.prefill(prompt, np.square(prompt.astype(float)))))
    arrived = np.cumsum(draw.exponential((a_prompt + an_answer) / load, count))
    return inference.trace(arrived, prompt, output)
