"""Digits among peers of whom some are Sybils of one adversary, on several graphs and splits at once."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import attacks, evaluation, gossip, topology
from dflax.gossip.mixer import deal
from experiments.tools.lanes import each, stacked

Attack = Literal["label flip", "backdoor"]
# The label flip turns 0 into 1 and 1 into 0; the backdoor's patch stands for 1.
FLIPPED, TARGET = (0, 1), 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """The peers and their task.

    Attributes:
      honest: h, the honest nodes.
      radius: of the random geometric graph in the unit square.
      degree: honest neighbours of a node, at most, and victims of a Sybil.
      alpha: Dirichlet concentration, of each class over the honest nodes and the adversary.
      epochs: passes over a node's data in a round.
      batch_size: examples of a local step.
      rate: of plain SGD.
    """

    honest: int = 20
    radius: float = 0.4
    degree: int = 5
    alpha: float = 0.1
    epochs: int = 3
    batch_size: int = 8
    rate: float = 0.05


class Lane(NamedTuple):
    """What one seed has of its own.

    Attributes:
      source: the slice of `dx.side_by_side`.
      mixer: neighbours, weights and attack edges.
      key: of the run.
      measures: of one model, accuracy and attack success on the seed's test set.
    """

    source: Any
    mixer: Any
    key: jax.Array
    measures: tuple[Any, Any]


def capped_geometric(
    nodes: int, radius: float, degree: int, generator: np.random.Generator
) -> topology.Graph:
    """A random geometric graph; nodes lose random edges beyond a degree; drawn until connected."""
    while True:
        points = generator.random((nodes, 2))
        apart = np.linalg.norm(points[:, None] - points, axis=-1)
        edges = np.argwhere(np.triu(apart <= radius, 1))
        kept = np.ones(len(edges), bool)
        for place in generator.permutation(len(edges)):
            degrees = np.bincount(edges[kept].reshape(-1), minlength=nodes)
            kept[place] = degrees[edges[place]].max() <= degree
        graph = topology.from_edges(nodes, edges[kept], disconnected=True, name="geometric")
        if graph.connected and graph.in_degrees.max() == degree:
            return graph


def graphs(setting: Setting, density: float, seed: int) -> topology.Graph:
    """The honest graph of a seed with its Sybils; all seeds have the same largest degree.

    Equal degrees make tables of neighbours of equal shapes. They are rarely not so at once.
    """
    generator = np.random.default_rng([seed, 1])
    widest = setting.degree + int(np.ceil(density))
    while True:
        graph = capped_geometric(setting.honest, setting.radius, setting.degree, generator)
        if density:
            graph = attacks.with_sybils(graph, density, degree=setting.degree, seed=seed)
        if graph.in_degrees.max() == widest:
            return graph


def federation(
    setting: Setting, attack: Attack, sybils: int, data: dx.data.Split, seed: int
) -> dx.Federation:
    """Honest nodes with their shares, and Sybils that all own the same poisoned copies.

    The label flip is taught by the adversary's share and by all examples of the two classes, the
    backdoor by its share alone. A share holds one example at least.
    """
    honest, count = setting.honest, len(data.train)
    labels = np.asarray(data.labels)
    shares = dx.data.dirichlet(labels, honest + 1, setting.alpha, seed=seed).as_lists()
    poison = np.asarray(shares[honest])
    if attack == "label flip":
        poison = np.union1d(poison, np.flatnonzero(np.isin(labels, FLIPPED)))
        copies = attacks.swapped_labels(data.train, poison, *FLIPPED)
    else:
        copies = attacks.backdoor(data.train, poison, TARGET)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), _rows(data.train), _rows(copies))
    train = dataclasses.replace(data.train, inputs=both[0], labels=both[1])
    owned = [*shares[:honest], *[count + poison] * sybils]
    partition = dx.data.from_indices(owned, seed=seed)
    # To one length in all seeds; nobody owns the last ones.
    longest = (sybils + 1) * count
    indices = jnp.pad(partition.indices, (0, longest - len(partition.indices)))
    return dx.Federation(
        train,
        dataclasses.replace(partition, indices=indices),
        batch_size=setting.batch_size,
        local_epochs=setting.epochs,
        weights=jnp.ones(honest + sybils),
    )


def _rows(data: dx.data.Dataset) -> tuple[Any, Any]:
    return jnp.asarray(data.inputs), jnp.asarray(data.labels)


class Peers:
    """Honest nodes and Sybils on the graphs, splits and starts of several seeds.

    Args:
      setting: of the task.
      attack: what the Sybils teach.
      density: phi, attack edges of an honest node; 0 for no attack.
      seeds: one lane each.
      rounds: T.
    """

    def __init__(
        self, setting: Setting, attack: Attack, density: float, seeds: list[int], rounds: int
    ):
        self.setting, self.rounds = setting, rounds
        self.graphs = [graphs(setting, density, seed) for seed in seeds]
        self.nodes = self.graphs[0].nodes
        sybils = self.nodes - setting.honest
        splits = [dx.data.digits(seed=seed) for seed in seeds]
        self.sources = dx.side_by_side(
            [
                federation(setting, attack, sybils, data, seed)
                for data, seed in zip(splits, seeds, strict=True)
            ]
        )
        self.model = dx.models.MLP((), classes=10)
        self.loss = dx.losses.classification(self.model.apply)
        self.measures = [measured(self.loss, attack, data.test) for data in splits]
        self.keys = [jax.random.key(seed) for seed in seeds]

    def mixer(self, rule: gossip.NeighbourRule, graph: topology.Graph) -> gossip.Mixer:
        """The rule for the honest, with plain weights, and one adversary."""
        mixer = gossip.by_rule(topology.uniform(graph, row_stochastic=True), rule)
        honest = self.setting.honest
        return mixer if self.nodes == honest else attacks.one_adversary(mixer, honest)

    def start(self, key: jax.Array) -> Any:
        """A model uniform in (-1/8, 1/8)."""
        shapes = jax.eval_shape(self.model.init, key, jnp.zeros((1, 8, 8, 1)))["params"]
        leaves, structure = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.uniform(one, leaf.shape, minval=-0.125, maxval=0.125)
            for one, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)

    def run(
        self,
        rule: Callable[[], gossip.NeighbourRule],
        inspect: Callable[[Any], dict[str, jax.Array]] = lambda state: {},
    ) -> dict[str, np.ndarray]:
        """Accuracy and attack success of the honest after every round, `[seeds, rounds]`.

        Args:
          rule: of the honest nodes.
          inspect: `state -> numbers`, measured as well.
        """
        mixers = [self.mixer(rule(), graph) for graph in self.graphs]
        algorithm = dx.decentralized.dfedavg(self.loss, optax.sgd(self.setting.rate), mixers[0])
        # Tables do not depend on what is mixed.
        tables = [deal(mixer.init(jnp.zeros((self.nodes, 1))))[0] for mixer in mixers]
        lanes = Lane(
            self.sources.own, stacked(tables), jnp.stack(self.keys), stacked(self.measures)
        )

        def one(lane: Lane, sources: dx.SideBySide) -> dict[str, jax.Array]:
            source = sources.source(lane.source)
            state = algorithm.init(lane.key, self.start)
            state = state._replace(server=state.server._replace(mixer=lane.mixer))

            def step(state: Any, number: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
                state, metrics = algorithm.step(state, source.draw(lane.key, number))
                honest = jax.tree.map(
                    lambda leaf: leaf[: self.setting.honest], state.clients.params
                )
                found: dict[str, jax.Array] = {}
                for measure in lane.measures:
                    found |= jax.vmap(measure)(honest)
                kept = {name: found[name].mean() for name in ("accuracy", "attack_success")}
                return state, kept | inspect(state) | {"sent": metrics["models_sent"]}

            return jax.lax.scan(step, state, jnp.arange(self.rounds))[1]

        program = jax.jit(lambda lanes, sources: each(one, lanes, sources))
        return jax.tree.map(np.asarray, program(lanes, self.sources))


def measured(loss: Any, attack: Attack, test: dx.data.Dataset) -> tuple[Any, Any]:
    """One model's accuracy and attack success, of equal shapes in all seeds."""
    if attack == "label flip":
        success = attacks.swap_success(loss, test, *FLIPPED)
    else:
        success = attacks.backdoor_success(loss, test, TARGET)
    return evaluation.on(loss, test), success
