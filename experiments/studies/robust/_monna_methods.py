"""What MoNNA's study compares: momentum on neighbour rules, self-centred clipping, LEARN."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import dflax as dx
from dflax import aggregation, gossip, recipes
from experiments.tasks import robust_peers
from experiments.tasks.robust_peers import FAULTY, HONEST

Rules = dict[str, tuple[gossip.NeighbourRule | None, tuple[float, ...]]]


def rules(faulty: int = FAULTY) -> Rules:
    """By name: the rule that declares so many faulty peers, None for the mean, and values of beta."""
    return {
        "mean": (None, (0.9,)),
        "NNA": (gossip.nna(faulty), (0.99, 0.9, 0.0)),
        "CWTM": (gossip.aggregating(aggregation.trimmed_mean(faulty)), (0.9, 0.0)),
        "GM": (gossip.aggregating(aggregation.geometric_median()), (0.9,)),
    }


def mixer(rule: gossip.NeighbourRule | None, faulty: int, honest: int = HONEST) -> gossip.Mixer:
    """Of as many messages that arrive as there are honest peers: f hostile ones among them."""
    heard = robust_peers.heard(faulty, honest)
    if rule is None:
        return gossip.mixer(heard)
    liars = robust_peers.hostile(faulty, honest)
    return gossip.by_rule(heard, rule, watched=liars or None)


def momentum(
    one: gossip.Mixer, rate: Callable[[Any], Any] = robust_peers.rate
) -> Callable[..., dx.Algorithm]:
    """Momentum on a mixer, beta being the lane's value."""

    def method(loss: Any, beta: Any, channel: Any) -> dx.Algorithm:
        return recipes.monna(loss, rate, one, beta, robust_peers.DECAY, channel=channel)

    return method


def clipping(faulty: int) -> Callable[..., dx.Algorithm]:
    """Self-centred clipping in three passes at beta 0.9, the radius being the lane's value."""

    def method(loss: Any, radius: Any, channel: Any) -> dx.Algorithm:
        one = mixer(gossip.self_centred_clipping(radius, 3), faulty)
        return momentum(one)(loss, 0.9, channel)

    return method


def learning(faulty: int, declared: int | None = None) -> Callable[..., dx.Algorithm]:
    """LEARN with the trimmed mean, which declares as many faulty peers as there are unless said."""
    given = faulty if declared is None else declared
    one = mixer(gossip.aggregating(aggregation.trimmed_mean(given)), faulty)

    def method(loss: Any, value: Any, channel: Any) -> dx.Algorithm:
        penalised = dx.losses.with_l2(loss, robust_peers.DECAY)
        return recipes.learn(penalised, robust_peers.rate, one, channel=channel)

    return method


def labelled(name: str, value: float) -> str:
    """A method with its beta, or its radius."""
    if name == "LEARN":
        return name
    return f"{name}, radius {value:g}" if name == "SCC" else f"{name} {value:g}"


def learn_along(index: Any) -> Any:
    """Of LEARN's two messages the gradient is the flipped one on top, the model goes down it."""
    return jnp.where(index % 2 == 0, 1.0, -robust_peers.rate(index // 2))
