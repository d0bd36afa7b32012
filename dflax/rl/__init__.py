"""Reinforcement learning as init/step: environments, advantages, objectives, agents as clients."""

from dflax.replay import (
    Ring,
    drawn,
    in_order,
    pushed,
    ring,
)
from dflax.rl import (
    flow,
    goals,
)
from dflax.rl.advantages import (
    Estimate,
    discounted_returns,
    gae,
    leave_one_out,
    standardised,
)
from dflax.rl.airllm.airllm import (
    airllm,
)
from dflax.rl.airllm.decoders import (
    RankDecoder,
    ddim_times,
    diffusion_decoder,
    identity_decoder,
    linear_decoder,
    reward_weights,
)
from dflax.rl.airllm.episodes import (
    tuned_models,
)
from dflax.rl.airllm.link import (
    RadioLink,
    capacity,
    radio_link,
    transmitted,
)
from dflax.rl.airllm.networks import (
    CoarsePolicy,
    RankDenoiser,
)
from dflax.rl.airllm.ranks import (
    decode_ranks,
    encode_ranks,
)
from dflax.rl.airllm.rules import (
    fixed_ranks,
    important_ranks,
    largest_uniform,
    random_ranks,
    uniform_ranks,
)
from dflax.rl.airllm.task import (
    AdapterTask,
    adapter_tuning,
    separable,
    token_statistics,
)
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
from dflax.rl.distributions import (
    Categorical,
    Distribution,
    Gaussian,
    Joint,
)
from dflax.rl.environment import (
    Environment,
    Outcome,
    environment,
    time_limit,
    two_stage,
)
from dflax.rl.experience import (
    Experience,
    Reference,
    Sample,
    Sizes,
    on_policy,
)
from dflax.rl.learner import (
    Agent,
    Learner,
    alone,
    federated,
    gossiping,
)
from dflax.rl.libraries import (
    from_brax,
    from_gymnax,
)
from dflax.rl.minibatches import (
    epochs_of,
)
from dflax.rl.networks import (
    ActorCritic,
    Tower,
    taking,
)
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
from dflax.rl.post_decision.pdppo import (
    DecisionMemory,
    pdppo,
)
from dflax.rl.ppo import (
    Noted,
    ppo,
)
from dflax.rl.problems.frozen_lake import (
    Lake,
    Skater,
    frozen_lake,
    random_lake,
)
from dflax.rl.problems.lot_sizing import (
    LotSizing,
    Plant,
    binomial_demand,
    lot_sizing,
    random_instance,
)
from dflax.rl.problems.perfect_information import (
    Plan,
    perfect_information,
)
from dflax.rl.rollout import (
    Decided,
    Evaluated,
    Running,
    Steps,
    begin,
    evaluate,
    rollout,
)
from dflax.rl.surrogate import (
    Surrogate,
    clipped,
)

__all__ = [
    "ActorCritic",
    "AdapterTask",
    "Agent",
    "Categorical",
    "CoarsePolicy",
    "Critics",
    "Decided",
    "DecisionMemory",
    "DecisionNetworks",
    "DenoisingPolicy",
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
    "RadioLink",
    "RankDecoder",
    "RankDenoiser",
    "Record",
    "Reference",
    "Ring",
    "Running",
    "Sample",
    "Sizes",
    "Skater",
    "Steps",
    "Surrogate",
    "Tower",
    "adapter_tuning",
    "airllm",
    "alone",
    "baselines",
    "begin",
    "binomial_demand",
    "black_box",
    "capacity",
    "clipped",
    "ddim_times",
    "ddpo",
    "decision_networks",
    "decode_ranks",
    "denoising_policy",
    "diffusion_decoder",
    "discounted_returns",
    "drawn",
    "encode_ranks",
    "environment",
    "epochs_of",
    "evaluate",
    "federated",
    "fine_tuning",
    "fixed_ranks",
    "flow",
    "from_brax",
    "from_gymnax",
    "frozen_lake",
    "gae",
    "goals",
    "gossiping",
    "identity_decoder",
    "important_ranks",
    "in_order",
    "larger_part",
    "largest_uniform",
    "leave_one_out",
    "linear_decoder",
    "loop",
    "lot_sizing",
    "noiseless",
    "on_policy",
    "pdppo",
    "perfect_information",
    "post_critic",
    "ppo",
    "pushed",
    "radio_link",
    "random_instance",
    "random_lake",
    "random_ranks",
    "reinforce",
    "reward_weights",
    "ring",
    "rloo",
    "rollout",
    "separable",
    "separate_optimizers",
    "standardised",
    "state_critic",
    "taking",
    "time_limit",
    "token_statistics",
    "transmitted",
    "tuned_models",
    "two_stage",
    "uniform_ranks",
]


def __dir__() -> list[str]:
    return __all__
