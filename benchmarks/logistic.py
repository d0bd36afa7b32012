"""Many small rounds: logistic regression 64x10, 10 of 100 clients, 5 local steps of 10 examples."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks.measure import Row, milliseconds

CLIENTS, COHORT, STEPS, BATCH, FEATURES, CLASSES = 100, 10, 5, 10, 64, 10
EXAMPLES = 64 * CLIENTS
RATE = 0.1


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Separable synthetic examples."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    labels = (inputs @ generator.normal(size=(FEATURES, CLASSES))).argmax(1)
    return inputs, labels.astype(np.int32)


def start() -> dict[str, jax.Array]:
    """The model at zero."""
    return {"w": jnp.zeros((FEATURES, CLASSES)), "b": jnp.zeros(CLASSES)}


def logits(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """The linear model."""
    return inputs @ params["w"] + params["b"]


def ours(rounds: int) -> float:
    """Milliseconds per round of `dx.server.fedavg`, a thousand rounds to a compiled call."""
    inputs, labels = examples()
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels), classes=CLASSES)
    federation = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(EXAMPLES), CLIENTS)),
        local_steps=STEPS,
        batch_size=BATCH,
        participation=dx.participation.uniform(COHORT),
    )
    algorithm = dx.server.fedavg(dx.losses.classification(logits), optax.sgd(RATE))
    key = jax.random.key(0)
    state = algorithm.init(key, start())
    rollout = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
    return milliseconds(lambda: rollout(state, federation, key), units=rounds)


def fedjax_round(rounds: int) -> float:
    """Milliseconds per round of FedJAX's federated averaging on its jit backend."""
    # FedJAX 0.0.17 was written for a jax that still had this name.
    vars(jax).setdefault("tree_map", jax.tree.map)
    import fedjax
    from fedjax.algorithms import fed_avg

    inputs, labels = examples()
    owned = np.array_split(np.arange(EXAMPLES), CLIENTS)
    clients = {
        f"{number:03}": {"x": inputs[rows], "y": labels[rows]} for number, rows in enumerate(owned)
    }
    federated = fedjax.InMemoryFederatedData(clients)

    def loss(params: dict, batch: dict, key: jax.Array) -> jax.Array:
        scores = logits(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"]).mean()

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(learning_rate=RATE),
        fedjax.optimizers.sgd(learning_rate=1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_steps=STEPS, num_epochs=None),
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(federated, COHORT, seed=0)

    def train() -> dict:
        state = algorithm.init(start())
        for _ in range(rounds):
            state, _ = algorithm.apply(state, sampler.sample())
        return state.params

    return milliseconds(train, repeats=3, units=rounds)


def rows(quick: bool) -> list[Row]:
    """Our round beside FedJAX's."""
    name = "logistic round, 10 of 100 clients"
    own = ours(200 if quick else 1000)
    try:
        version = importlib.metadata.version("fedjax")
        return [Row(name, own, f"FedJAX {version}", fedjax_round(20 if quick else 100))]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return [Row(name, own, "FedJAX (not installed)")]
