import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax import participation
from dflax.mesh import host_clients, shard, state_sharding

KEY = jax.random.key(0)


def algorithms(clients):
    heavy = optax.sgd(0.3, momentum=0.9)
    return {
        "fedavg": dx.server.fedavg(softmax_loss, heavy, optax.adam(0.05)),
        "dfedavg": dx.decentralized.dfedavg(softmax_loss, heavy, dx.gossip.ring(clients)),
        "dpsgd": dx.decentralized.dpsgd(softmax_loss, heavy, dx.gossip.exponential(clients)),
    }


def meshes(clients, name, rule):
    if clients == 11 or name == "dpsgd" or rule is FAILING:
        return [dx.client_mesh()]
    return [dx.client_mesh(jax.devices()[:2]), dx.client_mesh(), dx.client_mesh(model=2)]


FAILING = participation.stragglers(participation.dropout(participation.uniform(6), 0.3), 0.5)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("clients", "name", "rule"),
    [
        (8, "fedavg", participation.everyone()),
        pytest.param(8, "fedavg", participation.uniform(5), marks=pytest.mark.slow),
        pytest.param(8, "dfedavg", participation.everyone(), marks=pytest.mark.slow),
        pytest.param(8, "dfedavg", participation.uniform(5), marks=pytest.mark.slow),
        (8, "dfedavg", FAILING),
        pytest.param(8, "dpsgd", participation.everyone(), marks=pytest.mark.slow),
        (8, "dpsgd", participation.uniform(5)),
        pytest.param(11, "fedavg", participation.everyone(), marks=pytest.mark.slow),
        (11, "dpsgd", participation.everyone()),
    ],
)
def test_the_same_seed_gives_the_same_result_on_any_mesh(clients, name, rule):
    task = regression(clients=clients)
    federation = dx.Federation(
        task.data, task.partition, batch_size=5, local_steps=2, participation=rule
    )
    algorithm = algorithms(clients)[name]
    start = algorithm.init(KEY, task.params)
    alone, history = dx.run(algorithm, start, federation, rounds=3, key=KEY)
    for mesh in meshes(clients, name, rule):
        dealt, metrics = dx.run(algorithm, start, federation, rounds=3, key=KEY, mesh=mesh)
        assert_trees_close(
            (dealt.server, dealt.clients), (alone.server, alone.clients), rtol=1e-4, atol=1e-5
        )
        assert_trees_close(metrics.metrics, history.metrics, rtol=1e-4, atol=1e-5)


def test_clients_and_models_are_split_where_the_mesh_divides_them():
    state = dx.FederatedState(
        jnp.int32(0),
        {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(3)},
        {"kernel": jnp.ones((8, 3, 4)), "odd": jnp.ones((8, 3)), "few": jnp.ones((6, 2))},
    )
    specs = jax.tree.map(lambda s: s.spec, state_sharding(state, dx.client_mesh(model=2)))
    assert specs.server["kernel"] == PartitionSpec(None, "model")
    assert specs.server["bias"] == PartitionSpec(None)
    assert specs.clients["kernel"] == PartitionSpec("clients", None, "model")
    assert specs.clients["odd"] == PartitionSpec("clients", None)
    assert specs.clients["few"] == PartitionSpec(None, "model")
    placed = shard(state, dx.client_mesh())
    assert placed.clients["kernel"].addressable_shards[0].data.shape == (1, 3, 4)
    np.testing.assert_array_equal(placed.clients["kernel"], 1.0)


def test_what_is_no_federated_state_is_replicated():
    specs = state_sharding({"x": jnp.ones(8)}, dx.client_mesh())
    assert specs["x"].spec == PartitionSpec()


def test_bad_meshes_are_refused():
    with pytest.raises(ValueError, match=r"model must divide the number of devices, 8, got 3"):
        dx.client_mesh(model=3)
    with pytest.raises(ValueError, match=r"model must be an integer in \[1, 8\], got 0"):
        dx.client_mesh(model=0)
    other = jax.make_mesh((8,), ("x",))
    with pytest.raises(ValueError, match='mesh must have an axis named "clients"'):
        state_sharding({"x": jnp.ones(8)}, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dx.client_mesh(8), "devices must be of type Sequence or ndarray, not int, got 8"),
        (lambda: dx.client_mesh(["a"]), r"devices\[0\] must be of type Device, not str, got 'a'"),
        (lambda: dx.client_mesh([]), "devices must list at least one device, got none"),
        (lambda: state_sharding(jnp.ones(3), 3), "mesh must be of type Mesh, not int, got 3"),
        (lambda: host_clients(3, 3), "mesh must be of type Mesh, not int, got 3"),
        (
            lambda: shard(dx.FederatedState(jnp.int32(0), (), jnp.float32(1)), dx.client_mesh()),
            "state.clients must have leaves with the leading axis n, got a scalar",
        ),
    ],
)
def test_what_is_no_mesh_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
