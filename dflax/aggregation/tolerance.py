"""How many arbitrary messages a rule is told to expect, and how many it can bear."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dflax import validation


def require_faulty(faulty: int | Int[Array, ""]) -> None:
    """Refuse a number of arbitrary messages that is no integer >= 0; a traced one passes.

    Raises:
      TypeError, ValueError: naming `faulty`.
    """
    if not validation.is_traced(faulty):
        validation.integer("faulty", faulty, low=0)
    elif np.ndim(faulty) or not jnp.issubdtype(faulty.dtype, jnp.integer):  # type: ignore[union-attr]
        raise TypeError(f"faulty must be one integer >= 0, got {faulty}.")


def require_messages(
    rule: str, faulty: int | Int[Array, ""], messages: int, *, factor: int = 2, more: int = 1
) -> None:
    """Refuse fewer than `factor f + more` messages; of a traced f nothing is known yet.

    Raises:
      ValueError: naming `faulty`, with the largest one that will do.
    """
    if validation.is_traced(faulty) or messages >= factor * faulty + more:
        return
    most = (messages - more) // factor
    allowed = f"at most {most} for {messages} messages" if most >= 0 else "given more messages"
    raise ValueError(
        f"faulty must be {allowed}, got {faulty}. {rule} needs n >= {factor} f + {more} messages: more "
        "clients in a round, or a smaller faulty."
    )


def tolerated(
    faulty: int | Int[Array, ""], messages: Int[Array, ""], *, factor: int = 2, more: int = 1
) -> Int[Array, ""]:
    """The arbitrary messages that are borne where only m arrived: `min(f, (m - more) // factor)`."""
    return jnp.clip((messages - more) // factor, 0, jnp.asarray(faulty, jnp.int32))
