"""What a round of a swarm tells of itself."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dflax.algorithm import Metrics
from dflax.inference.swarm.ledger import SwarmLedger


def of_sides(
    liars: Bool[Array, " n"],
    ledger: SwarmLedger,
    reputation: Float[Array, " n"],
    weights: Float[Array, " n"],
) -> Metrics:
    """Reputation, votes and balances of honest nodes and of liars."""

    def mean(values: Array, among: Array) -> Array:
        count = jnp.sum(among)
        whole = jnp.sum(jnp.where(among, values, 0.0)) / jnp.maximum(count, 1)
        return jnp.where(count > 0, whole, jnp.nan)

    votes = jnp.sum(jnp.where(liars, weights, 0.0)) / jnp.maximum(jnp.sum(weights), 1e-30)
    return {
        "honest_reputation": mean(reputation, ~liars),
        "liar_reputation": mean(reputation, liars),
        "liar_share": votes,
        "active": jnp.sum(ledger.active),
        "slashed": jnp.sum(ledger.barred),
        "honest_balance": mean(ledger.balance, ~liars),
        "liar_balance": mean(ledger.balance, liars),
    }


def kendall(score: Array, quality: Array, present: Array) -> Float[Array, ""]:
    """Kendall's tau-a over the answers that are there."""
    both = present & present[:, None] & ~jnp.eye(present.shape[0], dtype=bool)
    alike = jnp.sign(score - score[:, None]) * jnp.sign(quality - quality[:, None])
    return jnp.sum(jnp.where(both, alike, 0.0)) / jnp.maximum(jnp.sum(both), 1)
