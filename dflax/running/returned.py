"""What the functions of a run hand in and return: checked by name while they are traced."""

from typing import Any

import jax
import numpy as np

from dflax import validation
from dflax.algorithm import Metrics, State

NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def verify_state(state: Any) -> None:
    """Refuse a state that is no pytree of arrays and numbers, such as None."""
    odd = _odd(state)
    if odd or not jax.tree.leaves(state):
        raise TypeError(
            f"state must be a pytree of arrays, got {type(state).__name__}"
            f"{f' with a leaf of type {odd}' if odd else ' without any'}. Make one "
            "with algorithm.init(key, params)."
        )
    validation.arrays("state", state)


def verified_step(returned: Any) -> tuple[State, Metrics]:
    """What `algorithm.step` returned, once it is a state and a dict of arrays.

    Raises:
      TypeError: it is something else.
    """
    wanted = "algorithm.step must return (state, metrics), metrics a dict of arrays"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"{wanted}, got {_kind(returned)}.")
    state, metrics = returned
    if not isinstance(metrics, dict):
        raise TypeError(f"{wanted}, got metrics of type {_kind(metrics)}. Return {{}} for none.")
    for part, tree in (("state", state), ("metrics", metrics)):
        if odd := _odd(tree):
            raise TypeError(f"{wanted}, got a leaf of type {odd} in the {part}.")
    return state, metrics


def verified_evaluation(returned: Any) -> Metrics:
    """What `evaluate` returned, once it is a tree of arrays.

    Raises:
      TypeError: it is something else, such as nothing.
    """
    wanted = 'evaluate must return a dict of arrays, such as {"accuracy": accuracy}'
    if returned is None:
        raise TypeError(f"{wanted}, got None. Does it lack a return?")
    if odd := _odd(returned):
        raise TypeError(f"{wanted}, got a leaf of type {odd}.")
    return returned


def verify_same_state(before: State, after: Any) -> None:
    """Refuse a round after which the state has another structure, shape or type.

    A number whose type is only a guess, as that of a Python scalar, may change it once.

    Raises:
      TypeError: naming a leaf.
    """
    given: dict[str, Any] = {name: jax.typeof(leaf) for name, leaf in _named(before)}
    made = dict(_named(after))
    for name in (*given, *made):
        old, new = given.get(name), made.get(name)
        if (
            old is None
            or new is None
            or old.shape != new.shape
            or (old.dtype != new.dtype and not old.weak_type)
        ):
            raise TypeError(
                f"algorithm.step must return a state like the one it is given, but state{name} is "
                f"{_shown(old)} before a round and {_shown(new)} after it. The state must come from "
                "this algorithm's init."
            )


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _odd(tree: Any) -> str:
    """Type and place of a leaf that is no array and no number, if there is one."""
    for name, leaf in _named(tree):
        if not isinstance(leaf, NUMBERS):
            return f"{type(leaf).__name__}{f' at {name}' if name else ''}"
    return ""


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


def _shown(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
