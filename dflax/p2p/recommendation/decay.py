"""Scores of what walks visit, less what could be reached through one vertex alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.p2p.recommendation.walks import Walks

Real = float | Float[Array, ""]


class Visits(NamedTuple):
    """What w walks say of the vertices in question.

    Attributes:
      counts: `[V]` visits, with multiplicity.
      bottleneck: `[V]` in [0, 1]: the largest share, over the other vertices x but the root, of the
        walks to a vertex that had been at x before; 0 for what was never visited.
    """

    counts: Float[Array, " V"]
    bottleneck: Float[Array, " V"]


def visits(walks: Walks, root: Int[Array, ""], *, vertices: int, first: int = 0) -> Visits:
    """Visits and bottlenecks of the vertices `first`, `first` + 1, ..., of `vertices` in all.

        B_v = max over x not in {root, v} of #(walks at x before their first visit of v) / #(walks at v)

    Args:
      walks: see `Walks`.
      root: `[]` whose walks they are.
      vertices: U + M for walks over items, U for walks over trust.
      first: of the vertices in question, in [0, vertices).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("walks", walks, Walks)
    validation.integer("vertices", vertices, low=1)
    validation.integer("first", first, low=0, high=vertices - 1)
    validation.array("root", root, kind="integer", shape=(), low=0, high=vertices - 1)
    length = walks.visited.shape[1]
    wanted = vertices - first
    steps = jnp.arange(length, dtype=jnp.int32)

    def of_walk(total: tuple[Array, Array, Array], path: Int[Array, " L+1"]) -> tuple[tuple, None]:
        count, reached, before = total
        # The root's own place is no visit.
        there = jnp.where(path >= 0, path, vertices)
        at = jnp.full((vertices,), length, jnp.int32).at[there].min(steps, mode="drop")
        theirs = at[first:]
        through = (at[None, :] < theirs[:, None]) & (theirs < length)[:, None]
        count = count.at[jnp.where(path >= first, path - first, wanted)].add(1.0, mode="drop")
        return (count, reached + (theirs < length), before + through), None

    nothing = jnp.zeros((wanted,))
    begin = (nothing, nothing, jnp.zeros((wanted, vertices)))
    (count, reached, before), _ = jax.lax.scan(of_walk, begin, walks.visited)
    others = jnp.arange(vertices) != root
    most = jnp.max(jnp.where(others, before, 0.0), axis=1)
    return Visits(count, most / jnp.maximum(reached, 1.0))


def decayed(found: Visits, *, beta: Real = 0.8, threshold: Real = 0.99) -> Float[Array, " V"]:
    """Scores: c_v / sum c x (1 - beta B_v [B_v > tau]).

    What lies behind a single vertex, as all Sybils of an attacker do, has B = 1 and keeps 1 - beta.

    Args:
      found: see `Visits`.
      beta: in [0, 1]; traceable.
      threshold: tau in [0, 1); traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("found", found, Visits)
    validation.probability("beta", beta)
    validation.probability("threshold", threshold, high_open=True)
    share = found.counts / jnp.maximum(jnp.sum(found.counts), 1.0)
    cut = jnp.where(found.bottleneck > threshold, found.bottleneck, 0.0)
    return share * (1.0 - beta * cut)


def without_root(found: Visits, root: Int[Array, ""]) -> Visits:
    """The visits but those of the root, for scores of users.

    Args:
      found: of all users.
      root: `[]` whose walks they are.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("found", found, Visits, "Make it with dflax.p2p.visits.")
    last = found.counts.shape[0] - 1
    validation.array("root", root, kind="integer", shape=(), low=0, high=last)
    return found._replace(counts=found.counts.at[root].set(0.0))
