"""A long run of agents in parts, that goes on where it was killed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import rl
from experiments.tasks.lots import curves, curves_in_parts


def learn(key, params, memory):
    moved = params + jax.random.normal(key, params.shape) + memory
    return moved, memory + 1.0, {"norm": jnp.linalg.norm(moved)}


LEARNER = rl.Learner(lambda key, params, task: jnp.float32(0.0), learn)
RUN = {"seeds": 2, "rounds": 6, "seed": 3}


def start(key):
    return jax.random.normal(key, (3,))


def test_parts_are_the_whole_also_of_a_run_that_was_killed():
    kept = {}

    def stage(name, compute):
        if name not in kept:
            if len(kept) == 2:
                raise KeyboardInterrupt
            kept[name] = jax.tree.map(np.asarray, compute())
        return kept[name]

    with pytest.raises(KeyboardInterrupt):
        curves_in_parts(LEARNER, start, **RUN, part=2, stage=stage, name="agents")
    assert list(kept) == ["agents, windows 0 to 2", "agents, windows 2 to 4"]
    kept.pop("agents, windows 2 to 4")
    found = curves_in_parts(
        LEARNER,
        start,
        **RUN,
        part=2,
        stage=lambda name, compute: kept[name] if name in kept else compute(),
        name="agents",
    )
    np.testing.assert_allclose(found["norm"], curves(LEARNER, start, **RUN)["norm"], rtol=1e-6)
    assert found["norm"].shape == (6, 2)
