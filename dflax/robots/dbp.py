"""DBP: robots accuse each other of false claims and ignore all whom a matching of accusations covers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.clients import everywhere, map_clients
from dflax.population import Round
from dflax.robots.application import Application, Claims, Robot
from dflax.robots.blocklists import NEVER, matchings
from dflax.robots.flooding import hop
from dflax.robots.motion import Motion
from dflax.robots.swarm import (
    Bodies,
    Byzantine,
    Sensed,
    all_links,
    mean_of_cooperative,
    measured,
    present,
    require_parts,
    sensed,
    started,
    statement_shape,
)

# A stamp older than every tick.
LONG_AGO = -(2**30)
NOTHING = int(jnp.iinfo(jnp.int16).min)
MOST_ROBOTS = int(NEVER)


class Ledger(NamedTuple):
    """What robots know of claims and accusations, a row for each of n.

    Attributes:
      said: `[n, w, k]` each robot's own claims: that of tick t at t mod w.
      heard: `[n, n]` int32, when the newest claim of each origin was made that came and was let in.
      held: `[n, n]` int32, the same of the claim that is kept; `LONG_AGO` for none.
      came: `[n, n]` int32, when the kept one came.
      sent: `[n, n]` int32, when the newest claim of each origin was last passed on; () without a cap.
      places: `[n, n]` int16, at which place of its own list of accusations each robot accused each
        other; `NEVER` where it did not.
      known: `[n, n]` int16, of how many of each robot's accusations, in their order, a robot knows.
      mate: `[n, n]` int32, the matching of the accusations that a robot knows. Who has a partner in it
        is on the blocklist.
    """

    said: Float[Array, "n w k"]
    heard: Int[Array, "n n"]
    held: Int[Array, "n n"]
    came: Int[Array, "n n"]
    sent: Any
    places: Int[Array, "n n"]
    known: Int[Array, "n n"]
    mate: Int[Array, "n n"]


class Swarm(NamedTuple):
    """The robots of a swarm under the protocol.

    Attributes:
      bodies: places, memories, estimates.
      ledger: claims and accusations.
    """

    bodies: Bodies
    ledger: Ledger


def dbp(
    application: Application,
    liars: Byzantine,
    motion: Motion,
    *,
    radio: float | Float[Array, ""] = 4.0,
    window: int = 50,
    cap: int | None = None,
    suspicion: bool = True,
) -> Algorithm:
    """The decentralized blocklist protocol, a tick a round.

    Robots flood what they claim, one hop a tick. Who gets a claim that contradicts what it sees itself
    floods an accusation of the claim's origin. From the accusations that it knows every robot computes
    its blocklist: all whom one maximum matching of their graph covers (`maximum_matching`). It ignores
    and does not pass on what they claim, but uses their accusations.

    If honest robots never accuse honest ones, every accusation has a Byzantine end, so that of those
    blocked no more are cooperative than Byzantine. If every set of Byzantine robots is accused by at
    least as many cooperative ones (Hall), all F Byzantine robots are blocked and exactly F cooperative
    ones. Blocked cooperative robots are not heard either: to learn the truth F + 1 must see it.

    In a tick robots move, observe, and claim; hear what their neighbours held at the tick before; test
    new claims of robots that they do not block; accuse; compute blocklists; estimate. A robot keeps the
    newest claim of each origin, its own even where it blocks itself. Accusations of one robot are heard
    in the order in which it made them, which is all that a count for each robot need remember.

    Whom the round leaves out has its radio off in that tick. The state is O(n^2) for
    all robots together.

    Args:
      application: what the swarm works at, for example `target_tracking`.
      liars: the Byzantine robots, see `byzantine`; its members tell n, at most 32,766.
      motion: how robots move, see `motion`.
      radio: up to which distance robots hear each other, in metres, > 0.
      window: w in [1, 32000], ticks until a claim is forgotten.
      cap: most claims that a robot passes on in a tick, its own among them, those first that it passed
        on least recently; None: all. Accusations are not counted.
      suspicion: False for robots that believe everything, to compare with.

    Returns:
      An `Algorithm`. `init(key, positions)` takes places `[n, 2]` (`scattered`); rounds come from a
      `dflax.Population(n)`. Metrics, over cooperative robots: `error` (mean), its median, 95% quantile
      and largest, over those with an estimate, whose share is `valid`; `blocked_byzantine` and
      `blocked_cooperative`, mean counts; `blocklist_least`; `complete`, the share that blocks all
      Byzantine robots; `agree`, whether all have one blocklist; `accusations` made so far, `unjust` of
      cooperative robots by cooperative ones among them; `claims` let in at this tick.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wardega, von Hippel, Tron, Nita-Rotaru and Li, Byzantine Resilience at Swarm Scale: A Decentralized
      Blocklist Protocol from Inter-robot Accusations, arXiv 2301.06977.
    """
    require_parts(application, liars, motion, radio)
    validation.integer("window", window, low=1, high=32_000)
    if cap is not None:
        validation.integer("cap", cap, low=1)
    validation.flag("suspicion", suspicion)
    robots = liars.members.shape[0]
    if robots > MOST_ROBOTS:
        raise ValueError(f"liars must be of at most {MOST_ROBOTS} robots, got {robots}.")

    def init(key: Key[Array, ""], params: Float[Array, "n 2"]) -> FederatedState:
        bodies = started(application, motion, key, params, robots)
        one = statement_shape(application, bodies)
        pairs = (robots, robots)
        ledger = Ledger(
            said=jnp.zeros((robots, window, *one.shape), one.dtype),
            heard=jnp.full(pairs, LONG_AGO, jnp.int32),
            held=jnp.full(pairs, LONG_AGO, jnp.int32),
            came=jnp.full(pairs, LONG_AGO, jnp.int32),
            sent=() if cap is None else jnp.full(pairs, LONG_AGO, jnp.int32),
            places=jnp.full(pairs, NEVER, jnp.int16),
            known=jnp.zeros(pairs, jnp.int16),
            mate=jnp.full(pairs, -1, jnp.int32),
        )
        return FederatedState(jnp.int32(0), (), Swarm(bodies, ledger))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        tick, (bodies, ledger) = state.round, state.clients
        now = sensed(application, liars, motion, radio, bodies, tick, round)
        passed, ledger = _passed_on(ledger, liars, tick, window, cap)
        links = all_links(now.bodies, radio, present(round, robots))
        fresh = hop(links, passed)
        told = _accusations_told(ledger.known, links, liars)
        ledger, new = _received(
            ledger, application, liars, now, fresh, tick, window, suspicion, cap is not None
        )
        ledger = _blocked(ledger, told)
        memory, estimate = _estimates(ledger, application, now, tick, window)
        bodies = now.bodies._replace(memory=memory, estimate=estimate.value, valid=estimate.valid)
        metrics = measured(application, liars, bodies, tick) | _protocol(ledger, liars)
        metrics["claims"] = jnp.where(liars.members, 0, new).sum()
        return FederatedState(tick + 1, (), Swarm(bodies, ledger)), metrics

    return Algorithm(init, step)


def _passed_on(
    ledger: Ledger, liars: Byzantine, tick: Int[Array, ""], window: int, cap: int | None
) -> tuple[Int[Array, "n n"], Ledger]:
    """The ages, negative, of the claims that each robot passes on: not those of whom it blocks."""
    robots = ledger.heard.shape[0]
    numbers = jnp.arange(robots, dtype=jnp.int32)
    forwards = jnp.asarray(~liars.members | liars.forwards)

    def mine(number: Array, heard: Array, mate: Array, sent: Any, all_: Array, tick: Array) -> Any:
        own = jnp.arange(robots) == number
        passes = (heard > tick - window) & (own | ((mate < 0) & all_[number]))
        if cap is not None and cap < robots:
            first = jax.lax.top_k(jnp.where(passes, -sent, LONG_AGO - 1), cap)[1]
            passes = passes & jnp.zeros(robots, bool).at[first].set(True)
            sent = jnp.where(passes, tick, sent)
        age = jnp.where(passes, heard - tick, NOTHING).astype(jnp.int16)
        return age, sent

    rows = (numbers, ledger.heard, ledger.mate, ledger.sent)
    ages, sent = map_clients(mine, *rows, shared=(forwards, tick), at_once=robots)
    return ages, ledger._replace(sent=sent)


def _accusations_told(
    known: Int[Array, "n n"], links: Bool[Array, "n n"], liars: Byzantine
) -> Int[Array, "n n"]:
    """Of how many of each robot's accusations everyone knows after a hop."""
    robots = known.shape[0]
    own = jnp.eye(robots, dtype=bool)
    made = jnp.diagonal(known)

    def spread() -> Array:
        forwards = jnp.asarray(~liars.members | liars.forwards)
        told = jnp.where(own | forwards[:, None], known, jnp.int16(0))
        return jnp.maximum(known, hop(links, told))

    return jax.lax.cond(jnp.any(known < made), spread, lambda: known)


