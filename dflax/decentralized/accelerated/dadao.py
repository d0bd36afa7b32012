"""DADAO: decoupled accelerated decentralized asynchronous optimisation, one event a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import against
from dflax.decentralized.accelerated.flow import Real, apply_flow, momenta, propagator
from dflax.decentralized.framework.owners import Places, at_owners, difference
from dflax.decentralized.framework.rows import starts
from dflax.events.law import require_drawn_by
from dflax.events.node_events import NodeEvent
from dflax.events.stream import Groups
from dflax.local.convex.conditioning import verify_conditioning
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.topology.gossip_rates import GossipRates

X, X_TILDE, Y, Y_TILDE, Z, Z_TILDE = range(6)


class Progress(NamedTuple):
    """What exists once.

    Attributes:
      time: of the last event.
      gradients: gradient events so far, int32.
      communications: communications so far, int32; each sends two vectors, one either way.
    """

    time: Float[Array, ""]
    gradients: Int[Array, ""]
    communications: Int[Array, ""]


class Nodes(NamedTuple):
    """What every node carries, each as of its own last event.

    Attributes:
      vectors: (x, x~, y, y~, z, z~), leaves `[n, 6, ...]`.
      clock: `[n]`, time of the node's last event.
      total: sum of x over the node's gradient events, leaves `[n, ...]`; None unless asked for.
      taken: `[n]` int32, how many they are; None likewise.
    """

    vectors: Params
    clock: Float[Array, " n"]
    total: Params | None = None
    taken: Int[Array, " n"] | None = None

    @property
    def params(self) -> Params:
        """x, leaves `[n, ...]`."""
        return jax.tree.map(lambda leaf: leaf[:, X], self.vectors)

    @property
    def mean(self) -> Params:
        """The running mean of x over each node's gradient events, for stochastic gradients."""
        if self.taken is None:
            raise ValueError("running_mean must be True for a mean of the iterates, got False.")
        share = 1.0 / jnp.maximum(self.taken, 1)
        return jax.tree.map(lambda leaf: leaf * against(share, leaf).astype(leaf.dtype), self.total)


