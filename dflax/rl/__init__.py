"""Reinforcement learning as init/step: environments, advantages, objectives, agents as clients."""

from dflax.rl import flow, goals
from dflax.rl.advantages import Estimate, discounted_returns, gae, leave_one_out, standardised
from dflax.rl.denoising import (
    DenoisingPolicy,
    baselines,
    black_box,
    ddpo,
    denoising_policy,
    fine_tuning,
    loop,
    reinforce,
    rloo,
)
from dflax.rl.distributions import Categorical, Distribution, Gaussian, Joint
from dflax.rl.environment import (
    Environment,
    Outcome,
    environment,
    from_gymnax,
    time_limit,
    two_stage,
)
from dflax.rl.experience import Experience, Reference, Sample, Sizes, on_policy
from dflax.rl.learner import Agent, Learner, alone, federated, gossiping
from dflax.rl.minibatches import epochs_of
from dflax.rl.networks import ActorCritic, Tower, taking
from dflax.rl.ppo import Noted, ppo
from dflax.rl.rollout import Evaluated, Running, Steps, begin, evaluate, rollout
from dflax.rl.surrogate import Surrogate, clipped

__all__ = [
    "ActorCritic",
    "Agent",
    "Categorical",
    "DenoisingPolicy",
    "Distribution",
    "Environment",
    "Estimate",
    "Evaluated",
    "Experience",
    "Gaussian",
    "Joint",
    "Learner",
    "Noted",
    "Outcome",
    "Reference",
    "Running",
    "Sample",
    "Sizes",
    "Steps",
    "Surrogate",
    "Tower",
    "alone",
    "baselines",
    "begin",
    "black_box",
    "clipped",
    "ddpo",
    "denoising_policy",
    "discounted_returns",
    "environment",
    "epochs_of",
    "evaluate",
    "federated",
    "fine_tuning",
    "flow",
    "from_gymnax",
    "gae",
    "goals",
    "gossiping",
    "leave_one_out",
    "loop",
    "on_policy",
    "ppo",
    "reinforce",
    "rloo",
    "rollout",
    "standardised",
    "taking",
    "time_limit",
    "two_stage",
]


def __dir__() -> list[str]:
    return __all__
