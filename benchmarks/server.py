"""What a round of each method with a server costs beside a round of FedAvg: one CNN, 5 of 20 clients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import dflax as dx
from benchmarks import limits, rounds
from benchmarks.measure import Row

CLIENTS, COHORT, STEPS, BATCH, OWNED = 20, 5, 5, 20, 60


def methods(loss: Any) -> dict[str, Callable[[], dx.Algorithm]]:
    """FedAvg first, then the others by name; VR and SAM take two gradients a local step.

    Limits are what a method's equations read and write, see `limits.py`.
    """
    descent, n, s = optax.sgd(0.05), CLIENTS, dx.server
    return {
        "FedAvg": lambda: s.fedavg(loss, descent),
        "FedProx": lambda: s.fedprox(loss, descent),
        "SCAFFOLD": lambda: s.scaffold(loss, descent, n),
        "FedCM": lambda: s.fedcm(loss, descent),
        "SCAFFOLD-M": lambda: s.scaffold_m(loss, descent, n),
        "FedDyn": lambda: s.feddyn(loss, descent, n),
        "FedADMM": lambda: s.fedadmm(loss, descent, n),
        "FedSAM": lambda: s.fedsam(loss, descent),
        "MoFedSAM": lambda: s.mofedsam(loss, descent),
        "FedGamma": lambda: s.fedgamma(loss, descent, n),
        "FedSpeed": lambda: s.fedspeed(loss, descent, n),
        "FedSMOO": lambda: s.fedsmoo(loss, descent, n),
        "FedAvg-M-VR": lambda: s.fedavg_m_vr(loss, descent),
        "SCAFFOLD-M-VR": lambda: s.scaffold_m_vr(loss, descent, n),
        "FedAMD, p 0.5": lambda: s.fedamd(loss, descent, s.anchors.constant(0.5)),
        "FedPAGE": lambda: s.fedpage(loss, 0.05, 0.2),
        "FedAdam": lambda: s.fedadam(loss, descent, 0.01),
        "FedNova": lambda: s.fednova(loss, descent),
        "MimeLite": lambda: s.mimelite(loss, descent, s.fixed_momentum(0.9)),
        "BVR-L-SGD": lambda: s.bvr_l_sgd(loss, descent, 5),
        "limit of FedCM": lambda: limits.momentum(loss, descent),
        "limit of FedSMOO": lambda: limits.common_perturbation(loss, descent),
    }


def rows(quick: bool, names: tuple[str, ...] = ()) -> list[Row]:
    """A row per method, all or those named, its peer a round of FedAvg in the same run."""
    source, params, loss = rounds.noise(CLIENTS, OWNED, STEPS, BATCH, COHORT)
    known = methods(loss)
    taken = {name: known[name] for name in known if not names or name in ("FedAvg", *names)}
    return rounds.beside_first(
        taken,
        lambda algorithm: _start(algorithm, params),
        source,
        2 if quick else 6,
        f"round, CNN, {COHORT} of {CLIENTS} clients",
    )


def _start(algorithm: dx.Algorithm, params: Any) -> dx.FederatedState:
    key = jax.random.key(0)
    given = jax.tree.map(lambda x: jnp.zeros((CLIENTS, *x.shape), x.dtype), params)
    try:
        return algorithm.init(key, params, given)
    except TypeError:  # the method starts from the model alone
        return algorithm.init(key, params)
