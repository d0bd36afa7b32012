"""Settings and methods of the study of SPES."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import dflax as dx
from dflax import experts, models

CENTRAL, DILOCO, SPES, UNMERGED = "central", "DiLoCo-like", "SPES", "SPES, no merging"
DENSE, RING, SILENT = "dense, central", "SPES over a ring", "SPES, a silent node"
NESTEROV = "SPES, Nesterov at the server"
# One program, run with other data.
FAMILY = (SPES, NESTEROV, UNMERGED, SILENT)

# Counts bytes and changes nothing.
COUNTED = dx.channel.uncompressed()


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      nodes: N.
      experts: E, of each layer.
      active: a.
      width: of the transformer, and the hidden width of an expert.
      depth: layers.
      heads: of attention.
      sources: of the synthetic language.
      vocabulary: its tokens.
      length: of a sequence.
      sequences: to train on, of the synthetic language.
      batch_size: of a node.
      local_steps: H.
      rounds: synchronisations of a run.
      rate: of AdamW at its peak; a tenth of it at the end.
      warm_up: share of the steps in which it rises.
      outer_rate: of the server's Nesterov step, where there is one.
      outer_momentum: of it.
      merge_every: rounds between merges.
      merge_until: rounds after which there are none.
      strength: alpha_0.
      donors: kappa.
      text_rounds: of a run on text; 0 for none.
      long_rounds: of a run on the synthetic language with `long_batch_size` sequences a node and the
        rate `long_rate`, which merges for the first third; 0 for none.
      long_batch_size: of it.
      long_rate: of it.
      others: whether a dense model, SPES over a ring and nodes that own one expert are looked at too.
      seeds: repetitions, each with a language, weights and minibatches of its own.
      seed: of the first one.
    """

    nodes: int = 4
    experts: int = 8
    active: int = 2
    width: int = 32
    depth: int = 2
    heads: int = 4
    sources: int = 8
    vocabulary: int = 16
    length: int = 32
    sequences: int = 8192
    batch_size: int = 4
    local_steps: int = 25
    rounds: int = 16
    rate: float = 5e-3
    warm_up: float = 0.05
    outer_rate: float = 0.7
    outer_momentum: float = 0.5
    merge_every: int = 1
    merge_until: float = 5.0
    strength: float = 0.05
    donors: int = 2
    text_rounds: int = 10
    long_rounds: int = 48
    long_batch_size: int = 16
    long_rate: float = 1e-2
    others: bool = True
    seeds: int = 3
    seed: int = 40


def longer(config: Config) -> Config:
    """The settings of the long run."""
    return dataclasses.replace(
        config,
        rounds=config.long_rounds,
        batch_size=config.long_batch_size,
        rate=config.long_rate,
        sequences=4 * config.sequences,
        merge_until=5 * config.long_rounds // 16,
    )


def network(config: Config, vocabulary: int, dense: bool = False) -> models.TransformerLM:
    """The language model; dense, with one expert that does the work of a token's active ones."""
    count, active = (1, 1) if dense else (config.experts, config.active)
    hidden = config.width * (config.active if dense else 1)
    return models.TransformerLM(
        vocabulary,
        length=config.length,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mixture=models.MoE(count, active=active, hidden=hidden),
    )


def optimizer(config: Config, rounds: int) -> optax.GradientTransformation:
    """AdamW after a clipped gradient, warm-up and cosine."""
    steps = rounds * config.local_steps
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.rate, int(config.warm_up * steps), steps, config.rate / 10
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, 0.9, 0.95, weight_decay=0.1)
    )


class Traced(NamedTuple):
    """What the methods of one program differ in.

    Attributes:
      strength: of merging.
      rate: of the server's step; 1 without momentum takes over what nodes found.
      momentum: of the server.
    """

    strength: Float[Array, ""]
    rate: Float[Array, ""]
    momentum: Float[Array, ""]


def traced(config: Config, name: str) -> Traced:
    """Those of a method."""
    strength = 0.0 if name == UNMERGED else config.strength
    outer = (config.outer_rate, config.outer_momentum) if name == NESTEROV else (1.0, 0.0)
    return Traced(*map(jnp.float32, (strength, *outer)))


def algorithm(config: Config, name: str, loss: Any, rounds: int, own: Traced) -> dx.Algorithm:
    """A method by its name."""
    descent = optimizer(config, rounds)
    merging = experts.merging(
        own.strength, every=config.merge_every, until=config.merge_until, donors=config.donors
    )
    if name == DILOCO:
        return dx.server.fedavg(
            loss, descent, keep_optimizer=True, clients=config.nodes, channel=COUNTED
        )
    if name == RING:
        graph = dx.topology.ring(config.nodes)
        return experts.spes_gossip(
            loss, descent, graph, experts=config.experts, merging=merging, as_seen=models.Owned
        )
    alone = name in (CENTRAL, DENSE)
    return experts.spes(
        loss,
        descent,
        experts=1 if name == DENSE else config.experts,
        nodes=1 if alone else config.nodes,
        merging=None if alone else merging,
        server_optimizer=None if alone else optax.sgd(own.rate, own.momentum, nesterov=True),
        as_seen=models.Owned,
        channel=COUNTED,
    )


def federation(config: Config, name: str, train: dx.data.Dataset, seed: int) -> dx.Federation:
    """Sequences dealt out evenly; one machine takes the minibatches of all nodes together."""
    clients = 1 if name in (CENTRAL, DENSE) else config.nodes
    count = len(train.labels) // config.nodes * config.nodes
    order = np.random.default_rng(seed).permutation(count).reshape(clients, -1)
    there = np.ones((1, clients), bool)
    if name == SILENT:
        there[0, -1] = False
    return dx.Federation(
        train,
        dx.data.from_indices(list(order)),
        local_steps=config.local_steps,
        batch_size=config.batch_size * config.nodes // clients,
        participation=dx.participation.present(jnp.asarray(there)),
    )
