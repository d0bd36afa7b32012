"""A file of the same number of bytes per round, only appended to: costs the same however long a run."""

import hashlib
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dflax.running.manifest import DamagedError


class Records:
    """Rows of arrays on disk, one record a round: the rows of all leaves, one after the other.

    Args:
      path: of the file.
      row: shapes and types of one row.
    """

    def __init__(self, path: pathlib.Path, row: PyTree):
        self._path, self._row = path, row
        self._length, self._hash = 0, hashlib.sha256()

    def append(self, records: bytes) -> dict[str, Any]:
        """Writes encoded rows after those read or written before, and tells how to check them all."""
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            # What lies beyond is from rounds that are done again after an interruption.
            file.truncate(self._length)
            file.seek(self._length)
            file.write(records)
            file.flush()
            os.fsync(file.fileno())
        self._length += len(records)
        self._hash.update(records)
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}

    def check(self, written: dict[str, Any]) -> None:
        """Refuses a file whose first bytes are not those that `append` told of.

        Raises:
          DamagedError: they were changed or cut short.
        """
        if hashlib.sha256(self._head(written["bytes"])).hexdigest() != written["sha256"]:
            raise DamagedError(f"{self._path.name} was changed or cut short")

    def read(self, written: dict[str, Any]) -> PyTree[np.ndarray]:
        """The rows up to where `append` told, leaves `[T, ...]`; the next ones go after them."""
        records = self._head(written["bytes"])
        self._length, self._hash = len(records), hashlib.sha256(records)
        leaves, structure = jax.tree.flatten(self._row)
        widths = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
        table = np.frombuffer(records, np.uint8).reshape(-1, sum(widths))
        columns = np.split(table, np.cumsum(widths)[:-1], axis=1)
        arrays = [
            np.ascontiguousarray(column).view(leaf.dtype).reshape(len(table), *leaf.shape)
            for column, leaf in zip(columns, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, arrays)

    def _head(self, length: int) -> bytes:
        if not self._path.is_file():
            return b""
        with self._path.open("rb") as file:
            return file.read(length)


def encode(rows: PyTree[np.ndarray]) -> bytes:
    """Leaves `[T, ...]` as T records."""
    columns = [
        np.ascontiguousarray(leaf.reshape(len(leaf), math.prod(leaf.shape[1:]))).view(np.uint8)
        for leaf in jax.tree.leaves(rows)
    ]
    return np.concatenate(columns, axis=1).tobytes()
