"""Every wrapper of a mixer around every mixer: it composes, or it is refused by name."""

import functools
import inspect
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import dflax as dx
from dflax import aggregation, gossip, matching, topology
from dflax.data.dataset import Dataset
from dflax.gossip import Aged, Mixing
from dflax.gossip.mixer import deal, reunited

KEY = jax.random.key(0)
N = 4
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)), jnp.float32)
DATA = Dataset(INPUTS, jnp.zeros(16, jnp.int32))
ROUND = dx.Federation(DATA, dx.data.iid(16, N), batch_size=4, local_steps=1).draw(KEY, 0)
ACTIVE = jnp.asarray([1.0, 1.0, 0.0, 1.0])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(2)(x))
        return nn.Dense(1)(nn.relu(x))


MODULE = Normed()
ONE = jax.eval_shape(MODULE.init, KEY, INPUTS)
MATCH = matching.by_weights(matching.symmetries(MODULE, ONE, INPUTS))
ALONE = functools.partial(topology.uniform, self_weight=0.0)

WRAPPERS = {
    "repeat": lambda mixer: gossip.repeat(mixer, 2),
    "alternate": lambda mixer: gossip.alternate([mixer, gossip.ring(N)]),
    "sometimes": lambda mixer: gossip.sometimes(mixer, 0.5),
    "every": lambda mixer: gossip.every(mixer, 2),
    "by_part": lambda mixer: gossip.by_part({"all": mixer}, lambda path: "all"),
    "weighted_by_leaf": lambda mixer: gossip.weighted_by_leaf(mixer),
    "chebyshev": lambda mixer: gossip.chebyshev(mixer, 2, second_eigenvalue=0.5),
    "sampled": lambda mixer: gossip.sampled(mixer, 0.5),
    "partitioned": lambda mixer: gossip.partitioned(mixer, 2),
    "variance_corrected": lambda mixer: gossip.variance_corrected(mixer),
    "anchored": lambda mixer: gossip.anchored(mixer, MATCH),
    "recalibrated": lambda mixer: gossip.recalibrated(mixer, MODULE, batches=1, batch_size=2),
}
BASES = {
    "ring": lambda: gossip.ring(N),
    "complete": lambda: gossip.complete(N),
    "random matching": lambda: gossip.random_matching(N),
    "one peer": lambda: gossip.one_peer_exponential(N),
    "push-sum": lambda: gossip.push_sum(topology.ring(N)),
    "age weighted": lambda: gossip.age_weighted(N),
    "aligned": lambda: gossip.aligned(topology.ring(N), MATCH),
    "median": lambda: gossip.by_rule(topology.ring(N), gossip.aggregating(aggregation.median())),
}
WHOLE = {"aligned", "anchored", "recalibrated"}
PARTS = {"sampled", "partitioned", "weighted_by_leaf"}
NOT_LINEAR = {*PARTS, "median"}
# Of every wrapper: what it refuses, and the name in the message.
REFUSED = {
    "chebyshev": {
        **dict.fromkeys(["push-sum", "one peer", "age weighted"], "topology must multiply"),
        **dict.fromkeys([*NOT_LINEAR, "variance_corrected"], "topology must multiply"),
        **dict.fromkeys(WHOLE, "topology must mix any tree"),
    },
    **{part: dict.fromkeys(WHOLE, "mixer must mix any tree") for part in PARTS},
    "variance_corrected": {
        **dict.fromkeys(WHOLE, "neighbours must mix any tree"),
        "weighted_by_leaf": "models must be",
    },
    "anchored": {
        **dict.fromkeys(["age weighted", "weighted_by_leaf"], "symmetries"),
        "recalibrated": "models must",
    },
    "recalibrated": dict.fromkeys(
        ["recalibrated", "age weighted", "weighted_by_leaf"], "models must be variables"
    ),
}
for part in PARTS:
    # What of a sum and of its weights is sent would be drawn apart.
    REFUSED[part] |= dict.fromkeys(NOT_LINEAR, "mixer must mix all numbers by one matrix")
    REFUSED[part]["variance_corrected"] = "choose must"
    REFUSED[part]["age weighted"] = "models must be of type Aged"


