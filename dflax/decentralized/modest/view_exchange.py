"""How views of the population change in a round: adverts, and what travels along with models."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dflax.decentralized.modest.hash_sampling import Probe
from dflax.decentralized.modest.views import Views, flush, merge, merge_rows, put, row


def announce(
    views: Views,
    joins: Bool[Array, " n"],
    leaves: Bool[Array, " n"],
    online: Bool[Array, " n"],
    round: Int[Array, ""],
    key: Key[Array, ""],
    adverts: int,
) -> Views:
    """Nodes on line see themselves; those that join or leave tell random peers that are on line.

    A join waits at those who hear of it until they have sent their next message; a departure counts at
    once.

    Args:
      views: of all nodes.
      joins: `[n]`, who joins in this round; they know it themselves.
      leaves: `[n]`, who leaves with notice.
      online: `[n]`, who hears.
      round: its number.
      key: of the peers drawn.
      adverts: how many peers each tells, in [1, n]; static.
    """
    n = online.shape[0]
    itself = jnp.eye(n, dtype=bool)

    def advertised(views: Views) -> Views:
        told = jnp.broadcast_to(online, (n, n))
        if adverts < n:
            score = jnp.where(told, jax.random.uniform(key, (n, n)), 2.0)
            told = (jnp.argsort(jnp.argsort(score, axis=1), axis=1) < adverts) & told
        hears_join = (told & joins[:, None]).T & ~itself
        hears_leave = (told & leaves[:, None]).T
        own = itself & joins[None, :]
        return Views(
            views.last_active,
            views.counter + (hears_leave & views.joined) + (own & ~views.joined),
            (views.joined & ~hears_leave) | own,
            views.pending | hears_join,
        )

    # In most rounds nobody comes or goes, and the draws are the dearest part of a round.
    views = jax.lax.cond((joins | leaves).any(), advertised, lambda views: views, views)
    return views._replace(last_active=jnp.where(itself & online[:, None], round, views.last_active))


def descend(
    views: Views, holder: Int[Array, ""], people: Int[Array, " s"], invited: Probe, round: Array
) -> tuple[Views, Views]:
    """Pings and the model's way down: both ends saw each other, receivers merge the sender's view.

    Args:
      views: of all nodes.
      holder: who pings and sends.
      people: `[s]` ids < n, the places of `invited`.
      invited: who answered.
      round: its number.

    Returns:
      The views, in which what the holder had heard of newcomers counts for it from now on; and those of
      the s receivers, leaves `[s, n]`, as they look for aggregators with them.
    """
    n = views.joined.shape[0]
    reached = jnp.where(invited.answered, people, n)
    sent, own = row(views, holder), row(views, people)
    sent = sent._replace(last_active=sent.last_active.at[reached].max(round, mode="drop"))
    met = (jnp.arange(n) == holder) & invited.answered[:, None]
    seen = jnp.where(met, jnp.maximum(own.last_active, round), own.last_active)
    # The holder's own row has seen what it sends.
    seen = jnp.where((people == holder)[:, None], sent.last_active, seen)
    received = jax.vmap(merge, in_axes=(0, None))(own._replace(last_active=seen), sent)
    flushed = flush(sent, round)
    # One write of all rows, the holder's among them once.
    rows = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), received, flushed)
    target = jnp.append(jnp.where(people == holder, n, reached), holder)
    return put(views, target, rows), received


def ascend(
    views: Views,
    people: Int[Array, " s"],
    chosen: Int[Array, " a"],
    heard: Bool[Array, "s a"],
    round: Array,
) -> Views:
    """The models' way up: aggregators merge the senders' views; then senders apply pending joins.

    Args:
      views: of all nodes.
      people: `[s]` ids < n of the participants.
      chosen: `[a]` ids of the aggregators; n where there is none.
      heard: `[s, a]`, whose model came where.
      round: its number.
    """
    n = views.joined.shape[0]
    rows = row(views, people)
    came = jax.vmap(merge_rows, in_axes=(None, 1))(rows, heard)
    own = row(views, jnp.minimum(chosen, n - 1))
    merged = jax.vmap(merge)(own, came)
    views = put(views, jnp.where(heard.any(0), chosen, n), merged)
    flushed = flush(row(views, people), round)
    return put(views, jnp.where(heard.any(1), people, n), flushed)
