"""Fashion-MNIST dealt to 16 clients, for comparisons of methods without a server over several graphs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dflax as dx
from dflax import decentralized, evaluation, topology
from experiments.tasks.images import network
from experiments.tools.lanes import each, stacked
from experiments.tools.traffic import megabytes, model_bytes

CLIENTS = 16
NOWHERE = "any"

# What a run measures: accuracy, mean over the clients' models; that of their mean; the root of the
# consensus distance; and megabytes that a client has sent until then on average.
MEASURED = ("local", "averaged", "distance", "megabytes")


def graphs() -> dict[str, topology.MixingMatrix]:
    """The three graphs, from the one that mixes slowest to the one that mixes at once."""
    return {
        "ring": topology.metropolis(topology.ring(CLIENTS)),
        "exponential": topology.uniform(topology.exponential(CLIENTS)),
        "complete": topology.metropolis(topology.complete(CLIENTS)),
    }


def given_matrix(matrix: Float[Array, "n n"]) -> dx.gossip.Mixer:
    """Mixing with a doubly stochastic matrix that is data of the program, not a constant in it."""
    clients = matrix.shape[0]
    return dx.gossip.mixer(
        topology.Schedule(
            clients, matrix, lambda table, key, index: table, False, doubly_stochastic=True
        )
    )


class Method(NamedTuple):
    """A method, and what its budget is.

    Attributes:
      make: `(table, rate) -> Algorithm`, of what describes the graph and of the local rate.
      tables: what describes each graph, arrays of equal shapes; of methods without one, `NOWHERE`.
      one_step: a round is one step on all its K B examples instead of K steps on B of them.
      more_rounds: so many rounds of the method count as one; the clients that take part are fewer.
      own_starts: every client starts from a draw of its own.
      merges: what the method delivers is the mean of all models, which it takes once.
      models: `state -> ` the models to measure, leaves `[m, ...]`.
    """

    make: Callable[[Any, Any], dx.Algorithm]
    tables: dict[str, Any]
    one_step: bool = False
    more_rounds: int = 1
    own_starts: bool = False
    merges: bool = False
    models: Callable[[dx.FederatedState], Any] = lambda state: state.clients.params


class Task:
    """S splits of the images with one model.

    Args:
      size: of the network, see `experiments.tasks.images.network`.
      seeds: of splits, starts and minibatches.
      alpha: Dirichlet concentration of the labels.
      local_steps: K.
      batch_size: B, drawn with replacement.
      rounds: T.
      every: rounds between measurements; a divisor of T.
      examples: of the test set, to measure on.
    """

    def __init__(
        self,
        size: str,
        seeds: Sequence[int],
        *,
        alpha: float,
        local_steps: int,
        batch_size: int,
        rounds: int,
        every: int,
        examples: int = 500,
    ):
        data = dx.data.fashion_mnist()
        labels = np.asarray(data.labels)
        splits = [
            dx.data.dirichlet(labels, CLIENTS, alpha, seed=seed, min_size=batch_size)
            for seed in seeds
        ]
        self.keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        model = network(size)
        self.start = lambda key: model.init(key, data.example)["params"]
        self.loss = dx.losses.classification(model.apply)
        self.rounds, self.every = rounds, every
        several = dx.Federation(
            data, splits[0], local_steps=local_steps, batch_size=batch_size, replacement=True
        )
        self.several = [several.replace(partition=split) for split in splits]
        self.single = [
            own.replace(local_steps=1, batch_size=local_steps * batch_size) for own in self.several
        ]
        self.measure = evaluation.on(self.loss, data.test, examples=min(examples, len(data.test)))
        self.shapes = jax.eval_shape(self.start, jax.random.key(0))
        self.symmetries = dx.matching.symmetries(model, self.shapes, data.example)

    def curves(self, method: Method, rates: Sequence[float]) -> Float[np.ndarray, "4 G R S E"]:
        """The method on all its graphs, with all rates and seeds, as one program.

        Graphs, rates and seeds are data of it. Accelerators take all of them at once; a CPU is faster
        one after another.

        Args:
          method: what is run.
          rates: R of the local steps.

        Returns:
          `[4, G, R, S, E]`, what `MEASURED` says, after every so many rounds.
        """
        rounds = self.every * method.more_rounds
        bytes_each = model_bytes(self.shapes)

        def one(lane: Any, sources: dx.SideBySide, measure: Any) -> Any:
            rate, key, split, table = lane
            source = sources.source(split)
            algorithm = method.make(table, rate)
            own = jax.random.fold_in(key, 0xFFFFFFFE)
            state = algorithm.init(key, self.start if method.own_starts else self.start(own))
            measured = evaluation.together(
                evaluation.client_models(measure),
                evaluation.mean_model(measure),
                evaluation.consensus,
            )

            def some(state: Any, number: Any) -> tuple[Any, Array]:
                state, metrics = dx.rollout(algorithm, state, source, key, rounds, number)
                models = decentralized.Clients(method.models(state))
                found = measured(state._replace(clients=models))
                curves = (
                    found["accuracy"],
                    found["mean_model_accuracy"],
                    jnp.sqrt(found["consensus_distance"]),
                    metrics["models_sent"].sum(),
                )
                return state, jnp.stack(curves)

            starts = rounds * jnp.arange(self.rounds // self.every)
            return jax.lax.scan(some, state, starts)[1].T

        @jax.jit
        def program(lanes: Any, sources: dx.SideBySide, measure: Any) -> Array:
            return each(one, lanes, sources, measure)

        places = list(itertools.product(method.tables.values(), rates, range(len(self.keys))))
        seeds = jnp.asarray([seed for _, _, seed in places])
        sources = dx.side_by_side(self.single if method.one_step else self.several)
        lanes = (
            jnp.asarray([rate for _, rate, _ in places], jnp.float32),
            self.keys[seeds],
            jax.tree.map(lambda leaf: leaf[seeds], sources.own),
            stacked([table for table, _, _ in places]),
        )
        found = np.array(program(lanes, sources, self.measure))
        found = np.moveaxis(found, 1, 0).reshape(
            len(MEASURED), len(method.tables), len(rates), len(self.keys), -1
        )
        found[3] = megabytes(found[3], bytes_each, CLIENTS)
        if method.merges:
            # Counted as what averaging costs on the complete graph.
            found[3] += (CLIENTS - 1) * bytes_each / 1e6
        return found
