"""SPES: rounds against steps written out, absence, ownership, graphs, devices, resumption."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import experts
from dflax.experts.spes_ownership import ownership
from dflax.models import MoE, Owned, TransformerLM
from dflax.models.moe.products import placed

KEY = jax.random.key(0)
N, E, Q, D = 4, 8, 2, 3
RATE = 0.1
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05, weight_decay=0.1))
# Adam would blow up rounding in the biases of keys, whose gradient is 0.
MOMENTUM = optax.sgd(0.3, momentum=0.9)
X = np.asarray(jax.random.normal(KEY, (64, D)))
DATA = dx.data.Dataset(jnp.asarray(X), jnp.asarray(np.sin(X.sum(1))), classes=1)
PARAMS = {
    "shared": jnp.arange(1.0, D + 1) / D,
    "experts": {"gate": 0.3 * jax.random.normal(jax.random.key(1), (E, D)), "up": jnp.ones((E, 1))},
}


def loss(params, batch, key=None):
    """Every example is seen by all experts; what an expert gets depends on the others."""
    gate, up = params["experts"]["gate"], params["experts"]["up"]
    hidden = jnp.tanh(jnp.einsum("bd,ed->be", batch.inputs * params["shared"], gate))
    error = (hidden @ up)[:, 0] - batch.labels
    return jnp.mean(error**2), {"loss": jnp.mean(error**2)}


def federation(clients=N, steps=1, **options):
    partition = dx.data.from_indices(np.arange(64).reshape(clients, -1))
    return dx.Federation(DATA, partition, local_steps=steps, batch_size=4, **options)


def spes(optimizer=None, nodes=N, **options):
    return experts.spes(loss, optimizer or optax.sgd(RATE), experts=E, nodes=nodes, **options)


def rolled(algorithm, source, rounds=1, state=None):
    if state is None:
        state = algorithm.init(KEY, PARAMS)
    return jax.jit(lambda s, f: dx.rollout(algorithm, s, f, KEY, rounds, s.round))(state, source)


def minibatches(source, t=0):
    assignments = source.draw(KEY, jnp.int32(t)).assignments
    return np.asarray(assignments.minibatches)


def gradient(params, rows):
    batch = dx.data.Batch(DATA.inputs[rows], DATA.labels[rows])
    return jax.grad(lambda p: loss(p, batch)[0])(params)


@pytest.mark.slow
def test_a_step_moves_each_expert_by_its_owners_gradient_and_the_rest_by_the_mean():
    source = federation()
    state, metrics = rolled(spes(), source)
    slopes = [gradient(PARAMS, rows[0]) for rows in minibatches(source)]
    for name, before in PARAMS["experts"].items():
        owners = np.arange(E) // Q
        moved = np.stack([slopes[owners[e]]["experts"][name][e] for e in range(E)])
        np.testing.assert_allclose(
            state.server.params["experts"][name], before - RATE * moved, rtol=1e-6
        )
    mean = np.mean([slope["shared"] for slope in slopes], axis=0)
    np.testing.assert_allclose(
        state.server.params["shared"], PARAMS["shared"] - RATE * mean, rtol=1e-6
    )
    one, whole = D + Q * (D + 1), D + E * (D + 1)
    assert float(metrics["numbers_up"][0]) == N * one
    assert float(metrics["numbers_down"][0]) == N * whole


def alone(source, node, first, rounds=1):
    """A node's own steps, written out: experts of others stand still."""
    params = PARAMS
    shared, own = params["shared"], jax.tree.map(lambda w: w[first : first + Q], params["experts"])
    moments = ADAM.init((shared, own))
    for rows in minibatches(source)[node]:
        batch = dx.data.Batch(DATA.inputs[rows], DATA.labels[rows])

        def value(trained, batch=batch):
            whole = jax.tree.map(
                lambda w, o: w.at[first : first + Q].set(o), params["experts"], trained[1]
            )
            return loss({"shared": trained[0], "experts": whole}, batch)[0]

        slope = jax.grad(value)((shared, own))
        updates, moments = ADAM.update(slope, moments, (shared, own))
        shared, own = optax.apply_updates((shared, own), updates)
    return shared, own, moments


