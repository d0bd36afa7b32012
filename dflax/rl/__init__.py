"""Reinforcement learning as init/step: environments, advantages, objectives, agents as clients."""

from dflax.rl.advantages import Estimate, discounted_returns, gae, leave_one_out, standardised
from dflax.rl.distributions import Categorical, Distribution, Gaussian, Joint
from dflax.rl.environment import (
    Environment,
    Outcome,
    environment,
    from_gymnax,
    time_limit,
    two_stage,
)
from dflax.rl.learner import Agent, Learner, alone, federated, gossiping
from dflax.rl.minibatches import epochs_of
from dflax.rl.networks import ActorCritic, Tower, taking
from dflax.rl.post_decision.critics import (
    Critics,
    Estimated,
    Record,
    larger_part,
    noiseless,
    post_critic,
    state_critic,
)
from dflax.rl.post_decision.networks import (
    DecisionNetworks,
    decision_networks,
    separate_optimizers,
)
from dflax.rl.post_decision.pdppo import DecisionMemory, pdppo
from dflax.rl.ppo import Experience, Noted, Sample, ppo
from dflax.rl.problems.frozen_lake import Lake, Skater, frozen_lake, random_lake
from dflax.rl.problems.lot_sizing import (
    LotSizing,
    Plant,
    binomial_demand,
    lot_sizing,
    random_instance,
)
from dflax.rl.problems.perfect_information import Plan, perfect_information
from dflax.rl.rollout import Decided, Evaluated, Running, Steps, begin, evaluate, rollout
from dflax.rl.surrogate import Surrogate, clipped

__all__ = [
    "ActorCritic",
    "Agent",
    "Categorical",
    "Critics",
    "Decided",
    "DecisionMemory",
    "DecisionNetworks",
    "Distribution",
    "Environment",
    "Estimate",
    "Estimated",
    "Evaluated",
    "Experience",
    "Gaussian",
    "Joint",
    "Lake",
    "Learner",
    "LotSizing",
    "Noted",
    "Outcome",
    "Plan",
    "Plant",
    "Record",
    "Running",
    "Sample",
    "Skater",
    "Steps",
    "Surrogate",
    "Tower",
    "alone",
    "begin",
    "binomial_demand",
    "clipped",
    "decision_networks",
    "discounted_returns",
    "environment",
    "epochs_of",
    "evaluate",
    "federated",
    "from_gymnax",
    "frozen_lake",
    "gae",
    "gossiping",
    "larger_part",
    "leave_one_out",
    "lot_sizing",
    "noiseless",
    "pdppo",
    "perfect_information",
    "post_critic",
    "ppo",
    "random_instance",
    "random_lake",
    "rollout",
    "separate_optimizers",
    "standardised",
    "state_critic",
    "taking",
    "time_limit",
    "two_stage",
]


def __dir__() -> list[str]:
    return __all__
