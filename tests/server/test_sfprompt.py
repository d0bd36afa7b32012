import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import models
from dflax.local.pruning import dealt, el2n, kept_of, largest_scores
from dflax.server import Pruned, sfprompt, tuned_parts

KEY = jax.random.key(0)
MODEL = models.TransformerClassifier(classes=3, patch=2, width=4, depth=2, heads=1)
IMAGES = jax.random.normal(KEY, (20, 4, 4, 1))
LABELS = jax.random.randint(jax.random.key(1), (20,), 0, 3)
DATA = dx.data.Dataset(IMAGES, LABELS, classes=3)
SIZES = (7, 5, 8)
OWNED = np.split(np.arange(20), np.cumsum(SIZES)[:-1])
PARTITION = dx.data.from_indices(OWNED)
PARAMS = jax.jit(MODEL.init)(KEY, IMAGES)["params"]
CLASSIFICATION = dx.losses.classification
SGD = optax.sgd(0.5)


def split(prompts=2, cut=(1, 0)):
    return models.split_transformer(MODEL, cut, prompts=prompts)


def federation(batch_size=4, partition=PARTITION, **options):
    if not options:
        options = {"local_epochs": 1}
    return dx.Federation(DATA, partition, batch_size=batch_size, **options)


def end(algorithm, source, rounds=2):
    @jax.jit
    def roll(state, source):
        return dx.rollout(algorithm, state, source, KEY, rounds)

    start = jax.jit(algorithm.init)(KEY, PARAMS)
    return start, *roll(start, source)


@functools.cache
def pruned():
    """A run with everything on: what several tests look at."""
    return end(sfprompt(split(), CLASSIFICATION, SGD), federation())


@pytest.mark.slow
def test_head_and_body_stay_and_prompts_and_tail_move():
    start, state, _ = pruned()
    assert_trees_equal(state.server.memory, start.server.memory)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.server.params, start.server.params)
    assert all(distance > 1e-5 for distance in jax.tree.leaves(moved))
    frozen, trained = tuned_parts(state)
    assert split().apply((frozen, trained), IMAGES).shape == (20, 3)


@pytest.mark.slow
def test_what_is_counted_is_what_is_asked_for():
    """Half of 7, 5 and 8; ceil(n / 4) local minibatches of 4; every example scored once."""
    _, _, metrics = pruned()
    np.testing.assert_array_equal(metrics["examples_kept"], [3 + 2 + 4] * 2)
    np.testing.assert_array_equal(metrics["examples_local"], [4 * (2 + 2 + 2)] * 2)
    np.testing.assert_array_equal(metrics["examples_scored"], [20] * 2)
    assert (metrics["el2n_kept"] > metrics["el2n_dropped"]).all()


@functools.cache
def started():
    """Parts before the first round, whatever the arguments."""
    return tuned_parts(jax.jit(sfprompt(split(), CLASSIFICATION, SGD).init)(KEY, PARAMS))


def by_hand(rows, rate=0.5, way="apply", steps=1, keep=None):
    """Full gradient steps of one client in float64 from the first round's model, by plain autodiff."""
    one = split()
    frozen, trained = started()
    with jax.enable_x64(True):
        frozen, trained = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (frozen, trained))
        inputs, labels = np.float64(IMAGES), np.asarray(LABELS)

        def loss(trained):
            scores = getattr(one, way)((frozen, trained), inputs[rows])
            return -jnp.mean(jax.nn.log_softmax(scores)[np.arange(len(rows)), labels[rows]])

        if keep is not None:
            shares = jax.nn.softmax(jax.jit(one.shortcut)((frozen, trained), inputs[rows]))
            wrong = np.linalg.norm(shares - np.eye(3)[labels[rows]], axis=1)
            rows = rows[np.argsort(-wrong)[:keep]]
        differentiate = jax.jit(jax.grad(loss))
        for _ in range(steps):
            slope = differentiate(trained)
            trained = jax.tree.map(lambda x, g: x - rate * g, trained, slope)
        return jax.tree.map(np.asarray, trained)


