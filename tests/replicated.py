"""Replicated data types under arbitrary histories of writes and deliveries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from dflax import p2p

N, SLOTS, EVENTS = 3, 3, 14
TYPES = {
    # Every second one is tried in quick runs.
    "lww_map": p2p.lww_map(SLOTS),
    "g_counter": p2p.g_counter(N),
    "or_set": p2p.or_set(SLOTS, N),
    "pn_counter": p2p.pn_counter(N),
    "stamped set": p2p.stamped(p2p.or_set(SLOTS, N), N),
    "version_vector": p2p.version_vector(N),
    "stamped map": p2p.stamped(p2p.lww_map(SLOTS), N),
    "subkey_index": p2p.subkey_index(SLOTS),
}


def write(name, replica, writer, slot, number, clock):
    """A write of any type, of the same arguments."""
    what = {
        "g_counter": (number,),
        "pn_counter": (2 * number - 3,),
        "version_vector": (),
        "lww_map": (slot, number, clock),
        "stamped map": (slot, number, clock),
        "or_set": (slot, number > 1),
        "stamped set": (slot, number > 1),
        "subkey_index": (slot, number > 1, clock),
    }[name]
    return TYPES[name].write(replica, writer, *what)


def of(history, time, peer):
    return jax.tree.map(lambda leaf: leaf[time, peer], history)


@functools.cache
def program(name):
    """Of writes and deliveries of old states, `[T, 6]`: all states at all times, `[T + 1, n]`."""
    crdt = TYPES[name]

    @jax.jit
    def run(events):
        start = jax.tree.map(lambda leaf: jnp.stack([leaf] * N), crdt.bottom())
        history = jax.tree.map(lambda leaf: jnp.stack([leaf] * (EVENTS + 1)), start)

        def event(carry, row):
            history, now = carry
            kind, peer, other, slot, number, clock = row
            own = of(history, now, peer)
            # What comes was sent at some time before.
            came = of(history, jnp.minimum(clock, now), other)
            after = jax.lax.cond(
                kind == 0,
                lambda: write(name, own, peer, slot, number, clock),
                lambda: crdt.join(own, came),
            )

            def noted(leaf, row):
                return leaf.at[now + 1].set(leaf[now].at[peer].set(row))

            return (jax.tree.map(noted, history, after), now + 1), None

        (history, _), _ = jax.lax.scan(event, (history, 0), events)
        return history

    @jax.jit
    def joined(history, order):
        """The join of states in some order, with repetitions."""
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), history)

        def one(state, place):
            return crdt.join(state, jax.tree.map(lambda leaf: leaf[place], flat)), None

        return jax.lax.scan(one, crdt.bottom(), order)[0]

    return run, joined, jax.jit(crdt.join), jax.jit(crdt.value)


def row(most_kind):
    return st.tuples(
        st.integers(0, most_kind),
        st.integers(0, N - 1),
        st.integers(0, N - 1),
        st.integers(0, SLOTS - 1),
        st.integers(0, 3),
        st.integers(0, EVENTS),
    )


HISTORIES = st.lists(row(1), min_size=EVENTS, max_size=EVENTS)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
