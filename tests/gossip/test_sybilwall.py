"""SybilWall against NumPy round by round, its exact values, and what it may never do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quadratic_rounds import CLIENTS, LOSS, SOURCE, START
from scipy.sparse import csgraph
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import gossip, topology
from dflax.gossip import Mixing
from dflax.gossip.rules.sybilwall.records import About, Records
from dflax.gossip.rules.sybilwall.rule import COMBINED, Memory

KEY, N, D = jax.random.key(3), 12, 5
GRAPH = topology.erdos_renyi(N, 0.3, seed=4)
APART = csgraph.shortest_path(GRAPH.sparse(), unweighted=True)
HEARD = [GRAPH.senders[GRAPH.receivers == i] for i in range(N)]


def numpy_scores(histories, heard):
    """FoolsGold's scores of the first so many, in float64, as the sheet says them."""
    unit = histories / np.linalg.norm(histories, axis=1, keepdims=True)
    like = unit @ unit.T
    np.fill_diagonal(like, 0)
    closest = like.max(1) + 1e-5
    pardoned = like * np.minimum(1, closest[:, None] / closest)
    alone = np.clip(1 - pardoned.max(1), 0, 1)[:heard]
    if alone.max() <= 1e-12:
        return np.zeros(heard)
    share = np.clip(alone / alone.max(), 1e-9, 0.99)
    return np.clip(np.log(share / (1 - share)) + 0.5, 0, 1)


def trained(round):
    """What clients send in a round: two far apart send one and the same."""
    rng = np.random.default_rng([round, 1])
    rows = rng.standard_normal((N, D)) + 0.3
    rows[N - 1] = rows[0]
    return {"a": rows[:, :2], "b": rows[:, 2:]}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]), np.asarray(tree["b"])], axis=-1)


@functools.cache
def rounds(history="model", decay=0.8, count=8):
    """The models and memories of some rounds under float64, and the metrics."""
    with jax.enable_x64(True):
        mixer = gossip.by_rule(GRAPH, gossip.sybilwall(N - 1, history=history, decay=decay))
        apply = jax.jit(mixer.apply)
        state = mixer.init(trained(99))
        found = []
        for t in range(count):
            key = jax.random.fold_in(KEY, t)
            mixed, state, metrics = apply(trained(t), state, Mixing(key, jnp.int32(t)))
            found.append((flat(mixed), jax.device_get(state.memory.rows), jax.device_get(metrics)))
    return found


def known(memory, client):
    """`who -> (time, distance, source, history)` of one client."""
    about = memory.records.about
    rows = np.flatnonzero(about.time[client] >= 0)
    histories = flat(memory.records.histories)
    return {
        int(about.who[client, r]): (
            int(about.time[client, r]),
            int(about.distance[client, r]),
            int(about.source[client, r]),
            histories[client, r],
        )
        for r in rows
    }


def test_models_follow_from_records_as_in_numpy():
    """Neighbours first, then whom they were compared with; float64."""
    for t, (mixed, memory, _) in enumerate(rounds()):
        sent = flat(trained(t))
        for i in range(N):
            held = known(memory, i)
            order = [*HEARD[i], *(k for k in held if k not in HEARD[i])]
            scores = numpy_scores(np.array([held[k][3] for k in order]), len(HEARD[i]))
            np.testing.assert_allclose(memory.trust[i, : len(HEARD[i])], scores, atol=1e-9)
            expected = (sent[i] + scores @ sent[HEARD[i]]) / (1 + scores.sum())
            np.testing.assert_allclose(mixed[i], expected, atol=1e-9)


def test_records_are_first_hand_or_were_passed_on_by_a_neighbour_that_held_them():
    letters = 0
    for t, (_, memory, metrics) in enumerate(rounds()):
        passed = set()
        for i in range(N):
            held = known(memory, i)
            assert i not in held
            for j in HEARD[i]:
                assert held[j][:3] == (t, 1, -1)
                np.testing.assert_array_equal(held[j][3], flat(trained(t))[j])
            for k in set(held) - set(HEARD[i]):
                time, distance, source, history = held[k]
                # A path of so many edges, along which the model went one edge a round.
                assert APART[i, k] <= distance <= t - time + 1
                np.testing.assert_array_equal(history, flat(trained(time))[k])
                before = known(rounds()[t - 1][1], i)
                if k in before and before[k][0] == time:
                    continue
                assert k not in before or before[k][0] < time
                theirs = known(rounds()[t - 1][1], source)[k]
                assert theirs[:2] == (time, distance - 1)
                assert theirs[2] != i
                # One letter for each directed edge.
                assert (source, i) not in passed
                passed.add((source, i))
        letters += len(passed)
        # From the second round on everyone with two neighbours has something to tell.
        assert len(GRAPH.senders) <= metrics["models_sent"] <= 2 * len(GRAPH.senders)
    assert rounds()[0][2]["models_sent"] == len(GRAPH.senders)
    assert rounds()[1][2]["models_sent"] > 1.8 * len(GRAPH.senders)
    assert letters > 50
    far = [len(known(rounds()[-1][1], i)) - len(HEARD[i]) for i in range(N)]
    np.testing.assert_allclose(rounds()[-1][2]["records_passed_on"], np.mean(far), rtol=1e-6)