def dadao(
    loss: Loss | Oracle,
    rates: GossipRates,
    *,
    strong_convexity: Real,
    smoothness: Real,
    running_mean: bool = False,
) -> Algorithm:
    """Asynchronous gossip and gradients, both accelerated, neither waiting for the other.

    Nodes take gradients, and links communicate, at the spikes of independent Poisson processes. With
    nu = mu/2 and the constants of `accelerated.flow.Momenta`, node i carries (x, x~, y, y~, z, z~),
    which follow a linear flow between its events. An event at time t first flows its nodes to t, then

        gradient at i:           g = grad f_i(x_i) - nu x_i - y~_i
                                 x_i -= gamma g,  x~_i -= gamma~ g,  y~_i += delta g
        communication of i, j:   m = (y_i + z_i) - (y_j + z_j)
                                 z_i -= beta m,  z~_i -= beta~ m,  z_j += beta m,  z~_j += beta~ m

    The mean squared error falls at least like exp(-t sqrt(mu/L) / (8 sqrt 2)) where
    2 chi_1 chi_2 <= 1. A step costs two rows, however many nodes there are: all others stay as they
    are in memory. Events of one run follow each other; seeds and rates are what to spread over devices.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, f_i when the batch holds all that node i has; or
        an `Oracle`. Minibatches (`NodeEvents(..., batch_size=B)`) make it stochastic.
      rates: of the links, see `dflax.topology.optimal_rates` and `uniform_rates`; the stream of events
        must be drawn with the same, and one gradient per node and unit of time.
      strong_convexity: mu > 0 of every f_i; traceable.
      smoothness: L >= mu of every f_i; traceable.
      running_mean: keep the mean of x over each node's gradient events, `state.clients.mean`.

    Returns:
      An `Algorithm` on a `FederatedState` of `Progress` and `Nodes`, whose step takes what `NodeEvents`
      draws, one event or a group; models are `state.clients.params`, each as of its node's last event.
      `init` takes one start for all nodes, or a function `key -> start` for independent ones; y and z
      start at 0. Metrics: `time`, `gradients` and `communications` so far.

    Raises:
      TypeError, ValueError: naming the argument; rates with 2 chi_1 chi_2 > 1, for which nothing is
        guaranteed, and mu > L where both are known (traced values pass). From the step: events that
        were drawn by other rates.

    References:
      Nabli & Oyallon, DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization,
      arXiv 2208.00779.
    """
    oracle = gradient(loss)
    fix = "Make one with dflax.topology.uniform_rates(graph)."
    validation.instance("rates", rates, GossipRates, fix)
    validation.flag("running_mean", running_mean)
    if not rates.admissible:
        raise ValueError(
            f"rates must have 2 chi_1 chi_2 <= 1, got 2 * {rates.chi_1:.4g} * {rates.chi_2:.4g} = "
            f"{2 * rates.chi_1 * rates.chi_2:.4g}. Pass rates.scaled(), which communicates that much "
            "more often."
        )
    verify_conditioning(strong_convexity, smoothness)
    k = momenta(strong_convexity, smoothness)
    flow, beta_tilde = propagator(k), k.beta_tilde(rates.chi_1)

    def init(key: Key[Array, ""], params: Params | Callable[..., Params]) -> FederatedState:
        validation.typed_key("key", key)
        start = starts(key, params, rates.nodes)

        def six(leaf: Array) -> Array:
            zeros = jnp.zeros((rates.nodes, 6, *leaf.shape[1:]), leaf.dtype)
            return zeros.at[:, X].set(leaf)

        clock = jnp.zeros(rates.nodes)
        nodes = Nodes(jax.tree.map(six, start), clock)
        if running_mean:
            zeros = jax.tree.map(jnp.zeros_like, start)
            nodes = nodes._replace(total=zeros, taken=jnp.zeros(rates.nodes, jnp.int32))
        progress = Progress(jnp.zeros(()), jnp.int32(0), jnp.int32(0))
        return FederatedState(jnp.int32(0), progress, nodes)

    def advanced(rows: Params, gap: Array) -> Params:
        matrix = flow(gap)
        return jax.tree.map(lambda leaf: apply_flow(matrix, leaf), rows)

    def gradient_jump(rows: Params, batch: Any, key: Key[Array, ""]) -> Params:
        x = jax.tree.map(lambda leaf: leaf[X], rows)
        slope, _ = oracle(x, batch, key)

        def jump(leaf: Array, slope: Array) -> Array:
            g = slope - k.nu.astype(leaf.dtype) * leaf[X] - leaf[Y_TILDE]
            sizes = jnp.stack([-k.gamma, -k.gamma_tilde, 0.0, k.delta, 0.0, 0.0])
            return leaf + against(sizes, leaf).astype(leaf.dtype) * g

        return jax.tree.map(jump, rows, slope)

    def communication_jump(
        places: tuple[Places, Places], one: Params, other: Params
    ) -> tuple[Params, Params]:
        sizes = jnp.stack([0.0, 0.0, 0.0, 0.0, jnp.asarray(k.beta, beta_tilde.dtype), beta_tilde])
        told = [jax.tree.map(lambda leaf: leaf[Y] + leaf[Z], rows) for rows in (one, other)]
        message = difference(*places, *told)

        def changed(sign: int, rows: Params) -> Params:
            return jax.tree.map(
                lambda leaf, m: leaf + sign * against(sizes, leaf).astype(leaf.dtype) * m,
                rows,
                message,
            )

        return changed(-1, one), changed(1, other)

    def counted(nodes: Nodes, node: Places, taken: Array, x: Params) -> Nodes:
        """The running means with x of gradients that were taken."""
        if not running_mean:
            return nodes
        total = node.add(nodes.total, x)
        return nodes._replace(total=total, taken=node.add(nodes.taken, taken))

    def one_event(places: Places, nodes: Nodes, drawn: NodeEvent) -> Nodes:
        event, (i, j) = drawn.event, (places.one(0), places.one(1))

        # Rows go into the conditional by value: what is written back then never aliases what is read,
        # and the compiled loop updates the state in place.
        def at_node(first: Params, second: Params) -> tuple[Params, Params]:
            after = advanced(first, event.gaps[0])
            after = gradient_jump(after, drawn.batch(0), drawn.keys[0])
            return after, after

        def over_link(first: Params, second: Params) -> tuple[Params, Params]:
            return communication_jump(
                (i, j), advanced(first, event.gaps[0]), advanced(second, event.gaps[1])
            )

        first, second = jax.lax.cond(
            event.gradient, at_node, over_link, i.read(nodes.vectors), j.read(nodes.vectors)
        )
        vectors = j.write(i.write(nodes.vectors, first), second)
        clock = j.write(i.write(nodes.clock, event.time), event.time)
        taken = event.gradient.astype(jnp.int32)
        seen = jax.tree.map(lambda leaf: taken.astype(leaf.dtype) * leaf[X], first)
        return counted(nodes._replace(vectors=vectors, clock=clock), i, taken, seen)

    def together(places: Places, nodes: Nodes, drawn: NodeEvent) -> Nodes:
        """All events of a row at once; places that are not used read some node and write none."""
        event = drawn.event
        gaps = jnp.concatenate([event.gradient_gaps, event.link_gaps[:, 0], event.link_gaps[:, 1]])
        times = jnp.concatenate([event.gradient_times, event.link_times, event.link_times])
        count, links = len(event.gradient_nodes), len(event.links)

        # One read of all rows, on which the one write waits: the loop updates the state in place.
        rows = jax.vmap(advanced)(places.read(nodes.vectors), gaps)
        cuts = [count, count + links]
        parts = jax.tree.map(lambda leaf: jnp.split(leaf, cuts), rows)
        own, first, second = jax.tree.transpose(jax.tree.structure(rows), None, parts)
        at, one, other = places.split(cuts)
        moved = at.apply(
            lambda rows, place: gradient_jump(rows, drawn.batch(place), drawn.keys[place]),
            own,
            jnp.arange(count),
        )
        firsts, seconds = jax.vmap(communication_jump)((one, other), first, second)
        rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), moved, firsts, seconds)
        nodes = nodes._replace(
            vectors=places.write(nodes.vectors, rows), clock=places.write(nodes.clock, times)
        )
        seen = jax.tree.map(lambda leaf: leaf[:, X], moved)
        return counted(nodes, at, jnp.ones(count, jnp.int32), seen)

    def step(state: FederatedState, drawn: NodeEvent) -> tuple[FederatedState, Metrics]:
        validation.instance("the event", drawn, NodeEvent, "Run on a dflax.gossip.NodeEvents.")
        fix = (
            "Draw them with dflax.gossip.poisson_stream(rates, events, seed=0), of the same rates."
        )
        event, done = drawn.event, state.server
        require_drawn_by(event.law, rates, 1.0, fix)
        if isinstance(event, Groups):
            links, change = event.links, together
            at = jnp.concatenate([event.gradient_nodes, links[:, 0], links[:, 1]])
            gradients, communications = event.gradients, event.communications
        else:
            at, change = event.nodes, one_event
            gradients = event.gradient.astype(jnp.int32)
            communications = 1 - gradients
        nodes = at_owners(change, at, state.clients, drawn)
        done = Progress(
            event.time.astype(done.time.dtype),
            done.gradients + gradients,
            done.communications + communications,
        )
        return FederatedState(state.round + 1, done, nodes), done._asdict()

    return Algorithm(init, step)


def synchronized(
    state: FederatedState, *, strong_convexity: Real, smoothness: Real
) -> FederatedState:
    """The state with every node flowed to the time of the last event, to look at.

    Between events nodes lie in memory as of their own last event; sums over nodes (of z and z~, which
    stay 0) hold only at one common time. A run goes on from the state as it was, because the gaps of
    its stream count from the nodes' own events.

    Args:
      state: of `dadao`.
      strong_convexity: mu.
      smoothness: L.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("state", state, FederatedState, "Pass what dadao's init or step returns.")
    verify_conditioning(strong_convexity, smoothness)
    flow = propagator(momenta(strong_convexity, smoothness))
    matrices = flow(state.server.time - state.clients.clock)
    vectors = jax.tree.map(lambda leaf: jax.vmap(apply_flow)(matrices, leaf), state.clients.vectors)
    clock = jnp.full_like(state.clients.clock, state.server.time)
    return state._replace(clients=state.clients._replace(vectors=vectors, clock=clock))
