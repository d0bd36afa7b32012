import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dflax as dx
from dflax.clients import DealtWithClients, map_present, sum_cohort
from dflax.data.dealt import Dealt


def twice_plus(row, shift):
    return {"y": 2.0 * row + shift, "n": row.sum()}


@pytest.mark.parametrize("at_once", [None, 1, 3, 8, 100])
def test_map_clients_is_the_same_however_many_run_at_once(at_once):
    rows, shift = jnp.arange(32.0).reshape(8, 4), jnp.arange(8.0)
    out = dx.map_clients(twice_plus, rows, shift, at_once=at_once)
    np.testing.assert_array_equal(out["y"], 2 * np.asarray(rows) + np.arange(8)[:, None])
    np.testing.assert_array_equal(out["n"], np.asarray(rows).sum(1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Laid:
    rows: jax.Array
    layout: str = dataclasses.field(default="rows first", metadata={"static": True})


def test_only_a_class_that_says_so_lays_out_shared_data_over_a_mesh():
    def work(row, shared):
        return row * shared.rows.sum()

    def mapped(rows, shared):
        return dx.map_clients(work, rows, shared=(shared,))

    # JAX's arrays have an attribute of that name, and so may anything of a user's.
    with jax.set_mesh(dx.client_mesh()):
        out = jax.jit(mapped)(jnp.arange(8.0), Laid(jnp.ones(3)))
    np.testing.assert_array_equal(out, 3.0 * np.arange(8))
    assert issubclass(Dealt, DealtWithClients)


@pytest.mark.some(2)
@pytest.mark.parametrize("count", [8, 16, 11])
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_map_clients_over_a_mesh_equals_one_device(count, at_once):
    rows = jax.random.normal(jax.random.key(0), (count, 3))
    keys = jax.random.split(jax.random.key(1), count)
    shared = jnp.arange(3.0)

    def work(row, key, shared):
        return row * shared + jnp.ones_like(shared) + jax.random.normal(key, row.shape)

    def mapped(rows, keys):
        return dx.map_clients(work, rows, keys, shared=(shared,), at_once=at_once)

    alone = jax.jit(mapped)(rows, keys)
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.jit(mapped)(rows, keys)
    np.testing.assert_allclose(dealt, alone, rtol=1e-6, atol=1e-6)


def test_map_clients_over_a_mesh_exchanges_nothing_and_can_be_swept():
    mesh = dx.client_mesh()
    rows = jax.device_put(
        jnp.ones((16, 4)), jax.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    )

    def scaled(scale, rows):
        return dx.map_clients(lambda row, scale: row * scale, rows, shared=(scale,), at_once=1)

    with jax.set_mesh(mesh):
        slope = jax.jit(jax.grad(lambda scale: scaled(scale, rows).sum()))(2.0)
        text = jax.jit(scaled).lower(2.0, rows).compile().as_text()
        swept = jax.vmap(scaled, in_axes=(0, None))(jnp.arange(3.0), rows)
    assert slope == 64.0
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    np.testing.assert_array_equal(swept, np.arange(3.0)[:, None, None] * np.ones((16, 4)))


def test_a_client_alone_skips_what_a_conditional_leaves_out():
    def work(flag):
        return jax.lax.cond(flag, lambda: jnp.float32(1), lambda: jnp.float32(0))

    flags = jnp.array([True, False, True])
    alone = jax.make_jaxpr(lambda f: dx.map_clients(work, f, at_once=1))(flags)
    together = jax.make_jaxpr(lambda f: dx.map_clients(work, f, at_once=3))(flags)
    assert "cond[" in str(alone)
    assert "cond[" not in str(together)


def joined(own, row, shared):
    return {"sum": own["a"] + row * shared, "draw": jax.random.normal(own["key"]), "n": own["n"]}


@pytest.mark.some(2)
@pytest.mark.parametrize("at_once", [None, 1, 2, 4])
def test_map_cohort_is_the_map_over_gathered_rows(at_once):
    tree = {
        "a": jax.random.normal(jax.random.key(0), (8, 3)),
        "key": jax.random.split(jax.random.key(1), 8),
        "n": jnp.arange(8),
    }
    cohort, rows, shared = jnp.array([6, 1, 7, 0]), jnp.arange(12.0).reshape(4, 3), jnp.arange(3.0)

    def mapped(tree, cohort, rows):
        return dx.map_cohort(joined, tree, cohort, rows, shared=(shared,), at_once=at_once)

    wanted = dx.map_clients(joined, dx.gather(tree, cohort), rows, shared=(shared,))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(mapped)(tree, cohort, rows), wanted)
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.jit(mapped)(tree, cohort, rows)
    jax.tree.map(np.testing.assert_array_equal, dealt, wanted)
    everyone = dx.map_cohort(joined, tree, None, jnp.ones((8, 3)), shared=(shared,))
    np.testing.assert_array_equal(everyone["n"], np.arange(8))


def test_a_client_alone_reads_its_row_where_it_lies():
    tree, cohort = jnp.ones((1000, 64)), jnp.arange(50)

    def program(at_once):
        def mapped(tree, cohort):
            return dx.map_cohort(jnp.sum, tree, cohort, at_once=at_once)

        return str(jax.make_jaxpr(mapped)(tree, cohort))

    assert "f32[50,64]" in program(2)
    assert "f32[50,64]" not in program(1)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("devices", [1, 8])
def test_terms_are_added_up_as_they_come(count, devices):
    draw = np.random.default_rng(0)
    tree, rows = jnp.asarray(draw.normal(size=(8, 4)), jnp.float32), jnp.arange(float(count))
    factors = jnp.asarray(draw.normal(size=count), jnp.float32)
    cohort = jnp.asarray(draw.permutation(8)[:count])
    shared = jnp.arange(4.0)

    def work(own, row, shared):
        return {"half": own.astype(jnp.bfloat16), "whole": own * row + shared}, own + row

    def summed(tree, cohort, factors, rows, shared):
        return sum_cohort(work, factors, tree, cohort, rows, shared=(shared,))

    mesh = dx.client_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        given = jax.device_put(tree, jax.NamedSharding(mesh, jax.P("clients")))
        total, others = jax.jit(summed)(given, cohort, factors, rows, shared)
    own = np.asarray(tree)[np.asarray(cohort)]
    terms = own * np.asarray(rows)[:, None] + np.arange(4)
    np.testing.assert_allclose(total["whole"], np.asarray(factors) @ terms, rtol=1e-5, atol=1e-6)
    # Narrow terms in float32 sums, and back.
    assert total["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        total["half"].astype(jnp.float32), np.asarray(factors) @ own, rtol=0.02, atol=0.02
    )
    np.testing.assert_array_equal(others, own + np.asarray(rows)[:, None])


def test_one_client_is_computed_by_all_devices_and_sent_to_none():
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        mapped = jax.jit(lambda row, shared: dx.map_clients(jnp.multiply, row, shared=(shared,)))
        row, shared = jnp.ones((1, 256)), jnp.arange(256.0)
        assert dx.profile.collectives(mapped.lower(row, shared).compile()) == []
        np.testing.assert_array_equal(mapped(row, shared)[0], shared)


@pytest.mark.some(2)
@pytest.mark.parametrize("at_once", [None, 1, 2, 6])
def test_map_present_passes_over_who_is_absent(at_once):
    rows, factor = jnp.arange(1.0, 13.0).reshape(6, 2), jnp.float32(3.0)
    present = jnp.array([True, False, False, False, False, True])

    def scaled(row, factor):
        return {"a": factor * row, "n": jnp.int32(7)}

    def mapped(present, rows, chunk):
        return map_present(scaled, present, rows, shared=(factor,), chunk=chunk, at_once=at_once)

    everyone = jax.jit(mapped, static_argnums=2)(present, rows, None)
    np.testing.assert_array_equal(everyone["a"], 3 * rows)
    found = jax.jit(mapped, static_argnums=2)(present, rows, 2)
    # Small clients run at the same time unless told otherwise, here by twos.
    beside = [0, 5] if at_once == 1 else [0, 1, 4, 5]
    for row in range(6):
        there = row in beside
        np.testing.assert_array_equal(found["a"][row], 3 * rows[row] if there else [0, 0])
        assert found["n"][row] == (7 if there else 0)
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.jit(mapped, static_argnums=2)(present, rows, 2)
    np.testing.assert_array_equal(dealt["a"][jnp.array([0, 5])], 3 * rows[jnp.array([0, 5])])
    with pytest.raises(ValueError, match="chunk must divide the 6 clients, got 4"):
        mapped(present, rows, 4)


def test_map_clients_refuses_axes_that_differ():
    with pytest.raises(ValueError, match="stacked must have leaves that share one leading axis"):
        dx.map_clients(twice_plus, jnp.ones((3, 2)), jnp.ones(4))
    with pytest.raises(ValueError, match="at_once must be an integer >= 1, got 0"):
        dx.map_clients(twice_plus, jnp.ones((3, 2)), jnp.ones(3), at_once=0)


def test_scatter_writes_the_cohort_and_nothing_else():
    tree = {"a": jnp.arange(12.0).reshape(6, 2), "b": jnp.arange(6)}
    cohort = jnp.array([4, 1])
    rows = jax.tree.map(lambda leaf: -leaf, dx.gather(tree, cohort))
    new = dx.scatter(tree, cohort, rows)
    expected = {"a": np.arange(12.0).reshape(6, 2), "b": np.arange(6)}
    for leaf in expected.values():
        leaf[[4, 1]] *= -1
    jax.tree.map(np.testing.assert_array_equal, new, expected)
    only_first = dx.scatter(tree, cohort, rows, reported=jnp.array([1.0, 0.0]))
    assert only_first["b"].tolist() == [0, 1, 2, 3, -4, 5]
    assert dx.scatter(tree, None, tree, jnp.zeros(6))["b"].tolist() == list(range(6))


MEAN = jax.jit(dx.weighted_mean)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from((1, 2, 5, 16, 40)), st.sampled_from((1, 3, 30)), st.integers(0, 10**6))
def test_weighted_mean_equals_a_float64_reference(count, width, seed):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, width)).astype(np.float32)
    weights = generator.uniform(size=count).astype(np.float32) * (
        generator.uniform(size=count) < 0.8
    )
    expected = np.zeros(width)
    if weights.sum() > 0:
        expected = (
            weights.astype(np.float64) @ rows.astype(np.float64) / weights.sum(dtype=np.float64)
        )
    ours = MEAN({"x": rows}, weights)["x"]
    np.testing.assert_allclose(ours, expected, atol=2e-6, rtol=2e-5)


