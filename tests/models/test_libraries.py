"""One small net with BatchNorm and Dropout in linen, nnx, equinox and haiku: each library's own loop."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax.data.dataset import Batch

KEY = jax.random.key(0)
WIDTH, CLASSES, DROPPED = 32, 10, 0.2
INPUTS = np.random.default_rng(0).normal(1.0, 2.0, size=(12, 64)).astype(np.float32)
BATCH = Batch(jnp.asarray(INPUTS), jnp.arange(12, dtype=jnp.int32) % CLASSES)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(WIDTH)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(CLASSES)(nn.Dropout(DROPPED, deterministic=not train)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(DROPPED, rngs=rngs)
        self.last = nnx.List([nnx.Linear(WIDTH, CLASSES, rngs=rngs)])

    def __call__(self, x):
        return self.last[0](self.drop(nnx.relu(self.norm(self.first(x)))))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key, mode="batch"):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(64, WIDTH, key=keys[0])
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", momentum=0.9, mode=mode)
        self.drop = eqx.nn.Dropout(DROPPED)
        self.last = eqx.nn.Linear(WIDTH, CLASSES, key=keys[1])

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(jax.nn.relu(x), key=key)), state


def haiku_net(x, is_training, dropped=DROPPED):
    x = hk.Linear(WIDTH)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    if is_training and dropped:
        x = hk.dropout(hk.next_rng_key(), dropped, x)
    return hk.Linear(CLASSES)(x)


@functools.cache
def model_of(library):
    return {
        "linen": Linen,
        "nnx": lambda: Nnx(nnx.Rngs(0)),
        "equinox": lambda: eqx.nn.make_with_state(Equinox)(KEY),
        "equinox ema": lambda: eqx.nn.make_with_state(Equinox)(KEY, "ema"),
        "haiku": lambda: hk.transform_with_state(haiku_net),
    }[library]()


def variables_of(library):
    return dx.models.variables(model_of(library), KEY, BATCH.inputs)


LIBRARIES = ["linen", "nnx", "equinox", "haiku"]


@functools.cache
def ours(library):
    """Scores in evaluation, loss, gradient, and statistics after one plain step."""
    loss = dx.losses.classification(model_of(library))
    descent = dx.models.with_statistics(optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(variables, key):
        (value, _), slope = jax.value_and_grad(loss, has_aux=True)(variables, BATCH, key)
        updates, _ = descent.update(slope, descent.init(variables), variables)
        after = optax.apply_updates(variables, updates)
        scores = dx.models.as_apply(model_of(library))(after, BATCH.inputs)
        return value, slope["params"], after, scores

    return step(variables_of(library), KEY)


def cross_entropy(scores):
    return optax.softmax_cross_entropy_with_integer_labels(scores, BATCH.labels).mean()


def test_linens_step_is_its_own():
    value, slope, after, scores = ours("linen")
    module, variables = model_of("linen"), variables_of("linen")

    def own(params):
        outputs, moved = module.apply(
            {**variables, "params": params},
            BATCH.inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return cross_entropy(outputs), moved

    (expected, moved), gradient = jax.jit(jax.value_and_grad(own, has_aux=True))(
        variables["params"]
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_trees_close(slope, gradient, rtol=1e-5, atol=1e-7)
    assert_trees_close(after["batch_stats"], moved["batch_stats"], rtol=1e-5, atol=1e-7)
    assert_trees_close(scores, jax.jit(module.apply)(after, BATCH.inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_nnxs_step_is_its_own():
    value, slope, after, scores = ours("nnx")
    model = dx.models.with_variables(model_of("nnx"), variables_of("nnx"))
    model.drop.rngs.key[...] = jax.random.fold_in(KEY, 0)
    model.train()
    expected, gradient = nnx.value_and_grad(lambda model: cross_entropy(model(BATCH.inputs)))(model)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    gradient = nnx.to_pure_dict(gradient)
    gradient["last"] = {"0": gradient["last"][0]}
    assert_trees_close(slope, gradient, rtol=1e-5, atol=1e-7)
    moved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    assert np.abs(moved["norm"]["mean"]).max() > 0.01
    assert_trees_close(after["batch_stats"], moved, rtol=1e-5, atol=1e-7)
    trained = dx.models.with_variables(model_of("nnx"), after)
    trained.eval()
    assert_trees_close(scores, trained(BATCH.inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", ["equinox", "equinox ema"])
def test_equinoxs_step_is_its_own(library):
    value, slope, after, scores = ours(library)
    model, state = model_of(library)
    keys = jax.random.split(KEY, 12)

    def own(model, state):
        outputs, state = jax.vmap(
            lambda x, s, k: model(x, s, key=k), (0, None, 0), (0, None), axis_name="batch"
        )(BATCH.inputs, state, keys)
        return cross_entropy(outputs), state

    (expected, moved), gradient = eqx.filter_jit(eqx.filter_value_and_grad(own, has_aux=True))(
        model, state
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_trees_close(slope, gradient, rtol=1e-5, atol=1e-7)
    model, state = dx.models.with_variables(model_of(library), after)
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [
        leaf.dtype for leaf in jax.tree.leaves(moved)
    ]
    assert_trees_close(state, moved, rtol=1e-5, atol=1e-7)
    model = eqx.nn.inference_mode(model)
    expected, _ = jax.vmap(model, (0, None), (0, None), axis_name="batch")(BATCH.inputs, state)
    assert_trees_close(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_haikus_step_is_its_own():
    value, slope, after, scores = ours("haiku")
    model = model_of("haiku")
    params, state = model.init(KEY, BATCH.inputs, True)

    def own(params):
        outputs, moved = model.apply(params, state, KEY, BATCH.inputs, True)
        return cross_entropy(outputs), moved

    (expected, moved), gradient = jax.jit(jax.value_and_grad(own, has_aux=True))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_trees_close(slope, gradient, rtol=1e-5, atol=1e-7)
    params, state = dx.models.with_variables(model, after, BATCH.inputs)
    assert_trees_close(state, moved, rtol=1e-5, atol=1e-7)
    counter = state["batch_norm/~/mean_ema"]["counter"]
    assert counter.dtype == jnp.int32
    assert counter == 1
    expected, _ = model.apply(params, state, None, BATCH.inputs, False)
    assert_trees_close(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox", "equinox ema", "haiku"])
def test_statistics_are_estimated_afresh(library):
    """The first layer is linear: the batches' own statistics are known."""
    model = model_of(library)
    if library == "haiku":
        model = hk.transform_with_state(functools.partial(haiku_net, dropped=0.0))
    data = dx.data.Dataset(BATCH.inputs, BATCH.labels)
    given = variables_of(library)
    renewed = jax.jit(
        lambda given: dx.models.recalibrate(model, given, data, batches=2, batch_size=6)
    )(given)
    assert_trees_equal(renewed["params"], given["params"])
    filled = dx.models.with_variables(model, renewed, BATCH.inputs)
    if library == "linen":
        layer, found = given["params"]["Dense_0"], renewed["batch_stats"]["BatchNorm_0"]["mean"]
        hidden = INPUTS @ np.asarray(layer["kernel"])
    elif library == "nnx":
        hidden, found = INPUTS @ np.asarray(filled.first.kernel[...]), filled.norm.mean[...]
    elif library == "haiku":
        params, state = filled
        hidden = INPUTS @ np.asarray(params["linear"]["w"])
        found = state["batch_norm/~/mean_ema"]["average"][0]
    else:
        module, state = filled
        hidden = INPUTS @ np.asarray(module.first.weight).T + np.asarray(module.first.bias)
        if library == "equinox":
            found = state.get(module.norm.batch_state_index)[0] / (1 - 0.9)
            assert state.get(module.norm.batch_counter) == 1
        else:
            found = state.get(module.norm.ema_state_index)[0]
            assert not state.get(module.norm.ema_first_time_index)
    np.testing.assert_allclose(found, hidden.mean(0), rtol=1e-4, atol=1e-4)


