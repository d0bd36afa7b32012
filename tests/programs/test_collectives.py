"""What rounds exchange between eight devices, and that it does not change their results."""

import functools
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from benchmarks.collectives import refuse_excess, rows, rows_that_leave
from dflax import profile, topology
from dflax.aggregation.rows.coordinates import gram, map_coordinates, mix_rows
from dflax.gossip.products.rolls import are_blocks, roll_flat

DEVICES = 8
WIDTH = 256
MODEL = 4 * WIDTH
# Counters, metrics and the mask of a round; a model is far larger.
SMALL = 256
KEY = jax.random.key(0)
START = jnp.ones(WIDTH)


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == DEVICES, "XLA_FLAGS=--xla_force_host_platform_device_count=8"
    return dx.client_mesh()


def federation(clients, cohort=None):
    rule = None if cohort is None else dx.participation.uniform(cohort)
    return quadratics(clients, WIDTH).federation(2, participation=rule)


def fedavg():
    return dx.server.fedavg(half_square, optax.sgd(0.1))


def dfedavg(mixer):
    return dx.decentralized.dfedavg(half_square, optax.sgd(0.1), mixer)


def exchanged(algorithm, source, mesh):
    """The collectives of one round as (all, those larger than counters and metrics)."""
    state = jax.eval_shape(algorithm.init, KEY, START)
    found = profile.round(algorithm, state, source, mesh=mesh).collectives
    return found, [one for one in found if one.bytes > SMALL]


@pytest.mark.some(2)
@pytest.mark.parametrize(("clients", "cohort"), [(32, None), (20, None), (32, 16), (32, 10)])
def test_a_fedavg_round_is_one_all_reduce_of_the_model(clients, cohort, mesh):
    found, large = exchanged(fedavg(), federation(clients, cohort), mesh)
    assert [one.kind for one in large] == ["all-reduce"]
    assert MODEL <= large[0].bytes <= MODEL + SMALL
    assert sum(one.bytes for one in found) <= MODEL + SMALL


