"""Mixtures of experts: dispatches against each other and NumPy, owned slices, losses, capacity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.models import Dispatch, Load, MoE, Owned, TransformerLM, balance_loss, square_loss
from dflax.models.moe import products
from dflax.models.moe.layer import buffered, mixture
from dflax.models.moe.routing import load as load_of
from dflax.models.moe.routing import route

KEY = jax.random.key(0)
T, D, H, E, A = 150, 6, 5, 4, 2
FIRST, OWN = 1, 2


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def draw(skew=0.0):
    keys = jax.random.split(KEY, 5)
    tokens = jax.random.normal(keys[0], (T, D))
    shapes = ((E, D, H), (E, D, H), (E, H, D))
    matrices = tuple(0.5 * jax.random.normal(k, s) for k, s in zip(keys[1:4], shapes, strict=True))
    scores = jax.random.normal(keys[4], (T, E)) + skew * jnp.arange(E)
    return tokens, matrices, scores


def in_numpy(tokens, matrices, scores, normalised=False):
    x, (gate, up, down), scores = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (tokens, matrices, scores)
    )
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    y = np.zeros_like(x)
    for t in range(T):
        chosen = np.argsort(-p[t])[:A]
        total = p[t, chosen].sum() if normalised else 1.0
        for e in chosen:
            z = x[t] @ gate[e]
            y[t] += p[t, e] / total * ((z / (1 + np.exp(-z)) * (x[t] @ up[e])) @ down[e])
    return y


@jax.jit
def forms(tokens, matrices, scores):
    """Outputs and gradients of each dispatch, with all matrices and with a slice of them."""

    def value(tokens, matrices, scores, dispatch):
        y = mixture(tokens, matrices, route(scores, A), dispatch)
        return jnp.sum(jnp.sin(y)), y

    def of_slice(tokens, own, scores, dispatch):
        # What `whole` holds in the slice is not read.
        whole = [leaf.at[FIRST : FIRST + OWN].set(jnp.nan) for leaf in matrices]
        given = tuple(map(lambda w, o: Owned(w, o, jnp.int32(FIRST)), whole, own))
        return value(tokens, given, scores, dispatch)

    own = tuple(leaf[FIRST : FIRST + OWN] for leaf in matrices)
    found = {}
    for dispatch in Dispatch:
        grad = jax.grad(value, (0, 1, 2), has_aux=True)
        found[dispatch.name] = grad(tokens, matrices, scores, dispatch)
        grad = jax.grad(of_slice, (0, 1, 2), has_aux=True)
        found[dispatch.name + " own"] = grad(tokens, own, scores, dispatch)
    return found


# Skewed so that some expert gets nothing.
@pytest.mark.parametrize("skew", [0.0, -20.0])
def test_every_dispatch_is_the_formula_and_has_its_gradients(skew):
    tokens, matrices, scores = draw(skew)
    found = forms(tokens, matrices, scores)
    (slopes, matrix_slopes, score_slopes), y = found["DENSE"]
    np.testing.assert_allclose(y, in_numpy(tokens, matrices, scores), rtol=1e-5, atol=1e-5)
    counts = np.bincount(np.asarray(route(scores, A).chosen).ravel(), minlength=E)
    assert (counts.min() == 0) == (skew != 0)
    own = tuple(leaf[FIRST : FIRST + OWN] for leaf in matrix_slopes)
    for name, (slopes_of, y_of) in found.items():
        wanted = (slopes, own if "own" in name else matrix_slopes, score_slopes)
        jax.tree.map(assert_close, (slopes_of, y_of), (wanted, y))


def test_blocks_larger_and_smaller_than_groups_and_rows_agree(monkeypatch):
    x = jax.random.normal(KEY, (37, D))
    w = jax.random.normal(KEY, (E, D, H))
    sizes = jnp.array([0, 20, 1, 16])
    wanted = np.concatenate([x[:20] @ w[1], x[20:21] @ w[2], x[21:] @ w[3]])
    for block in (1, 8, 64):
        monkeypatch.setattr(products, "BLOCK", block)
        found = jax.jit(lambda x, w: products.blocked_product(x, w, sizes))(x, w)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_clients_side_by_side_may_have_different_groups():
    tokens, matrices, _ = draw()
    several = jnp.stack([draw(skew)[2] for skew in (0.0, -20.0)])

    def slope(scores):
        def value(matrices):
            y = mixture(tokens, matrices, route(scores, A), Dispatch.BLOCKED)
            return jnp.sum(jnp.sin(y))

        return jax.grad(value)(matrices)

    together = jax.jit(jax.vmap(slope))(several)
    for place, scores in enumerate(several):
        alone = jax.jit(slope)(scores)
        jax.tree.map(
            lambda a, b, place=place: np.testing.assert_allclose(a[place], b, rtol=1e-5, atol=1e-5),
            together,
            alone,
        )


def test_a_full_capacity_drops_nothing_and_a_small_one_counts_what_it_drops():
    tokens, matrices, scores = draw()
    routing = route(scores, A, normalised=True)
    given = tokens, matrices, routing
    y, overflow = jax.jit(buffered, static_argnums=3)(*given, T)
    assert int(overflow) == 0
    np.testing.assert_allclose(y, in_numpy(tokens, matrices, scores, True), rtol=1e-5, atol=1e-5)
    places = 10
    y, overflow = jax.jit(buffered, static_argnums=3)(*given, places)
    chosen = np.asarray(routing.chosen)
    counts = np.bincount(chosen.ravel(), minlength=E)
    assert int(overflow) == np.maximum(counts - places, 0).sum() > 0
    # A token whose experts were all full adds nothing, and the first tokens are all there.
    np.testing.assert_allclose(y[:5], in_numpy(tokens, matrices, scores, True)[:5], atol=1e-5)
    assert np.all(np.asarray(y[-1]) == 0)


def test_balance_is_one_for_even_experts_and_is_the_formula_for_others():
    even = Load(jnp.full(4, 4.0), jnp.full(4, 0.25), *jnp.zeros(3))
    assert float(balance_loss(even)) == 1.0
    load = Load(jnp.array([6.0, 2.0]), jnp.array([0.7, 0.3]), jnp.float32(2.0), *jnp.zeros(2))
    np.testing.assert_allclose(balance_loss(load), 2 * (0.75 * 0.7 + 0.25 * 0.3), rtol=1e-6)
    halved = balance_loss(load, jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(halved, 2 * (0.375 * 0.7 + 0.25 * 0.3), rtol=1e-6)
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), load, load._replace(square=4.0))
    assert float(square_loss(layers)) == 3.0
    np.testing.assert_allclose(balance_loss(layers), balance_loss(load), rtol=1e-6)


@pytest.mark.slow
def test_a_load_counts_pairs_and_says_how_sure_the_router_is():
    _, _, scores = draw()
    routing = route(scores, A)
    found = jax.jit(lambda s: load_of(s, route(s, A)))(scores)
    p = np.asarray(routing.probabilities, np.float64)
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_array_equal(
        found.counts, np.bincount(np.asarray(routing.chosen).ravel(), minlength=E)
    )
    # Without doubts, and without an idea.
    for scores, wanted in ((1e4 * np.eye(E, dtype=np.float32), 0.0), (np.zeros((3, E)), np.log(E))):
        given = jnp.asarray(scores, jnp.float32)
        np.testing.assert_allclose(load_of(given, route(given, A)).entropy, wanted, atol=1e-6)


@pytest.mark.slow
def test_the_language_model_sows_its_load_and_trains_an_owned_slice():
    model = TransformerLM(
        9, length=8, width=8, depth=1, heads=2, mixture=MoE(E, active=A, hidden=H)
    )
    tokens = jax.random.randint(KEY, (3, 8), 0, 9)
    params = jax.jit(model.init)(KEY, tokens)["params"]
    experts = params["Block_0"]["experts"]
    assert {name: leaf.shape for name, leaf in experts.items() if name != "router"} == {
        "gate": (E, 8, H),
        "up": (E, 8, H),
        "down": (E, H, 8),
    }

    @jax.jit
    def run(params, own):
        whole = dict(params, Block_0=dict(params["Block_0"]))
        mine = {name: Owned(experts[name], own[name], jnp.int32(FIRST)) for name in own}
        whole["Block_0"]["experts"] = mine | {"router": experts["router"]}

        def value(given):
            return jnp.sum(jnp.sin(model.apply({"params": given}, tokens)))

        plain, sown = model.apply({"params": params}, tokens, mutable=["routing"])
        grad = jax.grad(value, allow_int=True)
        return plain, sown["routing"], grad(params), grad(whole)

    own = {name: experts[name][FIRST : FIRST + OWN] for name in ("gate", "up", "down")}
    logits, sown, slopes, own_slopes = run(params, own)
    np.testing.assert_allclose(
        logits, jax.jit(lambda p: model.apply({"params": p}, tokens))(params), atol=1e-6
    )
    load = sown["Block_0"]["experts"]["load"]
    assert float(load.counts.sum()) == tokens.size * A
    np.testing.assert_allclose(load.probability.sum(), 1.0, rtol=1e-5)
    assert float(load.overflow) == 0
    assert 0 < float(load.entropy) <= np.log(E)
    found, wanted = own_slopes["Block_0"]["experts"], slopes["Block_0"]["experts"]
    for name in own:
        np.testing.assert_allclose(
            found[name].own, wanted[name][FIRST : FIRST + OWN], rtol=1e-4, atol=1e-5
        )


def test_a_layer_with_capacity_sows_what_it_dropped():
    layer = MoE(E, active=A, hidden=H, capacity=0.25)
    x = jax.random.normal(KEY, (2, 16, D))
    variables = jax.jit(layer.init)(KEY, x)
    _, sown = jax.jit(lambda v: layer.apply(v, x, mutable=["routing"]))(variables)
    load = sown["routing"]["load"]
    assert float(load.overflow) == np.maximum(np.asarray(load.counts) - 4, 0).sum() >= 48


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoE(4, active=5), r"active must be .* 4.* got 5"),
        (lambda: MoE(0), "experts must be an integer >= 1, got 0"),
        (lambda: MoE(4, hidden=0), "hidden must be an integer >= 1, got 0"),
        (lambda: MoE(4, capacity=0.0), "capacity must be"),
        (lambda: MoE(4, capacity=1.0, dispatch=Dispatch.DENSE), "dispatch must be None with"),
        (lambda: route(jnp.zeros((3, 2)), 3), r"active must be .* 2.* got 3"),
        (lambda: route(jnp.zeros(3), 1), "scores must be real"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="mixture must be"):
        TransformerLM(5, mixture=8)
    with pytest.raises(TypeError, match="dispatch must be"):
        MoE(4, dispatch="dense")
    with pytest.raises(TypeError, match="load must be"):
        balance_loss(route(jnp.zeros((3, 2)), 1))
