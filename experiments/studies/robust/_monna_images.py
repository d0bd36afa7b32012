"""The authors' numbers of peers on Fashion-MNIST: 26, of which 5 are hostile, with a CNN."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import dflax as dx
from dflax import aggregation, gossip
from dflax.data.laws import dirichlet_rows
from experiments.studies.robust._monna_methods import labelled, mixer, momentum
from experiments.tasks import robust_peers
from experiments.tasks.robust_peers import ATTACKS, Attack, Found
from experiments.tasks.skewed_digits import drawn_by
from experiments.tools.figures import figure
from experiments.tools.finished import Stage
from experiments.tools.study import Claim, Summary

PEERS, FAULTY = 26, 5
HONEST = PEERS - FAULTY
# Images of a minibatch, of a peer, and of those that models are measured on; rounds between measures.
BATCH, OWNED, TESTED, EVERY = 25, 500, 1000, 20
NONE = "none"
# By name: the rule, None for the mean, and the values of beta.
RULES: dict[str, tuple[gossip.NeighbourRule | None, tuple[float, ...]]] = {
    "mean": (None, (0.9,)),
    "NNA": (gossip.nna(FAULTY), (0.9, 0.0)),
    "CWTM": (gossip.aggregating(aggregation.trimmed_mean(FAULTY)), (0.9,)),
}


class Paper(nn.Module):
    """20 and 50 channels of 5 x 5 with pooling, 500 units: the network of the authors."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        for channels in (20, 50):
            x = nn.relu(dx.models.Conv(channels, (5, 5), padding="VALID")(x))
            x = dx.models.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class Small(nn.Module):
    """16 and 32 channels of 5 x 5, each at every second place, 64 units: a round in an eighth."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        for channels in (16, 32):
            x = nn.relu(dx.models.Conv(channels, (5, 5), strides=2, padding="VALID")(x))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


NETWORKS = {"cnn": Paper(), "small": Small()}


def rate(step: Any) -> Any:
    """0.3 / (1 + t / 50), looked at every 50 steps; at the authors' 0.75 no momentum is too little."""
    return 0.3 / (1 + step // 50)


def peers(network: str, seeds: range, faulty: int) -> robust_peers.Peers:
    """21 honest peers and so many hostile ones.

    Every honest peer has class proportions drawn from a Dirichlet law of 1 and 500 of the 60,000 images,
    drawn by them with replacement.
    """
    data, model = dx.data.fashion_mnist(), NETWORKS[network]
    labels, partitions = np.asarray(data.labels), []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        owned = drawn_by(dirichlet_rows(generator, 1.0, (HONEST, 10)), labels, OWNED, generator)
        # What a hostile peer owns is in no message.
        partitions.append(dx.data.from_indices(owned + owned[:faulty], examples=len(labels)))
    first = dx.Federation(data, partitions[0], batch_size=BATCH, local_steps=1, replacement=True)
    test = dataclasses.replace(
        data.test, inputs=data.test.inputs[:TESTED], labels=data.test.labels[:TESTED]
    )
    return robust_peers.Peers(
        dx.side_by_side([first.replace(partition=own) for own in partitions]),
        jax.vmap(jax.random.key)(jnp.asarray(seeds)),
        robust_peers.hostile(faulty, HONEST),
        data._replace(test=test),
        dx.losses.classification(model.apply),
        lambda key: model.init(key, data.example)["params"],
    )


def on_images(config: Any, stage: Stage) -> Summary:
    """Three rules, and MoNNA's without momentum, under four attacks and under none."""
    found = _all_runs(config, stage)
    rows = {
        f"Fashion-MNIST: {name}, {attack}": {
            "accuracy": float(own.accuracy[:, -1].mean()),
            "std": float(own.accuracy[:, -1].std()),
            "worst": float(own.worst[:, -1].mean()),
            "disagreement": float(own.apart[:, -1].mean()),
            "hostile used": float(own.used[:, -50:].mean()),
        }
        for name, by in found.items()
        for attack, own in by.items()
    }
    return Summary(rows, _claims(config, found), {"monna_fashion": _draw(found, config)})


def _all_runs(config: Any, stage: Stage) -> dict[str, dict[str, Found]]:
    seeds = range(config.seed, config.seed + config.image_seeds)
    found: dict[str, dict[str, Found]] = {}
    for faulty in (0, FAULTY):
        given = peers(config.network, seeds, faulty)
        attacks = ATTACKS if faulty else {NONE: Attack(1.0)}
        for name, (rule, betas) in RULES.items():
            method = momentum(mixer(rule, faulty, HONEST), rate)
            points = [
                (place, beta, attack)
                for beta in betas
                for attack in attacks.values()
                for place in range(len(seeds))
            ]
            seen = stage(
                f"{name} {'under attacks' if faulty else 'without hostile peers'} on Fashion-MNIST",
                lambda m=method, g=given, p=points: robust_peers.run(
                    g, m, p, config.image_rounds, lambda t: -rate(t), EVERY
                )._asdict(),
            )
            shape = len(betas), len(attacks), len(seeds), -1
            cut = {key: np.asarray(value).reshape(shape) for key, value in seen.items()}
            for place, beta in enumerate(betas):
                for number, attack in enumerate(attacks):
                    lanes = {key: array[place, number] for key, array in cut.items()}
                    found.setdefault(labelled(name, beta), {})[attack] = Found(**lanes)
    return found


def statements(config: Any) -> list[str]:
    """What is claimed of Fashion-MNIST."""
    return []


def _claims(config: Any, found: Any) -> list[Claim]:
    return []


def _draw(found: dict[str, dict[str, Found]], config: Any) -> Any:
    return None
