"""Inference as init/step: serving simulators, selection, efficiency, swarms."""

# Swarms that rank each other's answers.
from dflax.inference.swarm.bradley_terry import (
    Strengths,
    bradley_terry,
    bradley_terry_likelihood,
)
from dflax.inference.swarm.economics import (
    CapabilityTest,
    RoundRewards,
    capability_test,
    entry_cost,
    pass_probability,
    round_rewards,
    rounds_to_reputation,
    sybil_profit,
)
from dflax.inference.swarm.fortytwo import SwarmNodes, fortytwo
from dflax.inference.swarm.ledger import DualTrack, SwarmLedger, dual_track
from dflax.inference.swarm.nodes import Swarm, classifier_swarm, latent_swarm
from dflax.inference.swarm.pairs import all_pairs, sampled_pairs, weighted_wins
from dflax.inference.swarm.questions import (
    Asked,
    LatentQuestion,
    Question,
    Questions,
    example_questions,
    latent_questions,
)
from dflax.inference.swarm.rules import (
    Ballot,
    Ranked,
    by_elo,
    by_majority,
    by_strength,
    by_win_rate,
    clustered,
)

_SWARM = [
    "Asked",
    "Ballot",
    "CapabilityTest",
    "DualTrack",
    "LatentQuestion",
    "Question",
    "Questions",
    "Ranked",
    "RoundRewards",
    "Strengths",
    "Swarm",
    "SwarmLedger",
    "SwarmNodes",
    "all_pairs",
    "bradley_terry",
    "bradley_terry_likelihood",
    "by_elo",
    "by_majority",
    "by_strength",
    "by_win_rate",
    "capability_test",
    "classifier_swarm",
    "clustered",
    "dual_track",
    "entry_cost",
    "example_questions",
    "fortytwo",
    "latent_questions",
    "latent_swarm",
    "pass_probability",
    "round_rewards",
    "rounds_to_reputation",
    "sampled_pairs",
    "sybil_profit",
    "weighted_wins",
]

__all__ = [*_SWARM]


def __dir__() -> list[str]:
    return sorted(__all__)
