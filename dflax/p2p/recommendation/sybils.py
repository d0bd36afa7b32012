"""Sybil attacks on recommendations: identities that an attacker makes up, and items that they praise."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dflax import validation
from dflax.p2p.recommendation.view import View, view


def praised_by_sybils(
    known: View,
    attackers: Int[np.ndarray, " k"],
    attack: str,
    *,
    sybils: int,
    items: int = 3,
    attacker_liking: float = 0.2,
    sybil_liking: float = 0.1,
) -> View:
    """A view to which each attacker has added Sybils and items of its own; on the host.

    An attacker loses its trust in others. With a the attacker and s_1, ..., s_n its Sybils it states

        "linear":    a -> s_1 -> s_2 -> ... -> s_n                       trust 500
        "cycle":     a <-> s_j, for each j                               trust 100
        "parallel":  a -> s_j, for each j                                trust 100

    and all of them like the attacker's items.

    Args:
      known: see `View`; U users, M items.
      attackers: `[k]` distinct users.
      attack: one of the three.
      sybils: n >= 1, of each attacker.
      items: of each attacker, >= 1.
      attacker_liking: of each of them, > 0; beside what it likes otherwise.
      sybil_liking: > 0.

    Returns:
      A view of U + k n users and M + k `items` items; the new ones come last, attacker by attacker.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Madhwal and Pouwelse, Web3Recommend, arXiv 2307.01411.
    """
    validation.instance("known", known, View, "Make it with dflax.p2p.view.")
    users, count = known.affinity.shape
    who = validation.array(
        "attackers", attackers, kind="integer", shape=("k",), low=0, high=users - 1
    )
    if len(np.unique(who)) < len(who):
        raise ValueError(f"attackers must be distinct users, got {who.tolist()}.")
    validation.choice("attack", attack, ("linear", "cycle", "parallel"))
    validation.integer("sybils", sybils, low=1)
    validation.integer("items", items, low=1)
    validation.real("attacker_liking", attacker_liking, low=0.0, low_open=True, scalar=True)
    validation.real("sybil_liking", sybil_liking, low=0.0, low_open=True, scalar=True)
    more = len(who) * sybils
    affinity = np.pad(np.asarray(known.affinity), ((0, more), (0, len(who) * items)))
    trust = np.pad(np.asarray(known.trust), ((0, more), (0, more)))
    trust[who] = 0.0
    for place, attacker in enumerate(who):
        own = users + place * sybils + np.arange(sybils)
        praised = count + place * items + np.arange(items)
        affinity[attacker, praised] = attacker_liking
        affinity[own[:, None], praised] = sybil_liking
        if attack == "linear":
            chain = np.concatenate([[attacker], own])
            trust[chain[:-1], chain[1:]] = 500.0
        else:
            trust[attacker, own] = 100.0
            if attack == "cycle":
                trust[own, attacker] = 100.0
    return view(jnp.asarray(affinity), jnp.asarray(trust))
