"""The prefix tree is that of a reference; its limits; one report a user; devices and sweeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import prefix_trees as reference
import pytest
from crowds import BITS, KEY, LEVELS, SIZES, K, crowd, exact, groups_of, run
from jax.sharding import NamedSharding, PartitionSpec

import dflax as dx
from dflax import heavy_hitters as hh
from dflax.privacy import local_privacy as lp

SETTING = {"bits": BITS, "levels": LEVELS, "k": K}
NOISE = 0.3


@functools.cache
def source(seed=0, growing=False, bits=BITS):
    items = jnp.asarray(hh.as_words(crowd(seed, bits), bits))
    return hh.grouped(jax.random.key(seed), items, SIZES, LEVELS, growing=growing)


def adaptive(values, deviation):
    return reference.adaptive(values, deviation, K)


def own_share(counts):
    return [count / max(sum(counts), 1) for count in counts]


CASES = {
    "tap": (hh.tap, {}, {}),
    "tap, fixed": (hh.tap, {"extension": hh.fixed(3)}, {"extend": lambda values, s: 3}),
    "taps": (hh.taps, {}, {"prune": (1.0, 0)}),
    "taps, validated": (hh.taps, {"pruning": hh.validated(0.5, 0.2)}, {"prune": (0.5, 0.2)}),
    "by own share": (
        hh.prefix_tree,
        {"extension": hh.adaptive(K), "weighing": hh.by_own_share},
        {"weigh": own_share},
    ),
}


@functools.cache
def compiled(name):
    """The state and the metrics of a case, a program of the source and the depth of sharing."""
    factory, options, _ = CASES[name]

    @jax.jit
    def found(source, sharing):
        algorithm = factory(exact(NOISE), sharing=sharing, **SETTING, **options)
        state = algorithm.init(KEY, jnp.array(SIZES))
        return dx.rollout(algorithm, state, source, KEY, LEVELS)

    return found


@pytest.mark.some(1)
@pytest.mark.parametrize("name", CASES)
def test_trees_are_those_of_the_reference(name):
    """On two crowds, at all depths of sharing, of items whose levels have different widths."""
    expected = CASES[name][2]
    for seed in range(2):
        for sharing in (0, 2, LEVELS):
            ours = compiled(name)(source(seed), jnp.int32(sharing))[0].server
            settings = {"extend": adaptive, **expected}
            theirs, sums = reference.tree(
                groups_of(source(seed)), SIZES, BITS, K, sharing, deviation=NOISE, **settings
            )
            np.testing.assert_array_equal(hh.as_numbers(np.asarray(ours.items)), theirs)
            np.testing.assert_allclose(ours.counts, sums, rtol=1e-5)
            assert ours.number == len(theirs)


@pytest.mark.parametrize("bits", [48, *(pytest.param(b, marks=pytest.mark.slow) for b in (64, 32))])
def test_items_of_two_words(bits):
    """At epsilon 100, with no more items than are extended: exactly the most frequent of the groups."""
    items = crowd(1, bits, codes=14)
    words = jnp.asarray(hh.as_words(items, bits))
    np.testing.assert_array_equal(hh.as_numbers(np.asarray(words)), items)
    table = hh.grouped(KEY, words, SIZES, 8)
    tree = hh.tap(lp.k_rr(100.0), bits=bits, levels=8, k=K, sharing=8, extension=hh.fixed(14))
    state, _ = run(tree, table)
    last = groups_of(table)[-1]
    shares = {}
    for size, own in zip(SIZES, last, strict=True):
        for item in own:
            shares[item] = shares.get(item, 0) + size / len(own)
    theirs = reference.ordered(shares)[:K]
    # Sums of shares may be equal but for rounding.
    ours = [int(v) for v in hh.as_numbers(np.asarray(state.server.items))]
    np.testing.assert_allclose([shares[v] for v in ours], [shares[v] for v in theirs], rtol=1e-5)
    np.testing.assert_allclose(state.server.counts, [shares[v] for v in ours], rtol=1e-4)


def same(one, other):
    """The same prefixes everywhere, and the same sums but for rounding."""
    np.testing.assert_array_equal(one.server.items, other.server.items)
    np.testing.assert_allclose(one.server.counts, other.server.counts, rtol=1e-5)
    for parents, others in zip(one.clients.parents, other.clients.parents, strict=True):
        np.testing.assert_array_equal(parents, others)


@pytest.mark.parametrize(
    "oracle",
    [lp.k_rr(2.0), pytest.param(lp.oue(2.0), marks=pytest.mark.slow)],
    ids=["k_rr", "oue"],
)
def test_with_nothing_pruned_taps_is_tap(oracle):
    tap, _ = run(hh.tap(oracle, sharing=2, **SETTING), source())

    @jax.jit
    def pruned(scale, source):
        algorithm = hh.taps(oracle, sharing=2, pruning=hh.prior(scale), **SETTING)
        state = algorithm.init(KEY, jnp.array(SIZES))
        return dx.rollout(algorithm, state, source, KEY, LEVELS)[0]

    same(pruned(1e9, source()), tap)
    prunes = pruned(0.0, source())
    assert not np.array_equal(prunes.clients.parents.words, tap.clients.parents.words)


@pytest.mark.slow
def test_without_sharing_and_of_one_party_tap_is_pem():
    oracle, rule = lp.k_rr(2.0), hh.fixed(K)
    pem, _ = run(hh.fedpem(oracle, **SETTING), source())
    tap, _ = run(hh.tap(oracle, sharing=0, extension=rule, **SETTING), source())
    same(tap, pem)
    items = jnp.asarray(hh.as_words(crowd(), BITS))
    pooled = hh.grouped(KEY, items, [sum(SIZES)], LEVELS)
    alone, _ = run(hh.fedpem(oracle, **SETTING), pooled, [sum(SIZES)])
    for sharing in (2, LEVELS):
        tap, _ = run(
            hh.tap(oracle, sharing=sharing, extension=rule, **SETTING), pooled, [sum(SIZES)]
        )
        np.testing.assert_array_equal(tap.server.items, alone.server.items)


@pytest.mark.slow
def test_the_whole_domain_at_once():
    items = jnp.asarray(hh.as_words(crowd(bits=8), 8))
    table = hh.grouped(KEY, items, SIZES, 1)
    state, metrics = run(hh.direct(lp.k_rr(100.0), bits=8, k=K), table)
    truth = hh.most_frequent(items, K)
    assert hh.f1(state.server, truth) == 1
    np.testing.assert_allclose(state.server.counts, truth.counts, rtol=1e-5)
    assert metrics["most_candidates"][0] == 256


def spied(oracle, reports):
    """The oracle, and a list of how often every row of a group reports."""

    def simulate(key, values, domain, present):
        jax.debug.callback(lambda here: reports.append(np.asarray(here).astype(int)), present)
        return oracle.simulate(key, values, domain, present)

    return oracle._replace(simulate=simulate)


@pytest.mark.parametrize(
    "rule",
    [
        hh.prior(),
        *(pytest.param(r, marks=pytest.mark.slow) for r in (None, hh.validated(share=0.3))),
    ],
)
def test_every_user_reports_exactly_once(rule):
    """Groups hold everyone once, and nobody in a group reports twice: epsilon in all."""
    items = np.arange(sum(SIZES), dtype=np.uint64)
    table = hh.grouped(KEY, jnp.asarray(hh.as_words(items, BITS)), SIZES, LEVELS)
    seen = np.sort(np.concatenate([own for level in groups_of(table) for own in level]))
    np.testing.assert_array_equal(seen, items)
    reports = []
    oracle = spied(lp.k_rr(1.0), reports)
    tree = hh.prefix_tree(oracle, sharing=2, extension=hh.fixed(K), pruning=rule, **SETTING)
    state, _ = run(tree, table)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert all(set(np.unique(one)) <= {0, 1} for one in reports)
    # Disjoint within a group: as many reports as users, in all and per slot.
    assert sum(one.sum() for one in reports) == sum(SIZES)
    per_slot = np.sum(reports, axis=0)
    most = np.asarray(table.table.present).sum((0, 1))
    np.testing.assert_array_equal(per_slot, most)


def test_a_changed_item_changes_one_group():
    items = crowd()
    changed = items.copy()
    changed[123] ^= np.uint64(1)
    one, other = (
        hh.grouped(KEY, jnp.asarray(hh.as_words(own, BITS)), SIZES, LEVELS).table.items
        for own in (items, changed)
    )
    assert np.any(np.asarray(one) != np.asarray(other), axis=(1, 2, 3)).sum() == 1


def test_group_sizes():
    assert hh.growing_groups(120, 2) == [30, 90]
    assert sum(hh.growing_groups(1001, 7)) == 1001
    assert hh.equal_groups(11, 3) == [3, 4, 4]
    sizes = np.asarray(source(growing=True).table.present).sum(-1).T
    np.testing.assert_array_equal(sizes, [hh.growing_groups(n, LEVELS) for n in SIZES])
    # Random, and in its own party.
    items = hh.as_words(np.arange(sum(SIZES), dtype=np.uint64), BITS)
    first, second = (
        groups_of(hh.grouped(jax.random.key(seed), jnp.asarray(items), SIZES, LEVELS))
        for seed in (0, 1)
    )
    assert first != second
    assert all(SIZES[0] <= v < SIZES[0] + SIZES[1] for level in first for v in level[1])


@pytest.mark.slow
@pytest.mark.parametrize("make", [hh.tap, hh.taps])
def test_users_dealt_over_devices_find_the_same(make):
    algorithm = make(lp.oue(2.0), sharing=2, **SETTING)
    alone, metrics = run(algorithm, source())
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        spread = NamedSharding(mesh, PartitionSpec(None, None, "clients"))
        table = jax.tree.map(lambda leaf: jax.device_put(leaf, spread), source().table)
        dealt, dealt_metrics = run(algorithm, dx.Events(table))
    jax.tree.map(np.testing.assert_array_equal, dealt.server.items, alone.server.items)
    np.testing.assert_allclose(dealt.server.counts, alone.server.counts, rtol=1e-5)
    for name, values in metrics.items():
        np.testing.assert_allclose(dealt_metrics[name], values, rtol=1e-5)


@pytest.mark.slow
def test_runs_and_sweeps_over_budgets_and_seeds():
    def make(epsilon):
        return hh.tap(lp.k_rr(epsilon), sharing=2, **SETTING)

    def start(algorithm, key):
        return algorithm.init(key, jnp.array(SIZES))

    swept = dx.sweep(
        make, start, source(), grid={"epsilon": [0.5, 100.0]}, seeds=2, key=KEY, rounds=LEVELS
    )
    key = jax.random.fold_in(KEY, 1)
    state, history = dx.run(make(100.0), start(make(100.0), key), source(), rounds=LEVELS, key=key)
    np.testing.assert_array_equal(swept.states.server.items[1, 1], state.server.items)
    assert history.metrics["candidates"].shape == (LEVELS,)
    errors = np.abs(np.asarray(swept.states.server.counts) - np.asarray(state.server.counts))
    assert errors[0].mean() > errors[1].mean()


def test_what_is_sent_is_counted():
    _, metrics = compiled("tap, fixed")(source(), jnp.int32(2))
    # Prefixes of 3, 5, 7, 9 and 11 bits.
    np.testing.assert_array_equal(metrics["candidates"], [8, 12, 12, 12, 12])
    np.testing.assert_array_equal(metrics["extended"], 3)
    np.testing.assert_array_equal(metrics["report_bits"], 4)
    np.testing.assert_array_equal(metrics["numbers_sent"], [16, 24, 0, 0, 2 * K])


@pytest.mark.slow
def test_what_unary_reports_and_pruning_parties_send_is_counted():
    _, metrics = run(hh.taps(lp.oue(1.0), sharing=2, pruning=hh.prior(1e9), **SETTING), source())
    np.testing.assert_array_equal(metrics["report_bits"], metrics["candidates"])
    alone = 2 * metrics["candidates"]
    np.testing.assert_allclose(metrics["numbers_sent"], alone + np.array([0, 0, 0, 0, 2 * K]))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"bits": 65}, "bits"),
        ({"levels": 12}, "levels"),
        ({"levels": 0}, "levels"),
        ({"k": 0}, "k"),
        ({"bits": 3, "levels": 1, "k": 9}, "k"),
        ({"sharing": LEVELS + 1}, "sharing"),
        ({"sharing": -1}, "sharing"),
        ({"bits": 48, "levels": 2}, "levels"),
        ({"oracle": lp.rappor(2.0, 1.0)}, "oracle"),
        ({"extension": 4}, "extension"),
        ({"pruning": 1.0}, "pruning"),
    ],
)
def test_refuses(changed, named):
    right = {"oracle": lp.k_rr(1.0), "sharing": 2, **SETTING}
    with pytest.raises((TypeError, ValueError), match=named):
        hh.taps(**right | changed)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"parties": [307, 511]}, "parties"),
        ({"parties": [307, 712, 2]}, r"parties\[2\]"),
        ({"parties": [307, 714, 0]}, r"parties\[2\]"),
        ({"levels": 0}, "levels"),
        ({"items": np.zeros((1021, 1), np.int32)}, "items"),
        ({"items": np.zeros((1021, 3), np.uint32)}, "items"),
        ({"items": np.zeros(1021, np.uint32)}, "items"),
    ],
)
def test_refuses_groups(changed, named):
    right = {"key": KEY, "items": hh.as_words(crowd(), BITS), "parties": SIZES, "levels": LEVELS}
    with pytest.raises((TypeError, ValueError), match=named):
        hh.grouped(**right | changed)


@pytest.mark.parametrize("numbers", [[-1], [2048], [0.5], [], [[3]]])
def test_refuses_items_out_of_range(numbers):
    with pytest.raises((TypeError, ValueError), match="numbers"):
        hh.as_words(numbers, BITS)


@pytest.mark.slow
def test_refuses_a_source_of_other_parties_items_or_levels():
    items = jnp.asarray(hh.as_words(crowd(), BITS))
    tree = hh.fedpem(lp.k_rr(1.0), **SETTING)
    for parties, levels in ((SIZES, 4), ([sum(SIZES)], LEVELS)):
        other = hh.grouped(KEY, items, parties, levels)
        with pytest.raises(ValueError, match="source"):
            tree.step(tree.init(KEY, jnp.array(SIZES)), other.draw(KEY, 0))
    long = hh.fedpem(lp.k_rr(1.0), bits=48, levels=LEVELS, k=K)
    with pytest.raises(ValueError, match="source"):
        long.step(long.init(KEY, jnp.array(SIZES)), source().draw(KEY, 0))
