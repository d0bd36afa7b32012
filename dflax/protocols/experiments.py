"""What a stranger may have run: registered algorithms on digits, with checked and bounded settings."""

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dflax import decentralized, evaluation, gossip, losses, models, server
from dflax.algorithm import Algorithm, rollout
from dflax.data import digits, dirichlet
from dflax.federation import Federation

CHUNK = 5
WITH, WITHOUT = "with a server", "without a server"


class CancelledError(Exception):
    """The experiment was called off."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an experiment, the same for every protocol; each bounded, none a path or code.

    Attributes:
      clients: in [2, 100].
      alpha: of the Dirichlet split of classes, in [0.01, 1000].
      local_steps: in [1, 50].
      batch_size: in [1, 256].
      rate: of the clients' SGD, in (0, 10].
    """

    clients: int = 10
    alpha: float = 0.5
    local_steps: int = 5
    batch_size: int = 20
    rate: float = 0.1


BOUNDS: dict[str, tuple[float, float]] = {
    "clients": (2, 100),
    "alpha": (0.01, 1000.0),
    "local_steps": (1, 50),
    "batch_size": (1, 256),
    "rate": (1e-6, 10.0),
    "rounds": (1, 500),
    "seed": (0, 2**31 - 1),
}
WHOLE = {"clients", "local_steps", "batch_size", "rounds", "seed"}


class Registered(NamedTuple):
    """An algorithm that may be run by its name.

    Attributes:
      description: in a sentence.
      family: "with a server" or "without a server".
      make: `(loss, settings) -> Algorithm`.
    """

    description: str
    family: str
    make: Callable[[Any, Settings], Algorithm]


REGISTERED: dict[str, Registered] = {
    "fedavg": Registered(
        "Federated averaging: clients take local steps, a server averages their models.",
        WITH,
        lambda loss, own: server.fedavg(loss, optax.sgd(own.rate)),
    ),
    "fedprox": Registered(
        "FedAvg whose clients are pulled towards the server's model.",
        WITH,
        lambda loss, own: server.fedprox(loss, optax.sgd(own.rate), pull=0.1),
    ),
    "scaffold": Registered(
        "Control variates take the clients' drift out of local steps.",
        WITH,
        lambda loss, own: server.scaffold(loss, optax.sgd(own.rate), own.clients),
    ),
    "dfedavg": Registered(
        "Clients on a ring take local steps and average with their neighbours.",
        WITHOUT,
        lambda loss, own: decentralized.dfedavg(
            loss, optax.sgd(own.rate), gossip.ring(own.clients)
        ),
    ),
}


def algorithms() -> dict[str, str]:
    """Names of all registered algorithms, and a sentence about each."""
    return {name: one.description for name, one in REGISTERED.items()}


def described(algorithm: str) -> dict[str, Any]:
    """An algorithm's description, its family, and the settings with their bounds.

    Raises:
      ValueError: no such algorithm.
    """
    one = registered(algorithm)
    defaults = dataclasses.asdict(Settings())
    return {
        "name": algorithm,
        "description": one.description,
        "family": one.family,
        "settings": {
            name: {"default": default, "least": BOUNDS[name][0], "most": BOUNDS[name][1]}
            for name, default in defaults.items()
        },
    }


def registered(algorithm: object) -> Registered:
    """The algorithm of that name.

    Raises:
      ValueError: no such algorithm.
    """
    if not isinstance(algorithm, str) or algorithm not in REGISTERED:
        raise ValueError(
            f"algorithm must be one of {sorted(REGISTERED)}, got {str(algorithm)[:40]!r}."
        )
    return REGISTERED[algorithm]


def checked(config: object) -> Settings:
    """The settings that a request asks for, checked.

    Args:
      config: a dictionary of some of the settings; None for the defaults.

    Raises:
      ValueError: no dictionary, unknown names, or a value of another type or out of bounds.
    """
    if config is None:
        return Settings()
    if not isinstance(config, dict):
        raise ValueError(f"config must be a dictionary of settings, got {type(config).__name__}.")
    known = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(str(name)[:40] for name in config if name not in known)
    if unknown:
        raise ValueError(f"config must have names among {sorted(known)}, got {unknown[:5]}.")
    return Settings(**{name: bounded(name, value) for name, value in config.items()})


def bounded(name: str, value: object) -> Any:
    """A number within its bounds.

    Raises:
      ValueError: another type, or out of bounds.
    """
    low, high = BOUNDS[name]
    whole = name in WHOLE
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if abs(value) <= 2.0**53 else math.inf
    if not low <= number <= high or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind} in [{low:g}, {high:g}], got {str(value)[:40]!r}.")
    return int(number) if whole else number


def run_experiment(
    algorithm: str,
    config: object = None,
    *,
    seed: int = 0,
    rounds: int = 20,
    progress: Callable[[int, int, float], None] | None = None,
    cancelled: threading.Event | None = None,
) -> dict[str, float]:
    """Runs a registered algorithm on scikit-learn's digits.

    Args:
      algorithm: a registered name.
      config: see `checked`.
      seed: of the split, the model and the draws, in [0, 2^31 - 1].
      rounds: in [1, 500].
      progress: `(rounds done, rounds, accuracy)`, after every chunk of rounds.
      cancelled: looked at between chunks.

    Returns:
      `accuracy` and `loss` on held-out digits, `rounds`, and `parameters` of the model.

    Raises:
      ValueError: naming the argument.
      CancelledError: it was called off.
    """
    one, own = registered(algorithm), checked(config)
    rounds, seed = bounded("rounds", rounds), bounded("seed", seed)
    split = digits(seed=seed)
    partition = dirichlet(split.train.labels, clients=own.clients, alpha=own.alpha, seed=seed)
    federation = Federation(
        split.train, partition, batch_size=own.batch_size, local_steps=own.local_steps
    )
    model = models.MLP(features=(64,), classes=10)
    key = jax.random.key(seed)
    params = model.init(jax.random.fold_in(key, 1), split.train.example)["params"]
    loss = losses.classification(model.apply)
    method = one.make(loss, own)
    on_test = evaluation.on(loss, split.test)
    if one.family == WITH:
        measure, prefix = jax.jit(evaluation.server_model(on_test)), ""
    else:
        measure, prefix = jax.jit(evaluation.mean_model(on_test)), "mean_model_"
    state = jax.jit(method.init)(key, params)
    chunk = jax.jit(
        lambda state, source, key, start: rollout(method, state, source, key, CHUNK, start)[0]
    )
    last = jax.jit(
        lambda state, source, key, start: rollout(
            method, state, source, key, rounds % CHUNK, start
        )[0]
    )
    done = 0
    while done < rounds:
        if cancelled is not None and cancelled.is_set():
            raise CancelledError(f"called off after {done} of {rounds} rounds")
        size = min(CHUNK, rounds - done)
        state = (chunk if size == CHUNK else last)(state, federation, key, done)
        done += size
        metrics = measure(state)
        found = {name: float(np.mean(metrics[prefix + name])) for name in ("accuracy", "loss")}
        if progress is not None:
            progress(done, rounds, found["accuracy"])
    size_of = sum(leaf.size for leaf in jax.tree.leaves(params))
    return found | {
        "rounds": float(rounds),
        "parameters": float(size_of),
    }
