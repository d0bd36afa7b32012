import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tasks import assert_trees_equal

from dflax import matching
from dflax.data.dataset import Dataset
from dflax.matching import moments
from dflax.matching.weights import improve, inner_product

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (120, 6))
DATA = Dataset(INPUTS, jnp.zeros(120, jnp.int32))
ROWS = jnp.arange(120, dtype=jnp.int32).reshape(3, 40)


class Tanh(nn.Module):
    """Two hidden layers whose units are all alive."""

    activation: object = nn.tanh

    @nn.compact
    def __call__(self, x):
        for width in (12, 12):
            x = self.activation(nn.Dense(width, bias_init=nn.initializers.normal(0.3))(x))
        return nn.Dense(3)(x)


MODEL = Tanh()
OWN = MODEL.init(KEY, INPUTS)["params"]
SYMMETRIES = matching.symmetries(MODEL, OWN, INPUTS)
WIDTHS = matching.widths_of(SYMMETRIES, OWN)
WAYS = {
    "activations": matching.by_activations(MODEL, SYMMETRIES),
    "weights": matching.by_weights(SYMMETRIES),
}
MATCH = {name: jax.jit(way.match) for name, way in WAYS.items()}


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def draw(seed):
    return MODEL.init(jax.random.key(seed), INPUTS)["params"]


