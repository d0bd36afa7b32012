"""Reinforcement learning as init/step: environments, advantages, objectives, agents as clients."""

from dflax.rl.advantages import Estimate, discounted_returns, gae, leave_one_out, standardised
from dflax.rl.airllm.airllm import airllm
from dflax.rl.airllm.decoders import (
    RankDecoder,
    ddim_times,
    diffusion_decoder,
    identity_decoder,
    linear_decoder,
    reward_weights,
)
from dflax.rl.airllm.episodes import tuned_models
from dflax.rl.airllm.link import RadioLink, capacity, radio_link, transmitted
from dflax.rl.airllm.networks import CoarsePolicy, RankDenoiser
from dflax.rl.airllm.ranks import decode_ranks, encode_ranks
from dflax.rl.airllm.rules import (
    fixed_ranks,
    important_ranks,
    largest_uniform,
    random_ranks,
    uniform_ranks,
)
from dflax.rl.airllm.task import AdapterTask, adapter_tuning, separable, token_statistics
from dflax.rl.distributions import Categorical, Distribution, Gaussian, Joint
from dflax.rl.replay import Ring, drawn, pushed, ring
from dflax.rl.surrogate import Surrogate, clipped

__all__ = [
    "AdapterTask",
    "Categorical",
    "CoarsePolicy",
    "Distribution",
    "Estimate",
    "Gaussian",
    "Joint",
    "RadioLink",
    "RankDecoder",
    "RankDenoiser",
    "Ring",
    "Surrogate",
    "adapter_tuning",
    "airllm",
    "capacity",
    "clipped",
    "ddim_times",
    "decode_ranks",
    "diffusion_decoder",
    "discounted_returns",
    "drawn",
    "encode_ranks",
    "fixed_ranks",
    "gae",
    "identity_decoder",
    "important_ranks",
    "largest_uniform",
    "leave_one_out",
    "linear_decoder",
    "pushed",
    "radio_link",
    "random_ranks",
    "reward_weights",
    "ring",
    "separable",
    "standardised",
    "token_statistics",
    "transmitted",
    "tuned_models",
    "uniform_ranks",
]


def __dir__() -> list[str]:
    return __all__