def test_plain_modules_need_no_statistics():
    """Bare weights will do as well."""
    linear = eqx.nn.Linear(64, CLASSES, key=KEY)
    for model, expected in (
        (linear, jax.vmap(linear)(BATCH.inputs)),
        (hk.transform(lambda x: hk.Linear(CLASSES)(x)), None),
        (hk.without_apply_rng(hk.transform(lambda x: hk.Linear(CLASSES)(x))), None),
    ):
        variables = dx.models.variables(model, KEY, BATCH.inputs)
        assert set(variables) == {"params"}
        apply = dx.models.as_apply(model)
        if expected is None:
            expected = model.init(KEY, BATCH.inputs)
            expected = BATCH.inputs @ expected["linear"]["w"] + expected["linear"]["b"]
        for params in (variables, variables["params"]):
            for key in (None, KEY):
                np.testing.assert_allclose(
                    apply(params, BATCH.inputs, key), expected, rtol=1e-5, atol=1e-5
                )


@pytest.mark.parametrize("library", LIBRARIES)
def test_variables_survive_a_file(library, tmp_path):
    variables = variables_of(library)
    dx.export.save(tmp_path / "model.safetensors", variables)
    assert_trees_equal(dx.export.load(tmp_path / "model.safetensors", like=variables), variables)


