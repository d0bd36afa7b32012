"""What every swarm has, whatever its protocol: robots that move, sense, lie, and are measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.clients import everywhere, map_clients
from dflax.clients.devices import known_to_all
from dflax.population import Round
from dflax.robots.application import Application, Estimate, Robot, Statement
from dflax.robots.motion import Motion, moved, within


class Bodies(NamedTuple):
    """What a swarm's robots are, a row for each of n.

    Attributes:
      position: `[n, 2]` in metres.
      heading: `[n]` in radians.
      memory: the application's, leaves `[n, ...]`.
      estimate: `[n, e]` what each takes for true.
      valid: `[n]` whether it takes anything for true.
    """

    position: Float[Array, "n 2"]
    heading: Float[Array, " n"]
    memory: Any
    estimate: Float[Array, "n e"]
    valid: Bool[Array, " n"]


class Byzantine(NamedTuple):
    """Which robots are Byzantine and what they do; make one with `byzantine`.

    Attributes:
      members: `[n]` bool.
      forwards: whether they pass on what others say (static).
      accuses: `(robot, n) -> [n]` bool, whom one of them accuses now; None for nobody.
    """

    members: Bool[np.ndarray, " n"]
    forwards: bool
    accuses: Callable[[Robot, int], Bool[Array, " n"]] | None


class Sensed(NamedTuple):
    """What a tick begins with.

    Attributes:
      bodies: after the move and the observations.
      links: `[n, n]` whom each robot hears now.
      statements: what each says, a leaf `[n]` and one `[n, k]`.
      keys: `[n]` typed keys, for what follows.
    """

    bodies: Bodies
    links: Bool[Array, "n n"]
    statements: Statement
    keys: Key[Array, " n"]


def byzantine(
    members: Bool[np.ndarray, " n"],
    *,
    forwards: bool = False,
    accuses: Callable[[Robot, int], Bool[Array, " n"]] | None = None,
) -> Byzantine:
    """Which robots are Byzantine and what they do.

    What they claim is up to the application. They cannot speak in another's name, alter what another
    has said, or say different things to different robots: messages are signed and broadcast.

    Args:
      members: `[n]` booleans, n the number of all robots; True for the Byzantine ones.
      forwards: whether they pass on claims and accusations of others.
      accuses: `(robot, n) -> [n]` booleans, whom one of them accuses at this tick, see `accusing`.
        Each robot accuses another at most once. None: they accuse nobody.

    Returns:
      A `Byzantine`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("members", members, kind="boolean", shape=("n",))
    if validation.is_traced(given):
        raise TypeError("members must be known when the swarm is built, got a traced array.")
    validation.flag("forwards", forwards)
    if accuses is not None:
        validation.function("accuses", accuses, "For example dflax.robots.accusing(0.1).", takes=2)
    return Byzantine(np.asarray(given), bool(forwards), accuses)


