import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax.data.dataset import Dataset
from dflax.data.dealt import Dealt, deal

KEY = jax.random.key(0)


def federation(clients=16, **options):
    task = regression(clients=clients)
    return dx.Federation(task.data, task.partition, local_steps=3, batch_size=4, **options)


def train(federation, mesh=None, clients=16):
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1))
    state = algorithm.init(KEY, regression(clients=clients).params)
    return dx.run(algorithm, state, federation, rounds=4, key=KEY, mesh=mesh)


def rows_of(federation, ids):
    """The examples of a round's minibatches, by value."""
    round = federation.draw(KEY, jnp.int32(3))
    return np.asarray(round.data.fetch(round.assignments.minibatches[ids]).inputs)


@pytest.mark.slow
@pytest.mark.parametrize("clients", [16, 11])
def test_training_is_that_of_whole_data(clients):
    mesh = dx.client_mesh()
    whole, history = train(federation(clients), clients=clients)
    dealt, dealt_history = train(deal(federation(clients), mesh), mesh, clients)
    assert_trees_close(whole.server, dealt.server, rtol=1e-5, atol=1e-7)
    assert_trees_close(history.metrics, dealt_history.metrics, rtol=1e-5, atol=1e-7)


def test_dropout_does_not_move_clients():
    mesh = dx.client_mesh()
    some = federation(participation=dx.participation.dropout(dx.participation.everyone(), 0.5))
    whole, _ = train(some)
    dealt, _ = train(deal(some, mesh), mesh)
    assert_trees_close(whole.server, dealt.server, rtol=1e-5, atol=1e-7)


def test_minibatches_are_the_same_examples():
    whole = federation()
    np.testing.assert_array_equal(
        rows_of(whole, slice(None)), rows_of(deal(whole, dx.client_mesh()), slice(None))
    )


def test_a_device_holds_the_examples_of_its_clients_and_no_other():
    whole = federation()
    dealt = deal(whole, dx.client_mesh())
    lists = whole.partition.as_lists()
    stored = np.asarray(whole.data.inputs)
    for device, shard in enumerate(dealt.data.inputs.addressable_shards):
        mine = np.concatenate(lists[2 * device : 2 * device + 2])
        held = np.unique(np.asarray(shard.data), axis=0)
        np.testing.assert_array_equal(held, np.unique(stored[mine], axis=0))
    most = max(len(np.concatenate(lists[i : i + 2])) for i in range(0, 16, 2))
    assert len(dealt.data) == 8 * most


def test_a_round_moves_no_examples():
    mesh = dx.client_mesh()
    dealt = dx.mesh.replicate_source(deal(federation(), mesh), mesh)
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1))
    state = dx.mesh.shard(algorithm.init(KEY, regression(clients=16).params), mesh)
    with jax.set_mesh(mesh):
        program = jax.jit(
            lambda state, source: algorithm.step(state, source.draw(KEY, jnp.int32(0)))
        )
        text = program.lower(state, dealt).compile().as_text()
    found = dx.profile.collectives(text)
    # Of who takes part every device knows, one byte a client.
    assert {one.kind for one in found if one.bytes > 16} == {"all-reduce"}
    block = dealt.data.block
    assert f"f32[{block},5]" in text
    assert f"f32[{8 * block},5]" not in text


@pytest.mark.slow
def test_data_dealt_for_other_devices_are_correct_still():
    dealt = deal(federation(), dx.client_mesh())
    few = dx.client_mesh(jax.devices()[:2])
    moved = jax.device_put(dealt, jax.NamedSharding(few, jax.P()))
    whole, _ = train(federation())
    state, _ = train(moved, few)
    assert_trees_close(whole.server, state.server, rtol=1e-5, atol=1e-7)


def test_a_row_of_another_device_is_nan_not_a_wrong_example():
    mesh = dx.client_mesh()
    dealt = deal(federation(), mesh)
    with jax.set_mesh(mesh):
        fetched = jax.jit(
            lambda data: dx.map_clients(
                lambda index, data: data.fetch(index[None]).inputs[0],
                jnp.zeros(8, jnp.int32),
                shared=(data,),
            )
        )(dealt.data)
    fetched = np.asarray(fetched)
    np.testing.assert_array_equal(fetched[0], np.asarray(dealt.data.inputs)[0])
    assert np.isnan(fetched[1:]).all()


def test_storage_dtype_decoding_and_labels_are_kept():
    mesh = dx.client_mesh()
    images = np.arange(64 * 4, dtype=np.uint8).reshape(64, 4)
    data = Dataset(
        images, np.arange(64, dtype=np.int32), jnp.float32(1 / 255), jnp.float32(-0.5), 64, "grey"
    )
    partition = dx.data.from_indices(np.split(np.random.default_rng(0).permutation(64), 8))
    dealt = deal(dx.Federation(data, partition, batch_size=2, local_steps=1), mesh)
    assert isinstance(dealt.data, Dealt)
    assert (dealt.data.inputs.dtype, dealt.data.classes, dealt.data.name) == (np.uint8, 64, "grey")
    rows = partition.as_lists()[3]
    batch = dealt.data.fetch(dealt.partition.indices[dealt.partition.offsets[3] + np.arange(8)])
    np.testing.assert_array_equal(batch.labels, rows)
    np.testing.assert_array_equal(batch.inputs, data.fetch(rows).inputs)


def test_a_cohort_that_moves_clients_is_refused():
    some = federation(participation=dx.participation.uniform(8))
    with pytest.raises(
        ValueError, match=r"federation must have cohorts in which.*whose examples are on device"
    ):
        deal(some, dx.client_mesh())


@pytest.mark.slow
def test_a_cohort_drawn_device_by_device_is_served():
    def one_of_each_pair(key, index, clients):
        ids = 2 * jnp.arange(clients // 2) + jax.random.bernoulli(key, shape=(clients // 2,))
        ids = ids.astype(jnp.int32)
        return dx.participation.Cohort(ids, jnp.ones(clients // 2), jnp.ones(clients // 2))

    mesh = dx.client_mesh()
    some = federation(participation=jax.tree_util.Partial(one_of_each_pair))
    whole, _ = train(some)
    dealt, _ = train(deal(some, mesh), mesh)
    assert_trees_close(whole.server, dealt.server, rtol=1e-5, atol=1e-7)


def test_dealing_twice_or_shared_examples_are_refused():
    mesh = dx.client_mesh()
    with pytest.raises(ValueError, match="dealt already"):
        deal(deal(federation(), mesh), mesh)
    task = regression()
    laws = dx.data.resample(task.data.labels, np.full((8, 3), 1 / 3))
    with pytest.raises(TypeError, match="must have a Partition of examples, got ClassLaws"):
        deal(dx.Federation(task.data, laws, local_steps=1, batch_size=2), mesh)


def test_what_is_no_federation_or_no_mesh_is_refused():
    with pytest.raises(TypeError, match=r"federation must be a dflax\.Federation, got 3"):
        deal(3, dx.client_mesh())
    with pytest.raises(TypeError, match="mesh must be of type Mesh, not int, got 3"):
        deal(federation(), 3)
    with pytest.raises(ValueError, match='mesh must have an axis named "clients"'):
        deal(federation(), jax.make_mesh((1,), ("x",)))
