"""Every linear mixer against a dense float64 product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflax import gossip, topology
from dflax.gossip import Mixing

KEY = jax.random.key(3)
INDEX = jnp.int32(0)


def shift_matrix(n, offset):
    return topology.uniform(topology.from_shifts((n,), ((offset,),), "shift", disconnected=True))


EVERY_KIND = ("torus of 2 x 3", "exponential graph of 12", "star of 9")


def cases():
    made = {}
    for graph in (
        topology.ring(12),
        topology.ring(2),
        topology.torus(3, 4),
        topology.torus(2, 3),
        topology.hypercube(8),
        topology.exponential(12),
        topology.complete(5),
        topology.star(9),
        topology.erdos_renyi(14, 0.3, seed=0),
        topology.random_regular(12, 3, seed=0),
        topology.geometric(12, 0.6, seed=0),
    ):
        matrix = topology.uniform(graph) if graph.directed else topology.metropolis(graph)
        kinds = ("slots", "dense", "edges") if graph.name in EVERY_KIND else ()
        for kind in (None, *kinds):
            made[f"{graph.name}-{kind}"] = (gossip.mixer(matrix, kind=kind), matrix.dense())
    rows = np.random.default_rng(0).dirichlet(np.ones(7), 7)
    matrix = topology.from_dense(rows, row_stochastic=True)
    for kind in ("slots", "dense", "edges"):
        made[f"row-stochastic-{kind}"] = (gossip.mixer(matrix, kind=kind), rows)
    made["average"] = (gossip.complete(7), np.full((7, 7), 1 / 7))
    made["identity"] = (gossip.identity(6), np.eye(6))
    for name, schedule in {
        "matching": topology.random_matching(9, 0.8),
        "few neighbours": topology.random_neighbours(12, 1.5),
        "many neighbours": topology.random_neighbours(6, 4.5),
        "base": topology.random_neighbours(8, 2.0, base=topology.torus(2, 4)),
        "regular": topology.random_regular_each_round(10, 3),
        "periodic": topology.periodic([topology.metropolis(topology.star(6))]),
    }.items():
        drawn = jax.jit(schedule.draw)(schedule.tables, KEY, INDEX)
        if isinstance(drawn, topology.Slots):
            dense = np.diag(1 - np.asarray(drawn.weights, np.float64).sum(1))
            rows = np.arange(schedule.nodes)[:, None]
            np.add.at(dense, (rows, np.asarray(drawn.neighbours)), np.asarray(drawn.weights))
        else:
            dense = np.asarray(drawn, np.float64)
        made[name] = (gossip.mixer(schedule), dense)
    return made


CASES = cases()


def masked(matrix, active):
    pairs = np.outer(active, active) * matrix
    np.fill_diagonal(pairs, 0)
    return pairs + np.diag(1 - pairs.sum(1))


def models_of(clients, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(generator.standard_normal((clients, 2, 3)), jnp.float32),
        "bias": jnp.asarray(generator.standard_normal(clients), jnp.float32),
        "half": jnp.asarray(generator.standard_normal((clients, 4)), jnp.bfloat16),
    }


def product(matrix, leaf):
    return np.tensordot(matrix, np.asarray(leaf, np.float64), axes=1)


def off_diagonal_count(matrix):
    return np.count_nonzero(matrix - np.diag(np.diagonal(matrix)))


@pytest.mark.some(2)
@pytest.mark.parametrize("name", CASES)
def test_mixer_is_its_matrix(name):
    mixer, matrix = CASES[name]
    models = models_of(mixer.clients)
    state = mixer.init(models)
    active = (np.arange(mixer.clients) % 3 != 1).astype(np.float32)

    @jax.jit
    def both(models, state, active):
        everyone = mixer.apply(models, state, Mixing(KEY, INDEX))
        return everyone, mixer.apply(models, state, Mixing(KEY, INDEX, active))

    (everyone, _, sent), (some, _, sent_by_some) = both(models, state, jnp.asarray(active))
    for leaf in models:
        tolerance = 1e-2 if models[leaf].dtype == jnp.bfloat16 else 1e-6
        assert everyone[leaf].dtype == models[leaf].dtype
        np.testing.assert_allclose(
            np.asarray(everyone[leaf], np.float64),
            product(matrix, models[leaf]),
            atol=tolerance,
            rtol=tolerance,
        )
        np.testing.assert_allclose(
            np.asarray(some[leaf], np.float64),
            product(masked(matrix, active), models[leaf]),
            atol=tolerance,
            rtol=tolerance,
        )
        after, before = np.asarray(some[leaf]), np.asarray(models[leaf])
        np.testing.assert_array_equal(after[active == 0], before[active == 0])
    assert sent["models_sent"].dtype == jnp.float32
    assert sent["models_sent"] == off_diagonal_count(matrix)
    assert sent_by_some["models_sent"] == off_diagonal_count(masked(matrix, active))


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "name", ["torus of 3 x 4-None", "star of 9-edges", "regular", "matching", "average"]
)
def test_symmetric_mixers_keep_the_mean_under_any_mask(name):
    mixer, _ = CASES[name]
    models = models_of(mixer.clients)["kernel"]
    state = mixer.init(models)

    def drift(active):
        mixed, _, _ = mixer.apply(models, state, Mixing(KEY, INDEX, active))
        return jnp.abs(mixed.mean(0) - models.mean(0)).max()

    masks = np.random.default_rng(1).integers(0, 2, (8, mixer.clients))
    assert jax.jit(jax.vmap(drift))(jnp.asarray(masks, bool)).max() < 1e-6


@pytest.mark.parametrize("name", ["ring of 12-None", "star of 9-edges", "regular", "average"])
def test_what_absent_clients_hold_never_spreads(name):
    mixer, _ = CASES[name]
    active = jnp.arange(mixer.clients) % 4 != 0
    models = jnp.where(active, 1.0, jnp.nan)
    mixed, _, _ = jax.jit(mixer.apply)(models, mixer.init(models), Mixing(KEY, INDEX, active))
    np.testing.assert_allclose(mixed, models)


def test_chunked_slots_are_the_plain_sum(monkeypatch):
    matrix = topology.metropolis(topology.random_regular(50, 3, seed=1))
    mixer = gossip.slots(matrix)
    models = jnp.asarray(np.random.default_rng(0).standard_normal((50, 6)), jnp.float32)
    state = mixer.init(models)
    monkeypatch.setattr("dflax.gossip.products.stored.LARGE_LEAF", 1)
    monkeypatch.setattr("dflax.gossip.products.stored.CHUNK", 42)
    lowered = jax.jit(mixer.apply).lower(models, state, Mixing(KEY, INDEX))
    assert "while" in lowered.as_text()
    mixed, _, _ = lowered.compile()(models, state, Mixing(KEY, INDEX))
    np.testing.assert_allclose(mixed, product(matrix.dense(), models), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 1000))
def test_agreement_is_kept_by_every_mask(mask, seed):
    models = jnp.full((8, 2), 1.5)
    for mixer in (RING, MATCHING):
        mixed = mixer(models, jax.random.key(seed), jnp.array(mask))
        np.testing.assert_allclose(mixed, models, rtol=1e-6)


def compiled(mixer):
    state = mixer.init(jnp.zeros((mixer.clients, 2)))
    return jax.jit(
        lambda models, key, active: mixer.apply(models, state, Mixing(key, 0, active))[0]
    )


RING = compiled(gossip.ring(8))
MATCHING = compiled(gossip.random_matching(8))


@pytest.mark.parametrize("kind", ["slots", "dense", "edges", "scheduled"])
def test_tables_are_data_and_not_constants(kind):
    matrix = topology.metropolis(topology.random_regular(200, 4, seed=0))
    if kind == "scheduled":
        mixer = gossip.scheduled(topology.periodic([matrix, matrix]))
    else:
        mixer = gossip.mixer(matrix, kind=kind)
    models = jnp.zeros((200, 3))
    state = mixer.init(models)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > 1000
    jaxpr = jax.make_jaxpr(mixer.apply)(models, state, Mixing(KEY, INDEX, jnp.ones(200)))
    assert sum(np.asarray(constant).nbytes for constant in jaxpr.consts) < 1000


def test_one_peer_exponential_averages_in_one_period():
    for n in (2, 4, 16):
        mixer = gossip.one_peer_exponential(n)
        models = models_of(n)["kernel"]
        state = mixer.init(models)
        mixed = models
        apply = jax.jit(mixer.apply)
        for t in range(n.bit_length() - 1):
            by_shift = product(shift_matrix(n, 1 << t).dense(), mixed)
            mixed, state, metrics = apply(mixed, state, Mixing(KEY, jnp.int32(t)))
            np.testing.assert_allclose(mixed, by_shift, atol=1e-6)
            assert metrics["models_sent"] == n
        expected = np.broadcast_to(models.mean(0), models.shape)
        np.testing.assert_allclose(mixed, expected, atol=1e-6)


@pytest.mark.slow
def test_r_of_a_random_mixer_can_be_swept():
    models = models_of(10)["kernel"]

    def sent(r):
        mixer = gossip.random_neighbours(10, r)
        return mixer.apply(models, mixer.init(models), Mixing(KEY, INDEX))[2]["models_sent"]

    np.testing.assert_array_equal(jax.vmap(sent)(jnp.array([0.0, 1.0, 9.0])), [0, 10, 90])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m.init({"step": jnp.zeros(12, int)}), TypeError, r"\['step'\].*int32"),
        (lambda m, x: m.init(jnp.zeros((11, 2))), ValueError, "length 12, got 11"),
        (lambda m, x: m.apply(x[:4], m.init(x), Mixing(KEY, 0)), ValueError, "length 12, got 4"),
        (
            lambda m, x: m.apply(x, m.init(x), Mixing(KEY, 0, jnp.ones(3))),
            ValueError,
            "active must",
        ),
    ],
)
def test_bad_models_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(CASES["ring of 12-None"][0], jnp.zeros((12, 2)))