def test_with_a_large_lambda_nothing_goes_farther_than_two_edges():
    farthest = {
        decay: rounds(decay=decay)[-1][1].records.about.distance.max() for decay in (0.8, 50.0)
    }
    assert farthest[50.0] == 2
    assert farthest[0.8] > 2


def test_histories_of_updates_add_up_what_came_less_the_own_model_before():
    sums = np.zeros((N, N, D))
    before = flat(trained(99))
    for t, (mixed, memory, _) in enumerate(rounds("update", count=4)):
        for i in range(N):
            held = known(memory, i)
            for j in HEARD[i]:
                sums[i, j] += flat(trained(t))[j] - before[i]
                np.testing.assert_allclose(held[j][3], sums[i, j], atol=1e-9)
        before = mixed
    np.testing.assert_array_equal(flat(memory.before), before)


def knowing(*histories, heard, combine="mean", own=(7.0, 7.0)):
    """A client that hears the first few and knows the others; its model and what it trusts."""
    rule = gossip.sybilwall(8, combine=combine, passing_on=False)
    rows = jnp.asarray(histories, jnp.float32)
    count = len(rows)
    others = jnp.concatenate([rows[:heard], jnp.zeros((8 - heard, rows.shape[1]))])
    memory = rule.init(jnp.asarray(own), jnp.arange(1, 9))
    places = np.arange(8)
    about = About(
        jnp.where(places < count - heard, 1 + heard + places, -1).astype(jnp.int32),
        jnp.where(places < count - heard, 0, -1).astype(jnp.int32),
        jnp.full(8, 2, jnp.int32),
        jnp.ones(8, jnp.int32),
    )
    far = jnp.zeros((8, rows.shape[1])).at[: count - heard].set(rows[heard:])
    memory = Memory(Records(about, far), memory.before, memory.trust)
    here = gossip.Neighbourhood(
        jnp.int32(0), jnp.arange(1, 9), jnp.float32(0.5), KEY, jnp.int32(1), None
    )
    weights = jnp.where(jnp.arange(8) < heard, 0.1, 0)
    after, memory, _ = jax.jit(rule.apply)(jnp.asarray(own), others, weights, memory, here)
    return np.asarray(after), np.asarray(memory.trust[:heard])


def test_a_distant_twin_takes_away_trust():
    """(0, 1) and (1, 0) are heard, (1, -1) is known: the second of them is not trusted."""
    own = np.array([7.0, 7.0])
    after, trust = knowing((0, 1), (1, 0), (1, -1), heard=2)
    np.testing.assert_array_equal(trust, [1, 0])
    np.testing.assert_allclose(after, (own + np.array([0, 1])) / 2)
    after, trust = knowing((0, 1), (1, 0), heard=2)
    np.testing.assert_array_equal(trust, [1, 1])
    np.testing.assert_allclose(after, (own + np.array([1, 1])) / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("histories", "scores"),
    [
        (((0, 1), (1, 0), (1, -1)), (1, 0, 0)),
        (((0, 1), (1, 0), (0, -1)), (1, 1, 1)),
        (((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1)), (1, 1, 0, 0)),
        (((1, 0.2, 0), (0.1, 1, 0.3), (0.2, 0, 1), (0.2, 0.05, 1)), (1, 1, 0, 0)),
    ],
)
def test_scores_of_neighbours_alone(histories, scores):
    _, trust = knowing(*histories, heard=len(histories), own=np.zeros(len(histories[0])))
    np.testing.assert_allclose(trust, scores, atol=1e-6)


def test_copies_alone_leave_the_own_model_and_scales_do_not_count():
    after, trust = knowing((3, 1), (3, 1), (3, 1), heard=3)
    np.testing.assert_array_equal(trust, 0)
    np.testing.assert_array_equal(after, [7, 7])
    rows = np.random.default_rng(0).standard_normal((6, 4))
    _, plain = knowing(*rows, heard=4, own=np.zeros(4))
    scaled = rows * np.array([1e3, 1, 1e-2, 7, 30, 0.5])[:, None]
    _, trust = knowing(*scaled, heard=4, own=np.zeros(4))
    np.testing.assert_allclose(trust, plain, atol=1e-5)
    np.testing.assert_allclose(plain, numpy_scores(rows, 4), atol=1e-5)


