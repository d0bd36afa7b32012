"""Models as blocks of bytes under one content id, for transports between processes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
from jaxtyping import Array, PyTree

from dflax import validation

BLOCK_BYTES = 262_144


class ModelBlocks(NamedTuple):
    """A model in blocks.

    Attributes:
      content_id: SHA-256 of the manifest, in hexadecimal digits; it stands for the whole model.
      blocks: every block by its own content id; the manifest is one of them.
    """

    content_id: str
    blocks: dict[str, bytes]


def content_id(block: bytes) -> str:
    """SHA-256 of a block, in hexadecimal digits.

    Args:
      block: bytes.

    Raises:
      TypeError: no bytes.
    """
    _bytes("block", block)
    return hashlib.sha256(block).hexdigest()


def model_blocks(params: PyTree[Array], *, block_bytes: int = BLOCK_BYTES) -> ModelBlocks:
    """A model as blocks of at most so many bytes, and a manifest that lists them.

    The manifest has names, types and shapes of the arrays and the ids of the blocks in their order. So
    the same model always has the same content id, and equal parts of two models are the same blocks.

    Args:
      params: nested dictionaries of arrays, with names without "/".
      block_bytes: >= 1.

    Returns:
      `ModelBlocks`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("block_bytes", block_bytes, low=1)
    validation.instance("params", params, dict, 'Pass model.init(key, inputs)["params"].')
    validation.model("params", params)
    flat = flax.traverse_util.flatten_dict(params)
    if any(not isinstance(part, str) or "/" in part for path in flat for part in path):
        raise ValueError(f'params must have names without "/", got {validation.shown(list(flat))}.')
    arrays, pieces = [], []
    for path in sorted(flat):
        # What is written is the same on every machine.
        array = np.asarray(flat[path])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        raw = array.tobytes()
        own = [raw[at : at + block_bytes] for at in range(0, len(raw), block_bytes)]
        pieces += own
        arrays.append(
            ["/".join(path), str(array.dtype), list(array.shape), [content_id(b) for b in own]]
        )
    manifest = json.dumps(arrays, separators=(",", ":")).encode()
    whole = content_id(manifest)
    return ModelBlocks(whole, {content_id(piece): piece for piece in pieces} | {whole: manifest})


def wanted_blocks(manifest: bytes) -> list[str]:
    """The ids of all blocks that a manifest lists, each once.

    Args:
      manifest: the block whose id is the model's content id.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    return list(dict.fromkeys(one for *_, ids in _arrays(manifest) for one in ids))


def model_of(content: str, blocks: Mapping[str, bytes]) -> dict[str, Any]:
    """The model of a content id, every block checked against its own.

    Args:
      content: the model's content id.
      blocks: by id, at least the manifest and all that it lists.

    Returns:
      Nested dictionaries of NumPy arrays.

    Raises:
      TypeError, ValueError: naming the argument: a block that is missing or whose hash does not fit.
    """
    validation.text("content", content)
    validation.instance("blocks", blocks, Mapping, "Bytes by their content ids.")

    def block(name: str) -> bytes:
        found = blocks.get(name)
        if found is None:
            raise ValueError(f"blocks must hold content {name[:80]}, got {len(blocks)} others.")
        _bytes("blocks", found)
        if content_id(found) != name:
            raise ValueError(
                f"blocks must have the hashes that they are named by, got {content_id(found)[:16]} for "
                f"content {name[:16]}. Drop that block and fetch it from another peer."
            )
        return found

    flat = {}
    for path, kind, shape, ids in _arrays(block(content)):
        raw = b"".join(block(one) for one in ids)
        # A copy, since NumPy's views of bytes are read-only.
        flat[tuple(path.split("/"))] = np.frombuffer(raw, np.dtype(kind)).reshape(shape).copy()
    return flax.traverse_util.unflatten_dict(flat)


def _arrays(manifest: bytes) -> list[tuple[str, str, list[int], list[str]]]:
    _bytes("manifest", manifest)
    try:
        return [(path, kind, shape, ids) for path, kind, shape, ids in json.loads(manifest)]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"manifest must list names, types, shapes and blocks, got {validation.shown(manifest)}."
        ) from error


def _bytes(name: str, value: Any) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes, got {validation.shown(value)}.")
