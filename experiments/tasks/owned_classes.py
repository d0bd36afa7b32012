"""Peers that own a few classes each, some of them liars; heads on features that are computed once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Float, Int

import dflax as dx
from dflax import attacks, gossip, topology
from experiments.tools.lanes import each

BENIGN, HOSTILE, CLASSES = 10, 5, 10
PEERS = BENIGN + HOSTILE
# Of every class that a peer owns; as many again are its clean test set.
PER_CLASS = 10
IS_HOSTILE = np.arange(PEERS) >= BENIGN
# What hostile peers send in the place of their models, and that they send these.
LIES = ("nothing else", "noise", "against Krum", "against the trimmed mean")


class Lane(NamedTuple):
    """One run: a seed and what the liars do in it.

    Attributes:
      source: the federation of all peers.
      test: of all classes, for measuring.
      tests: the peers' own test sets.
      weights: `[n, n - 1]` with which each peer hears the others, in the order of their numbers.
      sends: which of `LIES` hostile peers send.
      key: of the run.
    """

    source: dx.Federation
    test: dx.data.Dataset
    tests: gossip.ClassTests
    weights: jax.Array
    sends: jax.Array
    key: jax.Array


Make = Callable[[Lane], dx.Algorithm]


def head(params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Class scores: one column for each class, no bias."""
    return features @ params["kernel"]


LOSS = dx.losses.classification(head)


def digits_features(seed: int, width: int) -> dx.data.Split:
    """Digits, a split of the seed's own, as `relu(x R)` of centred pixels; mean squared norm 16."""
    data = dx.data.digits(seed=seed)
    generator = np.random.default_rng([seed, 14])
    projection = generator.standard_normal((64, width))
    pixels = [np.asarray(part.inputs, np.float64).reshape(-1, 64) / 16 for part in data]
    centre = pixels[0].mean(0)
    found = [np.maximum((part - centre) @ projection, 0) for part in pixels]
    return scaled(found, data)


def scaled(features: list[np.ndarray], data: dx.data.Split) -> dx.data.Split:
    """Features in the place of both parts' inputs, on one common scale."""
    factor = 4 / np.sqrt(np.square(features[0]).sum(1).mean())
    parts = [
        dx.data.Dataset(jnp.asarray(own * factor, jnp.float32), part.labels, classes=CLASSES)
        for own, part in zip(features, data, strict=True)
    ]
    return dx.data.Split(*parts)


class Convolutions(nn.Module):
    """The layers that stay frozen: two convolutions of 5 x 5, 800 features of a 28 x 28 image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features `[B, 800]` of images `[B, 28, 28, 1]`."""
        x = nn.max_pool(nn.Conv(10, (5, 5), padding="VALID")(x), (2, 2), (2, 2))
        x = nn.max_pool(nn.Conv(50, (5, 5), padding="VALID")(x), (2, 2), (2, 2))
        return nn.leaky_relu(x).reshape(x.shape[0], -1)