def test_a_model_of_nans_is_neither_mixed_nor_remembered():
    after, trust = knowing((0, 1), (np.nan, 0), (1, 0), heard=3)
    np.testing.assert_array_equal(trust, [1, 0, 1])
    np.testing.assert_allclose(after, np.array([8.0, 8.0]) / 3, rtol=1e-6)


OWN = np.zeros(4)
# All are orthogonal; of the last one a twin is known.
NEAR = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 9, 0), (0, 0, 0, 1), (0, 0, 0, 2))


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [0.25, 0.25, 2.25, 0]),
        # (0, 0, 9, 0) lies farthest away.
        ("filtered mean", [1 / 3, 1 / 3, 0, 0]),
        # The own model, and the first two of those with the same score.
        ("better half", [0, 0, 0, 0]),
        # Half of the weight 4 lies at or below.
        ("weighted median", [0, 0, 0, 0]),
    ],
)
def test_what_is_made_of_those_that_are_trusted(combine, expected):
    after, trust = knowing(*NEAR, heard=4, combine=combine, own=OWN)
    np.testing.assert_allclose(trust, [1, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_medians_by_trust():
    """Of (1, 3, 4, 8) with all trusted; of the own 0 and the better half 3, 8; of weights 1, 0, 1, 1."""
    models = {"x": jnp.asarray([[0.0], [3.0], [4.0], [8.0]])}
    there = jnp.ones(3, bool)
    trust = jnp.asarray([1.0, 0.0, 0.9])
    assert COMBINED["better half"](models, trust, there)["x"] == 3
    assert COMBINED["weighted median"](models, trust, there)["x"] == 3
    heavy = jnp.asarray([0.2, 0.0, 1.0])
    assert COMBINED["weighted median"](models, heavy, there)["x"] == 3


@functools.cache
def foolsgold():
    mixer = gossip.by_rule(topology.complete(3), gossip.local_foolsgold())
    return jax.jit(lambda rows: mixer.apply(rows, mixer.init(rows), Mixing(KEY, jnp.int32(0)))[0])


def test_foolsgold_among_neighbours_scores_the_own_model_too():
    found = foolsgold()(jnp.asarray([[0.0, 1.0], [1.0, 0.0], [1.0, -1.0]]))
    np.testing.assert_allclose(found, np.tile([0.0, 1.0], (3, 1)), atol=1e-6)
    found = foolsgold()(jnp.asarray([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]))
    np.testing.assert_allclose(found, np.tile([1 / 3, 0.0], (3, 1)), atol=1e-6)
    same = jnp.tile(jnp.asarray([2.0, 1.0]), (3, 1))
    np.testing.assert_array_equal(foolsgold()(same), same)
    bad = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [np.nan, 0.0]])
    np.testing.assert_allclose(foolsgold()(bad)[0], [0.5, 0.5], atol=1e-6)


@pytest.mark.slow
def test_the_absent_and_the_silent():
    """An absent client keeps its memory, nobody hears of it; the silent pass nothing on."""
    active = jnp.arange(N) != 4
    mixer = gossip.by_rule(GRAPH, gossip.sybilwall(N - 1, silent=range(N - 4)))
    apply = jax.jit(mixer.apply)
    state = mixer.init(trained(99))
    for t in range(4):
        key = jax.random.fold_in(KEY, t)
        mixed, state, metrics = apply(trained(t), state, Mixing(key, jnp.int32(t), active))
    memory = jax.device_get(state.memory.rows)
    np.testing.assert_array_equal(flat(mixed)[4], flat(trained(3))[4].astype(np.float32))
    assert not known(memory, 4)
    sources = {entry[2] for i in range(N) for entry in known(memory, i).values()}
    assert not sources & set(range(N - 4))
    assert sources & set(range(N - 4, N))
    assert not any(4 in known(memory, i) for i in range(N))
    heard = sum(active[i] & active[j] for i, j in zip(GRAPH.senders, GRAPH.receivers, strict=True))
    speaking = sum(len(set(HEARD[i]) - {4}) for i in range(N - 4, N))
    assert heard < metrics["models_sent"] <= heard + speaking


