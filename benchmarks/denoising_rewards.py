"""Rounds of LOOP: what they cost beside sampling and as many gradients of a plain loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks.measure import Row, alternately
from dflax import generative as gen
from dflax import rl

KEY = jax.random.key(0)
PROMPTS, STEPS, SAMPLES, MINIBATCHES = 8, 10, 64, 4
MODEL = dx.models.TimeMLP(64, depth=2, classes=PROMPTS)
PATH = gen.discrete(np.linspace(1e-4, 0.1, 100))
SAMPLER = gen.ddim(PATH, gen.targets.noise, eta=1.0, least=0.02)
POLICY = rl.denoising_policy(MODEL, SAMPLER, gen.grid(STEPS), (2,))
OPTIMIZER = optax.adamw(1e-3)


def closeness(samples: jax.Array, prompts: jax.Array) -> jax.Array:
    """A cheap reward."""
    return -jnp.sum(samples**2, axis=1) + prompts


def on_the_host(samples: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    return -np.sum(samples**2, axis=1) + prompts


def rows(quick: bool) -> list[Row]:
    """64 samples of 10 steps and 4 minibatches; the peer samples and trains as much without rewards."""
    rounds = 10 if quick else 100
    example = gen.Noised(jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros(1, int))
    params = MODEL.init(KEY, example)["params"]
    works = [
        _rounds(closeness, params, rounds),
        _rounds(rl.black_box(on_the_host), params, rounds),
        _plain(params, rounds),
    ]
    ours, asked, plain = (took / rounds for took in alternately(*works, repeats=3))
    peer = "sampling, and as many gradients of the denoising loss"
    name = f"a round of LOOP: {SAMPLES} samples of {STEPS} steps, {MINIBATCHES} minibatches"
    return [
        Row(name, ours, peer=peer, peer_ms=plain),
        Row(f"{name}, rewards by the host", asked, peer="rewards in JAX", peer_ms=ours),
    ]


def _rounds(reward: Any, params: Any, rounds: int) -> Any:
    algorithm = rl.loop(
        POLICY, reward, OPTIMIZER, prompts=SAMPLES // 4, samples=4, steps_at_once=STEPS
    )
    state, source = algorithm.init(KEY, params, jnp.arange(PROMPTS)), dx.Population(1)

    def run(state: Any, source: Any) -> Any:
        return dx.rollout(algorithm, state, source, KEY, rounds)

    program = jax.jit(run).lower(state, source).compile()
    return lambda: program(state, source)


def _plain(params: Any, rounds: int) -> Any:
    """Samples, and gradients of as many noised examples, with nothing between."""
    loss = gen.denoising(MODEL, PATH, target=gen.targets.noise, conditional=True)
    size = SAMPLES * STEPS // MINIBATCHES
    prompts = jnp.arange(SAMPLES) % PROMPTS

    def one(carry: Any, number: jax.Array) -> Any:
        params, memory = carry
        key = jax.random.fold_in(KEY, number)
        start = jax.random.normal(key, (SAMPLES, 2))
        field = gen.field(MODEL, params)
        x = gen.sample(field, SAMPLER, start, gen.grid(STEPS), key, prompts)
        batch = dx.data.Batch(jnp.tile(x, (size // SAMPLES + 1, 1))[:size], jnp.arange(size) % 8)

        def minibatch(carry: Any, own: jax.Array) -> Any:
            params, memory = carry
            gradient = jax.grad(lambda p: loss(p, batch, own)[0])(params)
            changes, memory = OPTIMIZER.update(gradient, memory, params)
            return (optax.apply_updates(params, changes), memory), None

        return jax.lax.scan(minibatch, (params, memory), jax.random.split(key, MINIBATCHES))

    @jax.jit
    def run(params: Any) -> Any:
        return jax.lax.scan(one, (params, OPTIMIZER.init(params)), jnp.arange(rounds))[0]

    program = run.lower(params).compile()
    return lambda: program(params)
