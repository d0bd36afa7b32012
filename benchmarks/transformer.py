"""A small transformer: 16 of 64 clients, 4 local steps of 16 sequences of 32 tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import peers, rounds
from benchmarks.measure import Row
from benchmarks.products import alone

CLIENTS, COHORT, STEPS, BATCH, OWNED = 64, 16, 4, 16, 64
SHAPE: dict[str, Any] = {"vocabulary": 256, "width": 64, "depth": 2, "heads": 4, "classes": 10}
LENGTH = 32
RATE = 0.05


def rows(quick: bool) -> list[Row]:
    """Our round beside a plain PyTorch loop with the same blocks."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, SHAPE["vocabulary"], (CLIENTS * OWNED, LENGTH))
    labels = tokens[:, 0] % SHAPE["classes"]
    data = dx.data.Dataset(
        jnp.asarray(tokens, jnp.int32), jnp.asarray(labels, jnp.int32), classes=SHAPE["classes"]
    )
    federation = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(len(labels)), CLIENTS)),
        local_steps=STEPS,
        batch_size=BATCH,
        participation=dx.participation.uniform(COHORT),
    )
    model = dx.models.TransformerClassifier(**SHAPE)
    loss = dx.losses.classification(model.apply)
    algorithm = dx.server.fedavg(loss, optax.sgd(RATE))
    params = model.init(jax.random.key(0), data.example)["params"]
    own = [
        rounds.row(
            f"transformer round, {COHORT} of {CLIENTS} clients, 2 blocks of width 64",
            algorithm,
            params,
            federation,
            rounds=1 if quick else 3,
            repeats=3 if quick else 9,
            devices=devices,
        )
        for devices in rounds.meshes()
    ]

    def gradient(params: Any, batch: dx.data.Batch) -> Any:
        return jax.grad(loss, has_aux=True)(params, batch, jax.random.key(0))[0]

    batch = dx.data.Batch(data.inputs[:BATCH], data.labels[:BATCH])
    return rounds.beside_each(
        own,
        alone(gradient, params, batch, times=COHORT * STEPS),
        peers.run(
            "torch",
            "transformer_torch",
            **SHAPE,
            length=LENGTH,
            cohort=COHORT,
            steps=STEPS,
            batch=BATCH,
            rate=RATE,
            rounds=1 if quick else 3,
        ),
    )
