"""Neighbour rules: what a client makes of its own model and of those that it hears."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quadratic_rounds import CLIENTS, LOSS, SOURCE, START
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import aggregation, gossip, topology
from dflax.gossip import Mixing, NeighbourRule
from dflax.gossip.mixer import deal

KEY = jax.random.key(0)
N = 16
GRAPHS = {
    "ring": topology.ring(N),
    "star": topology.star(N),
    "torus": topology.torus(4, 4),
    "exponential": topology.exponential(N),
    "random": topology.erdos_renyi(N, 0.3, seed=1),
}
ACTIVE = np.arange(N) % 5 != 2
MEDIAN = gossip.aggregating(aggregation.median())


def models(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((N, 3, 2)).astype(dtype),
        "b": rng.standard_normal(N).astype(dtype),
    }


def mixed(mixer, tree, active=None, index=0):
    def once(tree, active, index):
        return mixer.apply(tree, mixer.init(tree), Mixing(KEY, index, active))

    return jax.jit(once)(tree, active, jnp.int32(index))


def flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(N, -1) for leaf in jax.tree.leaves(tree)], 1)


def heard_by(graph, client, active):
    """Numbers of those whom a client hears, itself first."""
    there = graph.senders[graph.receivers == client]
    return [client, *(j for j in there if active[j] and active[client])]


@pytest.mark.some(2)
@pytest.mark.parametrize("everyone", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_mean_as_a_rule_is_the_mixer(name, everyone):
    active = None if everyone else jnp.asarray(ACTIVE)
    with jax.enable_x64(True):
        tree = models(np.float64)
        tree["b"][2] = np.nan if not everyone else 0.0
        rule = gossip.by_rule(GRAPHS[name], gossip.aggregating(aggregation.mean()))
        found, _, metrics = mixed(rule, tree, active)
        expected, _, known = mixed(gossip.mixer(GRAPHS[name]), tree, active)
        assert_trees_close(found, expected, rtol=1e-12, atol=1e-12)
    assert metrics["models_sent"] == known["models_sent"]


@pytest.mark.some(2)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_median_and_the_trimmed_mean_of_those_heard(name):
    """Against NumPy client by client, with absent clients whose models are NaN."""
    graph = GRAPHS[name]
    with jax.enable_x64(True):
        tree = models(np.float64)
        rows = flat(tree)
        tree["w"][~ACTIVE] = np.nan
        before = jax.tree.map(np.copy, tree)
        median, _, _ = mixed(gossip.by_rule(graph, MEDIAN), tree, jnp.asarray(ACTIVE))
        trimming = gossip.by_rule(graph, gossip.aggregating(aggregation.trimmed_mean(1)))
        trimmed, _, metrics = mixed(trimming, tree, jnp.asarray(ACTIVE))
    cut = []
    for client in np.flatnonzero(ACTIVE):
        there = np.sort(rows[heard_by(graph, client, ACTIVE)], axis=0)
        np.testing.assert_allclose(flat(median)[client], np.median(there, 0), atol=1e-13)
        cut.append(min(1, (len(there) - 1) // 2))
        kept = there[cut[-1] : len(there) - cut[-1]]
        np.testing.assert_allclose(flat(trimmed)[client], kept.mean(0), atol=1e-13)
    np.testing.assert_allclose(metrics["trimmed"], np.mean(cut), rtol=1e-6)
    for found in (median, trimmed):
        assert_trees_equal(*(jax.tree.map(lambda x: x[~ACTIVE], t) for t in (found, before)))


def test_one_arbitrary_neighbour_does_not_move_the_median():
    tree = models()
    tree["w"][5] = 1e30
    found, _, _ = mixed(gossip.by_rule(topology.complete(N), MEDIAN), tree)
    assert np.abs(np.asarray(found["w"])[:5]).max() < 5


def test_who_is_left_out_by_the_weights_does_not_count():
    """Own weights of 0: the mean of the three others, on a graph of three neighbours."""
    graph = topology.random_regular(N, 3, seed=0)
    rule = gossip.by_rule(
        graph, MEDIAN, weights=lambda graph: topology.uniform(graph, self_weight=0.0)
    )
    tree = models()
    found, _, _ = mixed(rule, tree)
    for client in range(N):
        there = graph.senders[graph.receivers == client]
        np.testing.assert_allclose(flat(found)[client], np.median(flat(tree)[there], 0), atol=1e-6)


def who(own, others, weights, here):
    """Everything that a rule may know, as numbers."""
    drawn = jax.random.uniform(jax.random.fold_in(here.key, here.client))
    after = {
        "client": here.client.astype(jnp.float32),
        "heard": jnp.sum(jnp.where(weights > 0, here.neighbours, 0)).astype(jnp.float32),
        "index": here.index.astype(jnp.float32),
        "own": here.own_weight,
        "key": jax.random.uniform(here.key),
        "drawn": drawn,
    }
    return after, {"degree": jnp.sum(weights > 0), "numbers": here.neighbours}


def test_a_rule_knows_who_is_who_the_round_and_its_key():
    names = ("client", "heard", "index", "own", "key", "drawn")
    tree = {name: jnp.zeros(N) for name in names}
    graph = GRAPHS["star"]
    mixer = gossip.by_rule(graph, gossip.stateless(who))
    found, _, metrics = mixed(mixer, tree, jnp.asarray(ACTIVE), index=7)
    for client in np.flatnonzero(ACTIVE):
        assert found["client"][client] == client
        assert found["heard"][client] == sum(heard_by(graph, client, ACTIVE)[1:])
    own = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(KEY, i)))(jnp.arange(N))
    np.testing.assert_array_equal(found["drawn"][ACTIVE], own[ACTIVE])
    np.testing.assert_array_equal(found["key"][ACTIVE], jax.random.uniform(KEY))
    np.testing.assert_array_equal(found["index"][ACTIVE], 7)
    np.testing.assert_allclose(found["own"][1], 1 - 1 / N, rtol=1e-6)
    pairs = [(i, j) for i in np.flatnonzero(ACTIVE) for j in heard_by(graph, i, ACTIVE)[1:]]
    np.testing.assert_allclose(metrics["degree"], len(pairs) / ACTIVE.sum(), rtol=1e-6)
    # One number for each neighbour: the mean over all that are heard.
    np.testing.assert_allclose(metrics["numbers"], np.mean([j for _, j in pairs]), rtol=1e-6)
    assert metrics["models_sent"] == len(pairs)


def damped(rate=0.5):
    """Moves to a running mean of each neighbour's models: a memory in every slot."""

    def init(own, neighbours):
        zeros = jax.tree.map(lambda leaf: jnp.zeros((*neighbours.shape, *leaf.shape)), own)
        return {"mean": zeros, "who": neighbours, "rounds": jnp.int32(0)}

    def apply(own, others, weights, memory, here):
        def keep(old, new):
            there = weights.reshape(-1, *(1,) * (new.ndim - 1)) > 0
            return jnp.where(there, (1 - rate) * old + rate * new, old)

        held = jax.tree.map(keep, memory["mean"], others)
        after = jax.tree.map(lambda leaf: leaf.mean(0), held)
        rounds = memory["rounds"] + 1
        return after, {"mean": held, "who": here.neighbours, "rounds": rounds}, {}

    return NeighbourRule(init, apply)


