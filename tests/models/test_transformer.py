"""Transformers: attention against NumPy, causality, tied heads, dropout, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.models import TransformerClassifier, TransformerLM, attention

KEY = jax.random.key(0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal):
    query, key, value = jax.random.normal(KEY, (3, 2, 5, 2, 4))
    scores = np.einsum("blhd,bmhd->bhlm", *(np.asarray(a, np.float64) for a in (query, key))) / 2
    if causal:
        scores = np.where(np.arange(5) <= np.arange(5)[:, None], scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhlm,bmhd->blhd", weights, np.asarray(value, np.float64))
    np.testing.assert_allclose(attention(query, key, value, causal=causal), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_later_tokens_never_change_earlier_logits(tied):
    module = TransformerLM(11, length=8, width=8, depth=2, heads=2, tied=tied)
    tokens = jax.random.randint(KEY, (3, 8), 0, 11)
    variables = jax.jit(module.init)(KEY, tokens)
    assert ("head" in variables["params"]) != tied
    apply = jax.jit(module.apply)
    logits = apply(variables, tokens)
    assert logits.shape == (3, 8, 11)
    for t in (0, 3, 7):
        changed = apply(variables, tokens.at[:, t].set((tokens[:, t] + 1) % 11))
        np.testing.assert_array_equal(changed[:, :t], logits[:, :t])
        assert np.abs(changed[:, t] - logits[:, t]).min() > 0
    # Shorter sequences are prefixes.
    np.testing.assert_allclose(apply(variables, tokens[:, :5]), logits[:, :5], atol=1e-5)


def test_the_classifier_of_tokens_knows_their_order():
    module = TransformerClassifier(3, vocabulary=7, width=8, depth=1, heads=2)
    tokens = jnp.array([[1, 2, 3, 4], [4, 3, 2, 1]])
    variables = jax.jit(module.init)(KEY, tokens)
    apply = jax.jit(module.apply)
    logits = apply(variables, tokens)
    assert logits.shape == (2, 3)
    assert np.abs(logits[0] - logits[1]).max() > 1e-6
    unordered = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "positions" in str(path) else leaf, variables
    )
    same = apply(unordered, tokens)
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)


def test_patches_are_the_pixels_of_a_square():
    module = TransformerClassifier(3, patch=2, width=4, depth=1, heads=1)
    images = jax.random.normal(KEY, (2, 4, 6, 3))
    variables = jax.jit(module.init)(KEY, images)
    kernel = variables["params"]["embedding"]["kernel"]
    assert kernel.shape == (12, 4)
    assert variables["params"]["positions"].shape == (6, 4)
    _, state = jax.jit(lambda v: module.apply(v, images, capture_intermediates=True))(variables)
    (embedded,) = state["intermediates"]["embedding"]["__call__"]
    second_row_third_column = np.asarray(images[:, 2:4, 4:6]).reshape(2, 12)
    np.testing.assert_allclose(embedded[:, 5], second_row_third_column @ kernel, atol=1e-5)


def test_dropout_is_for_training_only():
    module = TransformerClassifier(3, vocabulary=7, width=8, depth=1, heads=2, dropout=0.5)
    tokens = jnp.array([[1, 2, 3, 4]])
    variables = jax.jit(module.init)(KEY, tokens)
    still = jax.jit(module.apply)
    calm = [still(variables, tokens) for _ in range(2)]
    np.testing.assert_array_equal(*calm)

    @jax.jit
    def moved(key):
        return module.apply(variables, tokens, train=True, rngs={"dropout": key})

    drawn = [moved(jax.random.key(i)) for i in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0


@pytest.mark.slow
def test_a_client_axis_changes_nothing():
    module = TransformerLM(11, length=4, width=8, depth=1, heads=2)
    tokens = jax.random.randint(KEY, (3, 2, 4), 0, 11)
    init = jax.jit(jax.vmap(lambda key: module.init(key, tokens[0])))
    variables = init(jax.random.split(KEY, 3))

    def gradient(variables, tokens):
        return jax.grad(lambda v: jnp.sum(module.apply(v, tokens) ** 2))(variables)

    together = jax.jit(jax.vmap(gradient))(variables, tokens)
    apart = jax.jit(lambda v, t: jax.lax.map(lambda a: gradient(*a), (v, t)))(variables, tokens)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), together, apart
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerClassifier(3), "exactly one of patch"),
        (lambda: TransformerClassifier(3, patch=2, vocabulary=4), "exactly one of patch"),
        (lambda: TransformerClassifier(3, patch=0), "patch must be an integer >= 1, got 0"),
        (lambda: TransformerLM(0), "vocabulary must be an integer >= 1, got 0"),
        (lambda: TransformerLM(5, heads=5), "heads must divide width = 64, got 5"),
        (lambda: TransformerLM(5, depth=0), "depth must be an integer >= 1, got 0"),
        (lambda: TransformerLM(5, dropout=1.0), r"dropout must be .* got 1\.0"),
        (
            lambda: TransformerLM(5, length=4).init(KEY, jnp.zeros((1, 5), jnp.int32)),
            "L <= length = 4",
        ),
        (
            lambda: TransformerClassifier(3, patch=3).init(KEY, jnp.ones((1, 4, 6, 1))),
            "whose sides patch = 3 divides",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_longer_input_than_at_initialisation_is_refused():
    module = TransformerClassifier(3, vocabulary=5, width=8, heads=2, depth=1)
    variables = jax.jit(module.init)(KEY, jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(Exception, match="positions"):
        module.apply(variables, jnp.zeros((1, 5), jnp.int32))


@pytest.mark.parametrize(
    "module", [TransformerLM(5), TransformerClassifier(3, vocabulary=5)], ids=["lm", "classifier"]
)
def test_tokens_that_are_no_integers_are_refused(module):
    with pytest.raises(TypeError, match=r"must be token numbers \(integers\), got float32"):
        module.init(KEY, jnp.ones((1, 4)))
