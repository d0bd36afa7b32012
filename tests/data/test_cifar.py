import numpy as np
import pytest

from dflax import data
from dflax.data.cifar import read_cifar

GENERATOR = np.random.default_rng(0)


def write(path, images, *labels):
    """Records as the format's page describes them, one byte after the other."""
    with open(path, "wb") as file:
        for image, *numbers in zip(images, *labels, strict=True):
            file.write(bytes(numbers))
            for channel in range(3):
                for row in range(32):
                    file.write(image[row, :, channel].tobytes())


def some(count, classes):
    images = GENERATOR.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return images, GENERATOR.integers(0, classes, count)


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, inner):
    parts = [some(3, 10) for _ in range(6)]
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    (tmp_path / inner).mkdir(exist_ok=True)
    for name, (images, labels) in zip(names, parts, strict=True):
        write(tmp_path / inner / name, images, labels)
    split = data.cifar10(tmp_path)
    assert (split.classes, split.example.shape) == (10, (1, 32, 32, 3))
    np.testing.assert_array_equal(split.train.inputs, np.concatenate([p[0] for p in parts[:5]]))
    np.testing.assert_array_equal(split.labels, np.concatenate([p[1] for p in parts[:5]]))
    np.testing.assert_array_equal(split.test.inputs, parts[5][0])
    standard = data.cifar10(tmp_path, standardize=True).train
    decoded = standard.fetch(np.arange(15)).inputs
    np.testing.assert_allclose(np.mean(decoded, axis=(0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.var(decoded, axis=(0, 1, 2)), 1.0, atol=1e-5)


def test_cifar100_has_the_fine_labels(tmp_path):
    (images, fine), coarse = some(8, 100), GENERATOR.integers(0, 20, 8)
    write(tmp_path / "train.bin", images, coarse, fine)
    write(tmp_path / "test.bin", images[:2], coarse[:2], fine[:2])
    split = data.cifar100(tmp_path)
    assert split.classes == 100
    np.testing.assert_array_equal(split.train.inputs, images)
    np.testing.assert_array_equal(split.labels, fine)


def test_a_folder_may_begin_with_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    images, labels = some(2, 10)
    for number in range(1, 6):
        write(tmp_path / f"data_batch_{number}.bin", images, labels)
    write(tmp_path / "test_batch.bin", images, labels)
    np.testing.assert_array_equal(data.cifar10("~").test.labels, labels)
    np.testing.assert_array_equal(
        read_cifar("~/test_batch.bin", label_bytes=1, classes=10)[1], labels
    )


def test_absent_files_name_the_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin.*cs\.toronto\.edu"):
        data.cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train\.bin.*cs\.toronto\.edu"):
        data.cifar100(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "file.bin"
    write(path, *some(2, 10))
    whole = path.read_bytes()
    for raw in (whole[:-1], b""):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="whole number of records"):
            read_cifar(path, label_bytes=1, classes=10)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match=r"\[0, 10\), got 10"):
        read_cifar(path, label_bytes=1, classes=10)
    with pytest.raises(ValueError, match="label_bytes"):
        read_cifar(path, label_bytes=3, classes=10)


@pytest.mark.parametrize("load", [data.cifar10, data.cifar100])
def test_a_folder_is_a_path_and_a_switch_a_boolean(load, tmp_path):
    with pytest.raises(TypeError, match="folder must be of type str or PathLike, not int, got 3"):
        load(3)
    with pytest.raises(TypeError, match="standardize must be True or False, got 'no'"):
        load(tmp_path, standardize="no")