def test_a_rule_with_a_memory_keeps_it_for_each_client():
    graph = topology.ring(N)
    mixer = gossip.by_rule(graph, damped())
    tree = models()
    state = mixer.init(tree)
    apply = jax.jit(mixer.apply)
    masks = [np.ones(N, bool), ACTIVE, ~ACTIVE]
    rows, memory = flat(tree), np.zeros((N, 2, 7), np.float32)
    for index, active in enumerate(masks):
        tree, state, _ = apply(tree, state, Mixing(KEY, jnp.int32(index), jnp.asarray(active)))
        before = rows.copy()
        for client in range(N):
            for slot, other in enumerate(graph.senders[graph.receivers == client]):
                if active[client] and active[other]:
                    memory[client, slot] = (memory[client, slot] + before[other]) / 2
            rows[client] = memory[client].mean(0) if active[client] else before[client]
        np.testing.assert_allclose(flat(tree), rows, atol=1e-6)
    np.testing.assert_array_equal(state.memory.rows["rounds"], np.sum(masks, 0))
    _, dealt = deal(state)
    assert_trees_equal(dealt.memory, state.memory)


@pytest.mark.some(2)
@pytest.mark.parametrize("at_once", [1, None])
@pytest.mark.parametrize("name", GRAPHS)
def test_on_eight_devices_the_result_is_the_same(name, at_once):
    mixer = gossip.by_rule(GRAPHS[name], damped(), at_once=at_once)
    tree = models()
    active = jnp.asarray(ACTIVE)
    expected, state, known = mixed(mixer, tree, active)
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec("clients"))
        found, after, metrics = mixed(mixer, jax.device_put(tree, spec), active)
    assert_trees_close(found, expected, rtol=1e-6, atol=1e-6)
    assert_trees_close(after, state, rtol=1e-6, atol=1e-6)
    assert_trees_close(metrics, known, rtol=1e-6)


