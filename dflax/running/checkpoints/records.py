"""A file of the same number of bytes per row, only appended to: costs the same however long a run."""

import hashlib
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dflax.running.checkpoints import untrusted
from dflax.running.checkpoints.untrusted import DamagedError

BLOCK = 1 << 20


class Records:
    """Rows of arrays on disk, one record a row: the values of all leaves, one after the other.

    Args:
      path: of the file.
      row: shapes and types of one row.
    """

    def __init__(self, path: pathlib.Path, row: PyTree):
        self._path, self._row = path, row
        self._length, self._hash = 0, hashlib.sha256()
        self._widths = [
            math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(row)
        ]

    def append(self, records: bytes) -> dict[str, Any]:
        """Writes encoded rows after those read or written before, and tells how to check them all."""
        with untrusted.plain_file(self._path, write=True) as file:
            # What lies beyond is from rounds that are done again after an interruption.
            file.truncate(self._length)
            file.seek(self._length)
            file.write(records)
            file.flush()
            os.fsync(file.fileno())
        self._length += len(records)
        self._hash.update(records)
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}

    def check(self, written: Any, rows: int | None = None) -> None:
        """Refuses a file whose first bytes are not those that `append` told of.

        Args:
          written: what `append` told, as it was read back.
          rows: how many rows they must be; None where any whole number will do.

        Raises:
          DamagedError: they were changed or cut short, or are not so many rows.
        """
        told = written if isinstance(written, dict) else {}
        length, name = told.get("bytes"), self._path.name
        if type(length) is not int or length < 0 or not isinstance(told.get("sha256"), str):
            raise DamagedError(f"it does not tell how much of {name} is its own")
        width = sum(self._widths)
        if length % max(width, 1) or (rows is not None and length != rows * width):
            raise DamagedError(f"it does not have the rows of its rounds in {name}")
        if self._hashed(length).hexdigest() != told["sha256"]:
            raise DamagedError(f"{name} was changed or cut short")

    def read(self, written: dict[str, Any]) -> PyTree[np.ndarray]:
        """The rows that were checked, leaves `[T, ...]`; the next ones go after them."""
        self._length, self._hash = written["bytes"], self._hashed(written["bytes"])
        leaves, structure = jax.tree.flatten(self._row)
        records = b""
        if self._length:
            with untrusted.plain_file(self._path) as file:
                records = file.read(self._length)
        table = np.frombuffer(records, np.uint8).reshape(-1, max(sum(self._widths), 1))
        columns = np.split(table, np.cumsum(self._widths)[:-1], axis=1)
        arrays = [
            np.ascontiguousarray(column).view(leaf.dtype).reshape(len(table), *leaf.shape)
            for column, leaf in zip(columns, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, arrays)

    def _hashed(self, length: int) -> Any:
        """Of the first bytes, of which there must be so many."""
        digest = hashlib.sha256()
        if not length:
            return digest
        try:
            with untrusted.plain_file(self._path) as file:
                while length and (block := file.read(min(length, BLOCK))):
                    digest.update(block)
                    length -= len(block)
        except FileNotFoundError:
            raise DamagedError(f"{self._path.name} is missing") from None
        if length:
            raise DamagedError(f"{self._path.name} was changed or cut short")
        return digest


def encode(rows: PyTree[np.ndarray]) -> bytes:
    """Leaves `[T, ...]` as T records."""
    columns = [
        np.ascontiguousarray(leaf.reshape(len(leaf), math.prod(leaf.shape[1:]))).view(np.uint8)
        for leaf in jax.tree.leaves(rows)
    ]
    return np.concatenate(columns, axis=1).tobytes()
