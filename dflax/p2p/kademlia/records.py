"""Records of who provides a content, which expire unless they are announced again."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation


class Providers(NamedTuple):
    """Records of K contents and n peers.

    Attributes:
      holders: `[K, k]` int32, the peers closest to each content's id, who hold its records; -1: nobody.
      expires: `[K, n]` seconds, when the record that a peer provides a content ends; -infinity for none.
      cleaned: `[]` seconds, when records that had ended were last removed.
    """

    holders: Int[Array, "K k"]
    expires: Float[Array, "K n"]
    cleaned: Float[Array, ""]


class Records(NamedTuple):
    """Provider records as pure functions.

    Attributes:
      init: `init(holders, peers) -> Providers`, without records; `holders` from `iterative_lookup`.
      announce: `announce(providers, content, peer, now)`: the peer provides the content for another
        `life` seconds.
      find: `find(providers, content, now, alive=None) -> [n]` bools: who provides it, as one of the
        holders that are alive says; nobody, if none is.
      clean: `clean(providers, now)`: removes what has ended, every so often.
      join: `join(a, b)`: the later end of every record; holders that meet agree by it.
    """

    init: Callable[..., Providers]
    announce: Callable[..., Providers]
    find: Callable[..., Bool[Array, " n"]]
    clean: Callable[..., Providers]
    join: Callable[[Providers, Providers], Providers]


def provider_records(
    *, life: float | Float[Array, ""] = 600.0, every: float | Float[Array, ""] = 300.0
) -> Records:
    """Records that live for a time after they were announced.

    A record is found while now < expires; cleaning frees its place, and changes nothing that is found.

    Args:
      life: seconds > 0 from an announcement to the record's end; traceable.
      every: seconds > 0 between cleanings; traceable.

    Returns:
      `Records`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("life", life, low=0.0, low_open=True, scalar=True)
    validation.real("every", every, low=0.0, low_open=True, scalar=True)

    def init(holders: Int[Array, "K k"], peers: int) -> Providers:
        validation.integer("peers", peers, low=1)
        held = validation.array(
            "holders", holders, kind="integer", shape=("K", "k"), low=-1, high=peers - 1
        )
        nothing = jnp.full((held.shape[0], peers), -jnp.inf, jnp.float32)
        return Providers(jnp.asarray(held, jnp.int32), nothing, jnp.zeros((), jnp.float32))

    def announce(
        providers: Providers, content: Int[Array, ""], peer: Int[Array, ""], now: Float[Array, ""]
    ) -> Providers:
        return providers._replace(expires=providers.expires.at[content, peer].max(now + life))

    def find(
        providers: Providers,
        content: Int[Array, ""],
        now: Float[Array, ""],
        alive: Bool[Array, " n"] | None = None,
    ) -> Bool[Array, " n"]:
        holders = providers.holders[content]
        answers = holders >= 0
        if alive is not None:
            answers &= alive[jnp.maximum(holders, 0)]
        return (now < providers.expires[content]) & jnp.any(answers)

    def clean(providers: Providers, now: Float[Array, ""]) -> Providers:
        due = now - providers.cleaned >= every
        ended = due & (providers.expires <= now)
        return providers._replace(
            expires=jnp.where(ended, -jnp.inf, providers.expires),
            cleaned=jnp.where(due, now, providers.cleaned).astype(jnp.float32),
        )

    def join(a: Providers, b: Providers) -> Providers:
        return a._replace(
            expires=jnp.maximum(a.expires, b.expires), cleaned=jnp.maximum(a.cleaned, b.cleaned)
        )

    return Records(init, announce, find, clean, join)