def test_the_servers_optimiser_follows_the_changes_and_spares_the_absent():
    """Nesterov's rule on what a plain round changes."""
    table = np.array([[True] * N, [True, True, False, True]])
    source = federation(participation=dx.participation.present(table))
    outer, plain = spes(server_optimizer=optax.sgd(0.7, 0.9, nesterov=True)), spes()

    def round_of(algorithm):
        return jax.jit(lambda s: dx.rollout(algorithm, s, source, KEY, 1, s.round)[0])

    follow, average = round_of(outer), round_of(plain)
    first = follow(outer.init(KEY, PARAMS))
    second = follow(first)
    begin = plain.init(KEY, PARAMS)
    change = jax.tree.map(jnp.subtract, average(begin).server.params, PARAMS)
    after = jax.tree.map(lambda x, d: x + 0.7 * 1.9 * d, PARAMS, change)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first.server.params, after
    )
    there = begin._replace(round=jnp.int32(1), server=begin.server._replace(params=after))
    again = jax.tree.map(jnp.subtract, average(there).server.params, after)
    wanted = jax.tree.map(lambda x, d, e: x + 0.7 * (e + 0.9 * (e + 0.9 * d)), after, change, again)
    absent = slice(2 * Q, 3 * Q)
    wanted["experts"] = jax.tree.map(
        lambda leaf, kept: leaf.at[absent].set(kept[absent]), wanted["experts"], after["experts"]
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        second.server.params,
        wanted,
    )


@pytest.fixture(scope="module")
def silent():
    """A round in which node 2 does not report, with slices dealt out in another order."""
    table = np.array([[True, True, False, True]])
    source = federation(steps=3, participation=dx.participation.present(table))
    slices = np.array([[6, 8], [0, 2], [2, 4], [4, 6]])
    algorithm = spes(ADAM, slices=slices)
    before = algorithm.init(KEY, PARAMS)
    return slices, source, before, rolled(algorithm, source, state=before)[0]