def accusing(
    probability: float | Float[Array, ""],
) -> Callable[[Robot, int], Bool[Array, " n"]]:
    """Byzantine robots that accuse each of the others with this probability a tick, at random.

    Args:
      probability: in [0, 1]. 1 accuses everyone at once.

    Returns:
      A policy for `byzantine`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("probability", probability)

    def accuses(robot: Robot, robots: int) -> Bool[Array, " n"]:
        return jax.random.bernoulli(robot.key, probability, (robots,))

    return accuses


def require_parts(application: Application, liars: Byzantine, motion: Motion, radio: Any) -> None:
    """Refuse by name what is no application, no `Byzantine`, no `Motion`, no radius."""
    fix = "For example dflax.robots.target_tracking(target)."
    validation.instance("application", application, Application, fix)
    fix = "Make one with dflax.robots.byzantine(members)."
    validation.instance("liars", liars, Byzantine, fix)
    fix = "Make one with dflax.robots.motion(speed)."
    validation.instance("motion", motion, Motion, fix)
    validation.real("radio", radio, low=0.0, low_open=True, scalar=True)


def started(
    application: Application, motion: Motion, key: Key[Array, ""], positions: Any, robots: int
) -> Bodies:
    """Robots at their first places, with headings of their own."""
    validation.typed_key("key", key)
    fix = f"Give each of the {robots} robots a place, for example dflax.robots.scattered(key, {robots})."
    given = validation.array("params", positions, kind="real", shape=(robots, 2), fix=fix)
    position = jnp.asarray(given, jnp.float32)
    turn, begin = jax.random.split(key)
    heading = jax.random.uniform(turn, (robots,), minval=-jnp.pi, maxval=jnp.pi)

    def start(number: Array, position: Array, key: Array) -> tuple[Any, Estimate]:
        return application.start(Robot(number, position, jnp.int32(0), (), key))

    memory, estimate = jax.vmap(start)(
        jnp.arange(robots, dtype=jnp.int32), position, jax.random.split(begin, robots)
    )
    return Bodies(position, heading, memory, estimate.value, estimate.valid)


def statement_shape(application: Application, bodies: Bodies) -> jax.ShapeDtypeStruct:
    """Shape and type of what a robot claims."""

    def first(bodies: Bodies) -> Array:
        position, memory = bodies.position[0], jax.tree.map(lambda leaf: leaf[0], bodies.memory)
        robot = Robot(jnp.int32(0), position, jnp.int32(0), memory, jax.random.key(0))
        return application.observe(robot)[1].value

    return jax.eval_shape(first, bodies)


def sensed(
    application: Application,
    liars: Byzantine,
    motion: Motion,
    radio: float | Float[Array, ""],
    bodies: Bodies,
    tick: Int[Array, ""],
    round: Round,
) -> Sensed:
    """Everybody moves, senses, and says what it will."""
    robots = liars.members.shape[0]
    if int(round.clients) != robots:
        raise ValueError(
            f"the source must draw rounds of the swarm's {robots} robots, got {int(round.clients)}. "
            f"Use dflax.Population({robots})."
        )
    numbers = jnp.arange(robots, dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(round.key, numbers)
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)

    def move(own: Bodies, key: Array, others: Array) -> tuple[Array, Array]:
        goal, valid = own.estimate, own.valid
        return moved(motion, own.position, own.heading, goal, valid, others, key)

    position, heading = map_clients(
        move, bodies, keys[:, 0], shared=(everywhere(bodies.position),), at_once=robots
    )
    there = present(round, robots)

    def sense(
        number: Array,
        position: Array,
        memory: Any,
        liar: Array,
        key: Array,
        lie_key: Array,
        others: Array,
        there: Array | None,
        tick: Array,
    ) -> tuple[Any, Statement, Array]:
        robot = Robot(number, position, tick, memory, key)
        memory, honest = application.observe(robot)
        lie = application.lie(robot._replace(memory=memory, key=lie_key), honest)
        statement = jax.tree.map(lambda one, other: jnp.where(liar, one, other), lie, honest)
        links = within(position, others, radio) & (jnp.arange(robots) != number)
        if there is not None:
            links = links & there & there[number]
        return memory, statement, links

    memory, statements, links = map_clients(
        sense,
        *(numbers, position, bodies.memory, jnp.asarray(liars.members), keys[:, 1], keys[:, 2]),
        shared=(everywhere(position), there, tick),
        at_once=robots,
    )
    bodies = bodies._replace(position=position, heading=heading, memory=memory)
    return Sensed(bodies, links, statements, keys[:, 3])


def all_links(
    bodies: Bodies, radio: float | Float[Array, ""], there: Bool[Array, " n"] | None
) -> Bool[Array, "n n"]:
    """Whom each robot hears, known to every device, which finds it from the places."""
    places = everywhere(bodies.position)
    links = jax.vmap(within, (0, None, None))(places, places, radio)
    links = links & ~jnp.eye(len(places), dtype=bool)
    return known_to_all(links if there is None else links & there & there[:, None])


def measured(
    application: Application, liars: Byzantine, bodies: Bodies, tick: Int[Array, ""]
) -> Metrics:
    """Errors of the cooperative robots that have an estimate, and their share."""

    def far(number: Array, own: Bodies, tick: Array) -> Array:
        robot = Robot(number, own.position, tick, own.memory, jax.random.key(0))
        return application.error(robot, own.estimate)

    robots = liars.members.shape[0]
    numbers = jnp.arange(robots, dtype=jnp.int32)
    error = map_clients(far, numbers, bodies, shared=(tick,), at_once=robots)
    known = jnp.where(bodies.valid & ~liars.members, error, jnp.nan)
    least, middle, most = jnp.nanquantile(known, jnp.array([0.5, 0.95, 1.0]))
    return {
        "error": jnp.nanmean(known),
        "error_median": least,
        "error_95": middle,
        "error_worst": most,
        "valid": mean_of_cooperative(bodies.valid, liars),
    }


def mean_of_cooperative(values: Array, liars: Byzantine) -> Float[Array, ""]:
    """The mean of `[n]` values over cooperative robots, without picking them out.

    To pick rows that are dealt over devices TPUs take each one for itself, in tiles of its own.
    """
    honest = ~liars.members
    return jnp.where(honest, values, 0).sum() / jnp.float32(honest.sum())


def present(round: Round, robots: int) -> Bool[Array, " n"] | None:
    """Whose radio is on; None for everyone's."""
    if round.cohort is None and round.reports is None:
        return None
    reports = jnp.ones(round.members.shape) if round.reports is None else round.reports
    return jnp.zeros(robots, bool).at[round.members].set(reports > 0)
