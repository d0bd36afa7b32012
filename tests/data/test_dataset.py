import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.data import Dataset, Split, from_arrays, split

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(30) % 3


def test_fetch_decodes():
    data = Dataset(jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.float32(2.0), jnp.float32(-1.0))
    batch = data.fetch(jnp.array([3, 3, 7]))
    assert batch.inputs.dtype == jnp.float32
    np.testing.assert_array_equal(batch.inputs, IMAGES[[3, 3, 7]] * 2.0 - 1.0)
    np.testing.assert_array_equal(batch.labels, [0, 0, 1])
    assert batch.mask is None
    assert len(data) == 30
    assert data.example.shape == (1, 4, 4, 1)


def test_fetch_without_scale_hands_out_what_is_stored():
    data = Dataset({"a": jnp.asarray(IMAGES), "b": jnp.arange(30)}, jnp.asarray(LABELS))
    inputs = data.fetch(jnp.array([5])).inputs
    assert inputs["a"].dtype == jnp.uint8
    assert inputs["b"].tolist() == [5]


def test_transform_runs_only_with_a_key():
    def flip(batch, key):
        return batch._replace(inputs=-batch.inputs + jax.random.uniform(key))

    data = Dataset(jnp.ones((3, 2)), jnp.zeros(3), transform=flip)
    np.testing.assert_array_equal(data.fetch(jnp.array([0])).inputs, 1.0)
    key = jax.random.key(0)
    changed = data.fetch(jnp.array([0]), key).inputs
    np.testing.assert_array_equal(changed, -1.0 + jax.random.uniform(key) * jnp.ones((1, 2)))


def test_a_dataset_is_an_argument_of_compiled_programs():
    data = from_arrays(IMAGES, LABELS, test_fraction=0.2, scale=1 / 255).train
    fetch = jax.jit(lambda data, indices: data.fetch(indices))
    np.testing.assert_allclose(
        fetch(data, jnp.array([1])).inputs, data.fetch(jnp.array([1])).inputs, rtol=1e-6
    )
    text = fetch.lower(data, jnp.array([1])).as_text()
    assert "tensor<24x4x4x1xui8>" in text.split("\n")[1] + text.split("\n")[0]
    assert dataclasses.asdict(data)["classes"] == 3


def test_split_shortcuts():
    both = from_arrays(IMAGES, LABELS, test=(IMAGES[:5], LABELS[:5]), name="small")
    assert (both.classes, both.name, len(both.train), len(both.test)) == (3, "small", 30, 5)
    assert both.labels is both.train.labels
    np.testing.assert_array_equal(both.example, IMAGES[:1])
    assert both.train.inputs.dtype == jnp.uint8
    assert both.train.labels.dtype == jnp.int32


@pytest.mark.parametrize("fraction", [0.1, 0.33, 0.5, 0.9])
def test_split_is_stratified_and_a_partition(fraction):
    counts = np.array([50, 31, 7, 2])
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), counts))
    data = Dataset(jnp.arange(90), jnp.asarray(labels), classes=4)
    train, test = split(data, fraction, seed=3)
    assert len(test) == int(np.ceil(fraction * 90 - 1e-9))
    both = np.concatenate([train.inputs, test.inputs])
    np.testing.assert_array_equal(np.sort(both), np.arange(90))
    np.testing.assert_array_equal(test.labels, labels[np.asarray(test.inputs)])
    assert np.all(np.abs(np.bincount(test.labels, minlength=4) - fraction * counts) < 1)
    again, other = split(data, fraction, seed=3), split(data, fraction, seed=4)
    np.testing.assert_array_equal(test.inputs, again.test.inputs)
    assert not np.array_equal(test.inputs, other.test.inputs)


def test_split_of_targets_is_random():
    both = from_arrays({"x": np.zeros((10, 2))}, np.arange(10.0), test_fraction=0.3)
    assert isinstance(both, Split)
    assert both.classes is None
    assert (len(both.train), len(both.test)) == (7, 3)
    assert both.train.inputs["x"].shape == (7, 2)
    assert both.train.labels.dtype == jnp.float32


def test_from_arrays_keeps_sequence_labels_without_classes():
    tokens = np.arange(20).reshape(5, 4)
    both = from_arrays(tokens, tokens, test_fraction=0.2)
    assert both.classes is None
    assert both.labels.shape == (4, 4)
    assert from_arrays(tokens, tokens, test_fraction=0.2, classes=20).classes == 20


def test_booleans_are_two_classes():
    assert from_arrays(np.eye(4), np.array([True, False] * 2), test_fraction=0.5).classes == 2


