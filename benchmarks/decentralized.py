"""What a round of each method without a server costs beside a round of DFedAvg: one CNN, 8 clients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import dflax as dx
from benchmarks import limits, merging_limits, rounds
from benchmarks.measure import Row

CLIENTS, STEPS, BATCH, OWNED = 8, 5, 20, 60


def methods(loss: Any, mixer: dx.gossip.Mixer) -> dict[str, Callable[[], dx.Algorithm]]:
    """DFedAvg first, then the others by name; those with SAM take two gradients a local step.

    The limits are what the equations read and write, see `limits.py` and `merging_limits.py`: those of
    gossip learning are DFedAvg's local steps, and two models read and one written by every client.
    """
    descent, d = optax.sgd(0.05), dx.decentralized
    alone = functools.partial(dx.topology.uniform, self_weight=0.0)
    others = dx.gossip.mixer(dx.topology.ring(CLIENTS), weights=alone)
    return {
        "DFedAvg": lambda: d.dfedavg(loss, descent, mixer),
        "DFedADMM": lambda: d.dfedadmm(loss, descent, mixer),
        "DFedSAM": lambda: d.dfedsam(loss, descent, mixer),
        "DFedSAM-MGS, Q = 4": lambda: d.dfedsam(loss, descent, mixer, gossip_steps=4),
        "DFedADMM-SAM": lambda: d.dfedadmm_sam(loss, descent, mixer),
        "DSGT": lambda: d.dsgt(loss, 0.05, mixer),
        "DFedAvg, variance-corrected": lambda: d.dfedavg(
            loss, descent, dx.gossip.variance_corrected(others)
        ),
        "DisPFL": lambda: d.dispfl(loss, descent, mixer, rounds=1000),
        "gossip learning": lambda: d.gossip_learning(loss, descent, CLIENTS),
        "limit of DFedADMM": lambda: limits.dual(loss, descent, mixer),
        "limit of gossip learning": lambda: d.dfedavg(
            loss, descent, merging_limits.one_heard(CLIENTS)
        ),
    }


def rows(quick: bool, names: tuple[str, ...] = ()) -> list[Row]:
    """A row per method, all or those named, its peer a round of DFedAvg in the same run."""
    source, params, loss = rounds.noise(CLIENTS, OWNED, STEPS, BATCH)
    known = methods(loss, dx.gossip.ring(CLIENTS))
    taken = {name: known[name] for name in known if not names or name in ("DFedAvg", *names)}
    return rounds.beside_first(
        taken,
        lambda algorithm: algorithm.init(jax.random.key(0), params),
        source,
        2 if quick else 5,
        f"round, CNN, {CLIENTS} clients on a ring",
    )