def _received(
    ledger: Ledger,
    application: Application,
    liars: Byzantine,
    now: Sensed,
    fresh: Int[Array, "n n"],
    tick: Int[Array, ""],
    window: int,
    suspicion: bool,
    capped: bool,
) -> tuple[Ledger, Int[Array, " n"]]:
    """Claims that came are tested, kept, or their origins accused; own claims are written down."""
    robots = fresh.shape[0]
    numbers = jnp.arange(robots, dtype=jnp.int32)

    def receive(
        robot: Robot, liar: Array, statement: Any, ages: Array, own: Ledger, said: Array
    ) -> tuple[Ledger, Array]:
        me = numbers == robot.number
        stamp = ages.astype(jnp.int32) + robot.tick
        new = (ages > NOTHING) & (stamp > own.heard) & (own.mate < 0) & ~me
        new = new & (stamp > robot.tick - window)
        age = robot.tick - stamp
        claims = Claims(said[numbers, stamp % window], age, age, new, new)
        accused = application.accuse(robot, claims)
        accused = jnp.where(new & (accused >= 0) & suspicion & ~liar, accused, robots)
        accuses = jnp.zeros(robots, bool).at[accused].set(True, mode="drop")
        if liars.accuses is not None:
            accuses = jnp.where(liar, liars.accuses(robot, robots), accuses)
        accuses = accuses & (own.places == NEVER) & ~me
        made = jnp.sum(own.places != NEVER, dtype=jnp.int16)
        place = made + jnp.cumsum(accuses, dtype=jnp.int16) - 1
        kept = new & (accused == robots)
        kept, new_heard = kept | (me & statement.made), new | (me & statement.made)
        stamp = jnp.where(me, robot.tick, stamp)
        row = own.said.at[robot.tick % window].set(
            jnp.where(statement.made, statement.value, own.said[robot.tick % window])
        )
        return own._replace(
            said=row,
            heard=jnp.where(new_heard, stamp, own.heard),
            held=jnp.where(kept, stamp, own.held),
            came=jnp.where(kept, robot.tick, own.came),
            sent=jnp.where(new_heard, LONG_AGO, own.sent) if capped else (),
            places=jnp.where(accuses, place, own.places),
        ), new.sum()

    bodies = now.bodies
    ticks = jnp.full(robots, tick)
    seen = Robot(numbers, bodies.position, ticks, bodies.memory, now.keys)
    return map_clients(
        receive,
        *(seen, jnp.asarray(liars.members), now.statements, fresh, ledger),
        shared=(everywhere(ledger.said),),
        at_once=robots,
    )


