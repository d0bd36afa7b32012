"""Poisson streams of events on a graph: gradients at nodes, communications over links, as tables."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.events.law import Law
from dflax.topology.gossip_rates import GossipRates


class Stream(NamedTuple):
    """Events in the order of time, a table with one row per event.

    Attributes:
      number: `[K]` int32, 0, 1, ..., K - 1.
      time: `[K]`, increasing.
      gradient: `[K]` whether the event is a gradient at one node, else two nodes communicate.
      nodes: `[K, 2]` int32, who takes part; a gradient's node stands in both places.
      gaps: `[K, 2]`, time since the node's last event (since 0 for its first). Differences are taken
        in float64, so that they stay exact however long the stream.
      law: what the events were drawn by.
    """

    number: Int[Array, " K"]
    time: Float[Array, " K"]
    gradient: Bool[Array, " K"]
    nodes: Int[Array, "K 2"]
    gaps: Float[Array, "K 2"]
    law: Law


class Groups(NamedTuple):
    """The events of a stream, regrouped: no node takes part in two events of one row.

    Places that are not used name the node n, which does not exist.

    Attributes:
      time: `[T]`, of the latest event up to this row.
      gradients: `[T]` int32, gradient events in the row.
      communications: `[T]` int32, communications in the row.
      gradient_numbers: `[T, G]` int32, the events' numbers in the stream.
      gradient_nodes: `[T, G]` int32.
      gradient_times: `[T, G]`.
      gradient_gaps: `[T, G]`.
      links: `[T, C, 2]` int32, pairs that communicate.
      link_times: `[T, C]`.
      link_gaps: `[T, C, 2]`.
      law: what the events were drawn by.
    """

    time: Float[Array, " T"]
    gradients: Int[Array, " T"]
    communications: Int[Array, " T"]
    gradient_numbers: Int[Array, "T G"]
    gradient_nodes: Int[Array, "T G"]
    gradient_times: Float[Array, "T G"]
    gradient_gaps: Float[Array, "T G"]
    links: Int[Array, "T C 2"]
    link_times: Float[Array, "T C"]
    link_gaps: Float[Array, "T C 2"]
    law: Law


def poisson_stream(
    rates: GossipRates, events: int, *, seed: int, gradient_rate: float = 1.0
) -> Stream:
    """The first K events of independent Poisson processes at nodes and links.

    Every node takes a gradient at rate r, every link communicates at its own rate. The superposition
    has exponential gaps of mean 1 / (n r + total), and each event's place is drawn by its share of the
    rates: the same law. Where graphs take turns, the clock of the superposition runs by the total rate
    of the graph at hand.

    Args:
      rates: of the links, see `dflax.topology`.
      events: K >= 1.
      seed: of the draws, >= 0.
      gradient_rate: r >= 0, gradients per node and unit of time; 0 draws communications only.

    Returns:
      A `Stream` of JAX arrays; wrap it in `dflax.Events`, or hand it to `NodeEvents` with data.

    Raises:
      TypeError, ValueError: naming the argument; no rates at all.
    """
    fix = "Make one with dflax.topology.uniform_rates(graph)."
    validation.instance("rates", rates, GossipRates, fix)
    validation.integer("events", events, low=1, high=2**31 - 1)
    validation.seed("seed", seed)
    validation.real("gradient_rate", gradient_rate, low=0.0, scalar=True)
    generator = np.random.default_rng(seed)
    at_nodes = rates.nodes * float(gradient_rate)
    totals = np.array([at_nodes + each.sum() for each in rates.rates])
    if totals.min() <= 0.0:
        raise ValueError(
            f"gradient_rate must be positive where no link communicates, got {gradient_rate}."
        )
    # Unit-rate time, turned into time by the inverse of the cumulative rate, which is periodic.
    turned = np.cumsum(generator.exponential(size=events))
    mass = np.concatenate([[0.0], np.cumsum(totals)]) * rates.dwell
    cycle, within = np.divmod(turned, mass[-1])
    knots = np.arange(len(totals) + 1) * rates.dwell
    times = cycle * knots[-1] + np.interp(within, mass, knots)
    phase = np.clip(np.searchsorted(mass, within, side="right") - 1, 0, len(totals) - 1)

    gradient = generator.random(events) < at_nodes / totals[phase]
    node = generator.integers(rates.nodes, size=events)
    # One search for all graphs: graph number g has its cumulative shares in (g, g + 1].
    shares = [
        place + np.cumsum(each) / max(each.sum(), 1e-300) for place, each in enumerate(rates.rates)
    ]
    ends = np.cumsum([len(each) for each in rates.rates])
    link = np.searchsorted(np.concatenate(shares), phase + generator.random(events), side="right")
    link = np.minimum(link, ends[phase] - 1)
    pairs = np.concatenate([graph.links for graph in rates.graphs]).reshape(-1, 2)
    if len(pairs) == 0:
        pairs, link = np.zeros((1, 2), np.int64), np.zeros(events, np.int64)
    nodes = np.where(gradient[:, None], node[:, None], pairs[link])
    return Stream(
        jnp.arange(events, dtype=jnp.int32),
        jnp.asarray(times),
        jnp.asarray(gradient),
        jnp.asarray(nodes, jnp.int32),
        jnp.asarray(_gaps(times, gradient, nodes)),
        Law(rates, float(gradient_rate)),
    )


def independent_groups(
    stream: Stream, nodes: int, *, gradients: int | None = None, links: int | None = None
) -> Groups:
    """Packs events that have no node in common into one row, to be executed together.

    An event belongs to level 1 + (the highest level of its nodes' earlier events); events of a level
    share no node, and events on different nodes commute, so going level by level gives every node
    exactly the history of the stream. Levels with more events than a row holds take several rows.

    Args:
      stream: one stream, leaves `[K, ...]`.
      nodes: n, of the graph.
      gradients: G >= 1, gradient events in a row; default their mean per level, rounded up.
      links: C >= 1, communications in a row; default likewise.

    Returns:
      The `Groups`.

    Raises:
      TypeError, ValueError: naming the argument; `nodes` that are not those of the stream.
    """
    validation.instance("stream", stream, Stream, "Make one with poisson_stream.")
    validation.integer("nodes", nodes, low=1)
    if nodes != stream.law.rates.nodes:
        raise ValueError(
            f"nodes must be {stream.law.rates.nodes}, those of the stream, got {nodes}: it was drawn on "
            f"{stream.law.described}."
        )
    level = np.asarray(_levels(stream.nodes, nodes))
    kind = np.asarray(stream.gradient)
    counts = np.stack([np.bincount(level[kind == k], minlength=level.max() + 1) for k in (0, 1)])
    means = np.ceil(counts.mean(1)).astype(int)
    links = max(int(means[0]), 1) if links is None else links
    gradients = max(int(means[1]), 1) if gradients is None else gradients
    validation.integer("links", links, low=1)
    validation.integer("gradients", gradients, low=1)
    widths = np.array([links, gradients])
    needed = -(-counts // widths[:, None])
    rows = np.maximum(needed.max(0), 1)
    first = np.concatenate([[0], np.cumsum(rows)])
    total = int(first[-1])
    placed = {}
    for k in (0, 1):
        chosen = np.flatnonzero(kind == k)
        chosen = chosen[np.argsort(level[chosen], kind="stable")]
        own = level[chosen]
        rank = np.arange(len(chosen)) - np.concatenate([[0], np.cumsum(counts[k])])[own]
        placed[k] = chosen, first[own] + rank // widths[k], rank % widths[k]

    def table(k: int, column: np.ndarray, filling: float) -> np.ndarray:
        chosen, row, place = placed[k]
        out = np.full((total, widths[k], *column.shape[1:]), filling, column.dtype)
        out[row, place] = column[chosen]
        return out

    times, who, gaps = map(np.asarray, (stream.time, stream.nodes, stream.gaps))
    latest = np.zeros(total, times.dtype)
    for k in (0, 1):
        np.maximum.at(latest, placed[k][1], times[placed[k][0]])
    return Groups(
        jnp.asarray(np.maximum.accumulate(latest)),
        jnp.asarray(np.bincount(placed[1][1], minlength=total), jnp.int32),
        jnp.asarray(np.bincount(placed[0][1], minlength=total), jnp.int32),
        jnp.asarray(table(1, np.asarray(stream.number), 0)),
        jnp.asarray(table(1, who[:, 0], nodes)),
        jnp.asarray(table(1, times, 0.0)),
        jnp.asarray(table(1, gaps[:, 0], 0.0)),
        jnp.asarray(table(0, who, nodes)),
        jnp.asarray(table(0, times, 0.0)),
        jnp.asarray(table(0, gaps, 0.0)),
        stream.law,
    )


def _gaps(times: np.ndarray, gradient: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Time since each participant's last event: a stable sort by node keeps the order of time."""
    who, when = nodes.reshape(-1), np.repeat(times, 2)
    counts = np.stack([np.ones(len(times), bool), ~gradient], axis=1).reshape(-1)
    taking = np.flatnonzero(counts)
    order = taking[np.argsort(who[taking], kind="stable")]
    since = np.diff(when[order], prepend=0.0)
    starts = np.diff(who[order], prepend=-1) != 0
    since[starts] = when[order][starts]
    gaps = np.zeros(2 * len(times))
    gaps[order] = since
    return gaps.reshape(-1, 2)


@jax.jit
def _scan_levels(nodes: Int[Array, "K 2"], start: Int[Array, " n"]) -> Int[Array, " K"]:
    def one(level: Array, pair: Array) -> tuple[Array, Array]:
        own = jnp.maximum(level[pair[0]], level[pair[1]])
        return level.at[pair[0]].set(own + 1).at[pair[1]].set(own + 1), own

    return jax.lax.scan(one, start, nodes)[1]


def _levels(nodes: Int[Array, "K 2"], count: int) -> Int[Array, " K"]:
    return _scan_levels(nodes, jnp.zeros(count, jnp.int32))
