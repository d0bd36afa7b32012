"""What `pd_serve` takes: numbers of instances, groups, and what does not go together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dflax import validation
from dflax.inference.disaggregated.forwarding import Forwarding
from dflax.inference.disaggregated.organisation import Organisation
from dflax.inference.requests import Requests
from dflax.inference.stations import Memory, Placement, Work


def fits_context(rows: Requests, context: Any) -> Bool[Array, "..."]:
    """Whether prompt and answer are within the context."""
    if context is None:
        return jnp.ones(rows.prompt.shape, bool)
    return rows.prompt + rows.output <= context


def within_context(work: Work, context: Any) -> Work:
    """The work, of which requests that are too long take none."""
    if context is None:
        return work

    def done(memory: Memory, row: Requests, placed: Placement) -> Memory:
        return work.done(
            memory, row, placed._replace(served=placed.served & fits_context(row, context))
        )

    return Work(
        work.init,
        lambda memory, row: jnp.where(fits_context(row, context), work.durations(memory, row), 0.0),
        done,
    )


def mean_durations(work: Work, memory: Memory, rows: Requests) -> Float[Array, " n"]:
    """What each prefill takes, in the mean over instances."""
    return jax.vmap(lambda row: jnp.mean(work.durations(memory, row)))(rows)


def allowed_instances(rows: Requests, groups: Any, instances: int) -> Bool[Array, "n instances"]:
    """Which instances of decoding each request may go to."""
    if groups is None:
        return jnp.ones((len(rows.scenario), instances), bool)
    group = np.repeat(np.arange(len(groups[1])), groups[1])
    at = jnp.clip(rows.scenario, 0, len(groups[1]) - 1)
    return at[:, None] == group[None, :]


def groups_of(prefill: Any, decode: Any) -> tuple[list[int], list[int]] | None:
    """Instances of every scenario, or None for one pool."""
    several = [isinstance(value, (list, tuple)) for value in (prefill, decode)]
    if not any(several):
        for name, value in (("prefill", prefill), ("decode", decode)):
            fix = "A service needs instances of both kinds."
            validation.real(name, value, low=1, scalar=True, fix=fix)
            if not validation.is_traced(value) and value != int(value):
                raise ValueError(f"{name} must be a whole number of instances, got {value}.")
        return None
    if not all(several):
        raise ValueError(
            f"decode must be given as prefill is, got {validation.shown(decode)} beside "
            f"{validation.shown(prefill)}: one number each, or both for every scenario."
        )
    found = []
    for name, value in (("prefill", prefill), ("decode", decode)):
        counts = validation.sequence(name, value, "counts")
        for count in counts:
            validation.integer(name, count, low=1, fix="A group needs instances of both kinds.")
        found.append(counts)
    if len(found[0]) != len(found[1]):
        raise ValueError(
            f"decode must have as many groups as prefill, {len(found[0])}, got {len(found[1])}."
        )
    return found[0], found[1]


def room_for(
    prefill: Any, decode: Any, groups: Any, organisation: Organisation | None, most: Any
) -> tuple[int, int]:
    """Instances of both kinds that arrays have."""
    if most is not None:
        validation.integer("most", most, low=1)
    if groups is not None:
        return sum(groups[0]), sum(groups[1])
    traced = validation.is_traced(prefill) or validation.is_traced(decode)
    if traced and most is None:
        raise ValueError("most must say how many instances there can be where numbers are traced.")
    if organisation is not None:
        if traced:
            raise ValueError("organisation must start from numbers of instances that are static.")
        both = int(prefill) + int(decode) + organisation.spare
        return both, both
    if traced:
        return most, most
    for name, value in (("prefill", prefill), ("decode", decode)):
        if most is not None and value > most:
            raise ValueError(f"{name} must be at most `most`, {most}, got {value}.")
    return (int(prefill), int(decode)) if most is None else (most, most)


def refuse_incompatible(
    forwarding: Forwarding, groups: Any, organisation: Organisation | None, hold: bool
) -> None:
    """Refuses what does not go together."""
    exact = forwarding.on_demand and forwarding.retry is None
    if hold and not (exact and groups is None):
        raise ValueError(
            "hold_prefill must be False but for on_demand() without retry in one pool."
        )
    if forwarding.retry is not None and groups is not None:
        raise ValueError("forwarding must not retry where scenarios have groups of their own.")
    if organisation is not None and groups is not None:
        raise ValueError("organisation must be None with groups; give each a run of its own.")
