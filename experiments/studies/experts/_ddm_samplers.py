"""Compiled samplers of the study of DDM, what they cost, and which experts they ask on the way."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import experts as ex
from dflax import generative as gen
from dflax.programs.arithmetic import operations
from experiments.tasks.generation import PATH, Routers, Trainer

BLOCK, STEPS = 16, 50


class Generators:
    """Compiled samplers of one task: an ensemble under each rule, and one model alone.

    Args:
      trainer: of the experts.
      routers: of the router.
      samples: of each.
    """

    def __init__(self, trainer: Trainer, routers: Routers, samples: int):
        self.trainer, self.routers, self.count = trainer, routers, samples

    @functools.partial(jax.jit, static_argnums=0)
    def alone(self, params: Any, key: jax.Array) -> jax.Array:
        """Samples of one model."""
        field = gen.field(self.trainer.model, params)
        return self.trainer.samples(field, self.count, STEPS, key)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def together(
        self, rule: str, params: Any, router: Any, key: jax.Array
    ) -> tuple[jax.Array, ex.ExpertLoad]:
        """Samples of the experts under a rule, and their load at each step, leaves `[steps, ...]`."""
        field, asked = self.field(rule, params, router), gen.field(self.routers.model, router)
        made, experts = rule_of(rule)[0], self.routers.model.outputs or 0
        noise_key, run_key = jax.random.split(key)
        start = self.trainer.noise(self.count, noise_key)

        def one(x: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ex.ExpertLoad]:
            number, times = row
            step_key = jax.random.fold_in(run_key, number)
            seen = gen.Noised(x, jnp.broadcast_to(times[0], x.shape[:1]))
            load = ex.expert_load(asked, made, experts, seen, step_key)
            return gen.sample(field, gen.euler(PATH), x, times, step_key), load

        grid = gen.grid(STEPS)
        pairs = jnp.stack([grid[:-1], grid[1:]], axis=1)
        return jax.lax.scan(one, start, (jnp.arange(STEPS), pairs))

    def field(self, rule: str, params: Any, router: Any) -> Any:
        """The ensemble's field under a rule."""
        made, block = rule_of(rule)
        asked = gen.field(self.routers.model, router)
        return ex.ensemble(self.trainer.model, params, asked, made, block=block)

    @functools.partial(jax.jit, static_argnums=0)
    def by_oracle(self, params: Any, labels: jax.Array, key: jax.Array) -> jax.Array:
        """Samples whose clusters are drawn beforehand, each by its own expert all the way."""
        field = ex.ensemble(self.trainer.model, params, None, ex.oracle(labels), block=BLOCK)
        return self.trainer.samples(field, self.count, STEPS, key)

    def flops(self, rule: str | None, params: Any, router: Any) -> float:
        """Operations of one evaluation for one sample; of one model for None."""
        seen = gen.Noised(
            jnp.zeros((self.count, *self.trainer.example.x.shape[1:])), jnp.ones(self.count)
        )
        key = jax.random.key(0)

        def evaluated(params: Any, router: Any) -> jax.Array:
            if rule is None:
                return gen.field(self.trainer.model, params)(seen, key)
            return self.field(rule, params, router)(seen, key)

        return operations(jax.make_jaxpr(evaluated)(params, router)) / self.count

    def costs(self, parts: dx.SideBySide, rules: tuple[str, ...]) -> dict[str, float]:
        """Operations of an evaluation for one sample: of the monolith, and by rule."""
        key = jax.random.key(0)
        params = jax.eval_shape(lambda: self.trainer.experts(parts, 0, key))
        router = jax.eval_shape(self.routers.model.init, key, self.routers.example)["params"]
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
        counted = {rule: self.flops(rule, params, router) for rule in rules}
        return {"monolith": self.flops(None, one, router)} | counted


def rule_of(name: str) -> tuple[ex.Rule, int | None]:
    """A rule by its name, and the block of its dispatch."""
    return {
        "full": (ex.full(), None),
        "top-1": (ex.top(1), BLOCK),
        "top-2": (ex.top(2), BLOCK),
        "nucleus 0.9": (ex.nucleus(0.9), None),
        "threshold 0.2": (ex.threshold(0.2), None),
        "sample": (ex.sampled(), BLOCK),
    }[name]


def on_the_way(load: ex.ExpertLoad, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What the experts' load comes to, at the first step, halfway and at the last one.

    Args:
      load: of each step, leaves `[steps, ...]`.
      labels: the clusters of the data.

    Returns:
      "entropy_..." of the router in nats; "busiest_..." the largest weight of an expert, mean over
      samples; "apart": half the sum of the differences between the experts' weights at the last step
      and the clusters' shares of the data, 0 where samples are spread as the data is.
    """
    share = np.asarray(load.share)
    masses = np.bincount(labels, minlength=share.shape[1]) / len(labels)
    found = {"apart": 0.5 * np.abs(share[-1] - masses).sum()}
    for name, place in (("first", 0), ("half", STEPS // 2), ("last", -1)):
        found[f"entropy_{name}"] = np.asarray(load.entropy)[place]
        found[f"busiest_{name}"] = share[place].max()
    return found


def spread_entropy(labels: np.ndarray) -> float:
    """The entropy of the clusters' sizes, in nats: that of the ideal router at t = 1."""
    masses = np.bincount(labels) / len(labels)
    return float(-(masses * np.log(masses)).sum())


def all_together(labels: np.ndarray) -> Any:
    """One client with all examples."""
    return dx.data.from_indices([np.arange(len(labels))])
