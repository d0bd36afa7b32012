"""The arrays of a state in a folder, as orbax writes them; checked before they are read."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

from dflax.running.checkpoints.untrusted import DamagedError

# Where in a checkpoint the state lies, and the best state so far beside it.
STATE, BEST = "state", "best"
ROUND = "round"


class Arrays:
    """Writes and reads the leaves of states, numbered in the order of the tree."""

    def __init__(self) -> None:
        # Takes long to import, and only runs with checkpoints need it.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(self, folder: pathlib.Path, state: PyTree[Array], done: int) -> None:
        """Starts to write; returns once `state` may be donated."""
        # Orbax refuses trees without arrays, and arrays without elements.
        leaves = {
            _name(index): jax.random.key_data(leaf) if _is_key(leaf) else leaf
            for index, leaf in enumerate(jax.tree.leaves(state))
            if leaf.size
        }
        arrays = self._ocp.args.PyTreeSave({ROUND: np.int32(done), **leaves})
        self._checkpointer.save(folder, args=arrays)

    def wait(self) -> None:
        """Returns once everything is on the disk."""
        self._checkpointer.wait_until_finished()

    def restore(
        self,
        folder: pathlib.Path,
        state: PyTree[Array],
        places: Sequence[Sharding | None],
        done: int,
    ) -> PyTree[Array]:
        """The stored arrays in the tree of `state`.

        Args:
          folder: of one state.
          state: of the same shapes and types.
          places: the sharding of each leaf; None for a new array on the default device.
          done: the round that must be stored with them.

        Raises:
          DamagedError: there are no such arrays.
        """
        ocp = self._ocp
        leaves, structure = jax.tree.flatten(state)
        named = {_name(index): pair for index, pair in enumerate(zip(leaves, places, strict=True))}
        wanted = {name: _stored_as(leaf) for name, (leaf, _) in named.items() if leaf.size}
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        arguments = {
            name: as_numpy if named[name][1] is None else ocp.ArrayRestoreArgs(sharding=place)
            for name, place in ((name, named[name][1]) for name in wanted)
        }
        asked = ocp.args.PyTreeRestore(
            item=dict.fromkeys([*arguments, ROUND], 0), restore_args={**arguments, ROUND: as_numpy}
        )
        try:
            about = self._checkpointer.metadata(folder).item_metadata
            verify_shapes(
                getattr(about, "tree", None), {**wanted, ROUND: jax.ShapeDtypeStruct((), np.int32)}
            )
            stored = self._checkpointer.restore(folder, args=asked)
        except DamagedError:
            raise
        # Whatever tensorstore, its codecs and orbax make of bytes that are not what they wrote.
        except Exception as error:
            raise DamagedError(f"its arrays cannot be read: {_first_line(error)}") from None
        if int(stored[ROUND]) != done:
            raise DamagedError(f"its arrays are those of round {int(stored[ROUND])}")

        def array(name: str, leaf: Any, place: Sharding | None) -> Array:
            if not leaf.size:
                return jax.device_put(jnp.copy(leaf), place)
            # NumPy arrays are copied, so that their memory is JAX's own and can be donated.
            numbers = jnp.array(stored[name]) if place is None else stored[name]
            if _is_key(leaf):
                return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
            # Setting keeps a weak type, which could otherwise change what the next round computes.
            if not leaf.weak_type or leaf.dtype != numbers.dtype:
                return numbers
            return (leaf if place is None else jax.device_put(leaf, place)).at[...].set(numbers)

        return jax.tree.unflatten(structure, [array(name, *pair) for name, pair in named.items()])

    def close(self) -> None:
        """Ends its threads."""
        self._checkpointer.close()


def verify_shapes(stored: Any, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Refuses arrays other than those wanted before one of them is read.

    Args:
      stored: what orbax tells about each array; shapes there are what the files claim.
      wanted: shape and type of each.

    Raises:
      DamagedError: an array is missing, or has another shape or type, or blocks larger than itself.
    """
    found = stored if isinstance(stored, dict) else {}
    for name, leaf in wanted.items():
        about = found.get(name)
        shape = tuple(getattr(about, "shape", ()) or ())
        dtype = getattr(about, "dtype", None)
        # A number of a type that is only a guess may have got another one in the first round.
        same = dtype is not None and (leaf.weak_type or np.dtype(dtype) == leaf.dtype)
        if not same or shape != leaf.shape:
            told = "missing" if about is None else f"{dtype}{list(shape)}"
            raise DamagedError(
                f"its array {name} should be {leaf.dtype}{list(leaf.shape)}, and is {told}"
            )
        if math.prod(block_of(about)) > max(math.prod(shape), 1):
            raise DamagedError(f"its array {name} has blocks larger than itself")


def block_of(about: Any) -> tuple[int, ...]:
    """The shape of what is read at a time of an array, as its files claim."""
    storage = getattr(about, "storage", None)
    return tuple(getattr(storage, "chunk_shape", None) or getattr(about, "shape", None) or ())


def _stored_as(leaf: Array) -> Any:
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(index: int) -> str:
    return f"{index:05d}"
