import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.data.dataset import Batch
from dflax.local import Norm, distances, fast_gradient_sign, projected_gradient

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
W = jnp.asarray(GENERATOR.normal(size=(3, 2)), jnp.float32)
X = jnp.asarray(GENERATOR.uniform(size=(7, 3, 2)), jnp.float32)
Y = jnp.asarray(GENERATOR.choice([-1.0, 1.0], 7), jnp.float32)
BATCH = Batch(X, Y)


def logistic(w, batch, key):
    """log(1 + exp(-y <w, x>)), mean over the batch."""
    margins = batch.labels * jnp.einsum("bij,ij->b", batch.inputs, w)
    return jnp.mean(jnp.logaddexp(0.0, -margins)), {}


@pytest.mark.parametrize(("norm", "dual"), [(Norm.L2, 2), (Norm.LINF, 1)])
def test_on_a_linear_model_the_attack_is_the_closed_form(norm, dual):
    """The worst perturbation takes radius |w|_dual off every margin."""
    attack = jax.jit(projected_gradient(logistic, 0.3, 5, norm=norm, random_start=False))
    moved = attack(W, BATCH, KEY)
    w = np.asarray(W, np.float64)
    direction = w / np.linalg.norm(w) if norm is Norm.L2 else np.sign(w)
    expected = np.asarray(X) - 0.3 * np.asarray(Y)[:, None, None] * direction
    np.testing.assert_allclose(moved.inputs, expected, atol=1e-5)
    margins = np.asarray(Y) * np.einsum("bij,ij->b", np.asarray(X, np.float64), w)
    worst = margins - 0.3 * np.linalg.norm(w.ravel(), dual)
    np.testing.assert_allclose(
        logistic(W, moved, None)[0], np.mean(np.log1p(np.exp(-worst))), rtol=1e-5
    )


@pytest.mark.parametrize("norm", list(Norm))
def test_no_example_leaves_its_ball_or_the_valid_range(norm):
    def moved(radius, low, high, key):
        attack = projected_gradient(
            logistic, radius, 3, norm=norm, step_size=1.0, bounds=(low, high)
        )
        return attack(W, BATCH, key).inputs

    points = jnp.asarray([[r, *b] for r in (0.0, 0.05, 2.0) for b in ((-jnp.inf, jnp.inf), (0, 1))])
    keys = jax.random.split(KEY, 6)
    found = jax.jit(jax.vmap(moved))(*points.T, keys)
    for (radius, low, high), inputs in zip(points, found, strict=True):
        # Recomputed as a difference of float32 inputs, small radii gain some rounding.
        assert distances(inputs, X, norm).max() <= radius * (1 + 1e-6) + 1e-6
        assert inputs.min() >= low
        assert inputs.max() <= high
    np.testing.assert_array_equal(found[0], X)
    assert distances(found[4], X, norm).max() > 1.0


@pytest.mark.parametrize("norm", list(Norm))
def test_random_starts_are_uniform_in_the_ball(norm):
    """A step of no length leaves the start: |delta| = radius u^(1/d), mean 0."""
    many = Batch(jnp.zeros((20_000, 3)), jnp.ones(20_000))
    attack = projected_gradient(
        lambda w, batch, key: (jnp.sum(batch.inputs) * 0.0, {}), 2.0, 1, norm=norm, step_size=1e-9
    )
    delta = np.asarray(jax.jit(attack)(W, many, KEY).inputs)
    lengths = np.asarray(distances(delta, many.inputs, norm)) / 2.0
    np.testing.assert_allclose(np.mean(lengths**3), 0.5, atol=0.01)
    np.testing.assert_allclose(np.quantile(lengths**3, 0.9), 0.9, atol=0.01)
    np.testing.assert_allclose(delta.mean(0), 0.0, atol=0.03)


def test_no_steps_leave_the_batch_and_flat_losses_yield_numbers():
    assert projected_gradient(logistic, 0.5, 0)(W, BATCH, KEY) is BATCH
    flat = projected_gradient(lambda w, batch, key: (jnp.sum(w), {}), 0.5, 3, random_start=False)
    np.testing.assert_array_equal(flat(W, BATCH, KEY).inputs, X)


def test_the_fast_gradient_sign_method_is_one_signed_step():
    moved = fast_gradient_sign(logistic, 0.2)(W, BATCH, KEY)
    np.testing.assert_allclose(moved.inputs, X - 0.2 * Y[:, None, None] * jnp.sign(W), atol=1e-6)
    np.testing.assert_array_equal(fast_gradient_sign(logistic, 0.0)(W, BATCH, KEY).inputs, X)
    l2 = fast_gradient_sign(logistic, 0.2, norm=Norm.L2)(W, BATCH, KEY)
    np.testing.assert_allclose(distances(l2.inputs, X), 0.2, rtol=1e-5)


def test_the_ball_spans_all_inputs_of_an_example_and_each_example_has_its_own():
    def pair(w, batch, key):
        margins = batch.inputs["a"] @ w[:, 0] + batch.inputs["b"] @ w[:, 1]
        return logistic_of(margins * batch.labels), {}

    def logistic_of(margins):
        return jnp.mean(jnp.logaddexp(0.0, -margins))

    both = Batch({"a": X[..., 0], "b": X[..., 1]}, Y)
    split = projected_gradient(pair, 0.3, 4, random_start=False)(W, both, KEY).inputs
    joined = projected_gradient(logistic, 0.3, 4, random_start=False)(W, BATCH, KEY).inputs
    np.testing.assert_allclose(jnp.stack([split["a"], split["b"]], -1), joined, atol=1e-6)
    # A mask, or a batch of another size, changes nothing for an example.
    masked = BATCH._replace(mask=jnp.zeros(7).at[0].set(1.0))
    alone = Batch(X[2:3], Y[2:3])
    attack = projected_gradient(logistic, 0.3, 4, random_start=False)
    np.testing.assert_array_equal(attack(W, masked, KEY).inputs, joined)
    np.testing.assert_allclose(attack(W, alone, KEY).inputs[0], joined[2], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -0.1, "steps": 1}, "radius must be a finite number in"),
        ({"radius": 0.1, "steps": -1}, "steps must be an integer >= 0"),
        ({"radius": 0.1, "steps": 1, "norm": "l2"}, "norm must be of type Norm"),
        ({"radius": 0.1, "steps": 1, "step_size": 0.0}, "step_size must be a finite number"),
        ({"radius": 0.1, "steps": 1, "random_start": 1}, "random_start must be True or False"),
        ({"radius": 0.1, "steps": 1, "bounds": 1.0}, "bounds must be a pair"),
        ({"radius": 0.1, "steps": 1, "bounds": (1.0, 0.0)}, "bounds must be low <= high"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        projected_gradient(logistic, **options)
    with pytest.raises(TypeError, match="loss must be a function"):
        dx.local.projected_gradient(3, 0.1, 1)
