"""CIFAR-10 and CIFAR-100 from their binary files."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from dflax import validation
from dflax.data.arrays import from_arrays
from dflax.data.dataset import Split
from dflax.data.sources import decoding

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 3 * 32 * 32


def cifar10(folder: str | os.PathLike[str], *, standardize: bool = False) -> Split:
    """CIFAR-10: 50,000 + 10,000 colour images, `[32, 32, 3]`, 10 classes.

    Args:
      folder: with data_batch_1.bin to data_batch_5.bin and test_batch.bin (the "binary version"), or
        the folder around cifar-10-batches-bin.
      standardize: decode to mean 0 and variance 1 per channel over the training set instead of to
        [0, 1].

    Returns:
      The `Split`, stored as uint8.

    Raises:
      FileNotFoundError: a file is absent.
      ValueError: a file is truncated or holds labels out of range.
    """
    validation.flag("standardize", standardize)
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    folder = _folder(folder, "cifar-10-batches-bin", [*train, "test_batch.bin"], "CIFAR-10")
    parts = [read_cifar(folder / name, label_bytes=1, classes=10) for name in train]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    test = read_cifar(folder / "test_batch.bin", label_bytes=1, classes=10)
    return _split(images, labels, test, 10, standardize, "cifar-10")


def cifar100(folder: str | os.PathLike[str], *, standardize: bool = False) -> Split:
    """CIFAR-100: 50,000 + 10,000 colour images, `[32, 32, 3]`, 100 (fine) classes.

    Args:
      folder: with train.bin and test.bin (the "binary version"), or the folder around
        cifar-100-binary.
      standardize: decode to mean 0 and variance 1 per channel over the training set instead of to
        [0, 1].

    Returns:
      The `Split`, stored as uint8.

    Raises:
      FileNotFoundError: a file is absent.
      ValueError: a file is truncated or holds labels out of range.
    """
    validation.flag("standardize", standardize)
    folder = _folder(folder, "cifar-100-binary", ["train.bin", "test.bin"], "CIFAR-100")
    images, labels = read_cifar(folder / "train.bin", label_bytes=2, classes=100)
    test = read_cifar(folder / "test.bin", label_bytes=2, classes=100)
    return _split(images, labels, test, 100, standardize, "cifar-100")


def read_cifar(
    path: str | os.PathLike[str], *, label_bytes: int, classes: int
) -> tuple[UInt8[np.ndarray, "N 32 32 3"], Int[np.ndarray, " N"]]:
    """The images and labels of one binary CIFAR file.

    A record is `label_bytes` bytes, of which the last is the label, and 3072 bytes: the red, green
    and blue plane, each 32 rows of 32.

    Args:
      path: of the file.
      label_bytes: 1 for CIFAR-10, 2 (coarse, fine) for CIFAR-100.
      classes: number of classes.

    Returns:
      Images `[N, 32, 32, 3]` uint8 and labels `[N]` int32.

    Raises:
      ValueError: no whole number of records, or a label out of range.
    """
    validation.integer("label_bytes", label_bytes, low=1, high=2)
    raw = np.fromfile(Path(path).expanduser(), np.uint8)
    record = label_bytes + PIXELS
    if len(raw) == 0 or len(raw) % record:
        raise ValueError(
            f"{path} must hold a whole number of records of {record} bytes, got {len(raw)} bytes. It "
            f"is truncated or of another format: take the binary version from {PAGE}."
        )
    rows = raw.reshape(-1, record)
    labels = rows[:, label_bytes - 1].astype(np.int32)
    if labels.max() >= classes:
        raise ValueError(
            f"{path} must hold labels in [0, {classes}), got {labels.max()}. It is damaged or of "
            f"another format: take the binary version from {PAGE}."
        )
    planes = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _folder(folder: str | os.PathLike[str], inner: str, names: list[str], title: str) -> Path:
    validation.instance("folder", folder, (str, os.PathLike))
    outer = Path(folder).expanduser()
    for candidate in (outer, outer / inner):
        if all((candidate / name).is_file() for name in names):
            return candidate
    raise FileNotFoundError(
        f"folder must hold {', '.join(names)} of {title}, got {str(folder)!r}. Unpack its binary "
        f"version from {PAGE} there; dflax.data.digits() needs no files."
    )


def _split(
    images: UInt8[np.ndarray, "N 32 32 3"],
    labels: Int[np.ndarray, " N"],
    test: tuple[UInt8[np.ndarray, "M 32 32 3"], Int[np.ndarray, " M"]],
    classes: int,
    standardize: bool,
    name: str,
) -> Split:
    scale, shift = decoding(images, standardize)
    return from_arrays(
        images, labels, test=test, classes=classes, scale=scale, shift=shift, name=name
    )
