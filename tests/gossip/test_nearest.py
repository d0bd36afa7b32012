"""Rules that are combinations: the nearest, clipped pulls, Krum; for all at once or one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax import aggregation, gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(3)
N, F = 16, 3
HOSTILE = [1, 9, 14]
HONEST = np.setdiff1d(np.arange(N), HOSTILE)
HEARD = topology.random_neighbours(N, N - F - 1, first=HOSTILE)
ACTIVE = np.arange(N) % 7 != 2
RULES = {
    "nna": gossip.nna(F),
    "clipping": gossip.self_centred_clipping(2.0, 3),
    "krum": gossip.aggregating(aggregation.krum(F)),
}


def models(seed=0, offset=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    return {
        "w": offset + spread * rng.standard_normal((N, 3, 2)),
        "b": offset + spread * rng.standard_normal(N),
    }


def flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(N, -1) for leaf in jax.tree.leaves(tree)], 1)


@functools.cache
def mixing(name, together, schedule=True, masked=False):
    """A compiled mixing by a rule."""
    mixer = gossip.by_rule(
        HEARD if schedule else topology.complete(N),
        RULES[name],
        together=together,
        watched=HOSTILE,
    )

    def once(tree):
        active = jnp.asarray(ACTIVE) if masked else None
        return mixer.apply(tree, mixer.init(tree), Mixing(KEY, jnp.int32(0), active))

    return jax.jit(once)


def received(client):
    """Numbers of those that a client hears, itself first."""
    row = np.asarray(HEARD.draw(None, KEY, 0)[client])
    return [client, *np.flatnonzero((row > 0) & (np.arange(N) != client))]


def nna(rows, numbers, faulty=F):
    own = rows[numbers[0]]
    distance = ((rows[numbers] - own) ** 2).sum(1)
    kept = np.argsort(distance, kind="stable")[: max(len(numbers) - faulty, 1)]
    return rows[numbers][kept].mean(0), np.asarray(numbers)[kept]


def clipped(rows, numbers, radius=2.0, steps=3):
    v = rows[numbers[0]]
    for _ in range(steps):
        away = rows[numbers] - v
        length = np.maximum(np.linalg.norm(away, axis=1), 1e-30)
        v = v + (away * np.minimum(1, radius / length)[:, None]).mean(0)
    return v, np.asarray(numbers)


def krum(rows, numbers):
    x = rows[numbers]
    near = np.sort(((x[:, None] - x) ** 2).sum(-1), axis=1)[:, 1 : len(x) - F - 1]
    best = near.sum(1).argmin()
    return x[best], np.asarray(numbers)[[best]]


@pytest.mark.some(2)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_against_numpy_where_clients_wait_for_some(name, together):
    """The first n - f that arrive, hostile ones before all others; one of them far, one with a NaN."""
    rule = {"nna": nna, "clipping": clipped, "krum": krum}[name]
    with jax.enable_x64(True):
        tree = models()
        tree["w"][9] = 1e6
        found, _, metrics = mixing(name, together)(tree)
        rows, used = flat(tree), []
        for client in HONEST:
            numbers = received(client)
            assert set(HOSTILE) <= set(numbers)
            assert len(numbers) == N - F
            wanted, kept = rule(rows, numbers)
            # The weights of who arrives are drawn in float32.
            np.testing.assert_allclose(flat(found)[client], wanted, rtol=1e-6, atol=1e-7)
            used.append(len(set(HOSTILE) & set(kept)) / F)
    np.testing.assert_allclose(metrics["used_of_watched"], np.mean(used), rtol=1e-6)
    assert metrics["models_sent"] == N * (N - F - 1)


@pytest.mark.parametrize("together", [True, False])
def test_who_is_absent_or_not_finite_is_not_heard(together):
    with jax.enable_x64(True):
        tree = models()
        rows = flat(tree)
        tree["b"][4] = np.nan
        tree["w"][~ACTIVE] = np.nan
        found, _, metrics = mixing("nna", together, False, True)(tree)
        there = [i for i in np.flatnonzero(ACTIVE) if i != 4]
        for client in there:
            wanted, _ = nna(rows, [client, *(j for j in there if j != client)])
            np.testing.assert_allclose(flat(found)[client], wanted, atol=1e-9)
        for client in (4, *np.flatnonzero(~ACTIVE)):
            np.testing.assert_array_equal(flat(found)[client], flat(tree)[client])
    # Everyone there loses the one with a NaN; it loses everyone, whose way from a NaN is none.
    assert metrics["messages_dropped"] >= len(there) / ACTIVE.sum() - 1e-6


@pytest.mark.slow
def test_near_agreement_in_float32():
    """Honest models that differ in the fifth digit, beside one a thousand times the model away."""
    exact = models(offset=5.0, spread=1e-4)
    exact["w"][9] = 5e3
    tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), exact)
    rows = flat(tree).astype(np.float64)
    found = flat(mixing("nna", True)(tree)[0])
    agree = [np.abs(found[i] - nna(rows, received(i))[0]).max() < 3e-6 for i in HONEST]
    assert all(agree)


@pytest.mark.slow
def test_by_hand():
    """R = (0 own, 2, 1, -1, 10), f = 1: the four nearest of five make 0.5; 10 has no effect at all."""
    graph = topology.complete(5)
    mixer = gossip.by_rule(graph, gossip.nna(1))

    @jax.jit
    def own(x):
        return mixer.apply(x, mixer.init(x), Mixing(KEY, jnp.int32(0)))[0][0]

    assert own(jnp.array([0.0, 2, 1, -1, 10])) == 0.5
    assert own(jnp.array([0.0, 2, 1, -1, 1e6])) == 0.5
    cut = gossip.by_rule(topology.complete(4), gossip.self_centred_clipping(1.0))
    x = jnp.array([0.0, 0.5, 2, 10])
    np.testing.assert_allclose(
        cut.apply(x, cut.init(x), Mixing(KEY, jnp.int32(0)))[0][0], 0.625, rtol=1e-6
    )


@pytest.mark.slow
def test_laws_of_nna():
    """Rows of the matrix, the farthest kept, symmetries, and agreement as a fixed point."""
    apply = mixing("nna", True)
    with jax.enable_x64(True):
        tree = models(1)
        rows = flat(tree)
        found = flat(apply(tree)[0])
        marked = {"x": rows, "who": 1e-9 * np.eye(N)}
        matrix = np.asarray(apply(marked)[0]["who"]) / 1e-9
        kept = N - 2 * F
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(np.diagonal(matrix), 1 / kept, rtol=1e-6)
        assert ((np.abs(matrix) < 1e-6) | (np.abs(matrix - 1 / kept) < 1e-6)).all()
        for client in HONEST:
            near = nna(rows, received(client))[1]
            farthest = np.linalg.norm(rows[near] - rows[client], axis=1).max()
            assert np.linalg.norm(found[client] - rows[client]) <= farthest
        turn, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((7, 7)))
        turned = apply({"x": rows @ turn + 3.0, "who": np.zeros((N, N))})[0]["x"]
        np.testing.assert_allclose(turned, found @ turn + 3.0, atol=1e-9)
        # A hostile message behind the n - 2 f nearest of everyone may be anything.
        far = {"x": rows.copy(), "who": np.zeros((N, N))}
        far["x"][HOSTILE] = 1e3
        near = apply(far)[0]["x"][HONEST]
        far["x"][HOSTILE] = -1e5 + np.arange(7)
        np.testing.assert_allclose(apply(far)[0]["x"][HONEST], near, rtol=1e-12)
        same = {"x": np.full((N, 7), 0.3), "who": np.zeros((N, N))}
        same["x"][HOSTILE] = np.random.default_rng(4).standard_normal((F, 7)) * 1e-3 + 0.3
        np.testing.assert_allclose(apply(same)[0]["x"][HONEST], 0.3, rtol=1e-12)


def test_who_is_heard_does_not_hang_on_numbers():
    """Everyone heard: renumbering clients renumbers what they make."""
    order = np.random.default_rng(5).permutation(N)
    apply = mixing("nna", True, False)
    with jax.enable_x64(True):
        tree = models(6)
        found = apply(jax.tree.map(lambda leaf: leaf[order], tree))[0]
        np.testing.assert_allclose(flat(found), flat(apply(tree)[0])[order], atol=1e-12)


def test_models_contract_where_few_are_hostile():
    """n = 12, f = 1: 400 configurations of five shapes, and the hostile value anywhere within 2 std."""
    n, lanes = 12, 400
    rng = np.random.default_rng(7)
    honest = np.concatenate(
        [
            rng.standard_normal((80, n - 1)),
            rng.standard_t(2, (80, n - 1)),
            rng.uniform(size=(80, n - 1)),
            rng.exponential(size=(80, n - 1)),
            np.where(np.arange(n - 1) < 2, 1.0, 0.01 * rng.standard_normal((80, n - 1))),
        ]
    )
    liar = honest.mean(1) + rng.uniform(-2, 2, lanes) * honest.std(1)
    mixer = gossip.by_rule(
        topology.random_neighbours(n, n - 2, first=[n - 1]), gossip.nna(1), together=True
    )

    def spread(x, key):
        after = mixer.apply(x, mixer.init(x), Mixing(key, jnp.int32(0)))[0][:-1]
        moved = jnp.square(after.mean() - x[:-1].mean())
        return jnp.var(after) / jnp.var(x[:-1]), moved / jnp.var(x[:-1])

    rows = jnp.asarray(np.column_stack([honest, liar]), jnp.float32)
    alpha, moved = jax.jit(jax.vmap(spread))(rows, jax.random.split(KEY, lanes))
    assert 0.01 < alpha.max() < 0.5
    assert moved.max() < 0.6


@pytest.mark.slow
def test_on_eight_devices():
    tree = jax.tree.map(lambda leaf: leaf.astype(np.float32), models(8))
    expected = mixing("nna", True)(tree)[0]
    with jax.set_mesh(dx.client_mesh()):
        found = jax.jit(mixing("nna", True).__wrapped__)(tree)[0]
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-6)


def test_no_neighbour_is_copied_where_many_hear_many():
    tree = jnp.zeros((N, 1009))
    text = str(jax.make_jaxpr(lambda x: mixing("nna", True).__wrapped__(x)[0])(tree))
    assert f"{N},{N},1009" not in text
    assert f"{N - F - 1},1009" not in text
    sparse = gossip.by_rule(topology.ring(N), gossip.nna(1))
    text = str(
        jax.make_jaxpr(lambda x: sparse.apply(x, sparse.init(x), Mixing(KEY, jnp.int32(0)))[0])(
            tree
        )
    )
    assert f"[{N},{N}]" not in text


@pytest.mark.slow
def test_a_sweep_over_radii_and_faulty():
    """One program for several values, against NumPy."""
    tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), models(9))
    rows = flat(tree)

    def once(radius, faulty):
        found = []
        for rule in (gossip.self_centred_clipping(radius, 3), gossip.nna(faulty)):
            mixer = gossip.by_rule(HEARD, rule, together=True)
            found.append(mixer.apply(tree, mixer.init(tree), Mixing(KEY, jnp.int32(0)))[0])
        return found

    radii, counts = [0.5, 2.0], [0, 3]
    clippings, nearest = jax.jit(jax.vmap(once))(jnp.array(radii), jnp.array(counts))
    for lane, (radius, faulty) in enumerate(zip(radii, counts, strict=True)):
        after = flat({name: leaf[lane] for name, leaf in clippings.items()})
        kept = flat({name: leaf[lane] for name, leaf in nearest.items()})
        for client in HONEST[:4]:
            wanted = clipped(rows, received(client), radius)[0]
            np.testing.assert_allclose(after[client], wanted, rtol=1e-4, atol=1e-5)
            wanted = nna(rows, received(client), faulty)[0]
            np.testing.assert_allclose(kept[client], wanted, rtol=1e-4, atol=1e-5)


def shares_of_another_length(products, weights, key):
    return weights[1:], {}


WRONG = {
    "degree": (
        lambda: gossip.by_rule(topology.ring(N), gossip.nna(2)),
        ValueError,
        "rule must be given at least 5 models.*one hears 3",
    ),
    "least degree": (
        lambda: gossip.by_rule(topology.star(N), gossip.aggregating(aggregation.krum(1), least=3)),
        ValueError,
        "at least 3 models",
    ),
    "waiting": (
        lambda: gossip.by_rule(topology.random_neighbours(9, 5, first=[0]), gossip.nna(3)),
        ValueError,
        "at least 7 models.*one hears 6",
    ),
    "together": (
        lambda: gossip.by_rule(HEARD, gossip.aggregating(aggregation.median()), together=True),
        ValueError,
        "together must not be True",
    ),
    "watched": (
        lambda: gossip.by_rule(HEARD, gossip.nna(3), watched=np.ones(3, bool)),
        ValueError,
        "watched must be a mask over all 16",
    ),
    "shares": (
        lambda: jax.eval_shape(
            lambda x: gossip.by_rule(HEARD, gossip.combining(shares_of_another_length)).apply(
                x, gossip.by_rule(HEARD, gossip.nna(3)).init(x), Mixing(KEY, 0)
            ),
            jnp.zeros((N, 3)),
        ),
        ValueError,
        "shares of .* one number for each model",
    ),
    "mean kept": (
        lambda: dx.decentralized.dsgt(lambda *a: 0.0, 0.1, gossip.by_rule(HEARD, gossip.nna(3))),
        ValueError,
        "mixer must keep the mean",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    make, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        make()