def stacked(tree):
    return jax.tree.map(lambda leaf: jnp.ones((N, *leaf.shape), leaf.dtype), tree)


def models_of(*names):
    """Models that all of the mixers named can mix: with statistics, with ages, weighted, or plain."""
    weights = {"params": ONE["params"]}
    if "weighted_by_leaf" in names:
        return aggregation.Weighted(stacked(weights), jnp.ones(N))
    if "age weighted" in names:
        return Aged(stacked(weights), jnp.ones(N))
    return stacked(ONE if "recalibrated" in names else weights)


def mixing(mixer, models):
    """Shapes of what a mixing gives, once with everyone and once with a mask."""

    def once(models, here):
        state = mixer.init(models)
        state = reunited(*deal(state))
        return mixer.apply(models, state, here)

    for here in (Mixing(KEY, jnp.int32(1), None, ROUND), Mixing(KEY, jnp.int32(1), ACTIVE, ROUND)):
        mixed, state, metrics = jax.eval_shape(once, models, here)
        assert jax.tree.structure(mixed) == jax.tree.structure(models)
        assert all(value.shape == () for value in metrics.values())
        assert metrics["models_sent"].dtype == jnp.float32
        assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(mixer.init, models))


# In the fast tier: all refusals, every wrapper on three mixers, and every mixer in one wrapper.
PAIRS = [
    pytest.param(
        outer,
        inner,
        marks=()
        if inner in REFUSED.get(outer, {})
        or inner in {"ring", "push-sum", "median"}
        or outer == "repeat"
        else pytest.mark.slow,
    )
    for outer in WRAPPERS
    for inner in (*BASES, *WRAPPERS)
]


@pytest.mark.some(2)
@pytest.mark.parametrize(("outer", "inner"), PAIRS, ids=lambda name: name)
def test_wrappers_compose_or_are_refused_by_name(outer, inner):
    made = BASES[inner] if inner in BASES else lambda: WRAPPERS[inner](gossip.ring(N))
    models = models_of(outer, inner)
    message = REFUSED.get(outer, {}).get(inner)
    if message is None:
        mixing(WRAPPERS[outer](made()), models)
        return
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        mixing(WRAPPERS[outer](made()), models)


def test_every_mixer_that_takes_another_is_among_the_wrappers():
    takes = set()
    for name, value in vars(gossip).items():
        given = dict(getattr(value, "__annotations__", {})) if inspect.isfunction(value) else {}
        given.pop("return", None)
        if gossip.Mixer in given.values() or Sequence[gossip.Mixer] in given.values():
            takes.add(name)
    # One takes a graph as well, the other mixers by name.
    assert takes | {"chebyshev", "by_part"} == WRAPPERS.keys()


def test_a_round_reaches_those_who_read_it_through_every_turn():
    """Turns of a mixer that reads the clients' examples and one that does not."""
    models = stacked(ONE)
    alternating = gossip.alternate([WRAPPERS["recalibrated"](gossip.ring(N)), gossip.ring(N)])
    apply = jax.jit(alternating.apply)
    state = alternating.init(models)
    fresh, _, _ = apply(models, state, Mixing(KEY, jnp.int32(0), None, ROUND))
    kept, _, _ = apply(models, state, Mixing(KEY, jnp.int32(1), None, ROUND))
    moved = [
        np.abs(np.asarray(mixed["batch_stats"]["BatchNorm_0"]["mean"]) - 1).max()
        for mixed in (fresh, kept)
    ]
    assert moved[0] > 0.1
    assert moved[1] < 1e-6


