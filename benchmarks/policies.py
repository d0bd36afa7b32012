"""Rounds of PolicyFlow, FPO and DPPO beside those of PPO on MultiGoal, taking turns in one run."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.measure import Row, alternately
from dflax import rl
from experiments.tasks import goal_policies
from experiments.tasks.goal_policies import Method, Sizes

HORIZON = 20


def rows(quick: bool) -> list[Row]:
    """Updates of one agent's 5,120 steps, and whole rounds of a rollout and an update."""
    env = rl.time_limit(rl.goals.multi_goal(), HORIZON)
    sizes = Sizes()
    methods = {
        "PPO": goal_policies.gaussian(env, 2, 2, sizes),
        "PolicyFlow": goal_policies.policyflow(env, 2, 2, sizes, 0.02),
        "FPO, 8 pairs a sample": goal_policies.fpo(env, 2, 2, sizes),
        "DPPO, 5 steps a sample": goal_policies.dppo(env, 2, 2, sizes),
    }
    works = [work for method in methods.values() for work in _works(method, env.task)]
    took = alternately(*works, repeats=3 if quick else 30)
    whole, acting = took[::2], took[1::2]
    updates = [a - b for a, b in zip(whole, acting, strict=True)]
    size = f"of {sizes.environments} x {sizes.steps} steps"
    return [
        Row(f"{name}: {what} {size}", found[place], "our PPO", found[0])
        for what, found in (("update", updates), ("round", whole))
        for place, name in enumerate(methods)
        if place
    ]


def _works(method: Method, task: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A round, and what of it the environments' next states need: the rollout."""
    key = jax.random.key(0)
    params = method.start(key)
    given = (key, params, method.learner.init(key, params, task))

    def acting(*given: Any) -> Any:
        return method.learner.learn(*given)[1].running

    learn, act = (jax.jit(work).lower(*given).compile() for work in (method.learner.learn, acting))
    return lambda: learn(*given), lambda: act(*given)
