"""MoDeST's task, and the one way in which it is run: all seeds as one program a method."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

import dflax as dx
from dflax import evaluation, participation
from dflax.algorithm import Metrics
from dflax.decentralized import md5_ranks, modest
from dflax.decentralized.modest.views import candidates, row

Found = dict[str, np.ndarray]


class Runs:
    """The digits on n nodes, and S runs of every method: run s has the start and the orders of seed s.

    Args:
      nodes: n.
      alpha: Dirichlet concentration of the label split.
      sample: MoDeST's s.
      local_steps: K.
      batch_size: B, drawn with replacement.
      learning_rate: of the local SGD.
      rounds: for which there are orders.
      seeds: S.
      seed: of the first.
    """

    def __init__(
        self,
        *,
        nodes: int,
        alpha: float,
        sample: int,
        local_steps: int,
        batch_size: int,
        learning_rate: float,
        rounds: int,
        seeds: int,
        seed: int,
    ):
        self.data = dx.data.digits()
        self.model = dx.models.MLP((32,), classes=10)
        self.loss = dx.losses.classification(self.model.apply)
        self.optimizer = optax.sgd(learning_rate)
        self.nodes, self.sample = nodes, sample
        self.local_steps, self.batch_size = local_steps, batch_size
        labels = np.asarray(self.data.labels)
        self.partition = dx.data.dirichlet(labels, nodes, alpha, seed=seed)
        self.keys = jax.random.split(jax.random.key(seed), seeds)
        numbers = range(seed, seed + seeds)
        self.ranks = jnp.stack([md5_ranks(nodes, rounds + 2, first=1000 * s) for s in numbers])
        measure = evaluation.on(self.loss, self.data.test)
        self.at_server = evaluation.server_model(measure)
        self.at_clients = evaluation.together(
            evaluation.client_models(measure), evaluation.mean_model(measure)
        )

    @property
    def model_bytes(self) -> float:
        """Bytes of a model."""
        params = self.model.init(self.keys[0], self.data.example)["params"]
        return float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)))

    def modest(self, ranks: Any, **options: Any) -> dx.Algorithm:
        """The algorithm at hand on this task."""
        return modest(
            self.loss,
            self.optimizer,
            clients=self.nodes,
            sample=self.sample,
            ranks=ranks,
            **options,
        )

    def program(
        self,
        make: Callable[..., dx.Algorithm],
        rounds: int,
        evaluate: Callable[[Any], Metrics],
        *,
        rule: Callable[[Any], Any] | None = None,
        start: Callable[..., Any] = lambda algorithm, key, params, table: algorithm.init(
            key, params
        ),
        also: Callable[..., Metrics] = lambda state, table, *values: {},
    ) -> Callable[..., tuple[Any, Found]]:
        """A method's program `(tables=None, *values) -> (states, metrics)`, compiled at its first call.

        Args:
          make: `(ranks, *values) -> algorithm`.
          rounds: T.
          evaluate: of every round's state.
          rule: of participation, from a row of `tables`, `[S, ...]`; None: everyone.
          start: `(algorithm, key, params, table) -> state`.
          also: `(state, table, *values) -> metrics` besides.

        Returns:
          The program; its metrics have leaves `[S, T, ...]`.
        """

        def one(
            key: Any, ranks: Any, table: Any, own: Any, sources: Any, evaluate: Any, values: Any
        ) -> tuple[Any, Any]:
            source = sources.source(own)
            algorithm = make(ranks, *values)
            params = self.model.init(key, self.data.example)["params"]

            def step(state: Any, index: Any) -> tuple[Any, Metrics]:
                state, metrics = algorithm.step(state, source.draw(key, index))
                measured = evaluate(state) | also(state, table, *values)
                return state, metrics | {f"test_{name}": v for name, v in measured.items()}

            state = start(algorithm, key, params, table)
            return jax.lax.scan(step, state, jnp.arange(rounds, dtype=jnp.int32))

        mapped = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None, None, None)))

        def run(tables: Any = None, *values: Any) -> tuple[Any, Found]:
            everyone = dx.Federation(
                self.data,
                self.partition,
                local_steps=self.local_steps,
                batch_size=self.batch_size,
                replacement=True,
                weights=jnp.ones(self.nodes),
            )
            several = [everyone] * len(self.keys)
            if rule is not None:
                several = [everyone.replace(participation=rule(table)) for table in tables]
            sources = dx.side_by_side(several)
            states, metrics = mapped(
                self.keys, self.ranks, tables, sources.own, sources, evaluate, values
            )
            return states, jax.tree.map(np.asarray, metrics)

        return run

    def silence(self, rounds: int) -> Callable[..., tuple[Any, Found]]:
        """MoDeST while nodes are silent: `(online [S, T, n], delta) -> (states, metrics)`.

        Besides its own metrics `test_live_known`: nodes on line in the first holder's view.
        """

        def present(algorithm: dx.Algorithm, key: Any, params: Any, online: Any) -> Any:
            return algorithm.init(key, params, present=online[0])

        def live(state: Any, online: Bool[Array, "T n"], delta: Any) -> Metrics:
            holder = jnp.minimum(state.server.holders[0], self.nodes - 1)
            known = candidates(row(state.clients.views, holder), holder, state.round, delta)
            return {"live_known": jnp.sum(known & online[state.round - 1])}

        return self.program(
            lambda ranks, delta: self.modest(ranks, inactivity=delta),
            rounds,
            self.at_server,
            rule=participation.present,
            start=present,
            also=live,
        )


def given_cohorts(cohorts: Any) -> Any:
    """Participation by a table of ids `[T, m]`."""
    return jax.tree_util.Partial(_given_cohort, cohorts)


def _given_cohort(cohorts: Any, key: Any, index: Any, clients: int) -> participation.Cohort:
    return participation.Cohort(cohorts[index])


def crashes(nodes: int, rounds: int, seeds: int, seed: int) -> Bool[np.ndarray, "S T n"]:
    """From round 50 four nodes fall silent every 5 rounds, in random order, until a fifth is left."""
    tables = np.ones((seeds, rounds, nodes), bool)
    for place, table in enumerate(tables):
        order = np.random.default_rng(seed + place).permutation(nodes)
        dead = nodes - nodes // 5
        for batch in range(-(-dead // 4)):
            table[50 + 5 * batch - 1 :, order[4 * batch : min(4 * batch + 4, dead)]] = False
    return tables


def few(nodes: int, rounds: int, seeds: int, seed: int) -> Bool[np.ndarray, "S T n"]:
    """A fifth of the nodes, drawn at random, is ever on line."""
    tables = np.zeros((seeds, rounds, nodes), bool)
    for place, table in enumerate(tables):
        table[:, np.random.default_rng(seed + place).permutation(nodes)[: nodes // 5]] = True
    return tables
