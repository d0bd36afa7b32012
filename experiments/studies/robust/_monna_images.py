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
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage
from experiments.tools.study import Claim, Summary

PEERS, FAULTY = 26, 5
HONEST = PEERS - FAULTY
# Images of a minibatch, of a peer, and of those that models are measured on; rounds between measures.
BATCH, OWNED, TESTED, EVERY = 25, 500, 1000, 20
NONE = "none"
# What MoNNA may lose on every seed. ALIE hides within the spread of the honest, which is wide here: of
# what NNA averages a third is hostile, and it costs more than the 0.03 of digits.
LOSSES = {"sign flip": 0.03, "FoE": 0.03, "ALIE": 0.06}
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
    """16 and 32 channels of 5 x 5, each at every second place, 64 units: an eighth of the time."""

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
                lambda m=method, f=faulty, p=points: robust_peers.run(
                    peers(config.network, seeds, f),
                    m,
                    p,
                    config.image_rounds,
                    lambda t: -rate(t),
                    EVERY,
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
    return [
        *(
            f"Fashion-MNIST: MoNNA loses less than {limit} under {attack}, every seed"
            for attack, limit in LOSSES.items()
        ),
        "Fashion-MNIST: MoNNA loses less than 0.03 to flipped labels, mean over seeds",
        "Fashion-MNIST: MoNNA is at least 0.1 ahead of the mean under sign flip, every seed",
        "Fashion-MNIST: the trimmed mean is 0.03 behind MoNNA under sign flip, every seed",
        "Fashion-MNIST: without momentum peers disagree 1.5 times as much under sign flip, every seed",
    ]


def _claims(config: Any, found: dict[str, dict[str, Found]]) -> list[Claim]:
    texts = iter(statements(config))
    last = {
        name: {attack: own.accuracy[:, -1] for attack, own in by.items()}
        for name, by in found.items()
    }
    ours = last["NNA 0.9"]
    lost = {attack: ours[NONE] - ours[attack] for attack in ATTACKS}
    claims = [
        Claim(next(texts), bool((lost[attack] < limit).all()), lost[attack].tolist(), limit)
        for attack, limit in LOSSES.items()
    ]
    flipped = lost["label flip"]
    told = [float(flipped.mean()), *flipped.tolist()]
    claims.append(Claim(next(texts), bool(flipped.mean() < 0.03), told, 0.03))
    for name, limit in (("mean 0.9", 0.1), ("CWTM 0.9", 0.03)):
        ahead = ours["sign flip"] - last[name]["sign flip"]
        claims.append(Claim(next(texts), bool((ahead > limit).all()), ahead.tolist(), limit))
    ends = [found[f"NNA {beta}"]["sign flip"].apart[:, -3:].mean(1) for beta in ("0", "0.9")]
    ratio = ends[0] / ends[1]
    claims.append(Claim(next(texts), bool((ratio > 1.5).all()), ratio.tolist(), 1.5))
    return claims


def _draw(found: dict[str, dict[str, Found]], config: Any) -> Any:
    with figure(13.0, 6.6, nrows=2, ncols=3) as (drawn, axes):
        for panel, attack in zip(axes.flat, (NONE, *ATTACKS), strict=False):
            for name, look in looks(found).items():
                lanes = found[name][attack].accuracy
                curve(panel, EVERY * np.arange(1, lanes.shape[1] + 1), lanes, look, name)
            title = (
                "no hostile peers" if attack == NONE else f"{FAULTY} hostile of {PEERS}: {attack}"
            )
            panel.set(title=title, ylim=(0, 0.9), xlabel="step")
        for name, look in looks(found).items():
            lanes = found[name]["sign flip"].apart.mean(0, keepdims=True)
            curve(axes[1, 2], EVERY * np.arange(1, lanes.shape[1] + 1), lanes, look)
        axes[1, 2].set(yscale="log", xlabel="step", title="disagreement of the honest, sign flip")
        axes[1, 2].set_ylabel("squared distance to their mean model")
        for panel in axes[:, 0]:
            panel.set_ylabel("test accuracy, mean of the honest")
        drawn.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(found),
            title="Fashion-MNIST, a CNN; rule and beta; mean and range over seeds",
        )
    return drawn
