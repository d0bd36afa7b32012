"""How many instances prefill and how many decode: bottleneck analysis of a P/D group."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation

Real = float | Float[Array, "..."]


class Profile(NamedTuple):
    """What is profiled of a scenario at fixed batches. From `profile`.

    Attributes:
      prefill: T_p, s that a prompt occupies a slot of prefill.
      decode: T_d, s that an answer occupies a slot of decoding.
      prefill_slots: b_p, prompts that an instance computes at the same time.
      decode_slots: b_d, answers that an instance decodes at the same time.
    """

    prefill: Real
    decode: Real
    prefill_slots: Real
    decode_slots: Real


def profile(
    prefill: Real, decode: Real, *, prefill_slots: Real = 4, decode_slots: Real = 32
) -> Profile:
    """The profile of a scenario; every number may be an array, so that many are one.

    Args:
      prefill: T_p, s, > 0; traceable, as all others.
      decode: T_d, s, > 0.
      prefill_slots: b_p, >= 1.
      decode_slots: b_d, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("prefill", prefill, low=0.0, low_open=True)
    validation.real("decode", decode, low=0.0, low_open=True)
    validation.real("prefill_slots", prefill_slots, low=1)
    validation.real("decode_slots", decode_slots, low=1)
    numbers = (prefill, decode, prefill_slots, decode_slots)
    return Profile(*(n if np.ndim(n) == 0 else jnp.asarray(n) for n in numbers))


def group_throughput(of: Profile, prefill: Real, decode: Real) -> Float[Array, "..."]:
    """Requests a second that each instance of a group serves at most.

        Phi = min(n_p b_p / T_p, n_d b_d / T_d) / (n_p + n_d)

    Args:
      of: see `profile`.
      prefill: n_p >= 0; traceable.
      decode: n_d >= 0; traceable. One of the two must be > 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _profile(of)
    validation.real("prefill", prefill, low=0)
    validation.real("decode", decode, low=0)
    if not (validation.is_traced(prefill) or validation.is_traced(decode)) and np.any(
        np.add(prefill, decode) <= 0
    ):
        raise ValueError("decode must be > 0 where prefill is 0, got a group without instances.")
    prefill, decode = jnp.asarray(prefill), jnp.asarray(decode)
    served = jnp.minimum(
        prefill * of.prefill_slots / jnp.asarray(of.prefill),
        decode * of.decode_slots / jnp.asarray(of.decode),
    )
    return served / (prefill + decode)


def best_throughput(of: Profile) -> Float[Array, "..."]:
    """Phi at the best real ratio: 1 / (T_p / b_p + T_d / b_d).

    Raises:
      TypeError: naming the argument.
    """
    _profile(of)
    return 1.0 / (
        of.prefill / jnp.asarray(of.prefill_slots) + of.decode / jnp.asarray(of.decode_slots)
    )


def best_ratio(of: Profile) -> Float[Array, "..."]:
    """The best real n_p / n_d, where neither waits for the other: T_p b_d / (b_p T_d).

    Raises:
      TypeError: naming the argument.
    """
    _profile(of)
    return of.prefill * jnp.asarray(of.decode_slots) / (of.prefill_slots * jnp.asarray(of.decode))


def best_split(of: Profile, instances: int) -> Int[Array, "..."]:
    """The n_p in 1, ..., N - 1 with the largest Phi; the smallest of equals.

    Args:
      of: see `profile`.
      instances: N >= 2.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _profile(of)
    validation.integer("instances", instances, low=2, fix="One prefills and one decodes.")
    tried = [group_throughput(of, n, instances - n) for n in range(1, instances)]
    return 1 + jnp.argmax(jnp.stack(tried), axis=0)


def mixed_profile(profiles: Sequence[Profile], shares: Sequence[float]) -> Profile:
    """The profile of a pool that serves all scenarios: mean T_p and T_d, the slots of the first.

    Args:
      profiles: of the scenarios, with the same slots.
      shares: of the requests, >= 0 with a sum > 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    kinds, weights = _kinds(profiles, "shares", shares)
    weights = weights / weights.sum()
    first = kinds[0]
    for one in kinds[1:]:
        if (one.prefill_slots, one.decode_slots) != (first.prefill_slots, first.decode_slots):
            raise ValueError("profiles must have the same slots to be mixed.")
    return profile(
        float(sum(w * one.prefill for w, one in zip(weights, kinds, strict=True))),
        float(sum(w * one.decode for w, one in zip(weights, kinds, strict=True))),
        prefill_slots=first.prefill_slots,
        decode_slots=first.decode_slots,
    )


class Groups(NamedTuple):
    """A P/D group for every scenario, from `organised`.

    Attributes:
      prefill: instances that prefill, of every scenario.
      decode: instances that decode, of every scenario.
    """

    prefill: tuple[int, ...]
    decode: tuple[int, ...]


def organised(profiles: Sequence[Profile], rates: Sequence[float], instances: int) -> Groups:
    """Deals instances to scenarios so that the least supplied is supplied best, each at its best split.

    Maximises min_s Phi_s(N_s) N_s / rate_s over the N_s with sum N: the next instance always goes to
    the scenario with the smallest.

    Args:
      profiles: of the scenarios, plain numbers.
      rates: requests a second of each, > 0.
      instances: N >= 2 for each scenario.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    kinds, wanted = _kinds(profiles, "rates", rates, least=1e-12)
    validation.integer(
        "instances", instances, low=2 * len(kinds), fix="Every scenario needs two of them."
    )
    most = instances - 2 * (len(kinds) - 1)
    splits = np.array([[best_split(one, n) for n in range(2, most + 1)] for one in kinds])
    served = np.array(
        [
            [
                float(group_throughput(one, int(n_p), n - int(n_p))) * n
                for n, n_p in enumerate(row, start=2)
            ]
            for one, row in zip(kinds, splits, strict=True)
        ]
    )
    sizes = np.full(len(kinds), 2)
    for _ in range(instances - 2 * len(kinds)):
        supplied = served[np.arange(len(kinds)), sizes - 2] / wanted
        sizes[np.argmin(supplied)] += 1
    prefill = splits[np.arange(len(kinds)), sizes - 2]
    return Groups(tuple(prefill.tolist()), tuple((sizes - prefill).tolist()))


def _profile(of: Profile) -> None:
    validation.instance("of", of, Profile, "Make it with dflax.inference.profile.")


def _kinds(
    profiles: Sequence[Profile], name: str, numbers: Sequence[float], *, least: float = 0.0
) -> tuple[list[Profile], np.ndarray]:
    kinds = validation.sequence("profiles", profiles, "profiles")
    for one in kinds:
        validation.instance("profiles", one, Profile, "Make them with dflax.inference.profile.")
    given = validation.array(name, numbers, kind="real", shape=(len(kinds),), low=least)
    if not given.sum() > 0:
        raise ValueError(f"{name} must have a sum > 0, got {numbers}.")
    return kinds, given.astype(np.float64)