def _blocked(ledger: Ledger, told: Int[Array, "n n"]) -> Ledger:
    """Blocklists of the accusations known now; what their members claimed is dropped."""
    robots = told.shape[0]
    made = jnp.sum(ledger.places != NEVER, axis=1, dtype=jnp.int16)
    own = jnp.eye(robots, dtype=bool)
    known = jnp.where(own, made[:, None], told)
    changed = jnp.any(known != ledger.known, axis=1)
    mate = jax.lax.cond(
        jnp.any(changed),
        lambda: matchings(ledger.mate, known, ledger.places, changed),
        lambda: ledger.mate,
    )
    held = jnp.where((mate >= 0) & ~own, LONG_AGO, ledger.held)
    return ledger._replace(known=known, mate=mate, held=held)


def _estimates(
    ledger: Ledger, application: Application, now: Sensed, tick: Int[Array, ""], window: int
) -> tuple[Any, Any]:
    """What the robots make of the claims that they keep."""
    robots = ledger.held.shape[0]
    numbers = jnp.arange(robots, dtype=jnp.int32)

    def estimate(robot: Robot, held: Array, came: Array, said: Array) -> tuple[Any, Any]:
        there = held > robot.tick - window
        value = said[numbers, held % window]
        claims = Claims(value, robot.tick - held, came - held, there, came == robot.tick)
        return application.estimate(robot, claims)

    bodies = now.bodies
    ticks = jnp.full(robots, tick)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(now.keys)
    seen = Robot(numbers, bodies.position, ticks, bodies.memory, keys)
    return map_clients(
        estimate, seen, ledger.held, ledger.came, shared=(everywhere(ledger.said),), at_once=robots
    )


def _protocol(ledger: Ledger, liars: Byzantine) -> Metrics:
    """Sizes of the cooperative robots' blocklists, and counts of accusations."""
    lying, honest = jnp.asarray(liars.members), jnp.asarray(~liars.members)
    blocked = ledger.mate >= 0
    made = ledger.places != NEVER
    justly, unjustly = (blocked & lying).sum(1), (blocked & honest).sum(1)
    first = int(np.argmin(liars.members))
    same = jnp.all(blocked == blocked[first], axis=1)
    return {
        "blocked_byzantine": mean_of_cooperative(justly, liars),
        "blocked_cooperative": mean_of_cooperative(unjustly, liars),
        "blocklist_least": jnp.where(honest, blocked.sum(1), len(blocked)).min(),
        "complete": mean_of_cooperative(justly == lying.sum(), liars),
        "agree": jnp.all(same | lying),
        "accusations": made.sum(),
        "unjust": (made & honest & honest[:, None]).sum(),
    }
