"""What agents that delegate carry: skills that change, cards of others, work still to be done."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Real = float | Float[Array, ""]


class DelegationState(NamedTuple):
    """What n agents with q skills carry from task to task; times count from the last task.

    Attributes:
      skill: `[n, q]` who can do what.
      version: `[n]` int32, how often an agent's skills have changed.
      worker: `[n, q]` int32, whose card an agent keeps for a skill; -1 for none.
      seen: `[n, q]` int32, the version on that card.
      age: `[n, q]` time since it was fetched.
      met: `[n, n]` who has a session with whom.
      busy: `[n]` time for which an agent still works; not above 0 for who is idle.
      registry: `[]` whether the registry is up.
    """

    skill: Bool[Array, "n q"]
    version: Int[Array, " n"]
    worker: Int[Array, "n q"]
    seen: Int[Array, "n q"]
    age: Float[Array, "n q"]
    met: Bool[Array, "n n"]
    busy: Float[Array, " n"]
    registry: Bool[Array, ""]


class Change(NamedTuple):
    """How agents and the registry change with time.

    Attributes:
      share: f, of agents that have a skill.
      rate: lambda, changes of an agent's skills in a unit of time.
      downtime: share of the time that the registry is down.
      outage: mean length of a time that it is down.
    """

    share: Real
    rate: Real
    downtime: Real
    outage: Real


def idle_agents(key: Key[Array, ""], agents: int, skills: int, share: Real) -> DelegationState:
    """Agents that have met nobody, with skills drawn by their share."""
    nothing = jnp.full((agents, skills), -1, jnp.int32)
    return DelegationState(
        skill=jax.random.uniform(key, (agents, skills)) < share,
        version=jnp.zeros((agents,), jnp.int32),
        worker=nothing,
        seen=nothing,
        age=jnp.full((agents, skills), jnp.inf),
        met=jnp.zeros((agents, agents), bool),
        busy=jnp.zeros((agents,)),
        registry=jnp.bool_(True),
    )


def aged(
    state: DelegationState, gap: Float[Array, ""], change: Change, key: Key[Array, ""]
) -> DelegationState:
    """The state after a time `gap`: work is done, cards age, skills change, the registry goes and comes.

    An agent's skills are drawn anew with probability 1 - exp(-lambda gap). The registry is a telegraph:
    down for `outage` on average, and a share `downtime` of the time.
    """
    whether, which, switching = jax.random.split(key, 3)
    changes = jax.random.uniform(whether, state.version.shape) < -jnp.expm1(-change.rate * gap)
    drawn = jax.random.uniform(which, state.skill.shape) < change.share
    uptime = change.outage * (1.0 - change.downtime) / jnp.maximum(change.downtime, 1e-9)
    stays = jnp.where(state.registry, uptime, change.outage)
    switches = jax.random.uniform(switching) < -jnp.expm1(-gap / stays)
    return state._replace(
        age=state.age + gap,
        busy=state.busy - gap,
        skill=jnp.where(changes[:, None], drawn, state.skill),
        version=state.version + changes,
        registry=state.registry ^ switches,
    )


def carded(
    state: DelegationState,
    owner: Int[Array, ""],
    skill: Int[Array, ""],
    worker: Int[Array, ""],
    some: Bool[Array, ""],
) -> DelegationState:
    """The state after the owner has read a worker's card, if `some`."""
    place = (owner, skill)
    version = state.version[jnp.maximum(worker, 0)]
    return state._replace(
        worker=state.worker.at[place].set(jnp.where(some, worker, state.worker[place])),
        seen=state.seen.at[place].set(jnp.where(some, version, state.seen[place])),
        age=state.age.at[place].set(jnp.where(some, 0.0, state.age[place])),
    )
