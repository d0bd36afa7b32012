"""Right values to call the public API with: made once, small, shared by all calls."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tasks import regression, softmax_loss

import dflax as dx

KEY = jax.random.key(0)
N = 4
TASK = regression(clients=N, examples=40)
DATA, PARTITION, PARAMS, LOSS = TASK.data, TASK.partition, TASK.params, softmax_loss
LABELS = np.asarray(DATA.labels)
SPLIT = dx.data.Split(DATA, DATA)
FEDERATION = dx.Federation(DATA, PARTITION, batch_size=2, local_steps=1)
OPTIMIZER = optax.sgd(0.1)
ALGORITHM = dx.server.fedavg(LOSS, OPTIMIZER)
STATE = jax.jit(ALGORITHM.init)(KEY, PARAMS)
STACKED = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (N, *leaf.shape)), PARAMS)

GRAPH = dx.topology.ring(N)
MATRIX = dx.topology.metropolis(GRAPH)
RATES = dx.topology.uniform_rates(GRAPH)
MIXER = dx.gossip.ring(N)
NEIGHBOURS = dx.gossip.mixer(
    GRAPH, weights=functools.partial(dx.topology.uniform, self_weight=0.0), kind="slots"
)
CHANNEL = dx.channel.perfect()
SENDING = dx.channel.Sending(KEY, 0, jnp.arange(N))
AGGREGATOR = dx.aggregation.mean()
STREAM = dx.gossip.poisson_stream(RATES, 8, seed=0)
PEERS = jax.jit(dx.decentralized.dpsgd(LOSS, OPTIMIZER, MIXER).init)(KEY, PARAMS)


class Normalized(nn.Module):
    """The smallest network with running statistics."""

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(inputs))


NORMALIZED = Normalized()
VARIABLES = NORMALIZED.init(KEY, DATA.inputs[:2])
MODULE = dx.models.MLP((4,), 3)
WEIGHTS = MODULE.init(KEY, DATA.inputs[:2])["params"]
TRANSFORMER = dx.models.TransformerClassifier(classes=3, vocabulary=4, width=4, depth=1, heads=1)
TOKENS = np.zeros((1, 2), np.int32)
TUNED = jax.eval_shape(TRANSFORMER.init, KEY, TOKENS)["params"]
LOAD = dx.models.Load(np.ones(2), np.full(2, 0.5), np.float32(1), np.float32(0), np.float32(0))
SPLIT_MODEL = dx.models.split_transformer(TRANSFORMER)
SYMMETRIES = {"hidden": (("Dense_0/kernel", 1), ("Dense_0/bias", 0), ("Dense_1/kernel", 0))}


def score(params, inputs):
    """Class scores of `PARAMS`."""
    return inputs @ params["w"] + params["b"]


def attack(params, batch, key):
    """An attack that changes nothing."""
    return batch


def measure(params):
    """What an evaluation measures of one model."""
    return {"norm": optax.tree.norm(params)}