class Network(nn.Module):
    """The whole network: frozen layers and a last one without bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        return nn.Dense(CLASSES, use_bias=False, name="head")(Convolutions(name="frozen")(x))


def trained_features(data: dx.data.Split, known: int, steps: int, pool: int, seed: int) -> Any:
    """Features of images, from convolutions that were trained on the first classes alone.

    Args:
      data: images `[28, 28, 1]`.
      known: the classes below this one are seen.
      steps: of Adam, batch 64.
      pool: so many training examples, and as many test examples at most, are kept.
      seed: of weights and minibatches.
    """
    network, labels = Network(), np.asarray(data.labels)
    rows = np.flatnonzero(labels < known)
    one = dx.Federation(data, dx.data.from_indices([rows]), local_steps=steps, batch_size=64)
    loss = dx.models.rewrite_convolutions(dx.losses.classification(network.apply))
    method = dx.server.fedavg(loss, optax.adam(1e-3), at_once=1)
    key = jax.random.key(seed)
    state = method.init(key, network.init(key, data.example)["params"])
    state, _ = jax.jit(lambda state, source: dx.rollout(method, state, source, key, 1))(state, one)
    frozen = {"params": state.server.params["frozen"]}

    @jax.jit
    def few(part: dx.data.Dataset, start: jax.Array) -> jax.Array:
        batch = part.fetch(start + jnp.arange(250))
        features: Any = Convolutions().apply(frozen, batch.inputs)
        return features

    kept, found = [], []
    for part in data:
        count = min(pool, len(part)) // 250 * 250
        found.append(np.concatenate([few(part, jnp.int32(s)) for s in range(0, count, 250)]))
        kept.append(dx.data.Dataset(part.inputs[:count], part.labels[:count], classes=CLASSES))
    return scaled(found, dx.data.Split(*kept))


def owners(each: int) -> list[np.ndarray]:
    """The classes of every peer: benign ones own some in a row, hostile ones all."""
    benign = [np.arange(peer, peer + each) % CLASSES for peer in range(BENIGN)]
    return benign + [np.arange(CLASSES)] * HOSTILE


def drawn(
    labels: Int[np.ndarray, " N"], each: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every peer's training and test examples: of a class that it owns 10 each, none of them twice."""
    generator = np.random.default_rng([seed, each])
    of_class = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    train, test = [], []
    for owned in owners(each):
        rows = np.stack(
            [generator.choice(of_class[c], 2 * PER_CLASS, replace=False) for c in owned]
        )
        train.append(rows[:, :PER_CLASS].reshape(-1))
        test.append(rows[:, PER_CLASS:].reshape(-1))
    return train, test


def lane(data: dx.data.Split, each: int, attack: str, seed: int, steps: int, batch: int) -> Lane:
    """A run of one seed.

    Args:
      data: features.
      each: classes of a benign peer.
      attack: "none", or what hostile peers do: "labels" (every class becomes the next in what they learn
        from) or one of `LIES`.
      seed: of draws and the run.
      steps: local steps of a round.
      batch: examples of a step, with replacement.
    """
    train, test = drawn(np.asarray(data.labels), each, seed)
    tests = gossip.class_tests(data.train, dx.data.from_indices(test))
    # Liars learn from copies of their own, whose labels are turned.
    count = len(data.train)
    twice = dx.data.Dataset(
        jnp.concatenate([data.train.inputs] * 2), jnp.tile(data.labels, 2), classes=CLASSES
    )
    twice = attacks.rotated_labels(twice, np.arange(count, 2 * count))
    # Lists of one length, whatever a peer owns: their examples are drawn with replacement.
    length = 2 * CLASSES * PER_CLASS
    lists = [
        np.resize(rows + count * hostile, length)
        for rows, hostile in zip(train, IS_HOSTILE, strict=True)
    ]
    source = dx.Federation(
        twice, dx.data.from_indices(lists), local_steps=steps, batch_size=batch, replacement=True
    )
    return Lane(
        source,
        data.test,
        tests,
        jnp.asarray(hearing(attack != "none"), jnp.float32),
        jnp.int32(LIES.index(attack) if attack in LIES else 0),
        jax.random.key(seed),
    )


def lying(own: Lane) -> dx.channel.Channel:
    """The channel of a lane's hostile peers: one of `LIES`."""
    liars = range(BENIGN, PEERS)
    channels = (
        dx.channel.perfect(),
        attacks.one_sided(liars),
        attacks.against_krum(liars),
        attacks.against_trimmed_mean(liars),
    )

    def apply(messages: Any, weights: jax.Array, state: Any, sending: dx.channel.Sending) -> Any:
        ways = [lambda *sent, c=channel: c.apply(*sent, (), sending)[:2] for channel in channels]
        messages, weights = jax.lax.switch(own.sends, ways, messages, weights)
        return messages, weights, state, {}

    return dx.channel.Channel(lambda message: (), apply)


def others() -> Int[np.ndarray, "n n-1"]:
    """Of every peer the numbers of all others."""
    everyone = np.arange(PEERS)
    return np.stack([np.delete(everyone, peer) for peer in everyone]).astype(np.int32)


def hearing(attacked: bool) -> Float[np.ndarray, "n n-1"]:
    """Benign peers hear all who are there, hostile ones nobody."""
    heard = ~IS_HOSTILE[others()] | attacked
    count = heard.sum(1, keepdims=True)
    return np.where(IS_HOSTILE[:, None], 0, heard / (1 + count))


