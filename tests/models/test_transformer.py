"""Transformers: attention against NumPy, causality, tied heads, dropout, errors."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax.models import MoE, TransformerClassifier, TransformerLM, attention

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


def unrolled_and_stacked(depth=3, **options):
    """The same language model without a loop over its blocks, and with one."""
    sizes = {"length": 6, "width": 8, "depth": depth, "heads": 2, **options}
    apart, looped = TransformerLM(11, **sizes), TransformerLM(11, scan_blocks=True, **sizes)
    tokens = jax.random.randint(KEY, (2, 6), 0, 11)
    params = jax.jit(apart.init)(KEY, tokens)["params"]
    blocks = [params[f"Block_{place}"] for place in range(depth)]
    others = {name: leaf for name, leaf in params.items() if not name.startswith("Block_")}
    stacked = others | {"blocks": jax.tree.map(lambda *rows: jnp.stack(rows), *blocks)}
    return (apart, params), (looped, stacked), tokens


@pytest.mark.slow
def test_a_loop_over_blocks_changes_no_logit_and_no_gradient():
    (apart, params), (looped, stacked), tokens = unrolled_and_stacked()
    shapes = jax.eval_shape(looped.init, KEY, tokens)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, stacked)
    drawn = jax.jit(looped.init)(KEY, tokens)["params"]["blocks"]["Dense_0"]["kernel"]
    assert np.abs(np.diff(drawn, axis=0)).max() > 0.1

    def value_and_gradient(model):
        def total(params):
            logits = model.apply({"params": params}, tokens)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    (_, logits), slope = value_and_gradient(apart)(params)
    (_, found), slopes = value_and_gradient(looped)(stacked)
    np.testing.assert_allclose(found, logits, atol=1e-5)
    for place in range(3):
        one = jax.tree.map(operator.itemgetter(place), slopes["blocks"])
        assert_trees_close(one, slope[f"Block_{place}"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(slopes["positions"], slope["positions"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_loop_over_blocks_drops_other_entries_in_each():
    _, (_, stacked), tokens = unrolled_and_stacked()
    model = TransformerLM(11, length=6, width=8, depth=3, heads=2, dropout=0.5, scan_blocks=True)
    # Blocks that add nothing to 0 but what dropout leaves of a bias of 1, doubled.
    alike = jax.tree.map(jnp.zeros_like, stacked)
    alike["blocks"]["Dense_1"]["bias"] += 1.0
    alike["LayerNorm_0"]["scale"] += 1.0
    apply = jax.jit(
        lambda key: model.apply(
            {"params": alike}, tokens, train=True, rngs={"dropout": key}, capture_intermediates=True
        )
    )
    _, state = apply(jax.random.key(1))
    (into_head,) = state["intermediates"]["LayerNorm_0"]["__call__"]
    # Of a position's entries one mask for all blocks would leave two values, 0 and 6.
    assert max(len(np.unique(np.round(row, 3))) for row in into_head.reshape(-1, 8)) > 2


@pytest.mark.slow
def test_stacked_blocks_are_shared_by_two_devices():
    _, (model, stacked), _ = unrolled_and_stacked(depth=2)
    data = dx.data.Dataset(jax.random.randint(KEY, (16, 6), 0, 11), jnp.zeros((16, 6), jnp.int32))
    source = dx.Federation(
        data, dx.data.from_indices(np.arange(16).reshape(8, 2)), local_steps=2, batch_size=2
    )
    loss = dx.losses.language_modelling(model.apply)
    algorithm = dx.server.fedavg(loss, optax.sgd(0.5))
    ends = []
    for mesh in (None, dx.client_mesh(model=2)):
        state = algorithm.init(KEY, stacked)
        if mesh is not None:
            kernel = dx.mesh.state_sharding(state, mesh).server.params["blocks"]["Dense_0"][
                "kernel"
            ]
            assert kernel.spec == jax.P(None, None, "model")
        ends.append(dx.run(algorithm, state, source, rounds=2, key=KEY, mesh=mesh)[0].server.params)
    assert_trees_close(*ends, rtol=1e-3, atol=1e-5)
    assert (
        np.abs(
            ends[0]["blocks"]["Dense_0"]["kernel"] - stacked["blocks"]["Dense_0"]["kernel"]
        ).max()
        > 1e-4
    )


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
        (
            lambda: TransformerLM(5, mixture=MoE(2), scan_blocks=True),
            "scan_blocks must be False with a mixture",
        ),
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