@pytest.mark.slow
def test_one_round_is_the_weighted_mean_of_steps_on_the_hardest_examples():
    """In float64 by hand: scores of the first model, top floor(n / 2), one full-batch step."""
    algorithm = sfprompt(split(), CLASSIFICATION, SGD, local_loss=False, prune_when=Pruned.BEFORE)
    _, state, metrics = end(algorithm, federation(batch_size=8, local_steps=1), rounds=1)
    ends = [by_hand(rows, keep=size // 2) for rows, size in zip(OWNED, SIZES, strict=True)]
    expected = jax.tree.map(
        lambda *leaves: sum(s * leaf for s, leaf in zip(SIZES, leaves, strict=True)) / 20, *ends
    )
    assert_trees_close(state.server.params, expected, atol=1e-5)
    assert "examples_local" not in metrics


@pytest.mark.slow
def test_without_a_body_and_pruning_the_pass_is_a_step_on_the_local_loss():
    """All blocks in the head: the body is the identity."""
    one = split(cut=(2, 0))
    whole = sfprompt(one, CLASSIFICATION, SGD, local_loss=False, keep=1.0)
    _, ours, metrics = end(whole, federation(batch_size=8, local_steps=1), rounds=1)
    frozen, trained = tuned_parts(jax.jit(whole.init)(KEY, PARAMS))

    def alone(trained, batch, key):
        return CLASSIFICATION(one.shortcut)((frozen, trained), batch, key)

    def by_client(rows):
        batch = DATA.fetch(jnp.asarray(rows))
        slope = jax.grad(alone, has_aux=True)(trained, batch, None)[0]
        return jax.tree.map(lambda x, g: x - 0.5 * g, trained, slope)

    ends = jax.jit(lambda: [by_client(rows) for rows in OWNED])()
    expected = jax.tree.map(
        lambda *leaves: sum(s * leaf for s, leaf in zip(SIZES, leaves, strict=True)) / 20, *ends
    )
    assert_trees_close(ours.server.params, expected, atol=1e-6)
    assert "el2n_kept" not in metrics


@pytest.mark.slow
def test_linear_probing_is_fedavg_of_the_tail_on_frozen_features():
    one = split(prompts=0)
    linear = sfprompt(one, CLASSIFICATION, SGD, local_loss=False, keep=1.0)
    _, ours, _ = end(linear, federation(batch_size=8, local_steps=1))
    frozen, trained = one.divide(PARAMS, KEY)
    features = one.body(frozen.body, one.head(frozen.head, (), IMAGES))
    # Everyone's examples in one minibatch, filled up by a mask.
    loss = CLASSIFICATION(one.tail)

    def of_owned(params, batch, key):
        inputs, labels = (jnp.take(leaf, batch.inputs[0], 0) for leaf in (features, LABELS))
        return loss(params, dx.data.Batch(inputs, labels, batch.labels[0]), key)

    rows = np.stack([np.pad(rows, (0, 8 - len(rows))) for rows in OWNED])
    mask = np.float32([[i < size for i in range(8)] for size in SIZES])
    table = dx.data.Dataset(jnp.asarray(rows), jnp.asarray(mask))
    source = dx.Federation(
        table,
        dx.data.from_indices([[0], [1], [2]]),
        batch_size=1,
        local_steps=1,
        weights=np.float32(SIZES),
    )
    average = dx.server.fedavg(of_owned, SGD)
    expected, _ = jax.jit(lambda state: dx.rollout(average, state, source, KEY, 2))(
        average.init(KEY, trained.tail)
    )
    assert_trees_close(ours.server.params.tail, expected.server.params, atol=1e-6)


@pytest.mark.slow
def test_one_client_alone_keeps_what_it_found():
    """The local loss comes first, on the shortcut; then the pass; the mean of one is itself."""
    rows = np.arange(20)
    source = federation(20, dx.data.from_indices([rows]), local_steps=2)
    algorithm = sfprompt(split(), CLASSIFICATION, optax.sgd(0.0), local_optimizer=SGD, keep=1.0)
    _, state, _ = end(algorithm, source, rounds=1)
    expected = by_hand(rows, way="shortcut", steps=2)
    assert_trees_close(state.server.params, expected, atol=1e-5)


@pytest.mark.slow
def test_scores_are_those_of_before_or_after_the_local_loss():
    runs = [
        end(sfprompt(split(), CLASSIFICATION, SGD, prune_when=when), federation(), 1)[2]
        for when in Pruned
    ]
    before, after = (float(m["el2n_kept"][0]) for m in runs)
    assert abs(before - after) > 1e-4


@pytest.mark.slow
def test_a_swept_share_is_the_share_itself():
    shares, source = (0.5, 1.0), federation(8)

    @jax.jit
    def swept(keep, source):
        algorithm = sfprompt(split(), CLASSIFICATION, SGD, keep=keep, local_loss=False)
        state = algorithm.init(KEY, PARAMS)
        return algorithm.step(state, source.draw(KEY, 0))

    states, metrics = jax.vmap(swept, in_axes=(0, None))(jnp.array(shares), source)
    np.testing.assert_array_equal(metrics["examples_kept"], [9, 20])
    for place, keep in enumerate(shares):
        alone = sfprompt(split(), CLASSIFICATION, SGD, keep=keep, local_loss=False)
        _, state, _ = end(alone, federation(8), 1)
        one = jax.tree.map(lambda leaf, place=place: leaf[place], states.server.params)
        assert_trees_close(one, state.server.params, atol=1e-6)


@pytest.mark.slow
def test_on_devices_it_is_the_same():
    algorithm = sfprompt(split(), CLASSIFICATION, SGD)
    start, expected, _ = pruned()
    dealt_over, _ = dx.run(
        algorithm, start, federation(), rounds=2, key=KEY, mesh=dx.client_mesh(), progress=False
    )
    assert_trees_close(dealt_over.server.params, expected.server.params, atol=1e-5)


def test_el2n_has_its_hand_values():
    far = 40.0
    right = jnp.array([[far, 0.0, 0.0]])
    np.testing.assert_allclose(el2n(right, jnp.array([0])), 0, atol=1e-6)
    np.testing.assert_allclose(el2n(right, jnp.array([1])), 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(el2n(jnp.zeros((1, 10)), jnp.array([3])), 0.948683, rtol=1e-5)
    quarter = jnp.log(jnp.array([[0.25, 0.75]]))
    np.testing.assert_allclose(el2n(quarter, jnp.array([0])), 2**0.5 * 0.75, rtol=1e-6)
    scores = 5 * jax.random.normal(KEY, (200, 4))
    wrong = el2n(scores.astype(jnp.bfloat16), jnp.arange(200) % 4)
    assert wrong.dtype == jnp.float32
    assert ((wrong >= 0) & (wrong <= 2**0.5 + 1e-6)).all()


@pytest.mark.some(2)
@pytest.mark.parametrize("share", [0.29, 0.5, 1.0, 0.001])
def test_the_share_that_is_kept_is_exact_and_the_top_one(share):
    count = kept_of(share, 100)
    assert count == max(round(share * 1000) // 10, 1)
    assert jax.jit(kept_of)(share, 100) == count
    scores = np.random.default_rng(0).permutation(120).astype(np.float32)
    present = np.arange(120) < 100
    kept = largest_scores(jnp.asarray(scores), jnp.asarray(present), count)
    expected = np.zeros(120, bool)
    expected[np.argsort(-scores[:100])[:count]] = True
    np.testing.assert_array_equal(kept, expected)
    steps = -(-count // 8)
    listed = np.asarray(dealt(jnp.arange(120), kept, KEY, steps, 8)).ravel()
    assert sorted(listed[listed >= 0]) == list(np.flatnonzero(expected))
    assert (listed[count:] == -1).all()


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_of_its_range_is_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        sfprompt(split(), CLASSIFICATION, SGD, keep=keep)


@pytest.mark.slow
def test_the_tuned_part_alone_is_sent():
    """bytes_sent of a channel: prompts and tail of each of three clients."""
    algorithm = sfprompt(split(), CLASSIFICATION, SGD, channel=dx.channel.uncompressed())
    _, _, metrics = end(algorithm, federation(), 1)
    cost = models.split_cost(split(), PARAMS, IMAGES[:1])
    assert metrics["bytes_sent"][0] == 4 * 3 * cost.trained
