"""Sixteen rates of the small logistic task: one sweep against sixteen runs, compiling included."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import logistic
from benchmarks.measure import Row


def rows(quick: bool) -> list[Row]:
    """The sweep beside one run after another; the compilation cache is off for both."""
    inputs, labels = logistic.examples()
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels), classes=logistic.CLASSES)
    federation = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(logistic.EXAMPLES), logistic.CLIENTS)),
        local_steps=logistic.STEPS,
        batch_size=logistic.BATCH,
        participation=dx.participation.uniform(logistic.COHORT),
    )
    loss = dx.losses.classification(logistic.logits)
    key, own_key = jax.random.key(0), jax.random.fold_in(jax.random.key(0), 0)
    rates = np.geomspace(0.01, 1.0, 4 if quick else 16)
    rounds = 100 if quick else 500

    def fedavg(rate: jax.Array | float) -> dx.Algorithm:
        return dx.server.fedavg(loss, optax.sgd(rate))

    began = time.perf_counter()
    dx.sweep(
        fedavg,
        lambda algorithm, key: algorithm.init(key, logistic.start()),
        federation,
        grid={"rate": rates.tolist()},
        key=key,
        rounds=rounds,
    )
    swept = time.perf_counter() - began
    began = time.perf_counter()
    for rate in rates:
        algorithm = fedavg(float(rate))
        state = algorithm.init(own_key, logistic.start())
        dx.run(algorithm, state, federation, rounds=rounds, key=own_key)
    single = time.perf_counter() - began
    name = f"sweep of {len(rates)} rates, {rounds} logistic rounds"
    return [Row(name, 1e3 * swept, "one run after another", 1e3 * single)]