@pytest.mark.parametrize(
    ("inputs", "labels", "options", "error", "message"),
    [
        (IMAGES, LABELS, {"test": (IMAGES, LABELS), "test_fraction": 0.1}, ValueError, "both"),
        (IMAGES[:7], LABELS, {"test_fraction": 0.1}, ValueError, "labels.*7, got 30"),
        (IMAGES, LABELS - 1, {"test_fraction": 0.1}, ValueError, "got -1 to 1"),
        (IMAGES, LABELS, {"test_fraction": 0.1, "classes": 2}, ValueError, r"\[0, 2\), got 0 to 2"),
        (IMAGES, LABELS * 1.0, {"test_fraction": 0.1, "classes": 3}, TypeError, "integers"),
        (np.full((30, 2), np.nan), LABELS, {"test_fraction": 0.1}, ValueError, "60 NaN"),
        (IMAGES, np.full(30, np.inf), {"test_fraction": 0.1}, ValueError, "labels must be finite"),
        (np.full((30, 1), 1e300), LABELS, {"test_fraction": 0.1}, ValueError, "finite"),
        (np.full((30, 1), 2**40), LABELS, {"test_fraction": 0.1}, ValueError, "32-bit"),
        (np.array(["a"] * 30), LABELS, {"test_fraction": 0.1}, TypeError, "real numbers"),
        (
            IMAGES,
            ["cat", "dog", "cat"] * 10,
            {},
            TypeError,
            r"labels .*unique\(names, return_inverse",
        ),
        (
            IMAGES,
            np.array([None] * 30),
            {},
            TypeError,
            "labels must hold real numbers.*dtype object",
        ),
        (
            IMAGES,
            [[1, 2], [3]],
            {},
            ValueError,
            "labels must be an array with rows of equal lengths",
        ),
        (
            IMAGES.tolist(),
            LABELS,
            {},
            TypeError,
            "inputs must be an array.*list of 30 rows.*asarray",
        ),
        (tuple(range(30)), LABELS, {}, TypeError, "inputs must be an array.*tuple of 30 rows"),
        ([*IMAGES] * 3, LABELS, {}, TypeError, "list of 90. If each is an example.*numpy.stack"),
        (
            IMAGES,
            LABELS,
            {"test": (IMAGES.tolist(), LABELS)},
            TypeError,
            r"test\[0\] must be an array",
        ),
        (IMAGES, LABELS, {"test_fraction": 1.0}, ValueError, "test_fraction"),
        (IMAGES[:2], LABELS[:2], {"test_fraction": 0.9}, ValueError, "both parts"),
        (IMAGES, LABELS, {"test_fraction": 0.1, "shift": 1.0}, ValueError, "shift needs scale"),
        (IMAGES, LABELS, {"test_fraction": 0.1, "scale": np.nan}, ValueError, "scale"),
        (IMAGES, LABELS, {"test": (IMAGES[:, :2], LABELS)}, ValueError, "same structure"),
        (IMAGES, LABELS, {"test": (IMAGES, LABELS * 1.0)}, ValueError, "same structure"),
        (IMAGES[:0], LABELS[:0], {"test_fraction": 0.1}, ValueError, "at least one"),
        ({}, LABELS, {"test_fraction": 0.1}, ValueError, "inputs"),
    ],
)
def test_from_arrays_refuses(inputs, labels, options, error, message):
    with pytest.raises(error, match=message):
        from_arrays(inputs, labels, **options)


def test_the_message_about_a_list_of_rows_is_short():
    rows = np.zeros((2000, 64)).tolist()
    with pytest.raises(TypeError) as refused:
        from_arrays(rows, np.zeros(2000, int))
    assert len(str(refused.value)) < 200


def test_without_a_test_set_it_is_one_data_set():
    data = from_arrays(IMAGES, LABELS, scale=1 / 255, name="own")
    assert isinstance(data, Dataset)
    assert (len(data), data.classes, data.name) == (30, 3, "own")
    np.testing.assert_array_equal(data.labels, LABELS)
    assert dx.Federation(data, dx.data.iid(LABELS, 3), batch_size=2, local_steps=1).data is data


def test_several_inputs_may_come_as_a_list_of_arrays():
    data = from_arrays([IMAGES, LABELS], LABELS)
    assert [leaf.shape for leaf in data.inputs] == [(30, 4, 4, 1), (30,)]


def test_64_bits_stay_where_jax_can_hold_them():
    values = np.random.default_rng(5).random((30, 2))
    with jax.enable_x64(True):
        data = from_arrays({"x": values, "id": np.arange(30) + 2**40}, values[:, 0])
        np.testing.assert_array_equal(data.inputs["x"], values)
        np.testing.assert_array_equal(data.inputs["id"], np.arange(30) + 2**40)
        np.testing.assert_array_equal(data.labels, values[:, 0])
        decoded = from_arrays(values, LABELS, scale=1 / 3, shift=0.1)
        assert decoded.labels.dtype == jnp.int32
        np.testing.assert_array_equal(decoded.fetch(jnp.arange(30)).inputs, values * (1 / 3) + 0.1)
        images = from_arrays(IMAGES, LABELS, scale=1 / 255)
        assert images.fetch(jnp.arange(2)).inputs.dtype == jnp.float32
        with pytest.raises(
            ValueError, match="labels must fit 32-bit integers, got 0 to 1099511627776"
        ):
            from_arrays(values[:2], np.array([0, 2**40]))
    assert from_arrays(values, LABELS, scale=1 / 3).inputs.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": 3}, r"test must be a pair \(inputs, labels\), got int.*test_fraction"),
        ({"test": (IMAGES,)}, "test must be a pair"),
        ({"test_fraction": 0.2, "scale": np.ones((7, 1))}, r"scale must .* shape \(4, 4, 1\)"),
        ({"test_fraction": 0.2, "scale": np.ones((30, 4, 4, 1))}, "scale must broadcast"),
        ({"test_fraction": 0.2, "scale": 1.0, "shift": np.ones((7, 1))}, "shift must broadcast"),
    ],
)
def test_from_arrays_refuses_what_does_not_fit_the_inputs(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_arrays(IMAGES, LABELS, **options)


def test_split_takes_data_sets_only():
    for data in (from_arrays(IMAGES, LABELS, test_fraction=0.2), np.ones(3)):
        with pytest.raises(
            TypeError, match=r"(?s)data must be of type Dataset.*Of a Split pass \.train"
        ):
            split(data, 0.2)
