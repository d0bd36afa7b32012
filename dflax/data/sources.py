"""Public image data sets: scikit-learn's digits, MNIST and Fashion-MNIST."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dflax import validation
from dflax.data import idx
from dflax.data.arrays import from_arrays
from dflax.data.dataset import Split


class IdxSource(NamedTuple):
    """Where a data set of IDX files lives and how to know it.

    Attributes:
      name: of the data set and of its folder in the cache.
      url: of the public folder that holds the files.
      sha256: by file name, the SHA-256 of the unzipped content.
      system_folders: where packages of the operating system put it.
      package: a sentence on such a package.
    """

    name: str
    url: str
    sha256: Mapping[str, str]
    system_folders: tuple[str, ...] = ()
    package: str = ""


FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST = IdxSource(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    dict(
        zip(
            FILES,
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            strict=True,
        )
    ),
)
FASHION_MNIST = IdxSource(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    dict(
        zip(
            FILES,
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            strict=True,
        )
    ),
    ("/usr/share/datasets/fashion-mnist",),
    "Debian and Ubuntu have it as the package dataset-fashion-mnist. ",
)


def digits(test_fraction: float = 0.2, seed: int = 0) -> Split:
    """scikit-learn's 1,797 handwritten digits, `[8, 8, 1]` in 0..16, decoded to [0, 1].

    Args:
      test_fraction: in (0, 1), the share of every class that is held out.
      seed: of that choice.

    Returns:
      The `Split`, 10 classes; by default 1,437 training and 360 test examples.

    Raises:
      ValueError: a fraction out of range.

    Examples:
      >>> import dflax as dx
      >>> data = dx.data.digits()
      >>> data.train.inputs.shape, len(data.test), data.classes
      ((1437, 8, 8, 1), 360, 10)
    """
    validation.probability("test_fraction", test_fraction, low_open=True, high_open=True)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return from_arrays(
        bunch.images.astype(np.uint8)[..., None],
        bunch.target,
        test_fraction=test_fraction,
        classes=10,
        scale=1 / 16,
        shift=0.0,
        name="digits",
        seed=seed,
    )


def mnist(folder: str | os.PathLike[str] | None = None, *, standardize: bool = False) -> Split:
    """MNIST: 60,000 + 10,000 handwritten digits, `[28, 28, 1]`, 10 classes.

    Args:
      folder: with the four IDX files, gzipped or not. Default: the first that has them of
        $DFLAX_DATA/mnist, $DFLAX_DATA and the user's cache; else they are downloaded.
      standardize: decode to mean 0 and variance 1 over the training set instead of to [0, 1].

    Returns:
      The `Split`, stored as uint8.

    Raises:
      FileNotFoundError: the files are in none of the folders and cannot be downloaded.
      ValueError: a file is damaged or belongs to another data set.
    """
    return _idx_split(MNIST, folder, standardize)


def fashion_mnist(
    folder: str | os.PathLike[str] | None = None, *, standardize: bool = False
) -> Split:
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, `[28, 28, 1]`, 10 classes.

    Args:
      folder: with the four IDX files, gzipped or not. Default: the first that has them of
        $DFLAX_DATA/fashion-mnist, $DFLAX_DATA, the folder of Debian's package
        dataset-fashion-mnist and the user's cache; else they are downloaded.
      standardize: decode to mean 0 and variance 1 over the training set instead of to [0, 1].

    Returns:
      The `Split`, stored as uint8.

    Raises:
      FileNotFoundError: the files are in none of the folders and cannot be downloaded.
      ValueError: a file is damaged or belongs to another data set.

    References:
      Xiao et al., Fashion-MNIST, arXiv 1708.07747.
    """
    return _idx_split(FASHION_MNIST, folder, standardize)


def decoding(
    images: UInt8[np.ndarray, "N *rest C"], standardize: bool
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The scale and shift that decode uint8 images to [0, 1] or to mean 0 and variance 1.

    With mean m and standard deviation s per channel of images / 255, standardised images are
    `images / (255 s) - m / s`. A constant channel is only centred.

    Args:
      images: `[N, ..., C]` of the training set.
      standardize: whether to go by mean and deviation.

    Returns:
      Scale and shift: scalars, or `[C]` if standardised.
    """
    if not standardize:
        return jnp.float32(1 / 255), jnp.float32(0.0)
    channels = images.shape[-1]
    levels = np.arange(256) / 255
    moments = []
    for channel in range(channels):
        # A histogram is exact and needs no copy of the images in a wider type.
        plane = images[..., channel].reshape(len(images), -1)
        counts = sum(np.bincount(rows.ravel(), minlength=256) for rows in _chunks(plane))
        mean = counts @ levels / plane.size
        moments.append((mean, np.sqrt(counts @ (levels - mean) ** 2 / plane.size)))
    mean, deviation = np.array(moments).T
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (
        jnp.asarray(1 / (255 * deviation), jnp.float32),
        jnp.asarray(-mean / deviation, jnp.float32),
    )


def _chunks(rows: np.ndarray, size: int = 4096) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _idx_split(
    source: IdxSource, folder: str | os.PathLike[str] | None, standardize: bool
) -> Split:
    validation.flag("standardize", standardize)
    if folder is not None:
        validation.instance("folder", folder, (str, os.PathLike))
    paths = _locate(source, folder)
    arrays = [
        idx.parse_idx(idx.verified(paths[name], source.sha256[name]), str(paths[name]))
        for name in FILES
    ]
    images, labels, test_images, test_labels = arrays
    scale, shift = decoding(images[..., None], standardize)
    return from_arrays(
        images[..., None],
        labels,
        test=(test_images[..., None], test_labels),
        classes=10,
        scale=scale,
        shift=shift,
        name=source.name,
    )


def _locate(source: IdxSource, folder: str | os.PathLike[str] | None) -> dict[str, Path]:
    """The paths of a source's files, after a download if they are on no folder of this machine."""
    remedy = (
        f"Its files are {', '.join(f'{name}.gz' for name in FILES)}, to be had from {source.url}. "
        f"{source.package}dflax.data.digits() needs no files."
    )
    if folder is not None:
        paths = idx.find([Path(folder).expanduser()], FILES)
        if paths is None:
            raise FileNotFoundError(
                f"folder must hold the four files of {source.name}, got {str(folder)!r}. {remedy}"
            )
        return paths
    named = os.environ.get("DFLAX_DATA")
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dflax" / source.name
    )
    own = [Path(named).expanduser() / source.name, Path(named).expanduser()] if named else []
    folders = [*own, *map(Path, source.system_folders), cache]
    paths = idx.find(folders, FILES)
    if paths is not None:
        return paths
    try:
        return idx.download(source.url, own[0] if own else cache, source.sha256)
    except OSError as error:
        raise FileNotFoundError(
            f"{source.name} is in none of {', '.join(map(str, folders))}, and its download failed "
            f"({error}). Set DFLAX_DATA to a folder that has it, or pass folder=. {remedy}"
        ) from error
