"""Listeners, songs and trust: a synthetic world with communities, and what walks recommend in it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dflax import p2p


class Listening(NamedTuple):
    """A world.

    Attributes:
      plays: `[U, M]` how often, without what was held out.
      favourite: `[U]` the most played song of each, held out.
      known: the view of all this and of the trust.
    """

    plays: np.ndarray
    favourite: np.ndarray
    known: p2p.View


def listening(
    seed: int,
    *,
    users: int = 200,
    songs: int = 400,
    communities: int = 10,
    liked: int = 8,
    own: float = 0.8,
    popularity: float = 0.7,
    friends: int = 5,
) -> Listening:
    """Users who like songs of their community above all, and trust who likes the same.

    A user likes `liked` songs, each with probability `own` from its community, else from all, in
    proportion to (1 + the song's random rank)^-popularity; play counts are geometric; the most played
    is held out. Trust is that of user-based collaborative filtering: of all with more than one song in
    common the `friends` with the largest similarity, in it plus 1.
    """
    rng = np.random.default_rng(seed)
    of_user, of_song = rng.integers(communities, size=users), rng.integers(communities, size=songs)
    weight = (1.0 + rng.permutation(songs)) ** -popularity
    plays = np.zeros((users, songs))
    for user in range(users):
        chosen: set[int] = set()
        while len(chosen) < liked:
            inside = rng.random() < own
            mask = (of_song == of_user[user]) if inside else np.ones(songs, bool)
            mask[list(chosen)] = False
            if mask.any():
                chosen.add(int(rng.choice(songs, p=mask * weight / (mask * weight).sum())))
        plays[user, list(chosen)] = rng.geometric(0.3, liked)
    favourite = plays.argmax(1)
    plays[np.arange(users), favourite] = 0
    affinity = plays / plays.sum(1, keepdims=True)
    trust = jnp.asarray(trust_of(affinity, friends))
    return Listening(plays, favourite, p2p.view(jnp.asarray(affinity), trust))


def trust_of(affinity: np.ndarray, friends: int) -> np.ndarray:
    """`[U, U]` 1 plus the similarity, to the most similar users.

    Half of the similarity is of counts and correlation, half of differences.
    """
    likes = affinity > 0
    users = len(affinity)
    common = (likes.astype(int) @ likes.T).astype(float)
    np.fill_diagonal(common, 0)
    trust = np.zeros((users, users))
    spread = np.array([row[row > 0].max() - row[row > 0].min() for row in affinity])
    mean = affinity.sum(1) / likes.sum(1)
    for user in range(users):
        most = common[user].max()
        similar = np.full(users, -np.inf)
        for other in np.flatnonzero(common[user] > 1):
            both = likes[user] & likes[other]
            a, b = affinity[user, both] - mean[user], affinity[other, both] - mean[other]
            scale = np.abs(a).sum() * np.abs(b).sum()
            correlation = (a * b).sum() / scale if scale > 0 else 0.0
            widest = max(spread[user], spread[other])
            apart = np.abs(affinity[user, both] - affinity[other, both]).mean()
            alike = 1 - apart / widest if widest > 0 else 0.0
            similar[other] = 0.5 * common[user, other] / most * correlation + 0.5 * alike
        best = np.argsort(-similar)[:friends]
        best = best[np.isfinite(similar[best])]
        trust[user, best] = similar[best] + 1
    return trust


class Ranked(NamedTuple):
    """What walks of many roots found.

    Attributes:
      counts: `[roots, M]` visits of songs.
      bottleneck: `[roots, M]`.
    """

    counts: np.ndarray
    bottleneck: np.ndarray

    def scores(self, beta: float, threshold: float = 0.99) -> np.ndarray:
        """`[roots, M]` with a decay, of the same walks."""
        share = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        return share * (1 - beta * np.where(self.bottleneck > threshold, self.bottleneck, 0.0))


def ranked(
    known: p2p.View,
    roots: np.ndarray,
    seed: int,
    *,
    stop: float,
    walks: int = 500,
    length: int = 200,
) -> Ranked:
    """Songs of each root by walks over those it trusts."""
    graph = p2p.neighbours(known, items=_most(known.affinity), friends=_most(known.trust))
    keys = jax.random.split(jax.random.key(seed), len(roots))
    vertices = sum(known.affinity.shape)
    found = _program(walks, length, vertices)(graph, jnp.asarray(roots), keys, jnp.float32(stop))
    return Ranked(np.asarray(found.counts), np.asarray(found.bottleneck))


@functools.cache
def _program(walks: int, length: int, vertices: int) -> Any:
    def one(graph: p2p.Neighbours, root: Any, key: Any, stop: Any) -> p2p.Visits:
        users = graph.items.shape[0]
        walked = p2p.salsa_walks(graph, root, key, walks=walks, length=length, stop=stop)
        return p2p.visits(walked, root, vertices=vertices, first=users)

    def all_of(graph: Any, roots: Any, keys: Any, stop: Any) -> Any:
        return jax.lax.map(lambda own: one(graph, own[0], own[1], stop), (roots, keys))

    return jax.jit(all_of)


def plain_salsa(
    known: p2p.View, roots: np.ndarray, seed: int, *, stop: float, walks: int
) -> np.ndarray:
    """`[roots, M]` shares of visits of SALSA walks that go back to anybody who likes a song."""
    rng = np.random.default_rng(seed)
    affinity = np.asarray(known.affinity, float)
    rows = affinity.cumsum(1)
    columns = affinity.cumsum(0)
    shares = np.zeros((len(roots), affinity.shape[1]))
    for place, root in enumerate(roots):
        user = np.full(walks, root)
        active = np.ones(walks, bool)
        while active.any():
            active &= rng.random(walks) >= stop
            drawn = rng.random(walks) * rows[user, -1]
            song = (rows[user] <= drawn[:, None]).sum(1).clip(max=affinity.shape[1] - 1)
            shares[place] += np.bincount(song[active], minlength=affinity.shape[1])
            active &= rng.random(walks) >= stop
            drawn = rng.random(walks) * columns[-1, song]
            user = (columns[:, song] <= drawn).sum(0).clip(max=len(affinity) - 1)
    return shares / shares.sum(1, keepdims=True)


def hits(scores: np.ndarray, world: Listening, roots: np.ndarray, most: int = 20) -> float:
    """Share of the roots whose held-out favourite is among the best songs that they do not like yet."""
    liked = np.asarray(world.known.affinity)[roots] > 0
    new = np.where(liked, -1.0, scores[:, : liked.shape[1]])
    best = np.argsort(-new, axis=1, kind="stable")[:, :most]
    reached = np.take_along_axis(new, best, 1) > 0
    return float(
        np.mean(
            [f in b[ok] for f, b, ok in zip(world.favourite[roots], best, reached, strict=True)]
        )
    )


def _most(weights: Any) -> int:
    return max(int((np.asarray(weights) > 0).sum(1).max()), 1)
