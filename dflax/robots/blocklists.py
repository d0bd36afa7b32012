"""Every robot's blocklist from the accusations that it knows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dflax.clients import client_devices, everywhere, map_clients
from dflax.robots.matching import matched, packed

# Position of an accusation that was never made.
NEVER = jnp.iinfo(jnp.int16).max
# Robots whose matchings are computed at the same time.
AT_ONCE = 10


def known_edges(
    known: Int[Array, " n"], places: Int[Array, "n n"], turned: Int[Array, "n n"]
) -> Bool[Array, "n n"]:
    """The undirected graph of the accusations that a robot knows.

    Args:
      known: `[n]`, how many of each robot's accusations it knows: the first ones.
      places: `[n, n]`, at which place in the list of accuser i accused j stands; `NEVER` where it
        does not.
      turned: the transpose of `places`.
    """
    return (places < known[:, None]) | (turned < known)


def matchings(
    mate: Int[Array, "n n"],
    known: Int[Array, "n n"],
    places: Int[Array, "n n"],
    changed: Bool[Array, " n"],
) -> Int[Array, "n n"]:
    """Every robot's maximum matching of the accusations it knows, carried on from an earlier one.

    Only robots whose knowledge changed count, a few at a time, and of those that know the same the
    first counts for all: what a matching covers depends on the edges alone.

    Args:
      mate: `[n, n]` int32, each robot's matching before, -1 for nobody.
      known: `[n, n]`, a row for each robot, see `known_edges`.
      places: `[n, n]`, see `known_edges`.
      changed: `[n]`, whose knowledge changed.

    Returns:
      `[n, n]` int32.
    """
    robots, devices = mate.shape[0], client_devices()
    padding = -robots % devices

    def dealt(leaf: Array) -> Array:
        grown = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
        return grown.reshape(devices, -1, *leaf.shape[1:])

    def of_a_device(mate: Array, known: Array, changed: Array, places: Array) -> Array:
        turned = places.T
        few = min(AT_ONCE, mate.shape[0])

        def one(known: Array, start: Array) -> Array:
            return matched(packed(known_edges(known, places, turned)), start)

        def work(at: tuple[Array, Array]) -> tuple[Array, Array]:
            mate, waiting = at
            # Who waits comes first; who does not wait and is there keeps the place's number full.
            who = jnp.argsort(~waiting, stable=True)[:few]
            found = jax.vmap(one)(known[who], mate[who])
            same = jnp.all(known[:, None] == known[who], axis=-1) & waiting[who]
            first = jnp.argmax(same, axis=1)
            served = jnp.any(same, axis=1) & waiting
            return jnp.where(served[:, None], found[first], mate), waiting & ~served

        return jax.lax.while_loop(lambda at: jnp.any(at[1]), work, (mate, changed))[0]

    found = map_clients(
        of_a_device,
        dealt(mate),
        dealt(known),
        dealt(changed),
        shared=(everywhere(places),),
        at_once=1,
    )
    return found.reshape(-1, robots)[:robots]
