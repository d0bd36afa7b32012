"""Iterations of PnP-ADMM beside the matrix products in them, in one run."""

import math
from typing import Any

import jax
import jax.numpy as jnp

import dflax as dx
from benchmarks.measure import Row, alternately
from dflax import imaging

PENALTY, STRENGTH = 50.0, 1e-2


def rows(quick: bool) -> list[Row]:
    """The study's system with 20 scenes; the paper's with one."""
    small = imaging.crossed_diagonals((13, 13, 17), transmitters=6, receivers=7, frequencies=8)
    found = iterations(small, 20, "2,873 voxels, 336 measurements, 20 scenes", quick)
    if not quick:
        found += iterations(
            imaging.crossed_diagonals(), 1, "30,625 voxels, 3,120 measurements, a scene", quick
        )
    return found


def iterations(geometry: imaging.Geometry, scenes: int, size: str, quick: bool) -> list[Row]:
    """An iteration with the l1 prior and with the denoiser, beside its products and its network."""
    operator = imaging.dense(geometry)
    key = jax.random.key(0)
    y = jax.random.normal(key, (scenes, *operator.measured)).astype(jnp.complex64)
    source = dx.Population(scenes)
    round = source.draw(key, jnp.int32(0))
    M, N = math.prod(operator.measured), math.prod(operator.voxels)
    matrix = operator.arrays.reshape(M, N)
    found = []
    for name, prior in (("l1", imaging.sparse()), ("the U-Net", imaging.learned())):
        algorithm = imaging.pnp_admm(
            operator, prior, penalty=PENALTY, strength=STRENGTH, tolerance=0.0
        )
        state = algorithm.init(key, y, 1.0)
        step = jax.jit(algorithm.step)
        x = state.clients.x.reshape(scenes, N)
        noisy, level = jnp.abs(state.clients.x), jnp.full(scenes, 0.1)

        @jax.jit
        def products(matrix: Any, vectors: Any, x: Any, y: Any) -> Any:
            turned = jnp.stack([y, y]).reshape(2 * scenes, M) @ vectors
            return x @ matrix.T, y @ matrix, turned, turned[:scenes] @ vectors.T

        @jax.jit
        def network(weights: Any, noisy: Any, level: Any) -> Any:
            return imaging.noise_removed(weights, noisy, level)

        def all_products(
            state: Any = state,
            x: Any = x,
            noisy: Any = noisy,
            level: Any = level,
            prior: Any = prior,
        ) -> Any:
            both = products(matrix, state.server.basis.vectors, x, y.reshape(scenes, M))
            return (both, network(prior.weights, noisy, level)) if prior.weights else both

        ours, least = alternately(
            lambda step=step, state=state: step(state, round),
            all_products,
            repeats=5 if quick else 20,
        )
        peer = "its products with A and U" + (" and the network" if prior.weights else "")
        found.append(Row(f"an iteration of PnP-ADMM with {name}: {size}", ours, peer, least))
    return found
