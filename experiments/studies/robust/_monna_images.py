"""The authors' setting on Fashion-MNIST: 26 peers, 5 of them hostile, a CNN."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn

import dflax as dx
from dflax import aggregation, attacks, evaluation, gossip, recipes, topology
from experiments.tools.finished import Stage
from experiments.tools.study import Claim, Summary

PEERS, FAULTY, BATCH = 26, 5, 25
HOSTILE = tuple(range(PEERS - FAULTY, PEERS))
RULES: dict[str, gossip.NeighbourRule | None] = {
    "mean": None,
    "NNA": gossip.nna(FAULTY),
    "CWTM": gossip.aggregating(aggregation.trimmed_mean(FAULTY)),
}


class Network(nn.Module):
    """20 and 50 channels of 5 x 5, 500 units."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        for channels in (20, 50):
            x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def on_images(config: Any, stage: Stage) -> Summary:
    """Three rules under two attacks, at beta 0.99 as the authors have it."""
    heard = topology.random_neighbours(PEERS, PEERS - FAULTY - 1, first=HOSTILE)
    liars = {
        "sign flip": attacks.inner_product(HOSTILE, 1.0),
        "ALIE": attacks.little_is_enough(HOSTILE, 1.5),
    }
    rows, ends = {}, {}
    for name, rule in RULES.items():
        for attack, channel in liars.items():
            mixer = (
                gossip.mixer(heard)
                if rule is None
                else gossip.by_rule(heard, rule, watched=HOSTILE)
            )
            found = stage(
                f"{name} under {attack} on Fashion-MNIST",
                lambda mixer=mixer, channel=channel: _accuracies(config, mixer, channel),
            )
            ends[name, attack] = np.asarray(found["accuracy"])
            rows[f"Fashion-MNIST: {name}, {attack}"] = {
                "accuracy": float(np.mean(found["accuracy"])),
                "std": float(np.std(found["accuracy"])),
                "worst": float(np.mean(found["worst"])),
            }
    ahead = ends["NNA", "sign flip"] - ends["mean", "sign flip"]
    (text,) = statements(config)
    return Summary(rows, [Claim(text, bool((ahead > 0.1).all()), ahead.tolist(), 0.1)])


def statements(config: Any) -> list[str]:
    """What is claimed of Fashion-MNIST."""
    return ["Fashion-MNIST: MoNNA is at least 0.1 ahead of the mean under sign flip, every seed"]


def _accuracies(config: Any, mixer: gossip.Mixer, channel: dx.channel.Channel) -> dict[str, Any]:
    """At the end, of every seed."""
    data, model = dx.data.fashion_mnist(), Network()
    loss = dx.losses.classification(model.apply)
    honest = evaluation.models_of(HOSTILE, but=True)
    measure = evaluation.client_models(evaluation.on(loss, data.test, examples=1000), models=honest)
    rate = lambda t: 0.75 / (1 + t // 50)  # noqa: E731
    method = recipes.monna(loss, rate, mixer, 0.99, 1e-4, channel=channel)
    ends = []
    for seed in range(config.seed, config.seed + config.image_seeds):
        split = dx.data.dirichlet(data.labels, PEERS, 1.0, seed=seed)
        source = dx.Federation(data, split, local_steps=1, batch_size=BATCH)
        key = jax.random.key(seed)
        state = method.init(key, model.init(key, data.example)["params"])
        state, _ = dx.run(method, state, source, rounds=config.image_rounds, key=key)
        ends.append(jax.device_get(jax.jit(measure)(state)))
    return {
        "accuracy": np.array([end["accuracy"] for end in ends]),
        "worst": np.array([end["accuracy_min"] for end in ends]),
    }
