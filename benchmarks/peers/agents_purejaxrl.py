"""PureJaxRL's PPO, seeds at once, as its repository has it."""

import pathlib
import sys
import types
from typing import Any

import numpy as np

from benchmarks.peers.timing import timed

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


def _one_after_another(scale: float) -> Any:
    """Orthogonal weights of all seeds, the same numbers, one after another.

    A batch of QR decompositions runs in XLA's threads on a CPU and waits there for others of these
    threads. Where there are two of them, two batches in one program wait for ever.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = np.float32) -> jax.Array:
        made = jax.nn.initializers.orthogonal(scale)
        return jax.custom_batching.sequential_vmap(lambda key: made(key, shape, dtype))(key)

    return init


ppo.orthogonal = _one_after_another

SETTINGS = {
    **{"GAMMA": 0.99, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.01, "VF_COEF": 0.5},
    **{"MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh", "ANNEAL_LR": True, "DEBUG": False},
}


def measure(task: str, seeds: int, total: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step, by the clock and of CPU, and each seed's mean return of every round.

    Args:
      task: gymnax's name of it.
      seeds: at once.
      total: environment steps of a seed.
      settings: of its configuration.
    """
    config = {**SETTINGS, **settings, "ENV_NAME": task, "TOTAL_TIMESTEPS": float(total)}
    train = jax.jit(jax.vmap(ppo.make_train(config)))
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    steps = settings["NUM_ENVS"] * settings["NUM_STEPS"]
    rounds = total // steps
    ms, cpu_ms, metrics = timed(lambda: train(keys)["metrics"], seeds * rounds * steps)
    ended = np.asarray(metrics["returned_episode"]).reshape(seeds, rounds, -1)
    gained = np.asarray(metrics["returned_episode_returns"]).reshape(seeds, rounds, -1)
    count = ended.sum(-1)
    returns = ((ended * gained).sum(-1) / np.maximum(count, 1)).astype(object)
    # JSON has no NaN: None stands for a round without the end of an episode.
    returns[count == 0] = None
    return {
        "ms": ms,
        "cpu_ms": cpu_ms,
        "returns": returns.tolist(),
    }
