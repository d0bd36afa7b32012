import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import models
from dflax.models.split.cost import products

KEY = jax.random.key(0)
MODEL = models.TransformerClassifier(classes=3, patch=2, width=8, depth=3, heads=2)
IMAGES = jax.random.normal(KEY, (5, 4, 6, 1))
LABELS = jnp.array([0, 1, 2, 1, 0])
PARAMS = jax.jit(MODEL.init)(KEY, IMAGES)["params"]
TOKENS, PROMPTS, WIDTH = 6, 2, 8
SPLIT = models.split_transformer(MODEL, (1, 1), prompts=PROMPTS)
PARTS = SPLIT.divide(PARAMS, KEY)


def of_tail(split):
    loss = dx.losses.classification(split.tail)
    return lambda tail, seen: loss(tail, dx.data.Batch(seen, LABELS), None)


@pytest.mark.some(2)
@pytest.mark.parametrize("cut", [(1, 0), (0, 1), (1, 2), (3, 0)])
def test_without_prompts_the_parts_are_the_model(cut):
    split = models.split_transformer(MODEL, cut)
    parts = split.divide(PARAMS, KEY)
    ours = jax.jit(lambda parts, x: split.apply(parts, x))(parts, IMAGES)
    np.testing.assert_allclose(ours, MODEL.apply({"params": PARAMS}, IMAGES), atol=1e-6)
    assert len(jax.tree.leaves(parts)) == len(jax.tree.leaves(PARAMS))


@pytest.mark.slow
def test_tokens_are_looked_up():
    model = models.TransformerClassifier(classes=3, vocabulary=7, width=8, depth=2, heads=2)
    tokens = jnp.array([[0, 3, 6, 2]])
    params = model.init(KEY, tokens)["params"]
    split = models.split_transformer(model)
    ours = split.apply(split.divide(params, KEY), tokens)
    np.testing.assert_allclose(ours, model.apply({"params": params}, tokens), atol=1e-6)


def test_what_is_exchanged_gives_the_gradient_of_the_composite():
    """For prompts and tail; and one vector-Jacobian product on each side, by hand."""

    @jax.jit
    def both(parts):
        def whole(trained):
            return dx.losses.classification(SPLIT.apply)(
                (parts[0], trained), dx.data.Batch(IMAGES, LABELS), None
            )[0]

        gradient, _, sent = models.split_gradient(SPLIT, of_tail(SPLIT), parts, IMAGES)
        return gradient, sent, jax.grad(whole)(parts[1])

    gradient, sent, expected = both(PARTS)
    assert_trees_close(gradient, expected, atol=1e-6)
    assert np.abs(gradient.prompts).max() > 1e-5
    shape = (5, PROMPTS + TOKENS, WIDTH)
    assert [leaf.shape for leaf in sent] == [shape] * 4
    # What the server answers is linear in what it was sent.
    body = jax.jit(lambda g: jax.vjp(lambda a: SPLIT.body(PARTS[0].body, a), sent[0])[1](g)[0])
    np.testing.assert_allclose(body(2 * sent.gradients_up), 2 * sent.gradients_down, atol=1e-7)


@pytest.mark.slow
def test_without_prompts_no_gradient_travels():
    split = models.split_transformer(MODEL)
    gradient, _, sent = models.split_gradient(
        split, of_tail(split), split.divide(PARAMS, KEY), IMAGES
    )
    assert sent.gradients_up is None
    assert sent.gradients_down is None
    assert gradient.prompts == ()


def test_prompts_reach_the_scores_and_shortcut_through_attention_alone():
    def slope(split, way):
        frozen, trained = split.divide(PARAMS, KEY)

        def total(p):
            return jnp.sum(jnp.square(way((frozen, trained._replace(prompts=p)), IMAGES)))

        return np.abs(jax.jit(jax.grad(total))(trained.prompts)).max()

    assert slope(SPLIT, SPLIT.shortcut) > 1e-6
    with pytest.warns(models.DegenerateCut, match=r"cut = \(0, 0\)"):
        degenerate = models.split_transformer(MODEL, (0, 0), prompts=PROMPTS)
    assert slope(degenerate, degenerate.shortcut) == 0
    assert slope(degenerate, degenerate.apply) > 1e-6


def test_the_shortcut_sees_the_inputs():
    one = SPLIT.divide(PARAMS, KEY)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(SPLIT.shortcut(one, x)[:, 0])))(IMAGES)
    assert (np.abs(slope).max((1, 2, 3)) > 1e-6).all()


def test_prompts_are_uniform_and_follow_the_key():
    large = models.split_transformer(MODEL, prompts=TOKENS)
    prompts = large.divide(PARAMS, KEY)[1].prompts
    assert prompts.shape == (TOKENS, WIDTH)
    assert np.abs(prompts).max() < 0.1
    assert abs(float(np.std(prompts)) - 0.1 / math.sqrt(3)) < 0.02
    assert (prompts != large.divide(PARAMS, jax.random.key(1))[1].prompts).all()


