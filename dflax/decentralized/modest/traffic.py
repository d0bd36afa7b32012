"""What a MoDeST round sends, in messages and in bytes, by kind."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from dflax.algorithm import Metrics
from dflax.decentralized.modest.hash_sampling import Probe
from dflax.decentralized.modest.partial_aggregation import Election

# Payloads without headers. A ping and its answer: node and round, int32 each. A view's entry: last
# activity, counter and status, entries in the order of ids. An advert: node and round, counter, status.
PING, ENTRY, ADVERT = 8, 9, 13


def model_bytes(models: PyTree[Array]) -> float:
    """Bytes of one of several stacked models, leaves `[a, ...]`."""
    return float(sum(leaf[0].size * leaf.dtype.itemsize for leaf in jax.tree.leaves(models)))


def traffic(
    holders: Int[Array, " a"],
    alive: Bool[Array, " a"],
    invited: Probe,
    found: Probe,
    trains: Bool[Array, " s"],
    election: Election,
    adverts: Int[Array, ""],
    *,
    size: float,
    entries: int,
) -> Metrics:
    """Counts of a round; a node sends itself nothing.

    Args:
      holders: who holds a model.
      alive: which of them are on line: each pings the sample and sends its model.
      invited: what a holder's pings gave.
      found: what the participants' pings for aggregators gave, leaves `[s, ...]`.
      trains: which participants have a model to send.
      election: which of them sends where.
      adverts: `[]`, messages about joins and departures.
      size: of a model, in bytes.
      entries: n of the view that travels with a model, 0 where none does.

    Returns:
      `pings`, `answers`, `models_sent`, `adverts`; `model_bytes`, `view_bytes` (views and adverts) and
      `ping_bytes` (pings and answers), float32.
    """
    # Places without a node hold one number, n, on both sides; they are masked.
    elsewhere = invited.chosen != holders[:, None]
    down = jnp.sum(invited.answered & elsewhere & alive[:, None])
    other = found.answered & (found.chosen != invited.chosen[:, None]) & trains[:, None]
    up = jnp.sum(election.heard & (invited.chosen[:, None] != election.chosen))
    answers = down + jnp.sum(other)
    pings = answers + invited.failed * alive.sum() + jnp.sum(found.failed * trains)
    models = down + up
    floats = models.astype(jnp.float32)
    return {
        "pings": pings,
        "answers": answers,
        "models_sent": models,
        "adverts": adverts,
        "model_bytes": size * floats,
        "view_bytes": float(ENTRY * entries) * floats + float(ADVERT) * adverts,
        "ping_bytes": float(PING) * (pings + answers),
    }