# Rows that each device sends, four clients to a device (three on the torus that is cut across rows).
GOSSIP = {
    "ring": (lambda: dx.gossip.ring(32), 2),
    "three ring steps": (lambda: dx.gossip.ring(32, steps=3), 6),
    "torus, a row to a device": (lambda: dx.gossip.torus(8, 4), 8),
    "torus, half a row to a device": (lambda: dx.gossip.torus(4, 8), 10),
    "torus, three quarters of a row to a device": (lambda: dx.gossip.torus(6, 4), 14),
    "exponential": (lambda: dx.gossip.exponential(32), 1 + 2 + 4 + 4 + 4),
    "hypercube": (lambda: dx.gossip.hypercube(32), 4 + 4 + 4),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", GOSSIP)
def test_gossip_on_a_graph_of_shifts_permutes_boundary_rows_alone(name, mesh):
    make, rows = GOSSIP[name]
    mixer = make()
    found, large = exchanged(dfedavg(mixer), federation(mixer.clients), mesh)
    assert {one.kind for one in large} == {"collective-permute"}
    assert sum(one.sent * one.times for one in large) == rows * MODEL
    rest = [one for one in found if one.bytes <= SMALL]
    assert {one.kind for one in rest} <= {"all-reduce", "all-gather"}
    assert sum(one.bytes for one in rest) <= SMALL


def of_family(mixer):
    """A round of each method without a server, with the number of model-sized trees it mixes."""
    rate = optax.sgd(0.1)
    return {
        "dfedadmm": (dx.decentralized.dfedadmm(half_square, rate, mixer), 1),
        "dfedsam": (dx.decentralized.dfedsam(half_square, rate, mixer, gossip_steps=2), 2),
        "dsgt": (dx.decentralized.dsgt(half_square, 0.1, mixer), 2),
        "dispfl": (dx.decentralized.dispfl(half_square, rate, mixer, rounds=9), 2),
    }


@pytest.mark.some(2)
@pytest.mark.parametrize("name", of_family(dx.gossip.ring(32)))
def test_methods_without_a_server_exchange_what_they_mix_and_no_more(name, mesh):
    algorithm, trees = of_family(dx.gossip.ring(32))[name]
    found, large = exchanged(algorithm, federation(32), mesh)
    assert {one.kind for one in large} == {"collective-permute"}
    assert sum(one.sent * one.times for one in large) == 2 * trees * MODEL
    assert sum(one.bytes for one in found if one.bytes <= SMALL) <= SMALL


def sent(found):
    return sum(one.sent * one.times for one in found)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("graph", "rows"),
    [
        (topology.ring(32), 2),
        (topology.ring(32, directed=True), 1),
        (topology.torus(4, 8), 10),
        (topology.exponential(32), 15),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
@pytest.mark.parametrize("steps", [1, 2])
def test_stochastic_gradient_push_sends_boundary_rows_as_plain_gossip_does(
    graph, rows, steps, mesh
):
    algorithm = dx.decentralized.sgp(half_square, optax.sgd(0.1), graph, gossip_steps=steps)
    found, large = exchanged(algorithm, federation(32), mesh)
    assert {one.kind for one in large} == {"collective-permute"}
    assert sent(large) == steps * rows * MODEL
    # Push-sum weights and metrics.
    assert sum(one.bytes for one in found if one not in large) <= SMALL


def test_gossip_learning_deals_its_models_by_coordinates_and_back(mesh):
    algorithm = dx.decentralized.gossip_learning(half_square, optax.sgd(0.1), 32)
    found, _ = exchanged(algorithm, federation(32), mesh)
    # Beside the models, their ages and whom they are sent to.
    tables = [one for one in found if one.bytes <= 32 * 16]
    models = [one for one in found if one not in tables]
    assert [(one.kind, one.bytes) for one in models] == [("all-to-all", 4 * MODEL)] * 2
    assert sum(one.bytes for one in tables) <= 32 * 32


@pytest.mark.parametrize("steps", [1, 2])
def test_variance_correction_among_everyone_else_is_one_all_reduce(steps, mesh):
    others = dx.gossip.mixer(
        topology.complete(32), weights=functools.partial(topology.uniform, self_weight=0.0)
    )
    corrected = dx.gossip.repeat(dx.gossip.variance_corrected(others), steps)
    tree = {"w": jnp.ones((16, 16))}
    algorithm = dx.decentralized.dfedavg(
        lambda params, batch, key: half_square(params["w"].reshape(-1), batch, key),
        optax.sgd(0.1),
        corrected,
    )
    state = jax.eval_shape(algorithm.init, KEY, tree)
    found = profile.round(algorithm, state, federation(32), mesh=mesh).collectives
    large = [one for one in found if one.bytes > SMALL]
    assert [(one.kind, one.times) for one in large] == [("all-reduce", steps)]
    assert MODEL <= large[0].bytes <= MODEL + SMALL


def of_graph(mix, clients=32):
    return mix(topology.metropolis(topology.random_regular(clients, 4)))


# Mixers without structure that could be used: of its part of the coordinates a device has all models.
DEALT = {
    "matching": lambda: dx.gossip.random_matching(32),
    "few random neighbours": lambda: dx.gossip.random_neighbours(32, 3),
    "many random neighbours": lambda: dx.gossip.random_neighbours(32, 20.5),
    "regular each round": lambda: dx.gossip.random_regular_each_round(32, 4),
    "slots": lambda: of_graph(dx.gossip.slots),
    "dense": lambda: of_graph(dx.gossip.dense),
    "edges": lambda: dx.gossip.mixer(topology.star(32), kind="edges"),
    "push-sum": lambda: dx.gossip.push_sum(topology.random_regular(32, 4)),
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", DEALT)
def test_any_other_gossip_deals_models_by_coordinates_and_back(name, mesh):
    found, _ = exchanged(dfedavg(DEALT[name]()), federation(32), mesh)
    # Beside the models, tables of four numbers per client.
    tables = [one for one in found if one.bytes <= 32 * 16]
    models = [one for one in found if one not in tables]
    # A device has 4 of the 32 clients.
    assert [(one.kind, one.bytes) for one in models] == [("all-to-all", 4 * MODEL)] * 2
    assert sum(one.bytes for one in tables) <= 32 * 16


def test_push_sum_along_edges_stays_below_its_limit(mesh):
    """A star's messages are summed per receiver where all models' coordinates lie."""
    found, _ = exchanged(dfedavg(dx.gossip.push_sum(topology.star(32))), federation(32), mesh)
    assert sent(found) <= 2 * 4 * MODEL * 7 / 8 + 32 * 16


def test_without_gossip_no_model_is_sent(mesh):
    found, large = exchanged(dfedavg(dx.gossip.identity(32)), federation(32), mesh)
    assert not large
    assert sum(one.bytes for one in found) <= SMALL


def test_a_turn_of_the_one_peer_exponential_graph_is_one_boundary_exchange(mesh):
    _, large = exchanged(dfedavg(dx.gossip.one_peer_exponential(32)), federation(32), mesh)
    assert {one.kind for one in large} == {"collective-permute"}
    # One branch for each of the shifts by 1, 2, 4, 8 and 16, of which a round takes one.
    assert sorted(one.bytes for one in large) == [rows * MODEL for rows in (1, 2, 4, 4, 4)]
    assert {one.times for one in large} == {1}


@pytest.mark.parametrize(
    ("graph", "steps"), [(topology.ring(32), 4), (topology.random_regular(32, 4), 3)]
)
def test_chebyshev_gossip_sends_as_often_as_it_mixes(graph, steps, mesh):
    _, once = exchanged(dfedavg(dx.gossip.mixer(graph)), federation(32), mesh)
    _, large = exchanged(dfedavg(dx.gossip.chebyshev(graph, steps)), federation(32), mesh)
    assert {one.kind for one in large} == {one.kind for one in once}
    assert sent(large) == steps * sent(once) > 0


def test_gossip_on_the_complete_graph_is_one_all_reduce_of_the_model(mesh):
    _, large = exchanged(dfedavg(dx.gossip.complete(32)), federation(32), mesh)
    assert [one.kind for one in large] == ["all-reduce"]
    assert MODEL <= large[0].bytes <= MODEL + SMALL


def test_an_absent_client_adds_no_more_than_the_mask(mesh):
    rule = dx.participation.dropout(dx.participation.everyone(), 0.5)
    source = quadratics(32, WIDTH).federation(2, participation=rule)
    found, large = exchanged(dfedavg(dx.gossip.ring(32)), source, mesh)
    assert {one.kind for one in large} == {"collective-permute"}
    assert sum(one.sent for one in large) == 2 * MODEL
    assert sum(one.bytes for one in found if one.bytes <= SMALL) <= SMALL


@pytest.mark.parametrize("clients", [64, 256])
def test_a_cohort_brings_its_own_rows_alone_however_large_the_population(clients, mesh):
    cohort = 16
    found, large = exchanged(dfedavg(dx.gossip.ring(clients)), federation(clients, cohort), mesh)
    sizes = {
        kind: sum(c.bytes for c in large if c.kind == kind) for kind in {c.kind for c in large}
    }
    assert sizes == {
        "reduce-scatter": cohort * MODEL,
        "all-gather": cohort * MODEL,
        "collective-permute": 2 * MODEL,
    }
    assert sum(one.bytes for one in found if one.bytes <= SMALL) <= SMALL


def test_a_cohort_that_devices_do_not_divide_stays_below_twice_its_size(mesh):
    found, _ = exchanged(dfedavg(dx.gossip.ring(64)), federation(64, 10), mesh)
    sent = sum(one.sent for one in found if one.kind != "collective-permute")
    assert sent <= 2 * 10 * MODEL + 16 * MODEL
    assert max(one.bytes for one in found) <= 16 * MODEL


def test_state_stays_dealt_from_round_to_round(mesh):
    algorithm, source = dfedavg(dx.gossip.torus(6, 4)), federation(24, 8)
    state = dx.mesh.shard(algorithm.init(KEY, START), mesh)
    rounds = functools.partial(dx.rollout, algorithm, rounds=5)
    with jax.set_mesh(mesh):
        compiled = jax.jit(rounds).lower(state, source, KEY).compile()
    assert compiled.output_shardings[0].clients.params.spec == PartitionSpec("clients")
    found = profile.collectives(compiled)
    assert max(one.bytes for one in found) == 8 * MODEL
    assert {one.times for one in found if one.bytes > SMALL} == {5}


@pytest.mark.slow
@pytest.mark.some(2)
@pytest.mark.parametrize(("clients", "cohort"), [(24, None), (24, 8), (20, 10)])
def test_eight_devices_and_one_train_the_same_models(clients, cohort, mesh):
    algorithm = dfedavg(dx.gossip.torus(clients // 4, 4))
    source = federation(clients, cohort)
    state = algorithm.init(KEY, lambda key: jax.random.normal(key, (WIDTH,)))
    rounds = jax.jit(functools.partial(dx.rollout, algorithm, rounds=3))
    alone, told = rounds(state, source, KEY)
    with jax.set_mesh(mesh):
        dealt, heard = rounds(dx.mesh.shard(state, mesh), source, KEY)
    assert_trees_close(dealt.clients.params, alone.clients.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(heard, told, rtol=1e-5, atol=1e-6)


def every_kind_of_leaf(clients):
    numbers = jnp.arange(clients, dtype=jnp.int32)
    models = jax.random.normal(KEY, (clients, 2, 3))
    return {
        "models": models.at[1].set(jnp.nan),
        "half": models[:, 0].astype(jnp.bfloat16),
        "count": numbers,
        "flag": numbers % 3 == 0,
        "key": jax.random.split(KEY, clients),
    }


def numbers(tree):
    def plain(leaf):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return jax.tree.map(plain, tree)


@pytest.mark.some(2)
@pytest.mark.parametrize(("clients", "members"), [(32, 8), (32, 5), (20, 8)])
def test_cohorts_are_read_and_written_as_on_one_device(clients, members, mesh):
    tree = every_kind_of_leaf(clients)
    cohort = jax.random.permutation(KEY, clients)[:members].at[0].set(1)
    reported = jnp.arange(members) % 2

    def move(tree, cohort, reported):
        rows = dx.gather(tree, cohort)
        others = jax.tree.map(lambda leaf: leaf[::-1], rows)
        return rows, dx.scatter(tree, cohort, others), dx.scatter(tree, cohort, others, reported)

    alone = jax.jit(move)(tree, cohort, reported)
    layout = NamedSharding(mesh, PartitionSpec("clients" if clients % DEVICES == 0 else None))
    with jax.set_mesh(mesh):
        dealt = jax.jit(move)(jax.device_put(tree, layout), cohort, reported)
    rows, written, some = numbers(dealt)
    assert_trees_equal((rows, written, some), numbers(alone))
    before = numbers(tree)
    untouched = np.setdiff1d(np.arange(clients), cohort[reported > 0])
    assert_trees_equal(
        jax.tree.map(lambda leaf: leaf[untouched], some),
        jax.tree.map(lambda leaf: leaf[untouched], before),
    )


@pytest.mark.parametrize("members", [8, 5])
def test_gradients_flow_through_cohorts_over_devices(members, mesh):
    models = jax.random.normal(KEY, (32, 3))
    cohort = jnp.arange(members) * 3

    def objective(models, scales):
        rows = dx.gather(models, cohort) * scales[:, None]
        return jnp.sum(jnp.sin(dx.scatter(models, cohort, rows)))

    slope = jax.jit(jax.vmap(jax.grad(objective, (0, 1)), in_axes=(None, 0)))
    scales = jnp.linspace(1.0, 2.0, 2 * members).reshape(2, members)
    alone = slope(models, scales)
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, PartitionSpec("clients"))
        dealt = slope(jax.device_put(models, split), scales)
    assert_trees_close(dealt, alone, rtol=1e-6, atol=1e-6)


def stacked(clients):
    return {
        "w": jax.random.normal(KEY, (clients, 3, 5)),
        "b": jax.random.normal(jax.random.key(1), (clients, 4)).astype(jnp.bfloat16),
    }


def gram_and_median(models, scale):
    models = dx.map_clients(lambda row: jax.tree.map(lambda x: 2 * x, row), models)
    scaled = map_coordinates(lambda values, scale: scale * jnp.median(values, 0), models, scale)
    return gram(models), scaled


@pytest.mark.parametrize("clients", [16, 10])
def test_gram_and_coordinate_rules_deal_models_by_coordinates_once(clients, mesh):
    models = stacked(clients)
    with jax.set_mesh(mesh):
        compiled = jax.jit(gram_and_median).lower(models, 3.0).compile()
        products, medians = compiled(models, 3.0)
    found = {one.kind: one.bytes for one in profile.collectives(compiled)}
    padded, width = -(-clients // DEVICES), 24
    # 19 parameters are filled up to 24, three to a device.
    assert found == {
        "all-to-all": 4 * padded * width,
        "all-reduce": 4 * clients**2,
        "all-gather": 4 * width,
    }
    flat = np.concatenate(
        [2 * np.asarray(models[name], np.float64).reshape(clients, -1) for name in ("b", "w")], 1
    )
    np.testing.assert_allclose(products, flat @ flat.T, rtol=1e-5, atol=1e-4)
    middle = 3 * np.median(flat, 0)
    np.testing.assert_allclose(medians["w"], middle[4:].reshape(3, 5), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(medians["b"].astype(np.float32), middle[:4], rtol=1e-2)
    assert medians["b"].dtype == jnp.bfloat16
    alone = jax.jit(gram_and_median)(models, 3.0)
    assert_trees_close(products, alone[0], rtol=1e-5, atol=1e-5)
    assert_trees_equal(medians, alone[1])


def test_coordinate_rules_refuse_what_they_cannot_combine():
    with pytest.raises(TypeError, match="rule must be a function"):
        map_coordinates(1.0, jnp.ones((3, 2)))
    with pytest.raises(TypeError, match=r"stacked\['n'\] must hold real numbers, got int32"):
        gram({"n": jnp.ones((3, 2), jnp.int32)})
    with pytest.raises(ValueError, match="stacked must have leaves that share one leading axis"):
        map_coordinates(lambda values: values[0], [jnp.ones((3, 2)), jnp.ones((4, 2))])


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(-7, 7)), min_size=1, max_size=3),
)
def test_rolls_of_nodes_in_a_row_are_rolls_of_the_grid(axes):
    sides, move = zip(*axes, strict=True)
    nodes = np.arange(np.prod(sides))
    expected = np.roll(nodes.reshape(sides), move, tuple(range(len(sides)))).reshape(-1)
    np.testing.assert_array_equal(roll_flat(sides, jnp.asarray(nodes), move), expected)


def test_blocks_of_a_grid():
    assert are_blocks((4, 6), 8)
    assert are_blocks((4, 6), 2)
    assert not are_blocks((6, 4), 8)
    assert not are_blocks((5, 8), 8)
    assert are_blocks((2,) * 5, 8)
    assert are_blocks((5, 7), 1)


@pytest.mark.parametrize(
    ("graph", "devices", "rows"),
    [
        (topology.ring(512), 256, 2),
        (topology.torus(16, 16), 256, 4),
        (topology.torus(32, 16), 256, 6),
        (topology.exponential(256), 256, 8),
        (topology.exponential(512), 256, 16),
        # Each of its two rows goes to three other devices.
        (topology.complete(8), 4, 6),
        (topology.star(8), 4, 3),
    ],
)
def test_the_least_that_a_graph_has_to_send(graph, devices, rows):
    assert rows_that_leave(graph, devices) == rows


def line_of_audit(share):
    return {
        "algorithm": "dfedavg, ring",
        "clients": 512,
        "devices": 256,
        "sent_bytes": share * 1000,
        "least_bytes": 1000,
        "compile_seconds": 0.5,
        "collectives": ["all-gather f32[512,10]"],
    }


def test_the_benchmark_refuses_rounds_that_send_more_than_they_have_to():
    refuse_excess([line_of_audit(1.0), line_of_audit(1.1)])
    expected = (
        r"at most 1.1 times .* dfedavg, ring with 512 .* 1110 bytes, 1.110 .* \(all-gather f32"
    )
    with pytest.raises(RuntimeError, match=expected):
        refuse_excess([line_of_audit(1.0), line_of_audit(1.11)])


def test_a_refused_benchmark_still_writes_what_it_found(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    audits = json.dumps([line_of_audit(2.0)])
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: audits)
    with pytest.raises(RuntimeError, match=r"2.000 times the least"):
        rows(quick=True)
    assert json.loads((tmp_path / "results" / "collectives.json").read_text()) == json.loads(audits)
    assert "dfedavg, ring" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("groups", "within"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", True),
        ("{{0,2,4,6},{1,3,5,7}}", False),
        ("{{0,1},{1,0},{6,7}}", True),
        ("{{1,2},{3,4}}", False),
        ("[4,2]<=[8]", True),
        ("[2,4]<=[4,2]T(1,0)", False),
        ("[4,2]<=[2,4]T(1,0)", False),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", True),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", False),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", False),
        ("mesh['axis_0'=8] {'axis_0':(4)2}", False),
        ("", False),
    ],
)
def test_whether_a_collective_stays_within_devices_that_share_a_model(groups, within):
    one = profile.Collective("all-reduce", ((4,),), ("f32",), 16, 2, groups, False, 1, "")
    assert one.stays_within(2) is within


@pytest.mark.slow
def test_models_that_devices_share_are_dealt_by_coordinates_in_parts():
    clients, halves = 32, dx.client_mesh(model=2)
    mixer = dx.gossip.random_neighbours(clients, 3)
    models = {
        "kernel": jax.random.normal(KEY, (clients, 24, 16)),
        "bias": jax.random.normal(KEY, (clients, 5)),
    }
    state, mixing = mixer.init(models), dx.gossip.Mixing(KEY, jnp.int32(0))
    alone = jax.jit(lambda *given: mixer.apply(*given)[0])(models, state, mixing)
    own = {
        "kernel": NamedSharding(halves, PartitionSpec("clients", None, "model")),
        "bias": NamedSharding(halves, PartitionSpec("clients")),
    }
    spread = jax.device_put(models, own)
    with jax.set_mesh(halves):
        program = jax.jit(lambda *given: mixer.apply(*given)[0], out_shardings=own)
        compiled = program.lower(spread, state, mixing).compile()
    found = [one for one in profile.collectives(compiled) if one.bytes > SMALL]
    assert [one.kind for one in found] == ["all-to-all"] * len(found)
    # Half a kernel and a bias, of 8 clients, to 3 of 4 devices and back.
    assert sum(one.sent for one in found) <= 2 * 0.75 * 8 * 4 * (24 * 8 + 8)
    assert_trees_close(compiled(spread, state, mixing), alone, rtol=0, atol=1e-6)


def test_a_plan_tells_what_the_layers_of_shared_models_exchange(mesh):
    algorithm = fedavg()
    source, state = federation(32), jax.eval_shape(algorithm.init, KEY, START)
    whole = profile.round(algorithm, state, source, mesh=mesh)
    assert whole.sent_within_models == 0
    both = profile.round(algorithm, state, source, mesh=dx.client_mesh(model=2))
    assert both.sharing == 2
    # Each objective's gradient needs the whole vector.
    assert both.sent_within_models > 0
    assert "for layers" in str(both)
    between = both.sent_bytes - both.sent_within_models
    assert both.least_sent_bytes <= between <= 1.06 * both.least_sent_bytes + SMALL


def test_coordinate_rules_deal_shared_models_in_parts():
    clients, halves = 12, dx.client_mesh(model=2)
    models = {
        "kernel": jax.random.normal(KEY, (clients, 24, 16)),
        "bias": jax.random.normal(jax.random.key(1), (clients, 5)),
    }

    def found(models):
        rows = jnp.arange(2.0 * clients).reshape(2, clients) / clients
        median = map_coordinates(lambda values: jnp.median(values, 0), models)
        return gram(models), median, mix_rows(rows, models), dx.weighted_mean(models)

    own = {
        "kernel": NamedSharding(halves, PartitionSpec("clients", None, "model")),
        "bias": NamedSharding(halves, PartitionSpec("clients")),
    }
    alone, spread = jax.jit(found)(models), jax.device_put(models, own)
    with jax.set_mesh(halves):
        compiled = jax.jit(found).lower(spread).compile()
    assert_trees_close(compiled(spread), alone, rtol=1e-5, atol=1e-5)
    kept = [one for one in profile.collectives(compiled) if one.bytes > SMALL]
    assert not [one for one in kept if one.kind == "all-to-all" and one.stays_within(2)]
    most = max(one.bytes for one in kept if one.kind == "all-to-all")
    assert most <= 3 * 4 * (24 * 8 + 5 + 3)