@pytest.mark.parametrize(("graph", "widest"), [("ring", 4), ("torus", 10)])
def test_devices_get_the_rows_that_they_hear_and_no_others(graph, widest):
    """Of the ring a device of two clients needs one row from each side, and its own."""
    mesh = dx.client_mesh()
    spec = NamedSharding(mesh, PartitionSpec("clients"))
    mixer = gossip.by_rule(GRAPHS[graph], MEDIAN, at_once=1)
    width = 1009
    with jax.set_mesh(mesh):
        shape = jax.ShapeDtypeStruct((N, width), jnp.float32, sharding=spec)
        state = mixer.init(jnp.zeros((N, width)))

        def once(tree):
            return mixer.apply(tree, state, Mixing(KEY, jnp.int32(0)))[0]

        text = jax.jit(once, out_shardings=spec).lower(shape).compile().as_text()
    assert "collective-permute" in text
    assert f"f32[{N},{width}]" not in text
    held = {int(size) for size in re.findall(rf"f32\[(\d+),{width}\]", text)}
    assert max(held) <= widest


def test_at_once_bounds_the_models_that_are_held():
    """One client after another, no array holds the neighbours' models of all."""
    mixer = gossip.by_rule(GRAPHS["exponential"], MEDIAN, at_once=1)
    tree = jnp.zeros((N, 1009))
    k = len(GRAPHS["exponential"].shifts)
    jaxpr = jax.make_jaxpr(lambda x: mixer.apply(x, mixer.init(x), Mixing(KEY, jnp.int32(0)))[0])
    text = str(jaxpr(tree))
    assert f"f32[{N},{k},1009]" not in text
    assert f"f32[{k},1009]" in text


@pytest.mark.slow
def test_graphs_that_are_drawn_anew_and_schedules_of_matrices():
    tree = models()
    for schedule in (
        topology.random_regular_each_round(N, 4),
        topology.random_neighbours(N, 3.0),
        topology.random_neighbours(N, 3.0, most=N - 1),
        topology.periodic(
            [topology.metropolis(GRAPHS["ring"]), topology.metropolis(GRAPHS["star"])]
        ),
    ):
        rule = gossip.by_rule(schedule, gossip.aggregating(aggregation.mean()))
        found, _, metrics = mixed(rule, tree, jnp.asarray(ACTIVE), index=3)
        expected, _, known = mixed(gossip.mixer(schedule), tree, jnp.asarray(ACTIVE), index=3)
        assert_trees_close(found, expected, rtol=1e-5, atol=1e-6)
        assert metrics["models_sent"] == known["models_sent"]
    unknown = gossip.by_rule(topology.random_regular_each_round(N, 4), damped()).init(tree)
    np.testing.assert_array_equal(unknown.memory.rows["who"], np.full((N, 4), -1))


def test_without_edges_everyone_keeps_its_model():
    found, _, metrics = mixed(gossip.by_rule(np.eye(N), MEDIAN), models())
    assert_trees_equal(found, models())
    assert metrics["models_sent"] == 0


@pytest.mark.slow
def test_in_an_algorithm_with_losses_cohorts_and_several_steps():
    """DFedAvg by the mean as a rule is DFedAvg; a memory survives cohorts and lossy channels."""
    ring = topology.ring(CLIENTS)

    def run(mixer, channel=None):
        algorithm = dx.decentralized.dfedavg(LOSS, optax.sgd(0.1), mixer, channel=channel)
        state = algorithm.init(KEY, jnp.asarray(START, jnp.float32))
        return jax.jit(lambda state: dx.rollout(algorithm, state, SOURCE, KEY, 3))(state)

    by_mean = gossip.by_rule(ring, gossip.aggregating(aggregation.mean()))
    state, _ = run(gossip.repeat(by_mean, 2))
    expected, _ = run(gossip.ring(CLIENTS, steps=2))
    assert_trees_close(state.clients.params, expected.clients.params, rtol=1e-5, atol=1e-6)
    wrapped = gossip.alternate([gossip.sometimes(gossip.by_rule(ring, damped()), 0.5), by_mean])
    state, metrics = run(gossip.repeat(wrapped, 2), dx.channel.lossy(0.3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.clients.params))
    memory = state.clients.mixer[0].memory.rows["rounds"]
    assert memory.shape == (CLIENTS,)
    assert np.all(metrics["models_sent"] <= 2 * 2 * 3)