def test_means_of_several_mixings_are_means_and_what_is_sent_adds_up():
    models = {
        "kernel": jnp.asarray(np.random.default_rng(1).standard_normal((N, 3, 4)), jnp.float32)
    }
    corrected = gossip.variance_corrected(gossip.mixer(topology.ring(N), weights=ALONE))

    @jax.jit
    def both(models):
        def run(mixer):
            return mixer.apply(models, mixer.init(models), Mixing(KEY, 0))[2]

        return run(corrected), run(gossip.repeat(corrected, 3))

    once, several = both(models)
    np.testing.assert_allclose(several["models_sent"], 3 * once["models_sent"], rtol=1e-6)
    assert 0.5 < several["variance_scale"] < 1.5 * once["variance_scale"]


def test_sometimes_mixes_as_often_as_it_says_and_measures_nothing_else():
    models = jnp.asarray(np.random.default_rng(2).standard_normal((N, 3, 2)), jnp.float32)
    corrected = gossip.variance_corrected(gossip.ring(N), 0.0)

    @jax.jit
    @jax.vmap
    def tossed(key, probability):
        mixer = gossip.sometimes(corrected, probability)
        mixed, _, metrics = mixer.apply(models, mixer.init(models), Mixing(key, 0))
        return mixed, metrics

    keys = jax.random.split(KEY, 300)
    mixed, metrics = tossed(keys, jnp.repeat(jnp.array([0.0, 0.25, 1.0]), 100))
    mixes = np.asarray(metrics["models_sent"]) > 0
    assert mixes[:100].sum() == 0
    assert 10 <= mixes[100:200].sum() <= 45
    assert mixes[200:].all()
    np.testing.assert_array_equal(np.isnan(metrics["variance_scale"]), ~mixes)
    np.testing.assert_array_equal(
        np.asarray(mixed)[~mixes], np.broadcast_to(models, mixed.shape)[~mixes]
    )
    with pytest.raises(ValueError, match="probability must be"):
        gossip.sometimes(gossip.ring(N), 1.5)
    with pytest.raises(TypeError, match="mixer must be a Mixer"):
        gossip.sometimes(3, 0.5)


RETURNS = {
    "a pair": (
        lambda m, s, mixing: (m, s),
        "must return .models, state, metrics., got a tuple of 2",
    ),
    "no dict": (lambda m, s, mixing: (m, s, 3.0), "metrics of .* must be a dict"),
    "no count": (lambda m, s, mixing: (m, s, {}), "must count models_sent"),
    "one model": (
        lambda m, s, mixing: (m.mean(0), s, {"models_sent": jnp.zeros(())}),
        r"models of .* must have the shape of .*\(4, 3\)",
    ),
    "another type": (
        lambda m, s, mixing: (m.astype(jnp.bfloat16), s, {"models_sent": jnp.zeros(())}),
        "models of .* must have the dtype of .*float32",
    ),
    "another state": (
        lambda m, s, mixing: (m, (1.0,), {"models_sent": jnp.zeros(())}),
        "state of .* must have the structure",
    ),
}


@pytest.mark.parametrize("case", RETURNS)
def test_what_a_users_mixer_returns_is_refused_by_name(case):
    apply, message = RETURNS[case]
    own = gossip.Mixer(N, lambda models: (), apply)
    mixer = gossip.repeat(own, 2)
    models = jnp.ones((N, 3))
    with pytest.raises((TypeError, ValueError), match=f"apply.*{message}|{message}.*"):
        jax.eval_shape(mixer.apply, models, (), Mixing(KEY, 0))


def test_a_users_own_exception_passes_as_it_is():
    def broken(models, state, mixing):
        raise KeyError("mine")

    mixer = gossip.repeat(gossip.Mixer(N, lambda models: (), broken), 2)
    with pytest.raises(KeyError, match="mine"):
        jax.eval_shape(mixer.apply, jnp.ones((N, 3)), (), Mixing(KEY, 0))
