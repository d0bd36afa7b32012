"""Ways to find an agent that has a skill, and what they cost in messages."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.p2p.chosen import anyone

# A session between two agents: initialise, reply, initialised, list, reply.
SESSION = 5.0
# A request and its reply.
EXCHANGE = 2.0


class Found(NamedTuple):
    """What a search found.

    Attributes:
      worker: `[]` int32.
      some: `[]` whether anybody was found.
      messages: `[]` that it took.
    """

    worker: Int[Array, ""]
    some: Bool[Array, ""]
    messages: Float[Array, ""]


class Asked(NamedTuple):
    """What a search knows.

    Attributes:
      holders: `[n]` who has the skill, the owner left out.
      owner: `[]` int32, who searches.
      met: `[n]` with whom it has a session already.
      registry: `[]` whether the registry is up.
      key: typed.
    """

    holders: Bool[Array, " n"]
    owner: Int[Array, ""]
    met: Bool[Array, " n"]
    registry: Bool[Array, ""]
    key: Key[Array, ""]


Discovery = Callable[[Asked], Found]


def configured() -> Discovery:
    """Everybody is listed beforehand (as MCP's servers are): a session of 5 messages the first time."""

    def find(asked: Asked) -> Found:
        worker = anyone(asked.holders, asked.key)
        some = jnp.any(asked.holders)
        return Found(worker, some, jnp.where(some & ~asked.met[worker], SESSION, 0.0))

    return find


def registry() -> Discovery:
    """A registry is asked (as ACP's is): 2 messages, and nothing while it is down."""

    def find(asked: Asked) -> Found:
        worker = anyone(asked.holders, asked.key)
        some = jnp.any(asked.holders) & asked.registry
        return Found(worker, some, jnp.asarray(EXCHANGE))

    return find


def crawl() -> Discovery:
    """Agents' cards are read in random order until one has the skill (as A2A's are): 2 messages each."""

    def find(asked: Asked) -> Found:
        agents = asked.holders.shape[0]
        others = jnp.arange(agents) != asked.owner
        order = jax.random.uniform(asked.key, (agents,))
        first = jnp.min(jnp.where(asked.holders, order, jnp.inf))
        probes = jnp.sum(others & (order <= first))
        worker = jnp.argmin(jnp.where(asked.holders, order, jnp.inf)).astype(jnp.int32)
        return Found(worker, jnp.any(asked.holders), EXCHANGE * probes)

    return find


def distributed_index() -> Discovery:
    """A distributed hash table and documents (as ANP's): log2(n) messages, and 4 for both documents."""

    def find(asked: Asked) -> Found:
        hops = 0.5 * jnp.log2(float(asked.holders.shape[0]))
        messages = EXCHANGE * hops + 2 * EXCHANGE
        return Found(anyone(asked.holders, asked.key), jnp.any(asked.holders), messages)

    return find


def flooding() -> Discovery:
    """Everybody is asked: 2 n messages."""

    def find(asked: Asked) -> Found:
        messages = jnp.asarray(EXCHANGE * asked.holders.shape[0])
        return Found(anyone(asked.holders, asked.key), jnp.any(asked.holders), messages)

    return find


def verify_discovery(name: str, value: object) -> None:
    """Refuse what is no `Discovery`."""
    validation.function(name, value, "dflax.p2p.registry makes one.", takes=1)