WRONG = {
    "no rule": (lambda: gossip.by_rule(GRAPHS["ring"], lambda *a: a), TypeError, "rule must be"),
    "no topology": (lambda: gossip.by_rule(3, MEDIAN), TypeError, "topology must be"),
    "columns": (
        lambda: gossip.by_rule(topology.column_stochastic(topology.star(N)), MEDIAN),
        ValueError,
        "topology must have rows that sum to 1",
    ),
    "weights": (
        lambda: gossip.by_rule(topology.random_matching(N), MEDIAN, weights=topology.metropolis),
        TypeError,
        "weights must be None",
    ),
    "at once": (lambda: gossip.by_rule(GRAPHS["ring"], MEDIAN, at_once=0), ValueError, "at_once"),
    "no aggregator": (lambda: gossip.aggregating(3), TypeError, "aggregator must be"),
    "three arguments": (lambda: gossip.stateless(lambda a, b, c: a), TypeError, "function must"),
    "mean moved": (
        lambda: dx.decentralized.dsgt(lambda *a: 0.0, 0.1, gossip.by_rule(GRAPHS["ring"], MEDIAN)),
        ValueError,
        "mixer must keep the mean",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    make, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        make()


RETURNS = {
    "one model": (
        lambda own, others, weights, here: own,
        TypeError,
        "function.*must return .own, ",
    ),
    "another shape": (
        lambda own, others, weights, here: (others, {}),
        ValueError,
        "model of the rule's apply.*must have the shape",
    ),
    "no dict": (lambda own, others, weights, here: (own, 3), TypeError, "metrics of the rule's"),
    "a vector": (
        lambda own, others, weights, here: (own, {"odd": jnp.zeros(5)}),
        ValueError,
        "metric 'odd' of the rule's apply.*one for each neighbour",
    ),
}


@pytest.mark.parametrize("case", RETURNS)
def test_what_a_rule_may_not_return(case):
    function, kind, message = RETURNS[case]
    mixer = gossip.by_rule(GRAPHS["ring"], gossip.stateless(function))
    with pytest.raises(kind, match=message):
        jax.eval_shape(lambda x: mixer.apply(x, mixer.init(x), Mixing(KEY, 0)), jnp.zeros((N, 3)))


@pytest.mark.parametrize("latency", [1, 2])
def test_late_models_are_those_that_were_sent_before(latency):
    """The mean of the own model and of the neighbours' old ones, of those who sent and who listen."""
    graph = topology.ring(N)
    rule = gossip.aggregating(aggregation.mean())
    mixer = gossip.by_rule(graph, rule, latency=latency)
    tree = models()
    state, apply = mixer.init(tree), jax.jit(mixer.apply)
    masks = [np.ones(N, bool), ACTIVE, ~ACTIVE, np.ones(N, bool), ACTIVE]
    rows, sent = flat(tree), []
    for index, active in enumerate(masks):
        tree, state, metrics = apply(
            tree, state, Mixing(KEY, jnp.int32(index), jnp.asarray(active))
        )
        sent.append((rows.copy(), active))
        then, there = sent[index - latency] if index >= latency else (rows, np.zeros(N, bool))
        heard = 0
        for client in np.flatnonzero(active):
            others = [j for j in graph.senders[graph.receivers == client] if there[j]]
            mine = sent[-1][0][client]
            rows[client] = mine + sum(then[j] - mine for j in others) / 3
            heard += len(others)
        np.testing.assert_allclose(flat(tree), rows, atol=1e-6)
        assert metrics["models_sent"] == heard


def test_a_late_model_of_nan_that_was_not_sent_is_not_heard():
    mixer = gossip.by_rule(GRAPHS["ring"], MEDIAN, latency=1)
    tree = models()
    tree["w"][~ACTIVE] = np.nan
    state, apply = mixer.init(tree), jax.jit(mixer.apply)
    for index in range(3):
        tree, state, _ = apply(tree, state, Mixing(KEY, jnp.int32(index), jnp.asarray(ACTIVE)))
    assert np.isfinite(flat(tree)[ACTIVE]).all()


def test_half_a_step_to_what_an_aggregator_makes():
    whole, _, _ = mixed(gossip.by_rule(GRAPHS["torus"], MEDIAN), models())
    half = gossip.aggregating(aggregation.median(), step=0.5)
    found, _, _ = mixed(gossip.by_rule(GRAPHS["torus"], half), models())
    np.testing.assert_allclose(flat(found), (flat(whole) + flat(models())) / 2, atol=1e-6)


def test_a_client_has_a_row_of_its_own():
    """On eight devices too, the row that a rule sees is the client's."""

    def apply(own, others, weights, memory, here):
        return own + here.private["number"], memory, {}

    private = {"number": jnp.arange(N, dtype=jnp.float32)}
    rule = NeighbourRule(lambda own, neighbours: (), apply, private=private)
    mixer = gossip.by_rule(GRAPHS["ring"], rule)
    with jax.set_mesh(dx.client_mesh()):
        found, state, _ = mixed(mixer, jnp.zeros(N))
    np.testing.assert_array_equal(found, np.arange(N))
    once, dealt = deal(state)
    assert once.private is None
    np.testing.assert_array_equal(dealt.private.rows["number"], np.arange(N))