@pytest.mark.slow
def test_experts_are_their_owners_and_those_of_the_absent_stay_bit_for_bit(silent):
    slices, source, before, after = silent
    nodes = [alone(source, i, slices[i, 0]) for i in range(N)]
    for name, first in PARAMS["experts"].items():
        found = np.asarray(after.server.params["experts"][name])
        for i in (0, 1, 3):
            start, end = slices[i]
            np.testing.assert_allclose(found[start:end], nodes[i][1][name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[2:4], first[2:4])
    mean = np.mean([nodes[i][0] for i in (0, 1, 3)], axis=0)
    np.testing.assert_allclose(after.server.params["shared"], mean, rtol=1e-5)
    for new, old in zip(
        jax.tree.leaves(after.clients.memory), jax.tree.leaves(before.clients.memory), strict=True
    ):
        np.testing.assert_array_equal(new[2], old[2])
        assert np.any(np.asarray(new[0]) != np.asarray(old[0]))


def test_moments_are_of_the_own_experts_alone(silent):
    moments = silent[3].clients.memory
    shapes = {leaf.shape for leaf in jax.tree.leaves(moments)}
    assert shapes == {(N,), (N, D), (N, Q, D), (N, Q, 1)}


def test_where_nobody_reports_nothing_changes():
    source = federation(participation=dx.participation.present(np.zeros((1, N), bool)))
    algorithm = spes(ADAM, merging=experts.merging(1.0, every=1, donors=2))
    before = algorithm.init(KEY, PARAMS)
    after, _ = rolled(algorithm, source, state=before)
    for new, old in zip(
        jax.tree.leaves((after.server, after.clients)),
        jax.tree.leaves((before.server, before.clients)),
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_one_node_is_training_on_one_machine():
    source = federation(clients=1, steps=3)
    state, _ = rolled(spes(ADAM, nodes=1), source, rounds=2)
    params, moments = PARAMS, ADAM.init(PARAMS)
    for t in range(2):
        for rows in minibatches(source, t)[0]:
            updates, moments = ADAM.update(gradient(params, rows), moments, params)
            params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.server.params,
        params,
    )


@pytest.mark.slow
def test_the_complete_graph_is_the_server_and_an_expert_travels_an_edge_a_round():
    source = federation(steps=2)
    over = experts.spes_gossip(loss, ADAM, dx.topology.complete(N), experts=E)
    state, metrics = rolled(over, source, rounds=3)
    with_server, _ = rolled(spes(ADAM), source, rounds=3)
    for node in range(N):
        jax.tree.map(
            lambda a, b, node=node: np.testing.assert_allclose(a[node], b, rtol=1e-5, atol=1e-6),
            state.clients.params,
            with_server.server.params,
        )
    np.testing.assert_allclose(metrics["age"], 0, atol=1e-6)
    line = dx.topology.from_edges(N, np.array([[0, 1], [1, 2], [2, 3]]))
    state, metrics = rolled(experts.spes_gossip(loss, ADAM, line, experts=E), source, rounds=3)
    # A node at distance d of an owner has its expert as of round 3 - (d - 1).
    distance = np.abs(np.arange(N)[:, None] - np.arange(E) // Q)
    np.testing.assert_array_equal(
        state.clients.memory.version, np.maximum(3 - np.maximum(distance - 1, 0), 0)
    )


@pytest.fixture(scope="module")
def language():
    tokens = np.random.default_rng(0).integers(0, 7, (64, 9))
    data = dx.data.Dataset(jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:]), classes=7)
    model = TransformerLM(7, length=8, width=8, depth=1, heads=2, mixture=MoE(E, hidden=5))
    partition = dx.data.from_indices(np.arange(64).reshape(E, -1))
    source = dx.Federation(data, partition, local_steps=2, batch_size=4)
    return experts.routed_language_modelling(model), model, source


@pytest.fixture(scope="module")
def trained(language):
    """Three rounds of eight nodes with an expert each, handed on as `Owned`, and their algorithm."""
    loss, model, source = language
    params = jax.jit(model.init)(KEY, source.data.example)["params"]
    algorithm = experts.spes(
        loss,
        MOMENTUM,
        experts=E,
        nodes=E,
        merging=experts.merging(0.2, every=2, donors=3),
        as_seen=Owned,
    )
    start = jax.jit(algorithm.init)(KEY, params)
    return algorithm, start, source, *dx.run(algorithm, start, source, rounds=3, key=KEY)


@pytest.fixture(scope="module")
def eight():
    """The same without a network: three rounds of eight nodes with an expert each."""
    algorithm = spes(
        ADAM,
        nodes=E,
        merging=experts.merging(0.2, every=2, donors=3),
        server_optimizer=optax.sgd(0.7, 0.5, nesterov=True),
    )
    source, start = federation(clients=E, steps=2), algorithm.init(KEY, PARAMS)
    return algorithm, start, source, *dx.run(algorithm, start, source, rounds=3, key=KEY)


@pytest.mark.slow
def test_plain_arrays_give_the_same_rounds(language, trained):
    loss, model, source = language
    params = jax.jit(model.init)(KEY, source.data.example)["params"]
    merging = experts.merging(0.2, every=2, donors=3)
    plain = experts.spes(loss, MOMENTUM, experts=E, nodes=E, merging=merging)
    state, history = dx.run(plain, jax.jit(plain.init)(KEY, params), source, rounds=3, key=KEY)
    _, _, _, wanted, seen = trained
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        state.server.params,
        wanted.server.params,
    )
    np.testing.assert_allclose(seen.metrics["merging_strength"], [0, 0.2 * 0.98, 0], rtol=1e-6)
    np.testing.assert_allclose(history.metrics["loss"], seen.metrics["loss"], rtol=1e-4)
    assert np.all(seen.metrics["overflow"] == 0)