def test_nnx_modules_are_read_and_not_changed():
    model = Nnx(nnx.Rngs(3))
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    loss = dx.losses.classification(model)
    variables = dx.models.variables(model)
    first, second = (loss(variables, BATCH, jax.random.key(i))[0] for i in range(2))
    assert first != second
    assert loss(variables, BATCH, None)[0] == loss(variables, BATCH, None)[0]
    assert_trees_equal(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), before)


class Forgets(nnx.Module):
    def __init__(self):
        self.seen = nnx.Variable(jnp.zeros(()))
        self.last = nnx.Linear(64, CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x):
        self.seen[...] = self.seen[...] + 1
        return self.last(x)


class Switched(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(64, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x, resting=True):
        x = self.norm(x, use_running_average=resting)
        return self.drop(x, deterministic=resting)


class NoState(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(64, "batch", mode="batch")

    def __call__(self, x):
        return x


class Unmoved(NoState):
    def __call__(self, x, state):
        return x, state


class NoKey(eqx.Module):
    drop: eqx.nn.Dropout

    def __init__(self):
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, x):
        return self.drop(x)


def still(x, is_training):
    return x + hk.get_state("seen", (), init=jnp.zeros)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Forgets, "change no variables but BatchStat.*seen, a Variable.*nnx.BatchStat"),
        (Switched, "no Dropout drew a key.*training={'NAME': False}"),
        (NoState, r"must come with its state.*make_with_state"),
        (lambda: eqx.nn.make_with_state(NoState)(), r"called as \(x, state\).*arguments \(x\)"),
        (lambda: eqx.nn.make_with_state(Unmoved)(), "left the state as it was"),
        (NoKey, "must take a key for its Dropout.*key=None"),
        (lambda: hk.transform_with_state(still), "left the state as it was"),
        (
            lambda: hk.transform(lambda x, train=False: hk.Linear(CLASSES)(x)),
            r"the flags \['train'\].*as_apply\(model, training='NAME'\)",
        ),
        (
            lambda: hk.transform(lambda x, train: hk.Linear(CLASSES)(x)),
            r"the arguments \['train'\], which have no default",
        ),
    ],
)
def test_what_would_go_wrong_silently_is_refused(make, message):
    def use():
        model = make()
        variables = dx.models.variables(model, KEY, BATCH.inputs)
        return dx.losses.classification(model)(variables, BATCH, KEY)

    with pytest.raises(ValueError, match=message):
        use()


def test_the_switch_can_be_told_in_every_library():
    model = dx.models.as_apply(Switched(), training={"resting": False})
    variables = dx.models.variables(model)
    loss = dx.losses.classification(model)
    slope = jax.jit(jax.grad(lambda v: loss(v, BATCH, KEY)[0]))(variables)
    expected = -0.01 * BATCH.inputs.mean(0)
    np.testing.assert_allclose(slope["batch_stats"]["norm"]["mean"], expected, rtol=1e-3, atol=1e-6)

    def net(x, train=False):
        return hk.dropout(hk.next_rng_key(), 0.5, x) if train else x

    apply = dx.models.as_apply(hk.transform(net), training="train")
    assert (np.asarray(apply({}, BATCH.inputs, KEY)) == 0).any()
    np.testing.assert_array_equal(apply({}, BATCH.inputs), BATCH.inputs)


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_without_their_statistics_are_refused(library):
    loss = dx.losses.classification(model_of(library))
    weights = variables_of(library)["params"]
    for given in (weights, {"params": weights}):
        with pytest.raises(ValueError, match="params must be the whole variables dict"):
            loss(given, BATCH, KEY)


@pytest.mark.parametrize("library", ["nnx", "equinox"])
def test_weights_of_another_model_are_refused(library):
    loss = dx.losses.classification(model_of(library))
    with pytest.raises(ValueError, match=r'own "params", got a dict.*dflax.models.variables'):
        loss({"w": jnp.zeros(3)}, BATCH, KEY)


def test_functions_hold_no_variables():
    with pytest.raises(TypeError, match="model must be a module or a haiku transform"):
        dx.models.variables(lambda params, x: x)
    with pytest.raises(TypeError, match="key must be one typed JAX key"):
        dx.models.variables(model_of("haiku"))
