"""FedJAX's federated averaging of a perceptron, on its jit backend."""

import fedjax
import jax
import jax.numpy as jnp
import optax

from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task

# FedJAX 0.0.17 was written for a jax that still had this name.
vars(jax).setdefault("tree_map", jax.tree.map)

from fedjax.algorithms import fed_avg  # noqa: E402


def measure(task: list, rounds: int) -> dict[str, float]:
    """Milliseconds per round."""
    work = Task(*task)
    inputs, labels = work.examples()
    federated = fedjax.InMemoryFederatedData(
        {
            f"{number:06}": {"x": inputs[rows], "y": labels[rows]}
            for number, rows in enumerate(work.dealt())
        }
    )

    def loss(params: list, batch: dict, key: jax.Array) -> jax.Array:
        *hidden, (weight, bias) = params
        outputs = batch["x"]
        for inner, shift in hidden:
            outputs = jax.nn.relu(outputs @ inner + shift)
        scores = outputs @ weight + bias
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"]).mean()

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(learning_rate=work.rate),
        fedjax.optimizers.sgd(learning_rate=1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=work.batch, num_steps=work.steps, num_epochs=None
        ),
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(federated, work.cohort, seed=0)
    start = jax.tree.map(jnp.asarray, work.layers())

    def train() -> None:
        state = algorithm.init(start)
        for _ in range(rounds):
            state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)

    return {"ms": milliseconds(train, repeats=3, units=rounds)}