@pytest.mark.slow
def test_in_an_algorithm_on_eight_devices_and_over_lambdas():
    graph = topology.ring(CLIENTS)

    def run(decay):
        mixer = gossip.by_rule(graph, gossip.sybilwall(CLIENTS - 1, decay=decay))
        algorithm = dx.decentralized.dfedavg(LOSS, optax.sgd(0.1), mixer)
        state = algorithm.init(KEY, lambda key: jax.random.normal(key, START.shape))
        return dx.rollout(algorithm, state, SOURCE, KEY, 24)

    swept = jax.jit(jax.vmap(run))(jnp.asarray([0.8, 50.0]))
    memory = swept[0].clients.mixer.memory.rows
    assert (memory.records.about.distance[0] > 2).any()
    assert memory.records.about.distance[1].max() == 2
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.jit(run)(0.8)
    assert_trees_close(dealt, jax.tree.map(lambda leaf: leaf[0], swept), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_letters_reach_other_devices_along_the_edges():
    """A ring of two clients a device: letters travel as the boundary rows do."""
    mixer = gossip.by_rule(topology.ring(16), gossip.sybilwall(15))
    tree = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)), jnp.float32)

    @jax.jit
    def run(tree):
        def once(carry, t):
            mixed, state, metrics = mixer.apply(*carry, Mixing(jax.random.fold_in(KEY, t), t))
            return (mixed, state), metrics

        return jax.lax.scan(once, (tree, mixer.init(tree)), jnp.arange(6))

    alone = run(tree)
    assert (alone[0][1].memory.rows.records.about.distance > 2).any()
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        dealt = run(jax.device_put(tree, NamedSharding(mesh, PartitionSpec("clients"))))
    assert_trees_close(dealt, alone, rtol=1e-5, atol=1e-5)


def test_letters_that_nobody_reads_are_not_sent():
    """On a directed ring no two hear each other."""
    ring = topology.from_edges(4, np.array([[0, 1], [1, 2], [2, 3], [3, 0]]), directed=True)
    mixer = gossip.by_rule(ring, gossip.sybilwall(3))
    apply = jax.jit(mixer.apply)
    tree = jnp.eye(4)
    state = mixer.init(tree)
    for t in range(3):
        mixed, state, metrics = apply(tree, state, Mixing(KEY, jnp.int32(t)))
    assert metrics["models_sent"] == 4
    assert metrics["records_passed_on"] == 0
    np.testing.assert_allclose(mixed, (np.eye(4) + np.roll(np.eye(4), 1, 0)) / 2, atol=1e-6)


@pytest.mark.slow
def test_on_graphs_that_are_drawn_anew_former_neighbours_stay_known():
    mixer = gossip.by_rule(topology.random_regular_each_round(8, 2), gossip.sybilwall(7))
    tree = jnp.eye(8)

    @jax.jit
    def run(tree):
        def once(state, t):
            _, state, _ = mixer.apply(tree, state, Mixing(jax.random.fold_in(KEY, t), t))
            return state, None

        return jax.lax.scan(once, mixer.init(tree), jnp.arange(8))[0]

    about = run(tree).memory.rows.records.about
    direct = np.asarray(about.distance == 1).sum(1)
    assert direct.min() > 2
    first_hand = (about.source == -1) & (about.time >= 0)
    np.testing.assert_array_equal(first_hand, about.distance == 1)
    for who in np.asarray(about.who):
        known = who[who >= 0]
        assert len(set(known.tolist())) == len(known)


def test_without_a_neighbour_the_model_stays():
    mixer = gossip.by_rule(np.eye(3), gossip.sybilwall(2))
    mixing = Mixing(KEY, jnp.int32(0))
    found, _, _ = jax.jit(lambda tree: mixer.apply(tree, mixer.init(tree), mixing))(jnp.eye(3))
    assert_trees_equal(found, jnp.eye(3))


def test_refusals():
    small = gossip.by_rule(topology.complete(4), gossip.sybilwall(2))
    with pytest.raises(ValueError, match=r"capacity must be an integer .* room for all"):
        small.init(jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="latency must be 0 of a rule that writes letters"):
        gossip.by_rule(topology.ring(4), gossip.sybilwall(3), latency=1)
    with pytest.raises(ValueError, match="combine must be one of"):
        gossip.sybilwall(3, combine="median")
    with pytest.raises(ValueError, match="decay must be a finite number"):
        gossip.sybilwall(3, decay=0.0)


@pytest.mark.parametrize(
    ("written", "kind", "message"),
    [
        (lambda own: own, TypeError, "letters.* must be of type Letters"),
        (lambda own: gossip.Letters(own, jnp.zeros(3)), ValueError, "the letters of the rule's"),
    ],
)
def test_what_letters_may_not_be(written, kind, message):
    rule = gossip.stateless(lambda own, others, weights, here: (own, {}))
    rule = rule._replace(letters=lambda own, memory, weights, here: written(own))
    mixer = gossip.by_rule(topology.ring(4), rule)
    with pytest.raises(kind, match=message):
        jax.eval_shape(lambda x: mixer.apply(x, mixer.init(x), Mixing(KEY, 0)), jnp.zeros((4, 2)))
