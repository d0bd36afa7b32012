"""What a round of each method with a server costs beside a round of FedAvg: one CNN, 5 of 20 clients."""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks.measure import Row

CLIENTS, COHORT, STEPS, BATCH, OWNED = 20, 5, 5, 20, 60


def methods(loss: Any) -> dict[str, Callable[[], dx.Algorithm]]:
    """FedAvg first, then the others by name; VR and SAM take two gradients a local step."""
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
    }


def rows(quick: bool, names: tuple[str, ...] = ()) -> list[Row]:
    """A row per method, all or those named, its peer a round of FedAvg in the same run."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(CLIENTS * OWNED, 28, 28, 1)).astype(np.float32)
    labels = generator.integers(0, 10, CLIENTS * OWNED)
    data = dx.data.Dataset(jnp.asarray(images), jnp.asarray(labels, jnp.int32), classes=10)
    source = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(CLIENTS * OWNED), CLIENTS)),
        local_steps=STEPS,
        batch_size=BATCH,
        participation=dx.participation.uniform(COHORT),
    )
    model = dx.models.CNN(classes=10)
    params = model.init(jax.random.key(0), data.example)["params"]
    known = methods(dx.losses.classification(model.apply))
    rounds = {
        name: _rounds(make(), params, source)
        for name, make in known.items()
        if name == "FedAvg" or not names or name in names
    }
    seconds: dict[str, list[float]] = {name: [] for name in rounds}
    # Taken in turns, so that whatever else slows the machine down slows them all.
    for repeat in range(4 if quick else 10):
        for name, once in rounds.items():
            began = time.perf_counter()
            jax.block_until_ready(once())
            if repeat:
                seconds[name].append(1e3 * (time.perf_counter() - began))
    least = {name: min(taken) for name, taken in seconds.items()}
    base = least.pop("FedAvg")
    return [
        Row(f"{name} round, CNN, 5 of 20 clients", ours, "FedAvg", base)
        for name, ours in least.items()
    ]


def _rounds(algorithm: dx.Algorithm, params: Any, source: dx.Federation) -> Callable[[], Any]:
    """One more round at every call, the state donated from call to call as in `dflax.run`."""
    key = jax.random.key(0)
    rollout = functools.partial(dx.rollout, algorithm, rounds=1)
    advance = jax.jit(rollout, donate_argnums=0)
    given = jax.tree.map(lambda x: jnp.zeros((CLIENTS, *x.shape), x.dtype), params)
    try:
        state = algorithm.init(key, params, given)
    except TypeError:  # the method starts from the model alone
        state = algorithm.init(key, params)
    state = jax.tree.map(jnp.copy, state)
    numbers = itertools.count()

    def once() -> Any:
        nonlocal state
        state, metrics = advance(state, source, key, start=jnp.int32(next(numbers)))
        return metrics

    return once
