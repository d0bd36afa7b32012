"""What Fortytwo is made of, checked, and which rounds it takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dflax import validation
from dflax.inference.swarm.economics import CapabilityTest, RoundRewards, round_rewards
from dflax.inference.swarm.ledger import DualTrack, dual_track
from dflax.inference.swarm.nodes import Swarm
from dflax.inference.swarm.questions import Question
from dflax.inference.swarm.rules import Rule, by_majority, by_strength
from dflax.verified_inference.reputation import SequentialTest, never_removed

# Names of metrics that are the step's own.
OWN_METRICS = frozenset(
    {
        *("correct", "confidence", "single", "right", "tau", "iterations", "regularised"),
        *("audited", "present", "active", "slashed", "honest_reputation", "liar_reputation"),
        *("liar_share", "honest_balance", "liar_balance"),
    }
)


class Settings(NamedTuple):
    """The factory's arguments, checked."""

    swarm: Swarm
    pairs: int | None
    rule: Rule
    beside: dict[str, Rule]
    gamma: Any
    track: DualTrack
    audit: Any
    test: CapabilityTest | None
    hidden_test: SequentialTest
    pay: RoundRewards
    soft: bool
    distinct: bool


def settled(
    swarm: Any,
    pairs: Any,
    rule: Any,
    beside: Any,
    gamma: Any,
    track: Any,
    audit: Any,
    test: Any,
    hidden_test: Any,
    pay: Any,
    soft: Any,
    distinct: Any,
) -> Settings:
    """All arguments checked, and what is left out filled in."""
    validation.instance("swarm", swarm, Swarm, "For example latent_swarm().")
    if swarm.nodes < 3:
        raise ValueError(f"swarm must have at least 3 nodes to compare others, got {swarm.nodes}.")
    if pairs is not None:
        validation.integer("pairs", pairs, low=1)
    chosen = by_strength() if rule is None else rule
    validation.function("rule", chosen, "For example by_strength().", takes=1)
    others = {"majority": by_majority()} if beside is None else beside
    validation.instance("beside", others, Mapping, 'For example {"borda": by_win_rate()}.')
    for name, other in others.items():
        validation.text("beside", name)
        validation.function(f"beside[{name!r}]", other, "For example by_win_rate().", takes=1)
    taken = others.keys() & OWN_METRICS
    if taken:
        raise ValueError(f"beside must have names of its own, got {min(taken)!r}, a metric.")
    validation.real("gamma", gamma, low=0.0, scalar=True)
    validation.probability("audit", audit)
    for name, value, kind, make in (
        ("track", track, DualTrack, "dual_track()"),
        ("test", test, CapabilityTest, "capability_test()"),
        ("hidden_test", hidden_test, SequentialTest, "verified_inference.sequential_test()"),
        ("pay", pay, RoundRewards, "round_rewards()"),
    ):
        if value is not None:
            validation.instance(name, value, kind, f"Make it with {make}.")
    validation.flag("soft", soft)
    validation.flag("distinct", distinct)
    return Settings(
        *(swarm, pairs, chosen, dict(others), gamma),
        dual_track() if track is None else track,
        audit,
        test,
        never_removed() if hidden_test is None else hidden_test,
        round_rewards() if pay is None else pay,
        soft,
        distinct,
    )


def require_round(settings: Settings, round: Any) -> None:
    """Refuse what is no question to this swarm, or brings no calibration questions that are needed."""
    fix = "Take rounds from dflax.inference.Questions."
    validation.instance("round", round, Question, fix)
    nodes = settings.swarm.nodes
    if round.present.shape != (nodes,):
        raise ValueError(
            f"round must be of the swarm's {nodes} nodes, got one of {round.present.shape[0]}. Make "
            "the source with as many."
        )
    if settings.test is not None and round.exam is None:
        raise ValueError(
            "round must have calibration questions where test is given, got none. Make the source "
            "with Questions(exam=20)."
        )