def test_weighted_mean_keeps_dtypes_and_refuses_counters():
    tree = {"half": jnp.full((4, 2, 3), 1.5, jnp.bfloat16)}
    out = dx.weighted_mean(tree)
    assert out["half"].dtype == jnp.bfloat16
    assert out["half"].shape == (2, 3)
    np.testing.assert_array_equal(out["half"].astype(jnp.float32), 1.5)
    with pytest.raises(TypeError, match=r"\['count'\] must hold real numbers, got int32"):
        dx.weighted_mean({"count": jnp.zeros((4,), jnp.int32)})
    with pytest.raises(ValueError, match="tree must have a leading axis of length 3, got 4"):
        dx.weighted_mean(tree, jnp.ones(3))


def test_weighted_mean_over_sharded_clients_is_one_all_reduce_of_the_model():
    mesh = dx.client_mesh()
    rows = jax.device_put(
        jnp.ones((16, 64)), jax.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    )
    text = jax.jit(dx.weighted_mean).lower(rows, jnp.ones(16)).compile().as_text()
    reductions = [line for line in text.splitlines() if " all-reduce(" in line]
    of_the_model = [line for line in reductions if "= f32[] " not in line]
    assert len(of_the_model) == 1
    assert "f32[64]" in of_the_model[0] or "f32[1,64]" in of_the_model[0]
    assert "all-gather" not in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dx.map_clients(3, jnp.ones(3)), "function must be a function, got 3"),
        (lambda: dx.replicate(jnp.ones(2), 0), "clients must be an integer >= 1, got 0"),
        (
            lambda: dx.weighted_mean(jnp.ones((2, 3)), jnp.array([1.0, -1.0])),
            "weights must be a finite number",
        ),
        (
            lambda: dx.weighted_mean(jnp.ones((2, 3)), jnp.ones((2, 1))),
            r"weights must be one number per row of tree, \[m\], got shape \(2, 1\)",
        ),
        (lambda: dx.weighted_mean(jnp.ones((2, 3)), "ab"), "weights must be a real number"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_weights_may_be_a_list():
    np.testing.assert_array_equal(dx.weighted_mean(jnp.arange(2.0), [1.0, 3.0]), 0.75)


@pytest.mark.parametrize("cohort", [None, jnp.arange(3)])
@pytest.mark.parametrize("reported", [None, jnp.ones(3)])
def test_scatter_bends_neither_shapes_nor_dtypes(cohort, reported):
    def refused(tree, rows, kind, message):
        for write in (dx.scatter, jax.jit(dx.scatter)):
            with pytest.raises(kind, match=message):
                write(tree, cohort, rows, reported)

    tree = {"a": jnp.zeros((3, 3)), "n": jnp.zeros(3, jnp.int32)}
    good = {"a": jnp.ones((3, 3)), "n": jnp.ones(3, jnp.int32)}
    assert dx.scatter(tree, cohort, good, reported)["n"].tolist() == [1, 1, 1]
    for a, message in (
        (jnp.array([1.0, 2.0, 3.0]), r"rows\['a'\] must have shape \(3, 3\).*got \(3,\)"),
        (jnp.ones((3, 1)), r"rows\['a'\] must have shape \(3, 3\).*got \(3, 1\)"),
        (jnp.ones((1, 3)), r"rows\['a'\] must have shape \(3, 3\).*got \(1, 3\)"),
    ):
        refused(tree, good | {"a": a}, ValueError, message)
    half = jnp.full(3, 0.5)
    refused(tree, good | {"n": half}, TypeError, r"rows\['n'\] must have dtype int32.*got float32")
    narrow = jnp.ones((3, 3), jnp.bfloat16)
    refused(tree, good | {"a": narrow}, TypeError, r"rows\['a'\] must have dtype float32.*bfloat16")
    # An integer that the state's dtype may round is converted by who knows that it does not.
    count = jnp.ones((3, 3), jnp.int32)
    refused(tree, good | {"a": count}, TypeError, r"rows\['a'\] must have dtype float32.*int32")
    refused(tree, {"a": good["a"]}, ValueError, r"rows must have the structure.*missing.*'n'")


def test_pythons_own_numbers_take_the_dtype_of_the_state():
    def halved(tree):
        rows = jnp.broadcast_to(jnp.asarray(0.5), tree.shape)
        assert rows.weak_type
        return dx.scatter(tree, None, rows)

    with jax.enable_x64(True):
        out = halved(jnp.zeros(3, jnp.float32))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0.5)
    with pytest.raises(TypeError, match="rows must have dtype int32"):
        halved(jnp.zeros(3, jnp.int32))


