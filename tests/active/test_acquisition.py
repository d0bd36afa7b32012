"""What the acquisitions say of examples, against hand values and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import active, losses
from dflax.data import Dataset

KEY = jax.random.key(0)


def scores_of(params, inputs):
    """A model whose parameters are the class scores it gives, moved by its inputs."""
    return params + inputs


def query(local, server, counts, places=7):
    labelled = jnp.arange(places) < 2
    return active.Query(
        KEY,
        jnp.asarray(local, jnp.float32),
        jnp.asarray(server, jnp.float32),
        jnp.arange(places, dtype=jnp.int32),
        labelled,
        ~labelled & (jnp.arange(places) < places - 1),
        jnp.asarray(counts, jnp.int32),
    )


def data_of(inputs):
    return Dataset(jnp.asarray(inputs, jnp.float32), jnp.full(len(inputs), -1), classes=3)


RANDOM = np.random.default_rng(0).normal(size=(7, 3))


def softmax(values):
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


@pytest.mark.parametrize("acquisition", [active.ksas, active.divergence])
def test_the_sheets_hand_example(acquisition):
    """(1/2) (1/4) ln 3 with the counts (3, 1), and by symmetry without."""
    asked = query([0.0, np.log(3.0)], [0.0, 0.0], [3, 1])
    found = acquisition(scores_of, chunk=3)(asked, data_of(np.zeros((7, 2))))
    np.testing.assert_allclose(found, np.full(7, np.log(3.0) / 8), rtol=1e-5)


def test_ksas_against_numpy_and_its_laws():
    local, server, counts = (
        np.array([0.3, -1.0, 2.0]),
        np.array([1.0, 0.5, -0.5]),
        np.array([8, 2, 0]),
    )
    data = data_of(RANDOM)

    @jax.jit
    def ask(local, server, counts, strength):
        return active.ksas(scores_of, strength=strength, chunk=4)(
            query(local, server, counts), data
        )

    found = ask(local, server, counts, 1.0)
    p, q = (softmax((RANDOM + own)[:, :2] + np.log([8.0, 2.0])) for own in (local, server))
    expected = 0.5 * ((p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (found > 0).all()
    np.testing.assert_allclose(ask(server, local, counts, 1.0), found, rtol=1e-4)
    np.testing.assert_array_equal(ask(local, local, counts, 1.0), 0.0)
    # A class without labels does not count, whatever the models say of it.
    np.testing.assert_array_equal(ask(local + np.array([0, 0, 9.0]), server, counts, 1.0), found)
    plain = jax.jit(active.divergence(scores_of))(query(local, server, counts), data)
    np.testing.assert_allclose(ask(local, server, [4, 4, 4], 1.0), plain, rtol=1e-4)
    np.testing.assert_allclose(ask(local, server, [8, 2, 1], 0.0), plain, rtol=1e-4)
    assert np.abs(plain - found).max() > 0.01


@pytest.mark.parametrize("judge", list(active.Judge))
def test_entropy_and_margin_of_either_model(judge):
    own = {active.Judge.LOCAL: np.array([0.3, -1.0, 2.0]), active.Judge.SERVER: np.ones(3)}
    asked = query(own[active.Judge.LOCAL], own[active.Judge.SERVER], [1, 1, 1])
    law = softmax(RANDOM + own[judge])
    entropy = active.entropy(scores_of, judge=judge, chunk=2)(asked, data_of(RANDOM))
    np.testing.assert_allclose(entropy, -(law * np.log(law)).sum(1), rtol=1e-5)
    margin = active.margin(scores_of, judge=judge)(asked, data_of(RANDOM))
    ordered = np.sort(law, 1)
    np.testing.assert_allclose(margin, ordered[:, -2] - ordered[:, -1], rtol=1e-4, atol=1e-6)


def test_core_set_walks_to_the_farthest():
    """On a line: labelled at 0 and 1; then 10, then 5 (5 away from its centres), then 3, then 2."""
    line = np.array([[0.0], [1.0], [3.0], [5.0], [10.0], [2.0], [99.0]])
    asked = query([0.0], [0.0], [1, 1, 1])
    ask = jax.jit(lambda asked: active.core_set(scores_of, 3)(asked, data_of(line)))
    np.testing.assert_array_equal(ask(asked), [0, 0, 1, 2, 3, 0, 0])
    # More picks than examples: all are ranked, and nobody twice.
    ranked = active.core_set(scores_of, 9)(asked, data_of(line))
    np.testing.assert_array_equal(ranked[2:6], [7, 8, 9, 6])


def test_random_scores_differ_by_key():
    asked = query([0.0], [0.0], [1])
    one = active.random()(asked, data_of(RANDOM))
    other = active.random()(asked._replace(key=jax.random.key(1)), data_of(RANDOM))
    assert np.unique(np.concatenate([one, other])).size == 14


def test_classes_without_labels_have_no_gradient():
    counts = jnp.asarray([5, 0, 5])
    data = data_of(RANDOM).fetch(jnp.arange(7))._replace(labels=jnp.asarray([0, 2, 2, 0, 0, 2, 0]))
    value = jax.jit(jax.value_and_grad(losses.balanced(scores_of, counts), has_aux=True))
    (loss, _), gradient = value(jnp.asarray([0.1, 0.2, 0.3]), data, None)
    (other, _), _ = value(jnp.asarray([0.1, 70.0, 0.3]), data, None)
    assert gradient[1] == 0
    assert loss == other
    law = softmax((RANDOM + np.array([0.1, 0.2, 0.3]))[:, [0, 2]])
    expected = -np.log(law[np.arange(7), np.asarray(data.labels) // 2]).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Equal counts: plain cross-entropy.
    alike, _ = losses.balanced(scores_of, jnp.full(3, 4))(jnp.zeros(3), data, None)
    plain, _ = losses.classification(scores_of)(jnp.zeros(3), data, None)
    np.testing.assert_allclose(alike, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: active.ksas(scores_of, strength=-1.0), "strength must be"),
        (lambda: active.entropy(scores_of, judge="server"), "judge must be of type Judge"),
        (lambda: active.margin(scores_of, chunk=0), "chunk must be"),
        (lambda: active.core_set(scores_of, 0), "picks must be"),
        (lambda: losses.balanced(scores_of, [-1, 2]), "counts must be"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
