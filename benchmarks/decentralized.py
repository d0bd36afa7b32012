"""What a round of each method without a server costs beside a round of DFedAvg: one CNN, 8 clients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import rounds
from benchmarks.measure import Row

CLIENTS, STEPS, BATCH, OWNED = 8, 5, 20, 60


def methods(loss: Any, mixer: dx.gossip.Mixer) -> dict[str, dx.Algorithm]:
    """DFedAvg first, then the others by name; those with SAM take two gradients a local step."""
    descent, d = optax.sgd(0.05), dx.decentralized
    alone = functools.partial(dx.topology.uniform, self_weight=0.0)
    others = dx.gossip.mixer(dx.topology.ring(CLIENTS), weights=alone)
    return {
        "DFedAvg": d.dfedavg(loss, descent, mixer),
        "DFedADMM": d.dfedadmm(loss, descent, mixer),
        "DFedSAM": d.dfedsam(loss, descent, mixer),
        "DFedSAM-MGS, Q = 4": d.dfedsam(loss, descent, mixer, gossip_steps=4),
        "DFedADMM-SAM": d.dfedadmm_sam(loss, descent, mixer),
        "DSGT": d.dsgt(loss, 0.05, mixer),
        "DFedAvg, variance-corrected": d.dfedavg(
            loss, descent, dx.gossip.variance_corrected(others)
        ),
        "DisPFL": d.dispfl(loss, descent, mixer, rounds=1000),
    }


def rows(quick: bool) -> list[Row]:
    """A row per method, its peer a round of DFedAvg in the same run."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(CLIENTS * OWNED, 28, 28, 1)).astype(np.float32)
    labels = generator.integers(0, 10, CLIENTS * OWNED)
    data = dx.data.Dataset(jnp.asarray(images), jnp.asarray(labels, jnp.int32), classes=10)
    source = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(CLIENTS * OWNED), CLIENTS)),
        local_steps=STEPS,
        batch_size=BATCH,
    )
    model, key = dx.models.CNN(classes=10), jax.random.key(0)
    params = model.init(key, data.example)["params"]
    known = methods(dx.losses.classification(model.apply), dx.gossip.ring(CLIENTS))
    works = {
        name: rounds.one_by_one(algorithm, algorithm.init(key, params), source)
        for name, algorithm in known.items()
    }
    least = rounds.in_turns(works, 2 if quick else 5)
    base = least.pop("DFedAvg")
    return [
        Row(f"{name} round, CNN, {CLIENTS} clients on a ring", ours, "DFedAvg", base)
        for name, ours in least.items()
    ]
