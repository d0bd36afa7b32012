"""PureJaxRL's PPO, seeds at once, as its repository has it."""

import pathlib
import sys
import time
import types
from typing import Any

import numpy as np

# Its wrappers import two libraries of environments that no task here comes from.
for name, parts in {
    "brax": (),
    "brax.envs": (),
    "brax.envs.wrappers": (),
    "brax.envs.wrappers.training": ("EpisodeWrapper", "AutoResetWrapper"),
    "navix": (),
}.items():
    module = types.ModuleType(name)
    for part in parts:
        setattr(module, part, object)
    sys.modules[name] = module
sys.modules["brax"].envs = sys.modules["brax.envs"]  # type: ignore[attr-defined]
sys.path.insert(0, str(pathlib.Path(sys.prefix) / "sources" / "purejaxrl" / "purejaxrl"))

import jax  # noqa: E402
import ppo  # noqa: E402

SETTINGS = {
    **{"GAMMA": 0.99, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.01, "VF_COEF": 0.5},
    **{"MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh", "ANNEAL_LR": True, "DEBUG": False},
}


def measure(task: str, seeds: int, total: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of an environment step, and each seed's mean return of every round.

    Args:
      task: gymnax's name of it.
      seeds: at once.
      total: environment steps of a seed.
      settings: of its configuration.
    """
    config = {**SETTINGS, **settings, "ENV_NAME": task, "TOTAL_TIMESTEPS": float(total)}
    train = jax.jit(jax.vmap(ppo.make_train(config)))
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        out = jax.block_until_ready(train(keys))
        times.append(time.perf_counter() - began)
    steps = settings["NUM_ENVS"] * settings["NUM_STEPS"]
    rounds = total // steps
    metrics = out["metrics"]
    ended = np.asarray(metrics["returned_episode"]).reshape(seeds, rounds, -1)
    gained = np.asarray(metrics["returned_episode_returns"]).reshape(seeds, rounds, -1)
    count = ended.sum(-1)
    returns = np.where(count > 0, (ended * gained).sum(-1) / np.maximum(count, 1), np.nan)
    return {
        "ms": 1e3 * min(times) / (seeds * rounds * steps),
        # JSON has no NaN: rounds without the end of an episode repeat the one before.
        "returns": _filled(returns).tolist(),
    }


def _filled(returns: np.ndarray) -> np.ndarray:
    for number in range(1, returns.shape[1]):
        missing = np.isnan(returns[:, number])
        returns[missing, number] = returns[missing, number - 1]
    return np.nan_to_num(returns)
