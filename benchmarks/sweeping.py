"""Sixteen rates of the small logistic task: one sweep against sixteen runs, compiling included."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import rounds
from benchmarks.logistic import logits
from benchmarks.measure import Row
from benchmarks.tasks import LOGISTIC


def rows(quick: bool) -> list[Row]:
    """The sweep beside one run after another; the compilation cache is off for both."""
    federation = rounds.federation(LOGISTIC)
    params = jax.tree.map(jnp.asarray, LOGISTIC.layers())
    loss = dx.losses.classification(logits)
    key, own_key = jax.random.key(0), jax.random.fold_in(jax.random.key(0), 0)
    rates = np.geomspace(0.01, 1.0, 4 if quick else 16)
    length = 100 if quick else 500

    def fedavg(rate: jax.Array | float) -> dx.Algorithm:
        return dx.server.fedavg(loss, optax.sgd(rate))

    began = time.perf_counter()
    dx.sweep(
        fedavg,
        lambda algorithm, key: algorithm.init(key, params),
        federation,
        grid={"rate": rates.tolist()},
        key=key,
        rounds=length,
    )
    swept = time.perf_counter() - began
    began = time.perf_counter()
    for rate in rates:
        algorithm = fedavg(float(rate))
        state = algorithm.init(own_key, params)
        dx.run(algorithm, state, federation, rounds=length, key=own_key)
    single = time.perf_counter() - began
    name = f"sweep of {len(rates)} rates, {length} logistic rounds"
    return [Row(name, 1e3 * swept, "one run after another", 1e3 * single)]