def block_products(tokens, width):
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def test_the_cost_is_the_closed_form():
    cost = models.split_cost(SPLIT, jax.eval_shape(lambda: PARAMS), IMAGES[:1])
    size = (PROMPTS + TOKENS) * WIDTH
    assert cost[:4] == (size,) * 4
    tail = 3 * WIDTH + 3 + 2 * WIDTH + (12 * WIDTH**2 + 13 * WIDTH)
    assert cost.trained == tail + PROMPTS * WIDTH
    assert cost.body == 12 * WIDTH**2 + 13 * WIDTH
    block = block_products(PROMPTS + TOKENS, WIDTH)
    assert cost[7:] == (TOKENS * 4 * WIDTH + block, block, block + 3 * WIDTH)
    assert cost.numbers(10, clients=2) == 40 * size + 4 * cost.trained
    assert cost.client_products(10, 5) == 35 * (cost.head_products + cost.tail_products)
    linear = models.split_cost(models.split_transformer(MODEL), PARAMS, IMAGES[:1])
    assert linear[:4] == (TOKENS * WIDTH, TOKENS * WIDTH, 0, 0)


def test_the_sheet_of_bytes():
    """Batch of one, 21 tokens of 32 numbers, 100 examples of which half are kept: 537,600 bytes."""
    model = models.TransformerClassifier(classes=10, patch=2, width=32, depth=2, heads=4)
    image = jax.ShapeDtypeStruct((1, 2, 34, 1), jnp.float32)
    params = jax.eval_shape(model.init, KEY, image)["params"]
    split = models.split_transformer(model, prompts=4)
    cost = models.split_cost(split, params, image)
    assert 4 * (cost.numbers(50) - 2 * cost.trained) == 537_600


def test_vit_base_is_counted_without_being_made():
    model = models.TransformerClassifier(classes=10, patch=16, width=768, depth=12, heads=12)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, KEY, image)["params"]
    cost = models.split_cost(models.split_transformer(model, prompts=5), params, image)
    assert cost.activations_up == 201 * 768
    assert cost.head_products == 196 * 768 * 768 + block_products(201, 768)
    assert cost.body_products == 11 * block_products(201, 768)


def test_products_count_loops_convolutions_and_calls():
    def thrice(a, b):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(a, x), None), b, None, length=3)[0]

    assert products(thrice, jnp.ones((4, 4)), jnp.ones((4, 5))) == 3 * 4 * 4 * 5
    kernel, image = jnp.ones((3, 3, 2, 6)), jnp.ones((1, 8, 8, 2))
    convolve = jax.lax.conv_general_dilated
    count = products(
        lambda x, k: convolve(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        image,
        kernel,
    )
    assert count == 8 * 8 * 6 * 9 * 2


def test_an_adapter_changes_nothing_at_first_and_then_what_its_product_says():
    adapter = models.lora(KEY, PARAMS, 2)
    assert_trees_equal(models.apply_lora(PARAMS, adapter), PARAMS)
    assert adapter["positions"] is None
    assert adapter["head"]["bias"] is None
    moved = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    merged = models.apply_lora(PARAMS, moved, scale=0.5)
    own = moved["head"]["kernel"]
    expected = np.float64(PARAMS["head"]["kernel"]) + 0.5 * np.float64(own.down) @ np.float64(
        own.up
    )
    np.testing.assert_allclose(merged["head"]["kernel"], expected, atol=1e-6)
    assert_trees_equal(merged["head"]["bias"], PARAMS["head"]["bias"])


def test_an_adapter_is_trained_by_itself_and_swept_over_its_scale():
    chosen = models.lora(KEY, PARAMS, 1, where=lambda path: path.endswith("projection/kernel"))
    assert len(jax.tree.leaves(chosen)) == 2 * 3

    @jax.jit
    def slope(adapter, scale):
        def total(adapter):
            params = models.apply_lora(PARAMS, adapter, scale=scale)
            return jnp.sum(jnp.square(MODEL.apply({"params": params}, IMAGES)))

        return jax.grad(total)(adapter)

    first, second = (slope(chosen, scale) for scale in (1.0, 2.0))
    own, twice = (g["Block_0"]["projection"]["kernel"] for g in (first, second))
    assert np.abs(own.up).max() > 1e-4
    assert np.abs(own.down).max() == 0
    np.testing.assert_allclose(twice.up, 2 * own.up, rtol=1e-4, atol=1e-6)


def test_bad_input_is_refused_by_name():
    split = models.split_transformer
    for cut in [(4, 0), (2, 2), (-1, 0), (0.5, 0), (1,), "no"]:
        with pytest.raises((TypeError, ValueError), match="cut"):
            split(MODEL, cut)
    with pytest.raises(ValueError, match="dropout 0"):
        split(models.TransformerClassifier(classes=2, patch=2, dropout=0.1))
    long = split(MODEL, prompts=TOKENS + 1)
    with pytest.raises(ValueError, match="prompts must be at most as many as the 6 tokens, got 7"):
        long.apply(long.divide(PARAMS, KEY), IMAGES)
    with pytest.raises(ValueError, match="params must be the weights of model"):
        SPLIT.divide({"params": PARAMS}, KEY)
    with pytest.raises(ValueError, match="6 positions"):
        SPLIT.apply(PARTS, IMAGES[:, :, :4])
    with pytest.raises(ValueError, match=r"rank .* head/kernel of shape \(8, 3\)"):
        models.lora(KEY, PARAMS, 4)
    with pytest.raises(ValueError, match="where must choose"):
        models.lora(KEY, PARAMS, 2, where=lambda path: False)
    with pytest.raises(TypeError, match="adapter must be a tree"):
        models.apply_lora(PARAMS, PARAMS)
    with pytest.raises(TypeError, match=r"params must be a pair \(Frozen, Trained\)"):
        models.split_gradient(SPLIT, of_tail(SPLIT), PARAMS, IMAGES)