def test_a_memory_of_integers_that_would_swallow_halves_is_refused_by_both_frameworks():
    data = dx.data.Dataset(jnp.ones((3, 2)), jnp.zeros(3, jnp.int32))
    part = dx.data.from_indices([np.array([i]) for i in range(3)])
    source = dx.Federation(data, part, batch_size=1, local_steps=1)
    key, counts = jax.random.key(0), jnp.zeros(3, jnp.int32)

    def work(assignment, memory, server, data, index):
        return dx.server.Report(server.params, {"count": memory["count"] + 0.5}, {})

    served = dx.server.with_server(
        lambda key, params: ((), {"count": counts}),
        work,
        lambda server, received: (received.message, (), {}),
        clients=3,
    )
    with pytest.raises(TypeError, match=r"\['count'\] must have the dtype.*int32.*got float32"):
        dx.rollout(served, served.init(key, jnp.ones(2)), source, key, 1)

    def alone(assignment, client, data, index):
        return client._replace(memory={"count": client.memory["count"] + 0.5}), {}

    mixed = dx.decentralized.adapt_then_combine(
        alone, dx.gossip.ring(3), start=lambda key, models: {"count": counts}
    )
    with pytest.raises(TypeError, match=r"\['count'\] must have the dtype.*int32.*got float32"):
        dx.rollout(mixed, mixed.init(key, jnp.ones(2)), source, key, 1)


