"""The interpolated ratio of PolicyFlow beside the exact one, as training goes on."""

from typing import Any

import jax
import numpy as np

from dflax import rl
from dflax.rl import flow
from experiments.tasks import goal_policies
from experiments.tasks.goal_policies import Method, Sizes


def errors(
    method: Method,
    policy: flow.FlowPolicy,
    env: rl.Environment,
    stages: tuple[int, ...],
    keys: list[Any],
    sizes: Sizes,
) -> dict[str, np.ndarray]:
    """What `flow.interpolation_error` tells of an agent for each key, `[stages, keys]` each.

    Args:
      method: by which the agents learn.
      policy: its flow policy.
      env: where.
      stages: rounds learned before, rising; the ratio is of the round after.
      keys: of the agents.
      sizes: of a round.
    """

    def learned(key: Any, carry: Any, number: Any) -> Any:
        params, memory, _ = method.learner.learn(jax.random.fold_in(key, number), *carry)
        return params, memory

    @jax.jit
    def until(key: Any, carry: Any, begin: Any, end: Any) -> Any:
        return jax.lax.fori_loop(begin, end, lambda n, c: learned(key, c, n), carry)

    @jax.jit
    def compared(old: Any, new: Any, key: Any) -> Any:
        held_key, time_key = jax.random.split(key)
        sample = goal_policies.held_out(policy, env, old, held_key, sizes)
        return flow.interpolation_error(
            policy, new, old, sample, time_key, flow_steps=sizes.flow_steps
        )

    @jax.jit
    def started(key: Any) -> Any:
        params = method.start(key)
        return params, method.learner.init(key, params, env.task)

    def of(key: Any) -> list[Any]:
        carry, done, found = started(key), 0, []
        for rounds in stages:
            carry = until(key, carry, done, rounds)
            after = until(key, carry, rounds, rounds + 1)
            found.append(compared(carry[0], after[0], jax.random.fold_in(key, 10_000 + rounds)))
            carry, done = after, rounds + 1
        return found

    measured = [of(key) for key in keys]
    return {
        name: np.asarray([[getattr(error, name) for error in own] for own in measured]).T
        for name in measured[0][0]._fields
    }
