"""What a robust round among peers costs beside a round of DFedAvg on the same complete graph."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn

import dflax as dx
from benchmarks import merging_limits, rounds
from benchmarks.measure import Row
from dflax import aggregation, gossip, recipes, topology

CLIENTS, FAULTY, BATCH, OWNED = 26, 5, 25, 50


class Paper(nn.Module):
    """The MNIST network of MoNNA's authors: 20 and 50 channels of 5 x 5, 500 units; d = 431,080."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        for channels in (20, 50):
            x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def methods(loss: Any) -> dict[str, Callable[[], dx.Algorithm]]:
    """DFedAvg on the complete graph first; the others hear n - f of n, f hostile ones among them.

    The limit of MoNNA has its local steps and momenta, and of the mixing the products alone, see
    `merging_limits.nearest`.
    """
    hostile = list(range(CLIENTS - FAULTY, CLIENTS))
    heard = topology.random_neighbours(CLIENTS, CLIENTS - FAULTY - 1, first=hostile)

    def by(rule: gossip.NeighbourRule) -> Callable[[], dx.Algorithm]:
        return mixed(gossip.by_rule(heard, rule))

    def mixed(mixer: gossip.Mixer) -> Callable[[], dx.Algorithm]:
        return lambda: recipes.monna(loss, 0.05, mixer, 0.9)

    return {
        "DFedAvg": lambda: dx.decentralized.dfedavg(
            loss, optax.sgd(0.05), gossip.complete(CLIENTS)
        ),
        "MoNNA": by(gossip.nna(FAULTY)),
        "self-centred clipping": by(gossip.self_centred_clipping(1.0, 3)),
        "MoCWTM": by(gossip.aggregating(aggregation.trimmed_mean(FAULTY))),
        "limit of MoNNA": mixed(merging_limits.nearest(CLIENTS, CLIENTS - 2 * FAULTY)),
    }


def rows(quick: bool, names: tuple[str, ...] = ()) -> list[Row]:
    """A row per method, all or those named, its peer a round of DFedAvg in the same run."""
    source, params, loss = rounds.noise(CLIENTS, OWNED, 1, BATCH, model=Paper())
    known = methods(loss)
    taken = {name: known[name] for name in known if not names or name in ("DFedAvg", *names)}
    return rounds.beside_first(
        taken,
        lambda algorithm: algorithm.init(jax.random.key(0), params),
        source,
        2 if quick else 5,
        f"round, CNN, {CLIENTS} clients on the complete graph",
    )