@pytest.mark.some(1)
@pytest.mark.parametrize("way", WAYS)
def test_permuted_models_are_brought_back_exactly(way):
    keys = jax.random.split(jax.random.key(7), 2)
    hidden = [matching.random_permutations(key, WIDTHS) for key in keys]
    others = stack(*(matching.permute(OWN, SYMMETRIES, q) for q in hidden))
    found, similarity = MATCH[way](OWN, others, DATA, ROWS)
    back = jax.vmap(lambda other, p: matching.permute(other, SYMMETRIES, p))(others, found)
    assert_trees_equal(back, stack(OWN, OWN))
    np.testing.assert_allclose(similarity, 1.0, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_equal_and_slightly_changed_models_keep_their_order(way):
    near = jax.tree.map(lambda p: p + 1e-3 * jax.random.normal(KEY, p.shape), OWN)
    found, _ = MATCH[way](OWN, stack(OWN, near), DATA, ROWS)
    for name, permutation in found.items():
        np.testing.assert_array_equal(permutation, np.tile(np.arange(WIDTHS[name]), (2, 1)))
    np.testing.assert_allclose(matching.fixed_units(found), 1.0)


def test_batches_add_up_to_the_correlations_of_all_samples():
    generator = np.random.default_rng(0)
    own = generator.normal(size=(90, 5)) * [1, 3, 0.1, 2, 1] + 50
    others = generator.normal(size=(2, 90, 5)) + own @ generator.normal(size=(5, 5)) - 20
    own[:, 3] = 7.0

    @jax.jit
    def correlations(own, others):
        held = moments.none_yet(2, 5)
        for part in (slice(0, 10), slice(10, 60), slice(60, 90)):
            held = moments.add(held, own[part], others[:, part])
        return moments.correlations(held)

    found = correlations(own, others)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num([np.corrcoef(own.T, other.T)[:5, 5:] for other in others])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_array_equal(found[:, 3], 0.0)


def test_orthogonal_units_have_a_permutation_as_their_correlations():
    """Of linear units that read one input each, with inputs that are uncorrelated."""
    inputs = jnp.asarray(np.kron(np.eye(4), [[1.0], [-1.0]]), jnp.float32)
    order = np.array([2, 0, 3, 1])

    def linear(params, x):
        return (x @ params["in"]) @ params["out"]

    own = {"in": jnp.eye(4), "out": jnp.ones((4, 2))}
    other = {"in": jnp.eye(4)[:, order], "out": jnp.ones((4, 2))}
    symmetries = matching.symmetries(linear, own, inputs)
    way = matching.by_activations(linear, symmetries)
    data = Dataset(inputs, jnp.zeros(8, jnp.int32))
    found, _ = jax.jit(way.match)(own, stack(other), data, jnp.arange(8)[None])
    (permutation,) = found.values()
    np.testing.assert_array_equal(permutation[0], np.argsort(order))


@pytest.mark.slow
def test_dead_units_are_matched_arbitrarily_and_outputs_are_equal_all_the_same():
    model = Tanh(nn.relu)
    own = jax.tree.map(lambda p: p, OWN)
    own["Dense_0"]["bias"] = own["Dense_0"]["bias"].at[:4].set(-100.0)
    way = matching.by_activations(model, SYMMETRIES)
    hidden = matching.random_permutations(jax.random.key(3), WIDTHS)
    others = stack(matching.permute(own, SYMMETRIES, hidden))
    found, _ = jax.jit(way.match)(own, others, DATA, ROWS)
    back = matching.permute(
        jax.tree.map(lambda p: p[0], others), SYMMETRIES, {k: p[0] for k, p in found.items()}
    )
    merged = jax.tree.map(lambda a, b: (a + b) / 2, own, back)
    expected = model.apply({"params": own}, INPUTS)
    np.testing.assert_allclose(model.apply({"params": merged}, INPUTS), expected, atol=1e-5)
    plain = jax.tree.map(lambda a, b: (a + b[0]) / 2, own, others)
    assert np.abs(model.apply({"params": plain}, INPUTS) - expected).max() > 0.1


@pytest.mark.slow
def test_no_step_of_weight_matching_lowers_the_objective():
    others, permutations = stack(draw(1), draw(2)), stack(*2 * [matching.identity(WIDTHS)])
    step = jax.jit(
        lambda p, name: improve(OWN, others, SYMMETRIES, p, name), static_argnames="name"
    )

    @jax.jit
    def objective(p):
        moved = jax.vmap(lambda o, q: matching.permute(o, SYMMETRIES, q))(others, p)
        return jax.vmap(lambda o: inner_product(OWN, o, SYMMETRIES))(moved)

    values = [objective(permutations)]
    for _ in range(6):
        for name in SYMMETRIES:
            permutations, _ = step(permutations, name)
            values.append(objective(permutations))
    values = np.asarray(values)
    assert (np.diff(values, axis=0) >= -1e-4).all()
    assert (values[-1] > values[0] + 3).all()
    end, _ = MATCH["weights"](OWN, others)
    np.testing.assert_allclose(objective(end), values[-1], rtol=1e-5)


def test_weight_matching_of_a_layer_that_feeds_itself_never_loses():
    params = {"in": draw(1)["Dense_0"]["kernel"], "loop": jax.random.normal(KEY, (12, 12))}
    other = {"in": draw(2)["Dense_0"]["kernel"], "loop": jax.random.normal(KEY, (12, 12))[::-1]}
    symmetries = {"state": [("in", 1), ("loop", 0), ("loop", 1)]}
    found, similarity = jax.jit(matching.by_weights(symmetries).match)(params, stack(other))
    before = inner_product(params, other, symmetries)
    moved = matching.permute(other, symmetries, {"state": found["state"][0]})
    assert inner_product(params, moved, symmetries) >= before
    assert -1.0 <= float(similarity[0]) <= 1.0
    hidden = {"state": jnp.asarray(np.random.default_rng(0).permutation(12))}
    turned = matching.permute(params, symmetries, hidden)
    assert inner_product(params, turned, symmetries) < inner_product(params, params, symmetries)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: matching.by_activations(3, SYMMETRIES), "model must be a function"),
        (lambda: matching.by_activations(MODEL, SYMMETRIES, assign=3), "assign must be"),
        (lambda: matching.by_activations(MODEL, SYMMETRIES, epsilon=0.0), "epsilon must be"),
        (lambda: matching.by_weights(SYMMETRIES, assign=3), "assign must be"),
        (lambda: matching.by_weights(SYMMETRIES, sweeps=0), "sweeps must be"),
        (lambda: matching.by_weights(3), "symmetries must be of type Mapping"),
        (lambda: matching.by_weights({"a": 3}), "symmetries.'a'. must be a sequence of places"),
        (
            lambda: matching.by_activations(MODEL, {"a": [("leaf",)]}),
            "must be a sequence of places",
        ),
        (lambda: matching.by_weights({}).match(OWN, stack(OWN)), "at least one group"),
        (
            lambda: matching.by_activations(lambda p, x: x @ p, {"a": [("", 0)]}).match(
                jnp.ones((6, 2)), jnp.ones((1, 6, 2)), DATA, ROWS
            ),
            "got none in its program",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
