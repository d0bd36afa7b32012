"""Every method, on a small real model with eight clients, for machines that are not here."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import decentralized, gossip, server, topology
from dflax.gossip import NodeEvents, poisson_stream
from dflax.local.conjugate import least_squares_conjugate

N, STEPS, BATCH, OWN, FEATURES = 8, 2, 4, 8, 784
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
NETWORK = dx.models.MLP(features=(1 << 16,), classes=10)
LOSS = dx.losses.classification(NETWORK.apply)
RING = gossip.ring(N)
CONVEX = {"strong_convexity": 0.2, "smoothness": 8.0}


class Case(NamedTuple):
    """A method and what it is run on.

    Attributes:
      algorithm: the method.
      source: of its rounds.
      state: shapes of its state.
    """

    algorithm: dx.Algorithm
    source: object
    state: object


def federation(clients=N, width=FEATURES, labels=jnp.int32):
    inputs = jnp.zeros((clients * OWN, width))
    classes = 10 if labels == jnp.int32 else None
    data = dx.data.Dataset(inputs, jnp.zeros(clients * OWN, labels), classes=classes)
    owned = np.arange(clients * OWN).reshape(clients, OWN)
    return dx.Federation(
        data, dx.data.from_indices(owned.tolist()), local_steps=STEPS, batch_size=BATCH
    )


def network():
    return jax.eval_shape(NETWORK.init, KEY, jnp.zeros((1, FEATURES)))["params"]


def squares(x, batch, key):
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def attack(params, batch, key):
    return batch._replace(inputs=batch.inputs + 0.1)


def per_client(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((N, *leaf.shape), leaf.dtype), params)


def objectives(width):
    return dx.local.Quadratic(
        jax.ShapeDtypeStruct((N, 4, width), jnp.float32),
        jax.ShapeDtypeStruct((N, 4), jnp.float32),
        jax.ShapeDtypeStruct((N, 4), jnp.float32),
    )


NETWORKS = {
    "fedavg": lambda: server.fedavg(LOSS, SGD),
    "fedavg, median": lambda: server.fedavg(LOSS, SGD, aggregator=dx.aggregation.median()),
    "fedavg, trimmed mean": lambda: server.fedavg(
        LOSS, SGD, aggregator=dx.aggregation.trimmed_mean(2)
    ),
    "fedavg, geometric median": lambda: server.fedavg(
        LOSS, SGD, aggregator=dx.aggregation.geometric_median()
    ),
    "bvr_l_sgd": lambda: server.bvr_l_sgd(LOSS, SGD, 2),
    "fal": lambda: server.fal(LOSS, SGD, attack),
    "fedadagrad": lambda: server.fedadagrad(LOSS, SGD, 0.1),
    "fedadam": lambda: server.fedadam(LOSS, SGD, 0.1),
    "fedadmm": lambda: server.fedadmm(LOSS, SGD, N),
    "fedavg_m_vr": lambda: server.fedavg_m_vr(LOSS, SGD),
    "fedamd": lambda: server.fedamd(LOSS, SGD, server.anchors.constant(0.5)),
    "fedcm": lambda: server.fedcm(LOSS, SGD),
    "feddyn": lambda: server.feddyn(LOSS, SGD, N),
    "fedgamma": lambda: server.fedgamma(LOSS, SGD, N),
    "fednova": lambda: server.fednova(LOSS, SGD),
    "fedpage": lambda: server.fedpage(LOSS, 0.1, 0.5),
    "fedprox": lambda: server.fedprox(LOSS, SGD),
    "fedsam": lambda: server.fedsam(LOSS, SGD),
    "fedsmoo": lambda: server.fedsmoo(LOSS, SGD, N),
    "fedspeed": lambda: server.fedspeed(LOSS, SGD, N),
    "fedyogi": lambda: server.fedyogi(LOSS, SGD, 0.1),
    "mimelite": lambda: server.mimelite(LOSS, SGD),
    "mofedsam": lambda: server.mofedsam(LOSS, SGD),
    "dual_free_admm": lambda: server.dual_free_admm(LOSS, SGD, 1.0, N),
    "partial_averaging": lambda: server.partial_averaging(
        LOSS, SGD, local=server.layers("Dense_1"), clients=N
    ),
    "scaffold": lambda: server.scaffold(LOSS, SGD, N),
    "scaffold_m": lambda: server.scaffold_m(LOSS, SGD, N),
    "scaffold_m_vr": lambda: server.scaffold_m_vr(LOSS, SGD, N),
    "dfedavg, ring": lambda: decentralized.dfedavg(LOSS, SGD, RING),
    "dfedavg, exponential": lambda: decentralized.dfedavg(LOSS, SGD, gossip.exponential(N)),
    "dfedavg, torus": lambda: decentralized.dfedavg(LOSS, SGD, gossip.torus(2, 4)),
    "dfedavg, complete": lambda: decentralized.dfedavg(LOSS, SGD, gossip.complete(N)),
    "dfedavg, random neighbours": lambda: decentralized.dfedavg(
        LOSS, SGD, gossip.random_neighbours(N, 3)
    ),
    "dfedadmm": lambda: decentralized.dfedadmm(LOSS, SGD, RING),
    "dfedadmm_sam": lambda: decentralized.dfedadmm_sam(LOSS, SGD, RING),
    "dfedsam": lambda: decentralized.dfedsam(LOSS, SGD, RING, gossip_steps=3),
    "dimat": lambda: decentralized.dimat(LOSS, SGD, topology.ring(N), None),
    "dispfl": lambda: decentralized.dispfl(LOSS, SGD, RING, rounds=5),
    "dpsgd": lambda: decentralized.dpsgd(LOSS, SGD, RING),
    "dsgt": lambda: decentralized.dsgt(LOSS, 0.1, RING),
    "gossip_learning": lambda: decentralized.gossip_learning(LOSS, SGD, N),
    "modest": lambda: decentralized.modest(LOSS, SGD, clients=N, sample=3, aggregators=2),
    "sgp": lambda: decentralized.sgp(LOSS, SGD, topology.exponential(N)),
    "single_merging": lambda: decentralized.single_merging(LOSS, SGD, N, 1.0),
    "adom_plus": lambda: decentralized.adom_plus(LOSS, topology.ring(N), **CONVEX),
}
# Methods on quadratic objectives: of a vector of so many parameters.
WIDTH = 1 << 14
QUADRATICS = {
    "consensus_admm": lambda: server.consensus_admm(1.0),
    "rerce_fed": lambda: server.rerce_fed(1.0),
    "rerce_fed_continual": lambda: server.rerce_fed_continual(1.0),
}
NEEDS_GRADIENTS = {"fedamd", "fedavg_m_vr", "scaffold_m_vr"}
CONJUGATE = 256
EVENTS = {
    "continuized": (
        lambda: decentralized.continuized(least_squares_conjugate, topology.ring(N), **CONVEX),
        lambda: poisson_stream(
            decentralized.unit_rates(topology.ring(N)), 40, seed=0, gradient_rate=0.0
        ),
    ),
    "dadao": (
        lambda: decentralized.dadao(squares, topology.uniform_rates(topology.ring(N)), **CONVEX),
        lambda: poisson_stream(topology.uniform_rates(topology.ring(N)), 40, seed=0),
    ),
}
NAMES = (*NETWORKS, *QUADRATICS, "msda", *EVENTS)


def case(name):
    if name in NETWORKS:
        algorithm, params, source = NETWORKS[name](), network(), federation()
        given = (per_client(params),) if name in NEEDS_GRADIENTS else ()
        return Case(algorithm, source, jax.eval_shape(algorithm.init, KEY, params, *given))
    if name in QUADRATICS:
        algorithm, params = QUADRATICS[name](), jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
        state = jax.eval_shape(algorithm.init, KEY, params, objectives(WIDTH))
        return Case(algorithm, federation(), state)
    params = jax.ShapeDtypeStruct((CONJUGATE,), jnp.float32)
    source = federation(width=CONJUGATE, labels=jnp.float32)
    if name == "msda":
        algorithm = decentralized.msda(least_squares_conjugate, topology.ring(N), **CONVEX)
    else:
        make, stream = EVENTS[name]
        algorithm = make()
        source = NodeEvents(source.data, source.partition, stream())
    return Case(algorithm, source, jax.eval_shape(algorithm.init, KEY, params))