def everyone(own: Lane) -> topology.Schedule:
    """All to all; in round 0 nobody has sent anything."""

    def draw(tables: Any, key: jax.Array, index: jax.Array) -> topology.Slots:
        neighbours, weights = map(jnp.asarray, tables)
        return topology.Slots(neighbours, jnp.where(index > 0, weights, 0))

    tables: Any = (others(), own.weights)
    return topology.Schedule(PEERS, tables, draw, symmetric=False, doubly_stochastic=False)


def to_benign(schedule: topology.Schedule) -> topology.Schedule:
    """The schedule, of which hostile peers hear nothing, and nobody anything in round 0."""

    def draw(tables: Any, key: jax.Array, index: jax.Array) -> topology.Slots:
        slots = schedule.draw(tables, key, index)
        assert isinstance(slots, topology.Slots), "schedules of few neighbours"
        heard = (index > 0) & ~jnp.asarray(IS_HOSTILE)[:, None]
        return topology.Slots(slots.neighbours, jnp.where(heard, slots.weights, 0))

    return schedule._replace(draw=draw, symmetric=False, doubly_stochastic=False)


def accuracies(
    own: Lane, method: dx.Algorithm, rounds: int, every: int = 1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean accuracy of the benign peers on all classes, and what they thought of each other.

    Returns:
      Accuracy `[rounds / every]`; and, where peers grade each other, the largest weight in foreign
      columns of any hostile peer, in all rounds and in their second half, the mean one of benign
      peers, and the hostile share of the models drawn. Also the models sent in all.
    """
    width = own.test.inputs.shape[1]
    state = method.init(own.key, {"kernel": jnp.zeros((width, CLASSES))})
    measure = dx.evaluation.on(LOSS, own.test)

    def step(state: Any, number: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, metrics = method.step(state, own.source.draw(own.key, number))
        return state, opinions(state) | {"models sent": metrics["models_sent"]}

    def some(state: Any, start: jax.Array) -> Any:
        state, seen = jax.lax.scan(step, state, start + jnp.arange(every))
        benign = jax.tree.map(lambda leaf: leaf[:BENIGN], state.clients.params)
        return state, (jax.vmap(measure)(benign)["accuracy"].mean(), seen)

    starts = every * jnp.arange(rounds // every)
    _, (curve, seen) = jax.lax.scan(some, state, starts)
    seen = {name: values.reshape(-1) for name, values in seen.items()}
    told = {"models sent": seen["models sent"].sum()}
    if "hostile foreign" in seen:
        told["hostile foreign"] = seen["hostile foreign"].max()
        told["hostile foreign in the end"] = seen["hostile foreign"][rounds // 2 :].max()
        told["benign foreign"] = seen["benign foreign"][1:].mean()
        told["hostile drawn"] = seen["hostile drawn"].sum() / jnp.maximum(seen["drawn"].sum(), 1)
    return curve, told


def opinions(state: Any) -> dict[str, jax.Array]:
    """Of one round by Bristle; nothing of other methods."""
    memory = getattr(state.clients.mixer, "memory", None)
    trusted = getattr(memory, "rows", None)
    if not isinstance(trusted, gossip.Trusted):
        return {}
    seen = jax.tree.map(lambda leaf: leaf[:BENIGN], trusted)
    hostile = seen.neighbours >= BENIGN
    benign = jnp.maximum(jnp.sum(seen.drawn * ~hostile), 1)
    return {
        "hostile foreign": jnp.max(jnp.where(hostile, seen.foreign, 0)),
        "benign foreign": jnp.sum(jnp.where(hostile, 0, seen.foreign)) / benign,
        "hostile drawn": jnp.sum(seen.drawn * hostile),
        "drawn": jnp.sum(seen.drawn),
    }


def bytes_of(tree: Any) -> int:
    """Bytes of a tree of float32, or of its shapes."""
    return 4 * sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def curves(make: Make, lanes: Lane, rounds: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Accuracy and opinions of all runs as one program, leading axes `shape`."""

    @jax.jit
    def program(lanes: Lane) -> Any:
        return each(lambda own: accuracies(own, make(own), rounds), lanes)

    curve, told = jax.device_get(program(lanes))
    shaped = {name: np.reshape(values, shape) for name, values in told.items()}
    return {"accuracy": np.reshape(curve, (*shape, -1)), **shaped}
