"""Gossip methods on several splits and starts at once: one program a method, paired over methods."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Int

import dflax as dx
from dflax import evaluation
from dflax.data.laws import dirichlet_laws
from experiments.tools.traffic import megabytes, model_bytes

Factory = Callable[[Any], dx.Algorithm]


def label_priors(
    labels: Int[np.ndarray, " N"], clients: int, alpha: float, owned: int, seed: int
) -> dx.data.Partition:
    """Clients of `owned` examples each, their labels drawn from the client's own Dirichlet(alpha) prior.

    Examples are drawn with replacement, within a client and across clients.
    """
    classes = int(labels.max()) + 1
    generator = np.random.default_rng(seed)
    laws = dirichlet_laws(seed, clients, classes, alpha)
    drawn = [generator.choice(classes, owned, p=law) for law in laws]
    of_class = [np.flatnonzero(labels == c) for c in range(classes)]
    return dx.data.from_indices(
        [np.array([generator.choice(of_class[c]) for c in own]) for own in drawn]
    )


class Paired:
    """S runs of every method: run s has the split, the start, the minibatches of seed s.

    Args:
      data: training and test examples.
      splits: S partitions of equal shapes.
      seeds: S of starts and minibatches; methods that see the same S are paired.
      model: a linen module.
      local_steps: K.
      batch_size: B, drawn with replacement.
      rounds: T.
      tail: rounds at the end over which the clients' models are measured and averaged, >= 1.
      examples: measure on so many test examples only.
      together: the runs of a program at once; else one after another in it, for networks whose
        activations would not fit the caches of a CPU.
    """

    def __init__(
        self,
        data: dx.data.Split,
        splits: Sequence[dx.data.Partition],
        seeds: Sequence[int],
        model: Any,
        *,
        local_steps: int,
        batch_size: int,
        rounds: int,
        tail: int,
        examples: int | None = None,
        together: bool = True,
    ):
        first = dx.Federation(
            data, splits[0], local_steps=local_steps, batch_size=batch_size, replacement=True
        )
        self.clients = first.clients
        self.sources = dx.side_by_side([first.replace(partition=split) for split in splits])
        self.keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        self.loss = dx.losses.classification(model.apply)
        self.rounds, self.tail, self.together = rounds, tail, together
        example = data.example
        self.start = lambda key: model.init(key, example)["params"]
        self.bytes_each = model_bytes(jax.eval_shape(self.start, self.keys[0]))
        measure = evaluation.on(self.loss, data.test, examples=examples)
        self.mean_model = evaluation.mean_model(measure)
        self.client_models = evaluation.client_models(measure)

    def run(self, factory: Factory, values: Sequence[Any] = (0.0,)) -> dict[str, np.ndarray]:
        """The method at several values of one traced hyper-parameter, on all seeds, as one program.

        Args:
          factory: `value -> Algorithm`.
          values: V of them: numbers, or arrays of equal shapes such as mixing matrices.

        Returns:
          Arrays `[V, S, T]`: "mean model" accuracy, "distance" (root of the consensus distance) and
          "megabytes" that a client has sent until then, of methods whose messages are models;
          `[V, S, tail]`: "local curve", the mean accuracy of the clients' models in the last rounds;
          `[V, S]`: "local", its mean; and the seconds of the whole program after compilation, [].
        """
        cut = self.rounds - self.tail

        def one(value: Any, key: Any, own: Any, sources: Any, measures: Any) -> dict[str, Any]:
            mean_model, client_models = measures
            source = sources.source(own)
            algorithm = factory(value)
            state = algorithm.init(key, self.start(jax.random.fold_in(key, 0xFFFFFFFE)))

            def advance(state: Any, number: Any) -> tuple[Any, dict[str, Any]]:
                state, metrics = algorithm.step(state, source.draw(key, number))
                return state, {
                    "sent": metrics["models_sent"],
                    "mean model": mean_model(state)["mean_model_accuracy"],
                    "distance": jnp.sqrt(evaluation.consensus_distance(state.clients.params)),
                }

            def measured(state: Any, number: Any) -> tuple[Any, dict[str, Any]]:
                state, found = advance(state, number)
                return state, found | {"local curve": client_models(state)["accuracy"]}

            state, early = jax.lax.scan(advance, state, jnp.arange(cut))
            _, late = jax.lax.scan(measured, state, jnp.arange(cut, self.rounds))
            local = late.pop("local curve")
            joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)
            return joined | {"local curve": local, "local": local.mean()}

        def in_turn(values: Any, keys: Any, splits: Any, *shared: Any) -> dict[str, Any]:
            return jax.lax.map(
                lambda value: jax.lax.map(lambda own: one(value, *own, *shared), (keys, splits)),
                values,
            )

        over_seeds = jax.vmap(one, in_axes=(None, 0, 0, None, None))
        at_once = jax.vmap(over_seeds, in_axes=(0, None, None, None, None))
        program = jax.jit(at_once if self.together else in_turn)
        arguments = (
            jnp.asarray(values, jnp.float32),
            self.keys,
            self.sources.own,
            self.sources,
            (Partial(self.mean_model), Partial(self.client_models)),
        )
        compiled = program.lower(*arguments).compile()
        began = time.perf_counter()
        found = jax.tree.map(np.asarray, compiled(*arguments))
        seconds = np.asarray(time.perf_counter() - began)
        sent = megabytes(found.pop("sent"), self.bytes_each, self.clients)
        return found | {"megabytes": sent, "seconds": seconds}