def test_select_and_gather_refuse_what_would_be_broadcast_or_clamped():
    mask, old = jnp.array([True, False, True]), {"a": jnp.zeros((3, 2))}
    assert dx.clients.select(mask, {"a": jnp.ones((3, 2))}, old)["a"].sum() == 4
    for new, kind, message in (
        (jnp.ones(2), ValueError, r"chosen\['a'\] must have shape \(3, 2\)"),
        (jnp.ones((3, 2), jnp.int32), TypeError, r"chosen\['a'\] must have dtype float32"),
    ):
        with pytest.raises(kind, match=message):
            dx.clients.select(mask, {"a": new}, old)
    with pytest.raises(ValueError, match=r"leading axes \(3,\).*got shape \(2, 3\)"):
        dx.clients.select(mask, jnp.ones((2, 3)), jnp.ones((2, 3)))
    rows = jnp.arange(3.0)
    for cohort, kind, message in (
        (mask, TypeError, "cohort must hold the clients' numbers, got bool"),
        (jnp.array([0.0]), TypeError, "cohort must hold the clients' numbers, got float32"),
        (jnp.array([[0]]), ValueError, r"cohort must be a vector.*\(1, 1\)"),
        (jnp.array([0, 3]), ValueError, r"clients' numbers in \[0, 3\).*got 0 to 3"),
        (jnp.array([-1]), ValueError, r"clients' numbers in \[0, 3\).*got -1"),
    ):
        with pytest.raises(kind, match=message):
            dx.gather(rows, cohort)
        with pytest.raises(kind, match=message):
            dx.scatter(rows, cohort, rows[: cohort.size])
    with pytest.raises(TypeError, match="at_once must be an integer >= 1, got True"):
        dx.map_cohort(jnp.sum, rows, jnp.arange(2), at_once=True)


def test_metrics_of_nobody_are_not_a_number_and_counts_are_averaged_as_reals():
    metrics = {
        "loss": jnp.array([1.0, jnp.nan, 3.0]),
        "hits": jnp.array([1, 7, 2]),
        "right": jnp.array([True, False, False]),
        "half": jnp.ones((3, 2), jnp.bfloat16),
    }
    some = dx.clients.mean_metrics(metrics, jnp.array([1.0, 0.0, 1.0]))
    assert {name: float(some[name]) for name in ("loss", "hits", "right")} == {
        "loss": 2.0,
        "hits": 1.5,
        "right": 0.5,
    }
    none = dx.clients.mean_metrics(metrics, jnp.zeros(3))
    for name, value in (some | {f"no {name}": value for name, value in none.items()}).items():
        assert value.dtype == jnp.float32, name
    assert all(np.isnan(value).all() for value in none.values())
    assert dx.clients.mean_metrics({}, jnp.zeros(3)) == {}
    assert dx.clients.mean_metrics((), jnp.zeros(3)) == ()
