"""Every method, on a small real model with eight clients, for machines that are not here."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from planned import others, private, swarms

import dflax as dx
from dflax import decentralized, gossip, server, topology
from dflax.gossip import NodeEvents, poisson_stream
from dflax.local.convex.conjugate import least_squares_conjugate

N, STEPS, BATCH, OWN, FEATURES, HIDDEN = 8, 2, 4, 8, 784, 64
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
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


def federation(clients=N, width=FEATURES, labels=jnp.int32, steps=STEPS):
    inputs = jnp.zeros((clients * OWN, width))
    classes = 10 if labels == jnp.int32 else None
    data = dx.data.Dataset(inputs, jnp.zeros(clients * OWN, labels), classes=classes)
    owned = np.arange(clients * OWN).reshape(clients, OWN)
    return dx.Federation(
        data, dx.data.from_indices(owned.tolist()), local_steps=steps, batch_size=BATCH
    )


def network(hidden=HIDDEN):
    return dx.models.MLP(features=(hidden,), classes=10)


def params_of(hidden=HIDDEN):
    return jax.eval_shape(network(hidden).init, KEY, jnp.zeros((1, FEATURES)))["params"]


def loss_of(hidden=HIDDEN):
    return dx.losses.classification(network(hidden).apply)


def squares(x, batch, key):
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def attack(params, batch, key):
    return batch._replace(inputs=batch.inputs + 0.1)


def per_client(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((N, *leaf.shape), leaf.dtype), params)


def a_step(loss):
    """One gradient step of the augmented Lagrangian, for consensus ADMM."""

    def minimise(assignment, own, nearby, data, index):
        batch = data.fetch(assignment.minibatches[0])
        slope = jax.grad(lambda params: loss(params, batch, assignment.key)[0])(own.params)
        moved = jax.tree.map(
            lambda x, g, c: x - 0.1 * (g + nearby.penalty * (x - c)),
            own.params,
            slope,
            nearby.center,
        )
        return dx.local.Minimised(moved)

    return minimise


def objectives(width):
    return dx.local.Quadratic(jnp.zeros((N, 4, width)), jnp.zeros((N, 4)), jnp.zeros((N, 4)))


NETWORKS = {
    "fedavg": lambda loss: server.fedavg(loss, SGD),
    "fedavg, median": lambda loss: server.fedavg(loss, SGD, aggregator=dx.aggregation.median()),
    "fedavg, trimmed mean": lambda loss: server.fedavg(
        loss, SGD, aggregator=dx.aggregation.trimmed_mean(2)
    ),
    "fedavg, geometric median": lambda loss: server.fedavg(
        loss, SGD, aggregator=dx.aggregation.geometric_median()
    ),
    "bvr_l_sgd": lambda loss: server.bvr_l_sgd(loss, SGD, 2),
    "fal": lambda loss: server.fal(loss, SGD, attack),
    "fedadagrad": lambda loss: server.fedadagrad(loss, SGD, 0.1),
    "fedadam": lambda loss: server.fedadam(loss, SGD, 0.1),
    "fedadmm": lambda loss: server.fedadmm(loss, SGD, N),
    "fedavg_m_vr": lambda loss: server.fedavg_m_vr(loss, SGD),
    "fedamd": lambda loss: server.fedamd(loss, SGD, server.anchors.constant(0.5)),
    "fedcm": lambda loss: server.fedcm(loss, SGD),
    "feddyn": lambda loss: server.feddyn(loss, SGD, N),
    "fedgamma": lambda loss: server.fedgamma(loss, SGD, N),
    "fednova": lambda loss: server.fednova(loss, SGD),
    "fedpage": lambda loss: server.fedpage(loss, 0.1, 0.5),
    "fedprox": lambda loss: server.fedprox(loss, SGD),
    "fedsam": lambda loss: server.fedsam(loss, SGD),
    "fedsmoo": lambda loss: server.fedsmoo(loss, SGD, N),
    "fedspeed": lambda loss: server.fedspeed(loss, SGD, N),
    "fedyogi": lambda loss: server.fedyogi(loss, SGD, 0.1),
    "mimelite": lambda loss: server.mimelite(loss, SGD),
    "mofedsam": lambda loss: server.mofedsam(loss, SGD),
    "consensus": lambda loss: server.consensus(a_step(loss), 1.0, N),
    "consensus, ring": lambda loss: decentralized.consensus(a_step(loss), 1.0, RING),
    "dual_free_admm": lambda loss: server.dual_free_admm(loss, SGD, 1.0, N),
    "partial_averaging": lambda loss: server.partial_averaging(
        loss, SGD, local=server.layers("Dense_1"), clients=N
    ),
    "scaffold": lambda loss: server.scaffold(loss, SGD, N),
    "scaffold_m": lambda loss: server.scaffold_m(loss, SGD, N),
    "scaffold_m_vr": lambda loss: server.scaffold_m_vr(loss, SGD, N),
    "dfedavg, ring": lambda loss: decentralized.dfedavg(loss, SGD, RING),
    "dfedavg, exponential": lambda loss: decentralized.dfedavg(loss, SGD, gossip.exponential(N)),
    "dfedavg, torus": lambda loss: decentralized.dfedavg(loss, SGD, gossip.torus(2, 4)),
    "dfedavg, complete": lambda loss: decentralized.dfedavg(loss, SGD, gossip.complete(N)),
    "dfedavg, random neighbours": lambda loss: decentralized.dfedavg(
        loss, SGD, gossip.random_neighbours(N, 3)
    ),
    "dfedadmm": lambda loss: decentralized.dfedadmm(loss, SGD, RING),
    "dfedadmm_sam": lambda loss: decentralized.dfedadmm_sam(loss, SGD, RING),
    "dfedsam": lambda loss: decentralized.dfedsam(loss, SGD, RING, gossip_steps=3),
    "dimat": lambda loss: decentralized.dimat(loss, SGD, topology.ring(N), None),
    "dispfl": lambda loss: decentralized.dispfl(loss, SGD, RING, rounds=5),
    "dpsgd": lambda loss: decentralized.dpsgd(loss, SGD, RING),
    "dsgt": lambda loss: decentralized.dsgt(loss, 0.1, RING),
    "gossip_learning": lambda loss: decentralized.gossip_learning(loss, SGD, N),
    "modest": lambda loss: decentralized.modest(loss, SGD, clients=N, sample=3, aggregators=2),
    "sgp": lambda loss: decentralized.sgp(loss, SGD, topology.exponential(N)),
    "single_merging": lambda loss: decentralized.single_merging(loss, SGD, N, 1.0),
    "adom_plus": lambda loss: decentralized.adom_plus(loss, topology.ring(N), **CONVEX),
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
# Rules that look at distances, of which FedAvg makes methods of their own.
ROBUST = {
    "krum": lambda: dx.aggregation.krum(1),
    "multi_krum": lambda: dx.aggregation.multi_krum(1),
    "nnm": lambda: dx.aggregation.nnm(dx.aggregation.trimmed_mean(1), 1),
    "bulyan": lambda: dx.aggregation.bulyan(1),
    "caf": lambda: dx.aggregation.caf(1),
    "smea": lambda: dx.aggregation.smea(1),
    "centred_clipping": lambda: dx.aggregation.centred_clipping(1.0),
}
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
# Whose clients do more than FedAvg's, as methods of one client that talks to nobody.
ALONE = {
    "dispfl": lambda loss: decentralized.dispfl(loss, SGD, gossip.identity(1), rounds=5),
} | {
    name: functools.partial(lambda make, loss: make(loss, 1), make)
    for name, make in private.METHODS.items()
}
# Whose clients solve their problems instead of taking steps: how many of them at the same time.
SOLVES = {"msda": 1, "continuized": 2}
NAMES = (
    *(*NETWORKS, *ROBUST, *QUADRATICS, "bristle", "msda", *EVENTS),
    *(*others.NAMES, *private.METHODS, *swarms.METHODS),
)


def of_a_layer():
    """Bristle trains one layer without a bias, here of two classes that everyone has."""

    def head(params, inputs):
        return inputs @ params["kernel"]

    source = federation()
    labels = jnp.tile(jnp.arange(2, dtype=jnp.int32), N * OWN // 2)
    tests = gossip.class_tests(
        dx.data.Dataset(source.data.inputs, labels, classes=2), source.partition
    )
    loss = dx.losses.classification(head)
    algorithm = decentralized.bristle(loss, SGD, topology.ring(N), head, tests)
    params = {"kernel": jax.ShapeDtypeStruct((FEATURES, 2), jnp.float32)}
    return Case(algorithm, source, jax.eval_shape(algorithm.init, KEY, params))


def steps_of(name):
    """Local steps of a round: one of methods that take noisy gradients."""
    return 1 if name in private.ONE_STEP else STEPS


def case(name, hidden=HIDDEN):
    """A method of the gallery, on a network of so many hidden units where it trains one."""
    if name in NETWORKS or name in ROBUST:
        params, source = params_of(hidden), federation()
        if name in ROBUST:
            algorithm = server.fedavg(loss_of(hidden), SGD, aggregator=ROBUST[name]())
        else:
            algorithm = NETWORKS[name](loss_of(hidden))
        given = (per_client(params),) if name in NEEDS_GRADIENTS else ()
        return Case(algorithm, source, jax.eval_shape(algorithm.init, KEY, params, *given))
    if name == "bristle":
        return of_a_layer()
    if name in private.METHODS:
        algorithm = private.METHODS[name](loss_of(hidden), N)
        state = jax.eval_shape(algorithm.init, KEY, params_of(hidden))
        return Case(algorithm, federation(steps=steps_of(name)), state)
    if name in swarms.METHODS:
        return Case(*swarms.case(name))
    if name in others.NAMES:
        return Case(
            *others.case(name, loss_of(hidden), network(hidden), params_of(hidden), federation())
        )
    if name in QUADRATICS:
        algorithm, params = QUADRATICS[name](), jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
        clients = objectives(WIDTH)
        source = dx.local.quadratic_federation(clients)
        return Case(algorithm, source, jax.eval_shape(algorithm.init, KEY, params, clients))
    params = jax.ShapeDtypeStruct((CONJUGATE,), jnp.float32)
    source = federation(width=CONJUGATE, labels=jnp.float32)
    if name == "msda":
        algorithm = decentralized.msda(least_squares_conjugate, topology.ring(N), **CONVEX)
    else:
        make, stream = EVENTS[name]
        algorithm = make()
        source = NodeEvents(source.data, source.partition, stream())
    return Case(algorithm, source, jax.eval_shape(algorithm.init, KEY, params))
