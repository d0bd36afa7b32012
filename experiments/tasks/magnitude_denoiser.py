"""Trains the denoiser that dflax ships: `python -m experiments.tasks.magnitude_denoiser`."""

import argparse
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from dflax.imaging.denoiser import NETWORK, WEIGHTS, flattened, noise_removed, unflattened
from experiments.tasks.scenes import magnitudes

VOXELS = (13, 13, 17)
LEAST, MOST = 0.005, 0.2
KEPT_EVERY = 100


class Training(NamedTuple):
    """All that a training goes on from.

    Attributes:
      weights: of the network.
      optimizer: its state.
      step: how many were done.
    """

    weights: Any
    optimizer: Any
    step: Array


def error(
    weights: Any, key: Key[Array, ""], batch: int, voxels: tuple[int, int, int]
) -> Float[Array, ""]:
    """Mean squared error in units of the noise's variance, on fresh scenes.

    The solver hands over magnitudes |z| of noisy complex numbers, so the noise is circular and added
    before the magnitude is taken: of deviation sigma, uniform in [0.005, 0.2], in each of real and
    imaginary part.
    """
    drawn, levels, noises = jax.random.split(key, 3)
    clean = magnitudes(drawn, batch, voxels)
    sigma = jax.random.uniform(levels, (batch,), minval=LEAST, maxval=MOST)
    real, imaginary = jax.random.normal(noises, (2, *clean.shape)) * sigma[:, None, None, None]
    noisy = jnp.hypot(clean + real, imaginary)
    found = noise_removed(weights, noisy, sigma)
    return jnp.mean(jnp.mean(jnp.square(found - clean), (1, 2, 3)) / jnp.square(sigma))


def trainer(steps: int, batch: int, rate: float, voxels: tuple[int, int, int] = VOXELS) -> Any:
    """`(start, advance)`: a training of Adam whose rate falls as a cosine, and some of its steps."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def start(seed: int) -> Training:
        shape = jnp.zeros(voxels)
        weights = NETWORK.init(jax.random.key(seed), shape, jnp.float32(0.1))
        # The untrained network returns what it is given.
        last = weights["params"]["Dense_1"]
        weights["params"]["Dense_1"] = jax.tree.map(jnp.zeros_like, last)
        return Training(weights, optimizer.init(weights), jnp.int32(0))

    @jax.jit
    def advance(state: Training, key: Key[Array, ""]) -> tuple[Training, Array]:
        def one(state: Training, _: None) -> tuple[Training, Array]:
            now = jax.random.fold_in(key, state.step)
            loss, slope = jax.value_and_grad(error)(state.weights, now, batch, voxels)
            change, memory = optimizer.update(slope, state.optimizer)
            weights = optax.apply_updates(state.weights, change)
            return Training(weights, memory, state.step + 1), loss

        return jax.lax.scan(one, state, None, min(KEPT_EVERY, steps))

    return start, advance


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", default="results/magnitude_denoiser.npz", help="to go on from")
    parser.add_argument("--out", default=str(WEIGHTS), help="where the weights go")
    options = parser.parse_args()
    start, advance = trainer(options.steps, options.batch, options.rate)
    state, kept = start(options.seed), pathlib.Path(options.kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kept.exists():
        with np.load(kept, allow_pickle=False) as file:
            leaves = [jnp.asarray(file[f"{place}"]) for place in range(len(file.files))]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
        print(f"going on from step {int(state.step)}", flush=True)
    key = jax.random.fold_in(jax.random.key(options.seed), 1)
    while int(state.step) < options.steps:
        began = time.perf_counter()
        state, losses = advance(state, key)
        leaves = {str(place): np.asarray(leaf) for place, leaf in enumerate(jax.tree.leaves(state))}
        unfinished = kept.with_suffix(".tmp.npz")
        np.savez(unfinished, **leaves)
        unfinished.replace(kept)
        took = time.perf_counter() - began
        print(f"step {int(state.step)}: {float(losses.mean()):.5f}, {took:.1f} s", flush=True)
    np.savez_compressed(options.out, **flattened(state.weights))
    again = unflattened(np.load(options.out, allow_pickle=False))
    print("kept", sum(leaf.size for leaf in jax.tree.leaves(again)), "weights in", options.out)


if __name__ == "__main__":
    main()