NETWORK = pytest.param("trained", marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight", NETWORK])
def test_eight_devices_give_what_one_gives(name, request):
    algorithm, start, source, wanted, _ = request.getfixturevalue(name)
    state, _ = dx.run(algorithm, start, source, rounds=3, key=KEY, mesh=dx.client_mesh())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        state.server,
        wanted.server,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight", NETWORK])
def test_a_run_that_goes_on_is_the_run_bit_for_bit(name, request):
    algorithm, start, source, wanted, _ = request.getfixturevalue(name)
    state, _ = dx.run(algorithm, start, source, rounds=1, key=KEY)
    state, _ = dx.run(algorithm, state, source, rounds=2, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


def test_no_array_of_all_experts_is_made_in_a_nodes_gradient(language):
    loss, model, source = language
    owns = ownership(E, 4)
    params = jax.eval_shape(model.init, KEY, source.data.example)["params"]
    shared, known = jax.eval_shape(owns.divide, params)
    own = jax.eval_shape(lambda tree: owns.own(tree, jnp.int32(2)), known)
    batch = dx.data.Batch(source.data.inputs[:4], source.data.labels[:4])

    def shapes(as_seen):
        def value(trained, known):
            whole = owns.whole(trained[0], known, trained[1], jnp.int32(2), as_seen)
            return loss(whole, batch, None)[0]

        return set(made(jax.make_jaxpr(jax.grad(value))((shared, own), known).jaxpr))

    of_all = {(E, 8, 5), (E, 5, 8)}
    assert not shapes(Owned) & of_all
    assert shapes(placed) & of_all == of_all


def made(jaxpr):
    """The shapes of everything that a program and those within it make."""
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        for each in inner:
            yield from made(each)
        if not inner:
            yield from (out.aval.shape for out in equation.outvars)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 3}, "nodes must divide the number of experts = 8, got 3"),
        ({"slices": [[0, 2], [0, 2], [4, 6], [6, 8]]}, r"got nobody for the experts \[2, 3\]"),
        ({"slices": [[0, 2], [1, 3], [3, 5], [6, 8]]}, r"got nobody for the experts \[5\]"),
        ({"slices": [[0, 3], [3, 4], [4, 6], [6, 8]]}, r"got \(0, 3\) for node 0"),
        ({"slices": [[0, 2], [2, 4], [4, 6], [8, 10]]}, r"got \(8, 10\) for node 3"),
        ({"merging": experts.merging(donors=8)}, "donors of merging must be at most .* 7, got 8"),
    ],
)
def test_wrong_ownership_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        spes(**options)


@pytest.mark.parametrize(
    ("options", "params", "message"),
    [
        ({}, {"shared": jnp.ones(3)}, "where must choose some leaves"),
        (
            {"where": lambda path: True},
            PARAMS,
            "where must choose some leaves, the experts, .* got all",
        ),
        ({}, PARAMS | {"experts": {"gate": jnp.ones((6, 2))}}, "experts must be the first axis"),
        ({"merging": experts.merging(like="w1")}, PARAMS, "like must name a leaf of every layer"),
    ],
)
def test_a_model_of_other_experts_is_refused(options, params, message):
    with pytest.raises(ValueError, match=message):
        spes(**options).init(KEY, params)


def test_the_loss_wants_mixtures():
    model = TransformerLM(7, length=8, width=8, depth=1, heads=2)
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, KEY, tokens)
    loss = experts.routed_language_modelling(model)
    with pytest.raises(ValueError, match="model must have mixtures of experts"):
        jax.eval_shape(loss, params, dx.data.Batch(tokens, tokens))
