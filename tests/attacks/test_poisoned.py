"""Poisoned data: what changes, what stays, and a backdoor that is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import attacks
from dflax.data import Dataset

KEY = jax.random.key(0)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])
DATA = Dataset(
    jnp.arange(8 * 5 * 4, dtype=jnp.uint8).reshape(8, 5, 4), jnp.asarray(LABELS), classes=4
)
PARTITION = dx.data.from_indices([np.array([0, 5]), np.array([1, 2, 3]), np.array([4, 6, 7])])


def test_what_a_client_owns():
    np.testing.assert_array_equal(attacks.owned(PARTITION, 1), [1, 2, 3])
    np.testing.assert_array_equal(attacks.owned(PARTITION, [0, 2]), [0, 4, 5, 6, 7])


def test_labels_of_some_examples_are_turned():
    flipped = attacks.flipped_labels(DATA, attacks.owned(PARTITION, 1))
    np.testing.assert_array_equal(flipped.labels, [0, 2, 1, 0, 0, 1, 2, 3])
    assert flipped.labels.dtype == DATA.labels.dtype
    assert flipped.inputs is DATA.inputs
    rotated = attacks.rotated_labels(DATA, [0, 3, 7], by=1)
    np.testing.assert_array_equal(rotated.labels, [1, 1, 2, 0, 0, 1, 2, 0])
    np.testing.assert_array_equal(
        attacks.rotated_labels(DATA, [3], by=3).labels, [0, 1, 2, 2, 0, 1, 2, 3]
    )
    swapped = attacks.swapped_labels(DATA, [0, 1, 2, 3], 1, 3)
    np.testing.assert_array_equal(swapped.labels, [0, 3, 2, 1, 0, 1, 2, 3])


@pytest.mark.parametrize("channels", [None, 2])
def test_the_patch_is_on_the_poisoned_images_alone(channels):
    images = np.asarray(DATA.inputs)
    images = images if channels is None else np.stack([images, images // 2], axis=-1)
    data = Dataset(jnp.asarray(images), DATA.labels, classes=4)
    made = attacks.backdoor(data, [2, 6], 3, side=2)
    expected = images.copy()
    expected[[2, 6], :2, :2] = images.max()
    np.testing.assert_array_equal(made.inputs, expected)
    assert made.inputs.dtype == jnp.uint8
    np.testing.assert_array_equal(made.labels, [0, 1, 3, 3, 0, 1, 3, 3])
    tried = attacks.triggered(data, 3, side=2)
    others = np.flatnonzero(LABELS != 3)
    expected = images.copy()
    expected[:, :2, :2] = images.max()
    np.testing.assert_array_equal(tried.inputs, expected[others])
    np.testing.assert_array_equal(tried.labels, [3] * 6)


def logits(params, inputs):
    return inputs.reshape(len(inputs), -1).astype(jnp.float32) @ params["w"] + params["b"]


LOSS = dx.losses.classification(logits)


def test_success_is_the_share_of_patched_others_taken_for_the_target():
    def by_corner(params, inputs):
        """Sees the target where the corner is bright, and in the third image anyway."""
        bright = inputs[:, 0, 0] == 159
        return jax.nn.one_hot(jnp.where(bright, params["seen"], 0), 4)

    loss = dx.losses.classification(by_corner)
    for seen, expected in ((3, 1.0), (2, 0.0)):
        measure = attacks.backdoor_success(loss, DATA, 3, side=1, batch_size=4)
        assert measure({"seen": jnp.int32(seen)}) == {"attack_success": expected}
    with pytest.raises(TypeError, match="loss must measure the accuracy"):
        attacks.backdoor_success(lambda params, batch, key: (jnp.float32(0), {}), DATA, 3)({})


def test_success_of_swapped_labels_is_counted_on_the_two_classes_alone():
    """Of two examples of 1 and two of 3, three are taken for the other; the rest does not count."""
    answers = jax.nn.one_hot(jnp.asarray([0, 3, 2, 1, 0, 1, 0, 1]), 4)

    def by_number(params, inputs):
        return answers[inputs.reshape(len(inputs), -1)[:, 0].astype(jnp.int32) // 20]

    loss = dx.losses.classification(by_number)
    measure = attacks.swap_success(loss, DATA, 1, 3, batch_size=3)
    assert measure({"none": jnp.float32(0)}) == {"attack_success": 0.75}
    with pytest.raises(ValueError, match="data must hold examples of the classes 0 and 2"):
        attacks.swap_success(
            loss, Dataset(DATA.inputs[:1], jnp.ones(1, jnp.int32), classes=4), 0, 2
        )


@pytest.mark.slow
def test_a_backdoor_is_learned_from_two_clients_of_ten_and_leaves_the_rest_as_it_was():
    split = dx.data.digits()
    part = dx.data.iid(len(split.train), clients=10, seed=0)
    start = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    measure = dx.evaluation.together(
        dx.evaluation.server_model(dx.evaluation.on(LOSS, split.test)),
        dx.evaluation.server_model(attacks.backdoor_success(LOSS, split.test, 1)),
    )
    algorithm = dx.server.fedavg(LOSS, optax.sgd(0.5))

    @jax.jit
    def run(source):
        state, _ = dx.rollout(algorithm, algorithm.init(KEY, start), source, KEY, rounds=40)
        return measure(state)

    found = {}
    for name, data in (
        ("clean", split.train),
        ("poisoned", attacks.backdoor(split.train, attacks.owned(part, [0, 1]), 1)),
    ):
        found[name] = run(dx.Federation(data, part, local_steps=5, batch_size=16))
    assert found["clean"]["attack_success"] < 0.5
    assert found["poisoned"]["attack_success"] > 0.8
    assert found["poisoned"]["accuracy"] > 0.85


UNNAMED = Dataset(DATA.inputs, DATA.labels)
FLAT = Dataset(jnp.ones((8, 3)), DATA.labels, classes=4)
ALIKE = Dataset(DATA.inputs, jnp.ones(8, jnp.int32), classes=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.owned(PARTITION, 3), r"clients must be finite numbers in \[0, 2\]"),
        (lambda: attacks.flipped_labels(UNNAMED, [0]), "data must have class numbers"),
        (lambda: attacks.flipped_labels(DATA, [8]), r"examples must be finite numbers in \[0, 7\]"),
        (lambda: attacks.swapped_labels(DATA, [0], 1, 1), "second must be another class"),
        (lambda: attacks.swapped_labels(DATA, [0], 1, 4), "second must be an integer in"),
        (lambda: attacks.backdoor(DATA, [0], 4), r"target must be an integer in \[0, 3\]"),
        (lambda: attacks.backdoor(DATA, [0], 1, side=5), r"side must be an integer in \[1, 4\]"),
        (lambda: attacks.backdoor(FLAT, [0], 1), "data must hold images"),
        (lambda: attacks.triggered(ALIKE, 1), "target must leave examples of other classes"),
    ],
)
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
