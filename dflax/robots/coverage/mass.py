"""Mass of sample points that agents take, and what they tell each other of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.clients import everywhere
from dflax.clients.devices import known_to_all
from dflax.gossip.products.by_coordinates import by_coordinates

# A sample with less than this share of its mass is empty: sums of float32 never end at 0.
EMPTY = 1e-5


class Ledger(NamedTuple):
    """Who knows of whose consumption, for n agents and N samples.

    Attributes:
      taken: `[n, n, N]`, at [i, k] what agent i knows that agent k has taken of each sample.
      clock: `[n, n]` int32, of which step that record is; 0 for none.
    """

    taken: Float[Array, "n n N"]
    clock: Int[Array, "n n"]


def take(
    score: Float[Array, " N"], mass: Float[Array, " N"], amount: float | Float[Array, ""]
) -> Float[Array, " N"]:
    """Mass taken in the order of the scores, smallest first, until the amount is reached.

    Of scores 1, 2, 3 and masses .3, .2, .5 an amount of .4 takes .3, .1, 0. Infinite scores come last.
    """
    order = jnp.argsort(score)
    held = mass[order]
    before = jnp.cumsum(held) - held
    taken = jnp.clip(amount - before, 0, held)
    return jnp.zeros_like(mass).at[order].set(taken, unique_indices=True)


def within_reach(
    positions: Float[Array, "n 2"],
    radio: float | Float[Array, ""],
    there: Bool[Array, " n"],
) -> Bool[Array, "n n"]:
    """Who hears whom: those nearer than `radio` of those that are there; everybody itself."""
    n = positions.shape[0]
    apart = positions[:, None] - positions[None]
    near = jnp.sum(jnp.square(apart), -1) < jnp.square(radio)
    return (near & there[:, None] & there[None]) | jnp.eye(n, dtype=bool)


def newest(ledger: Ledger, links: Bool[Array, "n n"]) -> Ledger:
    """Every agent with the newest records among those whom it hears: the newest wins.

    It is idempotent, commutative, and no clock ever falls. Of records of one time the agents' own order
    decides, and their contents are the same.
    """
    n = links.shape[0]
    # A few numbers, of which every device then knows whose record is the newest.
    clock, links = everywhere(ledger.clock), known_to_all(links)
    clocks = jnp.where(links[:, :, None], clock[None], -1)
    # An agent's own record, unless another's is newer.
    clocks = 2 * clocks + jnp.eye(n, dtype=jnp.int32)[:, :, None]
    best = jnp.argmax(clocks, axis=1)
    about = jnp.arange(n)[None]

    def records(taken: Array, best: Array) -> Array:
        return taken[best, about]

    return Ledger(by_coordinates(records, ledger.taken, best, axis=2), clock[best, about])


def left(ledger: Ledger, samples: int) -> Float[Array, "n N"]:
    """What agents believe to be left of each sample: `max(0, 1 / N - sum_k taken_ik)`."""
    mass = 1.0 / samples - ledger.taken.sum(axis=1)
    return jnp.where(mass > EMPTY / samples, mass, 0)


def twice(ledger: Ledger, samples: int) -> Float[Array, ""]:
    """The mass that several agents have taken without knowing of each other."""
    own = jax.vmap(lambda records, number: records[number])(
        ledger.taken, jnp.arange(ledger.taken.shape[0])
    )
    return jnp.sum(jnp.maximum(own.sum(0) - 1.0 / samples, 0))
