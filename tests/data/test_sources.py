import gzip
import hashlib
import struct
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest

from dflax import data
from dflax.data import idx, sources

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (12, 28, 28)).astype(np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)
ARRAYS = (IMAGES, LABELS, IMAGES[:4], LABELS[:4])


def encoded(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(idx.DTYPES[code]).tobytes()


CONTENT = {name: encoded(array) for name, array in zip(sources.FILES, ARRAYS, strict=True)}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the public files, and a machine that has none of them anywhere else."""
    public = tmp_path / "public"
    public.mkdir()
    for name, raw in CONTENT.items():
        (public / f"{name}.gz").write_bytes(gzip.compress(raw))
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in CONTENT.items()}
    source = sources.IdxSource("fashion-mnist", public.as_uri(), sums, package="Package.")
    monkeypatch.setattr(sources, "FASHION_MNIST", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DFLAX_DATA", raising=False)
    return public


@pytest.mark.parametrize("code", sorted(idx.DTYPES))
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trips(tmp_path, code, zipped):
    array = np.arange(24).reshape(2, 3, 4).astype(idx.DTYPES[code])
    raw = encoded(array, code)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    read = data.read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (CONTENT[sources.FILES[0]][:-1], "must hold 9424 bytes.*got 9423"),
        (CONTENT[sources.FILES[0]] + b"x", "got 9425"),
        (CONTENT[sources.FILES[0]][:10], "within its header"),
        (b"\x89PNG....", "89 50 4e 47"),
        (b"\x00\x00\x07\x01", "start as an IDX file"),
        (b"", "start as an IDX file"),
        (gzip.compress(CONTENT[sources.FILES[0]], mtime=0)[:-20], "whole gzip file"),
        (gzip.compress(b"0" * 100, mtime=0)[:15] + b"\xff" * 20, "whole gzip file"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, raw, message):
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        data.read_idx(path)


def check(split):
    assert split.train.inputs.dtype == jnp.uint8
    np.testing.assert_array_equal(split.train.inputs, IMAGES[..., None])
    np.testing.assert_array_equal(split.train.labels, LABELS)
    np.testing.assert_array_equal(split.test.inputs, IMAGES[:4, ..., None])
    assert (split.classes, split.name) == (10, "fashion-mnist")


def test_given_folder_is_read(home):
    check(data.fashion_mnist(home))


def test_unzipped_files_are_read(home, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, raw in CONTENT.items():
        (plain / name).write_bytes(raw)
    check(data.fashion_mnist(plain))


def test_a_folder_may_begin_with_the_users_home(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", None)
    check(data.fashion_mnist("~/public"))
    file = f"~/public/{sources.FILES[1]}.gz"
    np.testing.assert_array_equal(data.read_idx(file), LABELS)
    monkeypatch.setenv("DFLAX_DATA", "~/public")
    check(data.fashion_mnist())


def test_the_cache_may_begin_with_the_users_home(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    check(data.fashion_mnist())
    assert (tmp_path / "elsewhere" / "dflax" / "fashion-mnist").is_dir()


@pytest.mark.parametrize("inner", ["", "fashion-mnist"])
def test_environment_names_a_folder(home, tmp_path, monkeypatch, inner):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    folder = tmp_path / "named" / inner
    folder.parent.mkdir(exist_ok=True)
    home.rename(folder) if inner == "" else (tmp_path / "named").mkdir(exist_ok=True)
    if inner:
        home.rename(folder)
    monkeypatch.setenv("DFLAX_DATA", str(tmp_path / "named"))
    check(data.fashion_mnist())


def test_absent_files_are_downloaded_once(home, tmp_path, monkeypatch):
    check(data.fashion_mnist())
    cached = tmp_path / "cache" / "dflax" / "fashion-mnist"
    assert sorted(p.name for p in cached.iterdir()) == sorted(f"{n}.gz" for n in sources.FILES)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    check(data.fashion_mnist())


def test_downloads_go_to_the_folder_that_the_environment_names(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DFLAX_DATA", str(tmp_path / "named"))
    check(data.fashion_mnist())
    assert len(list((tmp_path / "named" / "fashion-mnist").iterdir())) == 4


def test_a_wrong_download_leaves_nothing_behind(home, tmp_path):
    (home / f"{sources.FILES[0]}.gz").write_bytes(gzip.compress(encoded(IMAGES[::-1])))
    with pytest.raises(ValueError, match="SHA-256"):
        data.fashion_mnist()
    assert list((tmp_path / "cache" / "dflax" / "fashion-mnist").iterdir()) == []


def test_no_network_tells_where_to_get_the_files(home, tmp_path):
    (home / f"{sources.FILES[2]}.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.fashion_mnist()
    for part in (str(tmp_path / "cache"), home.as_uri(), "Package.", "digits()", "DFLAX_DATA"):
        assert part in str(error.value)


def test_other_content_is_refused(home):
    (home / f"{sources.FILES[1]}.gz").write_bytes(gzip.compress(encoded(LABELS[::-1])))
    with pytest.raises(ValueError, match=r"train-labels.*SHA-256"):
        data.fashion_mnist(home)


def test_an_empty_folder_is_refused(home, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must hold the four files"):
        data.fashion_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="ossci"):
        data.mnist(tmp_path)
    with pytest.raises(TypeError, match="standardize"):
        data.fashion_mnist(home, standardize=1)


def test_standardized_images_have_mean_zero_and_variance_one():
    images = GENERATOR.integers(0, 256, (50, 5, 5, 3)).astype(np.uint8)
    images[..., 2] = 7
    scale, shift = sources.decoding(images, standardize=True)
    decoded = images * np.asarray(scale) + np.asarray(shift)
    np.testing.assert_allclose(decoded.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(decoded.var((0, 1, 2)), [1.0, 1.0, 0.0], atol=1e-5)


def test_digits():
    split = data.digits()
    assert (len(split.train), len(split.test), split.classes) == (1437, 360, 10)
    assert split.train.inputs.dtype == jnp.uint8
    assert split.example.shape == (1, 8, 8, 1)
    assert split.example.dtype == jnp.float32
    every = split.train.fetch(jnp.arange(1437)).inputs
    assert (float(every.min()), float(every.max())) == (0.0, 1.0)
    shares = [np.bincount(part.labels) / len(part) for part in split]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.003)
    assert not np.array_equal(split.labels, data.digits(seed=1).labels)


def test_fashion_mnist_as_debian_has_it():
    folder = sources.FASHION_MNIST.system_folders[0]
    if idx.find([sources.Path(folder)], sources.FILES) is None:
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    split = data.fashion_mnist(folder, standardize=True)
    assert split.train.inputs.shape == (60_000, 28, 28, 1)
    assert split.test.inputs.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(split.labels), 6_000)
    # The mean and deviation that everyone uses for it: 0.2860, 0.3530.
    np.testing.assert_allclose(split.train.scale, 1 / (255 * 0.3530), rtol=1e-3)
    np.testing.assert_allclose(split.train.shift, -0.2860 / 0.3530, rtol=1e-3)


@pytest.mark.parametrize("load", [data.mnist, data.fashion_mnist])
def test_a_folder_is_a_path_and_a_switch_a_boolean(load):
    with pytest.raises(TypeError, match="folder must be of type str or PathLike, not int, got 3"):
        load(3)
    with pytest.raises(TypeError, match="standardize must be True or False, got 'no'"):
        load(standardize="no")
