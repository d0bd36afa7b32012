"""IDX, the file format of MNIST and its relatives, and the search for its files."""

import gzip
import hashlib
import os
import shutil
import struct
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dflax import validation

DTYPES: Mapping[int, np.dtype] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
TIMEOUT_SECONDS = 30.0


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, gzipped or not (told by its content, not by its name).

    The format: two zero bytes, a type code, the number r of axes, r big-endian 32-bit lengths, and
    the entries in row-major order.

    Args:
      path: of the file.

    Returns:
      The array `[...]` in the machine's byte order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: damaged gzip, no IDX header, or more or fewer bytes than the header promises.
    """
    validation.path("path", path)
    return parse_idx(content(path), str(path))


def parse_idx(raw: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an unzipped IDX file; `name` is for the messages of errors."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        raise ValueError(
            f"{name} must start as an IDX file does (00 00, type, axes), got {raw[:4].hex(' ')!r}. "
            "It is another kind of file, or a download that went wrong: delete it and try again."
        )
    dtype, axes = DTYPES[raw[2]], raw[3]
    start = 4 + 4 * axes
    if len(raw) < start:
        raise ValueError(f"{name} ends within its header, after {len(raw)} of {start} bytes.")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(raw) != expected:
        raise ValueError(
            f"{name} must hold {expected} bytes for shape {shape}, got {len(raw)}. It is truncated "
            "or damaged: delete it and try again."
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, unzipped if it is gzipped; a ValueError if the gzip stream is damaged."""
    raw = Path(path).expanduser().read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole gzip file, got a truncated or damaged one ({error}). "
            "Delete it and try again."
        ) from error


def verified(path: str | os.PathLike[str], sha256: str) -> bytes:
    """The unzipped bytes of a file; a ValueError unless they have this SHA-256.

    The sum is that of the unzipped content, so that it holds for the original archive, for one that
    a distribution has compressed again and for an unpacked file alike.
    """
    raw = content(path)
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} must have unzipped content of SHA-256 {sha256}, got {found}. It is damaged or "
            "from another data set: delete it and try again, or read files of your own with "
            "dflax.data.read_idx and dflax.data.from_arrays."
        )
    return raw


def find(folders: Sequence[Path], names: Sequence[str]) -> dict[str, Path] | None:
    """The files `names`, each with or without ".gz", in the first folder that has them all."""
    for folder in folders:
        found = {
            name: path
            for name in names
            for path in (folder / name, folder / f"{name}.gz")
            if path.is_file()
        }
        if len(found) == len(names):
            return found
    return None


def download(url: str, folder: Path, sha256: Mapping[str, str]) -> dict[str, Path]:
    """Download `url/name.gz` for every name into a folder, each checked and then put there at once.

    A file appears in the folder only when it is complete and correct, also if two processes download
    at the same time or one is killed.

    Args:
      url: of the public folder, without a closing slash.
      folder: where the files go; made if it is absent.
      sha256: name of each file without ".gz", and the SHA-256 of its unzipped content.

    Returns:
      The path of every name.

    Raises:
      OSError: no network, or the folder cannot be written.
      ValueError: what came is not the file that was asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.gz" for name in sha256}
    for name, path in paths.items():
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
        try:
            with (
                os.fdopen(handle, "wb") as target,
                urllib.request.urlopen(f"{url}/{name}.gz", timeout=TIMEOUT_SECONDS) as source,
            ):
                shutil.copyfileobj(source, target)
            verified(temporary, sha256[name])
            # mkstemp's files are private, but a data folder is often shared.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return paths
