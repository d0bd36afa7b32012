"""Merkle trees over arrays: one hash that stands for a model."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dflax import validation

# A leaf cannot be passed off as an inner node, nor the other way round.
LEAF, NODE = b"\x00", b"\x01"
DIGEST = 32


def leaf_hash(value: Any) -> bytes:
    """SHA-256 of an array's type, shape and content, or of bytes."""
    if isinstance(value, (bytes, bytearray)):
        return hashlib.sha256(LEAF + b"bytes" + bytes(value)).digest()
    array = np.asarray(value)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(LEAF + head + array.tobytes()).digest()


def merkle_root(leaves: Sequence[Any]) -> bytes:
    """The root of the Merkle tree over arrays or bytes: 32 bytes that no other leaves are known to have.

    A layer of odd length hands its last hash on as it is. Leaves and inner nodes are hashed with
    different prefixes.

    Args:
      leaves: at least one, arrays or bytes, in order.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Merkle, A digital signature based on a conventional encryption function, CRYPTO 1987.
    """
    layer = _hashes(leaves)
    while len(layer) > 1:
        layer = _above(layer)
    return layer[0]


def merkle_path(leaves: Sequence[Any], place: int) -> list[tuple[bool, bytes]]:
    """The hashes beside a leaf's way up the tree, and whether each is on the left.

    Args:
      leaves: as for `merkle_root`.
      place: of the leaf.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    layer = _hashes(leaves)
    validation.integer("place", place, low=0, high=len(layer) - 1)
    path = []
    while len(layer) > 1:
        beside = place ^ 1
        if beside < len(layer):
            path.append((beside < place, layer[beside]))
        layer, place = _above(layer), place // 2
    return path


def merkle_member(root: bytes, leaf: Any, path: Sequence[tuple[bool, bytes]]) -> bool:
    """Whether a leaf is in the tree of that root, by the path of `merkle_path`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_root("root", root)
    require_leaf("leaf", leaf)
    found = leaf_hash(leaf)
    for step in validation.sequence("path", path, "pairs (on the left, hash)", least=0):
        if not (isinstance(step, tuple) and len(step) == 2 and isinstance(step[1], bytes)):
            raise TypeError(
                f"path must be a list of pairs (on the left, hash), got {validation.shown(step)}."
            )
        left, beside = step
        pair = beside + found if left else found + beside
        found = hashlib.sha256(NODE + pair).digest()
    return found == root


def require_root(name: str, root: Any) -> None:
    """Refuse what is no root of a Merkle tree."""
    if not isinstance(root, bytes) or len(root) != DIGEST:
        raise TypeError(
            f"{name} must be {DIGEST} bytes, got {validation.shown(root)}. Make it with merkle_root."
        )


def require_leaf(name: str, leaf: Any) -> None:
    """Refuse what is neither an array of numbers nor bytes."""
    if isinstance(leaf, (bytes, bytearray)):
        return
    array = np.asarray(leaf) if hasattr(leaf, "dtype") else None
    if array is None or array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must be an array of numbers or bytes, got {validation.shown(leaf)}."
        )


def _hashes(leaves: Sequence[Any]) -> list[bytes]:
    found = validation.sequence("leaves", leaves, "arrays or bytes")
    for place, leaf in enumerate(found):
        require_leaf(f"leaves[{place}]", leaf)
    return [leaf_hash(leaf) for leaf in found]


def _above(layer: list[bytes]) -> list[bytes]:
    pairs = [layer[place : place + 2] for place in range(0, len(layer), 2)]
    return [
        pair[0] if len(pair) == 1 else hashlib.sha256(NODE + pair[0] + pair[1]).digest()
        for pair in pairs
    ]
