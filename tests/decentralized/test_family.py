"""What every method without a server owes its user: the same result on a mesh and within a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax import decentralized, gossip, topology
from dflax.data.dataset import Dataset
from dflax.gossip import NodeEvents, poisson_stream
from dflax.local.convex.conjugate import least_squares_conjugate

KEY = jax.random.key(0)
N, D, ROWS = 8, 3, 6
TASK = regression(clients=N)
SOURCE = dx.Federation(TASK.data, TASK.partition, batch_size=8, local_steps=2)
RING = gossip.ring(N)

GENERATOR = np.random.default_rng(0)
DATA = Dataset(
    jnp.asarray(GENERATOR.normal(size=(N * ROWS, D)), jnp.float32),
    jnp.asarray(GENERATOR.normal(size=N * ROWS), jnp.float32),
)
DEALT = dx.data.from_indices(np.arange(N * ROWS).reshape(N, ROWS).tolist())
WHOLE = dx.Federation(DATA, DEALT, batch_size=ROWS, local_steps=1)
PATH = topology.path(N)
RATES = topology.uniform_rates(PATH)
STREAM = NodeEvents(DATA, DEALT, poisson_stream(RATES, 60, seed=0), batch_size=ROWS)
LINKS = NodeEvents(
    DATA,
    DEALT,
    poisson_stream(decentralized.unit_rates(PATH), 60, seed=0, gradient_rate=0.0),
    batch_size=ROWS,
)


def squares(x, batch, key):
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def convex(make, objective, over):
    return lambda mu: make(objective, over, strong_convexity=mu, smoothness=8.0)


def descent(rate):
    return optax.sgd(rate)


# Name: of a traced number to the method, two numbers, rounds, and where these come from.
METHODS = {
    "dfedadmm_sam": (
        lambda rho: decentralized.dfedadmm_sam(softmax_loss, descent(0.1), RING, radius=rho),
        (0.05, 0.3),
        4,
        SOURCE,
    ),
    "sgp": (
        lambda rate: decentralized.sgp(softmax_loss, descent(rate), topology.exponential(N)),
        (0.1, 0.3),
        4,
        SOURCE,
    ),
    "sampled": (
        lambda share: decentralized.dfedavg(
            softmax_loss, descent(0.1), gossip.sampled(RING, share)
        ),
        (0.3, 0.8),
        4,
        SOURCE,
    ),
    "partitioned": (
        lambda rate: decentralized.dfedavg(
            softmax_loss, descent(rate), gossip.partitioned(RING, 3)
        ),
        (0.1, 0.3),
        4,
        SOURCE,
    ),
    "corrected dsgt": (
        lambda rate: decentralized.dsgt(
            softmax_loss, rate, gossip.variance_corrected(gossip.exponential(N), 0.2)
        ),
        (0.1, 0.3),
        4,
        SOURCE,
    ),
    "adom_plus": (convex(decentralized.adom_plus, squares, PATH), (0.2, 2.0), 6, WHOLE),
    "msda": (convex(decentralized.msda, least_squares_conjugate, PATH), (0.2, 2.0), 6, WHOLE),
    "continuized": (
        convex(decentralized.continuized, least_squares_conjugate, PATH),
        (0.2, 2.0),
        60,
        LINKS,
    ),
    "dadao": (convex(decentralized.dadao, squares, RATES), (0.2, 2.0), 60, STREAM),
}


# One of every kind in the fast tier: rows that roll, a corrected mixer, dual vectors, events.
FAST = {"sgp", "corrected dsgt", "adom_plus", "dadao"}
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.mark.some(1)
@pytest.mark.parametrize("name", NAMES)
def test_devices_and_sweeps_give_what_single_runs_give(name):
    make, values, rounds, source = METHODS[name]
    model = TASK.params if source is SOURCE else jnp.zeros(D)

    def final(value, source):
        method = make(value)
        return dx.rollout(method, method.init(KEY, model), source, KEY, rounds)[0].clients.params

    swept = jax.jit(jax.vmap(final, in_axes=(0, None)))(jnp.asarray(values), source)
    alone = jax.jit(final)
    runs = [alone(jnp.float32(value), source) for value in values]
    for place, run in enumerate(runs):
        assert_trees_close(
            jax.tree.map(lambda leaf, place=place: leaf[place], swept), run, rtol=1e-4, atol=1e-5
        )
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), *runs)
    assert max(jax.tree.leaves(apart)) > 1e-3

    method = make(values[0])
    dealt, _ = dx.run(
        method, method.init(KEY, model), source, rounds=rounds, key=KEY, mesh=dx.client_mesh()
    )
    assert_trees_close(dealt.clients.params, runs[0], rtol=1e-4, atol=1e-5)
