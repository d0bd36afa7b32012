"""Losses against float64 references, masks, and the errors at the door."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import assert_trees_close

import dflax as dx
from dflax import losses
from dflax.data.dataset import Batch


def scores_of(params, inputs):
    return inputs @ params


def batch_of(seed=0, shape=(7,), classes=4, mask=None):
    generator = np.random.default_rng(seed)
    inputs = jnp.asarray(generator.normal(size=(*shape, 3)), jnp.float32)
    labels = jnp.asarray(generator.integers(0, classes, shape), jnp.int32)
    return Batch(inputs, labels, None if mask is None else jnp.asarray(mask, jnp.float32))


PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)


def log_softmax(batch):
    scores = np.asarray(batch.inputs, np.float64) @ np.asarray(PARAMS, np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@pytest.mark.parametrize("mask", [None, [1, 1, 0, 1, 0, 0.5, 2]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_is_the_weighted_cross_entropy(mask, smoothing):
    batch = batch_of(mask=mask)
    loss = jax.jit(losses.classification(scores_of, label_smoothing=smoothing))
    value, metrics = loss(PARAMS, batch, None)
    logs = log_softmax(batch)
    targets = (1 - smoothing) * np.eye(4)[np.asarray(batch.labels)] + smoothing / 4
    expected = np.average(-(targets * logs).sum(-1), weights=mask)
    hits = np.average(logs.argmax(-1) == np.asarray(batch.labels), weights=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], hits, rtol=1e-6)


def test_label_smoothing_can_be_swept():
    batch = batch_of()

    def value(smoothing):
        return losses.classification(scores_of, label_smoothing=smoothing)(PARAMS, batch, None)[0]

    value = jax.jit(value)
    swept = jax.vmap(value)(jnp.array([0.0, 0.3]))
    np.testing.assert_allclose(swept, [value(0.0), value(0.3)], rtol=1e-6)


def test_language_modelling_leaves_negative_labels_out():
    batch = batch_of(shape=(3, 5), mask=[1, 0, 1])
    batch = batch._replace(labels=batch.labels.at[0, 2:].set(-1))
    value, metrics = jax.jit(losses.language_modelling(scores_of))(PARAMS, batch, None)
    logs, labels = log_softmax(batch), np.asarray(batch.labels)
    weights = (labels >= 0) * np.array([1, 0, 1])[:, None]
    picked = -np.take_along_axis(logs, np.maximum(labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(value, np.average(picked, weights=weights), rtol=1e-5)
    hits = np.average(logs.argmax(-1) == labels, weights=weights)
    np.testing.assert_allclose(metrics["accuracy"], hits, rtol=1e-6)


def test_squared_error_is_half_the_mean_of_squared_distances():
    batch = batch_of(mask=[1, 0, 1, 1, 1, 0, 3])
    labels = jnp.ones((7, 4))
    value, metrics = losses.squared_error(scores_of)(PARAMS, batch._replace(labels=labels), None)
    distances = np.square(np.asarray(batch.inputs @ PARAMS) - 1.0).sum(1)
    np.testing.assert_allclose(value, np.average(distances, weights=batch.mask) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value)


def test_squared_error_drops_a_last_axis_of_one():
    batch = batch_of()._replace(labels=jnp.zeros(7))
    value, _ = losses.squared_error(scores_of)(PARAMS[:, :1], batch, None)
    expected = np.square(np.asarray(batch.inputs @ PARAMS[:, 0])).mean() / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("make", [losses.classification, losses.language_modelling])
def test_an_empty_batch_has_loss_and_gradient_zero(make):
    batch = batch_of(mask=np.zeros(7))
    slope = jax.jit(jax.value_and_grad(make(scores_of), has_aux=True))
    (value, metrics), gradient = slope(PARAMS, batch, None)
    assert value == 0
    assert metrics["loss"] == 0
    np.testing.assert_array_equal(gradient, 0)


def test_padded_examples_may_be_infinite():
    batch = batch_of(mask=[1, 1, 1, 1, 1, 1, 0])
    broken = batch._replace(inputs=batch.inputs.at[-1].set(jnp.inf))
    loss = losses.classification(scores_of)
    np.testing.assert_allclose(loss(PARAMS, broken, None)[0], loss(PARAMS, batch, None)[0])


def test_l2_adds_half_the_squared_norm_of_weights_alone():
    batch = batch_of()
    loss = losses.classification(scores_of)
    plain, _ = loss(PARAMS, batch, None)
    value, metrics = losses.with_l2(loss, 0.3)(PARAMS, batch, None)
    penalty = 0.15 * np.square(np.asarray(PARAMS)).sum()
    np.testing.assert_allclose(value - plain, penalty, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], plain)
    np.testing.assert_allclose(metrics["l2"], penalty, rtol=1e-6)

    whole = {"params": PARAMS, "batch_stats": 100 * jnp.ones(3)}
    of_dict = losses.with_l2(lambda p, b, k: loss(p["params"], b, k), 0.3)
    np.testing.assert_allclose(of_dict(whole, batch, None)[0], value, rtol=1e-6)


def test_training_draws_dropout_and_evaluation_does_not():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x))

    module, batch = Dropped(), batch_of()
    params = module.init(jax.random.key(0), batch.inputs)["params"]
    loss = losses.classification(module)
    first, second = (loss(params, batch, jax.random.key(i))[0] for i in range(2))
    assert first != second
    expected = losses.classification(lambda p, x: module.apply({"params": p}, x))
    np.testing.assert_allclose(loss(params, batch, None)[0], expected(params, batch, None)[0])


def test_arguments_are_refused_at_the_door():
    with pytest.raises(ValueError, match=r"label_smoothing must be .* got 1\.0"):
        losses.classification(scores_of, label_smoothing=1.0)
    with pytest.raises(TypeError, match="model must be a function"):
        losses.squared_error(3)
    with pytest.raises(ValueError, match=r"strength must be .* got -1"):
        losses.with_l2(losses.classification(scores_of), -1)
    with pytest.raises(TypeError, match="loss must be a function"):
        losses.with_l2(None, 1.0)
    with pytest.raises(TypeError, match="per_example must be a function"):
        losses.from_examples(scores_of, None)


def test_shapes_that_do_not_fit_are_named():
    batch = batch_of()
    with pytest.raises(ValueError, match="labels must be integers"):
        losses.classification(scores_of)(PARAMS, batch._replace(labels=jnp.zeros(7)), None)
    with pytest.raises(ValueError, match="labels must be integers"):
        losses.language_modelling(scores_of)(
            PARAMS, batch._replace(labels=batch.labels[:, None]), None
        )
    with pytest.raises(ValueError, match=r"labels' shape \(7,\), got \(7, 4\)"):
        losses.squared_error(scores_of)(PARAMS, batch, None)
    with pytest.raises(ValueError, match="mask must have one weight per example"):
        losses.classification(scores_of)(PARAMS, batch._replace(mask=jnp.ones((7, 1))), None)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_without_a_score_makes_the_loss_nan(label):
    batch = batch_of()
    bad = batch._replace(labels=batch.labels.at[2].set(label))
    value, metrics = losses.classification(scores_of)(PARAMS, bad, None)
    assert np.isnan(value)
    assert np.isnan(metrics["loss"])
    smoothed, _ = losses.classification(scores_of, label_smoothing=0.1)(PARAMS, bad, None)
    assert np.isnan(smoothed)
    hidden = bad._replace(mask=jnp.ones(7).at[2].set(0.0))
    kept, _ = losses.classification(scores_of)(PARAMS, hidden, None)
    rows = np.delete(np.arange(7), 2)
    reference = -log_softmax(batch)[rows, np.asarray(batch.labels)[rows]].mean()
    np.testing.assert_allclose(kept, reference, rtol=1e-6)


def test_a_token_beyond_the_vocabulary_makes_the_loss_nan_and_padding_does_not():
    batch = batch_of(shape=(2, 5))
    padded = batch._replace(labels=batch.labels.at[0, 1].set(-1))
    loss = jax.jit(losses.language_modelling(scores_of))
    assert np.isfinite(loss(PARAMS, padded, None)[0])
    beyond = batch._replace(labels=batch.labels.at[0, 1].set(4))
    assert np.isnan(loss(PARAMS, beyond, None)[0])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: losses.classification(scores_of, label_smoothing=np.zeros(2)), "label_smoothing"),
        (lambda: losses.with_l2(losses.classification(scores_of), np.ones(2)), "strength"),
    ],
)
def test_arrays_where_one_number_is_meant_are_refused(make, name):
    with pytest.raises(ValueError, match=f"{name} must be a single real number"):
        make()


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (np.array(list("abcabca")), r"np.unique\(labels, return_inverse=True\)"),
        (np.array(list("abcabca"), object), r"np.unique\(labels, return_inverse=True\)"),
        (jnp.zeros(7), r"labels.astype\(int32\)"),
        (jnp.zeros(7, bool), r"labels.astype\(int32\)"),
        (jax.nn.one_hot(jnp.arange(7) % 4, 4), r"labels.argmax\(-1\)"),
        (jnp.zeros((7, 1), jnp.int32), r"labels.squeeze\(-1\)"),
        (jnp.zeros(6, jnp.int32), r"scores \(7, 4\)"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused_with_the_way_to_make_them_some(
    labels, remedy
):
    with pytest.raises(ValueError, match=f"labels must be integers.*{remedy}"):
        losses.classification(scores_of)(PARAMS, batch_of()._replace(labels=labels), None)


def test_integers_booleans_and_half_precision_are_averaged_as_float32():
    size = 1200
    inputs = jnp.ones((size, 3))
    mask = jnp.ones(size).at[0].set(0.5)

    def per_example(outputs, batch):
        half = jnp.ones(size, jnp.bfloat16)
        hits = jnp.arange(size) % 2 == 0
        return {"loss": half, "hits": hits, "count": jnp.full(size, 3, jnp.int8), "weight": hits}

    for weights in (None, mask):
        batch = Batch(inputs, jnp.zeros(size, jnp.int32), weights)
        value, metrics = losses.from_examples(scores_of, per_example)(PARAMS, batch, None)
        assert {leaf.dtype for leaf in (value, *metrics.values())} == {jnp.dtype("float32")}
        np.testing.assert_allclose([value, metrics["hits"], metrics["count"]], [1, 1, 3], rtol=1e-6)


def test_errors_of_half_precision_are_summed_in_float32():
    inputs = jnp.ones((2, 1), jnp.bfloat16)
    labels = jnp.zeros((2, 600), jnp.bfloat16)
    params = jnp.ones((1, 600), jnp.bfloat16)
    batch = Batch(inputs, labels)
    assert losses.squared_error(scores_of)(params, batch, None)[0] == 300
    assert losses.absolute_error(scores_of)(params, batch, None)[0] == 600
    whole = losses.with_l2(losses.squared_error(scores_of), 1.0)(params, batch, None)[1]
    assert whole["l2"] == 300


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"accuracy": jnp.ones(7)}, r"an entry \"loss\", got \['accuracy'\]"),
        (jnp.ones(7), 'an entry "loss", got ArrayImpl'),
        ({"loss": jnp.ones(())}, r"each of the 7 examples, \[7, ...\], got the shape \(\)"),
    ],
)
def test_what_is_measured_is_of_each_example(measured, message):
    loss = losses.from_examples(scores_of, lambda outputs, batch: measured)
    with pytest.raises(ValueError, match=message):
        loss(PARAMS, batch_of(), None)


@pytest.mark.slow
def test_minibatches_split_over_a_model_s_devices_change_nothing():
    network = dx.models.CNN(classes=3, channels=(4,), hidden=8)
    images = jax.random.normal(jax.random.key(1), (32, 4, 4, 1))
    data = dx.data.Dataset(images, jnp.arange(32, dtype=jnp.int32) % 3, classes=3)
    owned = dx.data.from_indices(np.arange(32).reshape(8, 4).tolist())
    source = dx.Federation(data, owned, local_steps=2, batch_size=4)
    loss = losses.classification(network.apply)
    params = network.init(jax.random.key(0), images[:1])["params"]
    ends = []
    for told, mesh in ((loss, None), (losses.split_batch(loss), dx.client_mesh(model=2))):
        algorithm = dx.server.fedavg(told, optax.sgd(0.3))
        state = algorithm.init(jax.random.key(0), params)
        end, _ = dx.run(algorithm, state, source, rounds=2, key=jax.random.key(2), mesh=mesh)
        ends.append(end.server.params)
    assert_trees_close(*ends, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ends[0], params)
    assert min(jax.tree.leaves(moved)) > 1e-4
    told = dx.profile.round(algorithm, state, source, mesh=mesh)
    whole = dx.server.fedavg(loss, optax.sgd(0.3))
    assert (
        told.sent_within_models
        != dx.profile.round(whole, state, source, mesh=mesh).sent_within_models
    )


def test_multi_label_is_the_mean_binary_cross_entropy():
    generator = np.random.default_rng(0)
    batch = batch_of(mask=[1, 1, 0, 1, 0, 0.5, 2])
    labels = generator.integers(0, 2, (7, 4))
    batch = batch._replace(labels=jnp.asarray(labels, jnp.int32))
    weight = np.array([1.0, 2.0, 0.5, 3.0])
    value, metrics = jax.jit(losses.multi_label(scores_of, positive_weight=weight))(PARAMS, batch)
    scores = np.asarray(batch.inputs, np.float64) @ np.asarray(PARAMS, np.float64)
    chance = 1 / (1 + np.exp(-scores))
    each = -(weight * labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean(1)
    right = (scores > 0) == (labels == 1)
    np.testing.assert_allclose(value, np.average(each, weights=batch.mask), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"], np.average(right.mean(1), weights=batch.mask), rtol=1e-6
    )
    np.testing.assert_allclose(
        metrics["exact"], np.average(right.all(1), weights=batch.mask), rtol=1e-6
    )


def test_multi_label_takes_one_question_and_large_scores():
    inputs, labels = jnp.array([[400.0], [-400.0], [300.0]]), jnp.array([1, 0, 0])
    value, metrics = losses.multi_label(lambda params, x: x)(None, Batch(inputs, labels))
    np.testing.assert_allclose(value, 100.0)
    np.testing.assert_allclose([metrics["accuracy"], metrics["exact"]], 2 / 3, rtol=1e-6)
    value, _ = losses.multi_label(lambda params, x: x)(None, Batch(inputs, jnp.array([1, 0, 2])))
    assert np.isnan(value)


def test_huber_is_squared_near_and_linear_far():
    predictions = jnp.array([[0.5, 3.0], [-4.0, 0.0]])
    batch = Batch(predictions, jnp.zeros((2, 2)))
    value, _ = losses.huber(lambda params, x: x, delta=2.0)(None, batch)
    np.testing.assert_allclose(value, (0.125 + 4.0 + 6.0) / 2)
    # A delta larger than all errors gives the squared error, gradient and all.
    labels = jnp.asarray(np.random.default_rng(2).normal(size=(7, 4)), jnp.float32)
    batch = batch_of()._replace(labels=labels)
    first, second = (
        jax.value_and_grad(lambda params, loss=loss: loss(params, batch)[0])(PARAMS)
        for loss in (losses.huber(scores_of, delta=1e3), losses.squared_error(scores_of))
    )
    assert_trees_close(first, second, rtol=1e-5)


def test_the_pinball_loss_is_least_at_the_quantile():
    labels = jnp.asarray(np.random.default_rng(0).exponential(size=101), jnp.float32)
    loss = losses.quantile(lambda params, x: params + x, 0.8)

    def at(point):
        return loss(point, Batch(jnp.zeros(101), labels))

    values = jax.jit(jax.vmap(lambda point: at(point)[0]))(jnp.sort(labels))
    assert int(values.argmin()) == 80
    np.testing.assert_allclose(at(jnp.sort(labels)[80])[1]["below"], 80 / 101, rtol=1e-6)
    half, _ = losses.quantile(lambda params, x: x, 0.5)(None, Batch(jnp.ones(101), labels))
    whole, _ = losses.absolute_error(lambda params, x: x)(None, Batch(jnp.ones(101), labels))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.multi_label(scores_of, positive_weight=0.0), "positive_weight must be"),
        (
            lambda: losses.multi_label(scores_of, positive_weight=np.ones((2, 2))),
            "one for each label",
        ),
        (lambda: losses.huber(scores_of, delta=0), "delta must be"),
        (lambda: losses.quantile(scores_of, 1.0), "level must be"),
        (
            lambda: losses.multi_label(scores_of, positive_weight=np.ones(3))(
                PARAMS, batch_of()._replace(labels=jnp.ones((7, 4)))
            ),
            "positive_weight must have one weight for each of the 4 labels, got 3",
        ),
        (
            lambda: losses.multi_label(scores_of)(PARAMS, batch_of()),
            "predictions of the labels' shape",
        ),
    ],
)
def test_new_losses_refuse_what_does_not_fit(make, words):
    with pytest.raises(ValueError, match=words):
        make()
