"""Web3Recommend: what Sybils can gain, what listeners lose, and how soon a recommendation follows.

A synthetic world of 200 listeners and 400 songs in ten communities; each listener's favourite is held
out. Mass is the sum of the scores of songs that attackers made up.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dflax import p2p
from experiments.tasks.listening import Listening, Ranked, hits, listening, plain_salsa, ranked
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

BETAS = (0.0, 0.5, 0.8, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: worlds.
      seed: of the first.
      roots: users who rank, each with more than 3 friends.
      few_roots: of them, for the sweeps.
      attackers: of the mixed attacks.
      walks: of a root.
      stops: alphas of the sweep.
      sizes: Sybils of a single attacker.
      timed: updates of one peer that are timed.
    """

    seeds: int = 4
    seed: int = 500
    roots: int = 30
    few_roots: int = 10
    attackers: int = 20
    walks: int = 500
    stops: tuple[float, ...] = (0.01, 0.1, 0.3, 0.6)
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    timed: int = 20


def attacks(config: Config, stage: Stage = in_memory) -> Summary:
    """Many attackers: the Sybil mass against the decay, and against the stop probability."""
    report = Report()
    masses: dict[str, list[list[float]]] = {"linear": [], "cycle": []}
    falling = []
    for seed in _seeds(config):
        world, roots = _world(config, seed)
        for attack, sybils in (("linear", 5), ("cycle", 2)):
            known = _attacked(world, roots, config, attack, sybils, seed)

            def of_attack(known: p2p.View = known, roots: Any = roots, seed: int = seed) -> Any:
                return ranked(known, roots, seed, stop=0.1, walks=config.walks)._asdict()

            found = stage(f"{attack}, seed {seed}", of_attack)
            masses[attack].append([_mass(found, world, beta) for beta in BETAS])
        known = _attacked(world, roots, config, "linear", 5, seed)
        few = roots[: config.few_roots]

        def over_stops(known: p2p.View = known, few: Any = few, seed: int = seed) -> Any:
            return [
                ranked(known, few, seed, stop=stop, walks=config.walks)._asdict()
                for stop in config.stops[:3]
            ]

        falling.append([_mass(one, world, 0.0) for one in stage(f"stops, seed {seed}", over_stops)])
    table = f"Sybil mass, {config.attackers} attackers, {config.roots} roots"
    for attack, own in masses.items():
        values = np.array(own)
        columns = {f"beta_{beta:g}": values[:, place] for place, beta in enumerate(BETAS)}
        report.row(table, attack, None, std=values[:, 0].std(), **columns)
        report.claim(
            f"{attack}: the mass is proportional to 1 - beta to 1e-6 (each seed)",
            np.all(np.abs(values - values[:, :1] * (1 - np.array(BETAS))) < 1e-6),
            (values / values[:, :1]).round(6).tolist(),
            [1 - beta for beta in BETAS],
        )
    values = np.array(falling)
    for place, stop in enumerate(config.stops[:3]):
        report.row(
            f"Sybil mass, linear, {config.few_roots} roots",
            f"alpha {stop:g}, Sybils",
            None,
            mass=values[:, place],
            std=values[:, place].std(),
        )
    report.claim(
        "the mass falls with alpha (each seed)",
        np.all(np.diff(values, axis=1) < 0),
        values.round(3).tolist(),
        list(config.stops[:3]),
    )
    return report.summary({})


def single(config: Config, stage: Stage = in_memory) -> Summary:
    """One attacker, each root's most trusted user: the mass against the number of its Sybils."""
    report = Report()
    curves: dict[str, np.ndarray] = {}
    for name, attack, stop in (
        ("linear, alpha .1", "linear", 0.1),
        ("linear, alpha .01", "linear", 0.01),
        ("parallel, alpha .1", "parallel", 0.1),
    ):
        of_seed = []
        for seed in _seeds(config)[:3]:

            def over_sizes(attack: str = attack, stop: float = stop, seed: int = seed) -> Any:
                return _single(config, attack, stop, seed)

            of_seed.append(stage(f"{name}, seed {seed}", over_sizes))
        curves[name] = np.array(of_seed)
        for place, size in enumerate(config.sizes):
            report.row(
                f"{name}: mass by Sybils, beta 0",
                f"{name}, {size}",
                None,
                mass=curves[name][:, place],
                std=curves[name][:, place].std(),
            )
    means = {name: own.mean(0) for name, own in curves.items()}
    eight, most = config.sizes.index(8), len(config.sizes) - 1
    growth = {name: own[most] / own[eight] for name, own in means.items()}
    report.claim(
        "linear: with 32 Sybils less than 1.5 times the mass of 8 at alpha .1",
        growth["linear, alpha .1"] < 1.5,
        round(float(growth["linear, alpha .1"]), 2),
        1.5,
    )
    report.claim(
        "linear: more than 1.6 times it at alpha .01",
        growth["linear, alpha .01"] > 1.6,
        round(float(growth["linear, alpha .01"]), 2),
        1.6,
    )
    flat = means["parallel, alpha .1"]
    report.claim(
        "parallel: the mass stays within 15 % of its mean",
        np.all(np.abs(flat / flat.mean() - 1) < 0.15),
        (flat / flat.mean() - 1).round(3).tolist(),
        0.15,
    )
    return report.summary({"web3recommend": _figure(config, curves)})


def relevance(config: Config, stage: Stage = in_memory) -> Summary:
    """How often the favourite is found, and how soon after an update."""
    report = Report()
    found: dict[str, list[float]] = {}
    for seed in _seeds(config)[:3]:
        world, roots = _world(config, seed)

        def of_seed(world: Listening = world, roots: Any = roots, seed: int = seed) -> Any:
            own = {
                f"alpha {stop:g}": hits(
                    ranked(world.known, roots, seed, stop=stop, walks=config.walks).scores(0.8),
                    world,
                    roots,
                )
                for stop in config.stops
            }
            popular = (np.asarray(world.known.affinity) > 0).sum(0) + 0.0
            own["popularity"] = hits(np.tile(popular, (len(roots), 1)), world, roots)
            plain = plain_salsa(world.known, roots, seed, stop=0.1, walks=config.walks)
            own["plain SALSA, alpha 0.1"] = hits(plain, world, roots)
            return own

        for name, share in stage(f"favourites, seed {seed}", of_seed).items():
            found.setdefault(name, []).append(float(share))
    for name, own in found.items():
        report.row(
            "hit@20 of the favourite, beta .8", name, None, hit=own, std=np.std(np.array(own))
        )
    mean = {name: float(np.array(own).mean()) for name, own in found.items()}
    trusted, popular = mean["alpha 0.1"], mean["popularity"]
    report.claim(
        "hit@20 at alpha .1 is .35 or more, and above 1.5 times that of popularity (mean)",
        trusted >= 0.35 and trusted > 1.5 * popular,
        round(trusted, 3),
        [0.35, round(1.5 * popular, 3)],
    )
    seconds = stage("updates", lambda: _updates(config))
    report.row(
        "one peer of the world hears a statement and plays a song: 1,000 walks of 100 half-steps",
        "update",
        None,
        median_ms=1e3 * np.median(seconds),
        largest_ms=1e3 * np.max(seconds),
    )
    return report.summary({})


def _updates(config: Config) -> np.ndarray:
    """Seconds from an update to a recommendation, of one peer."""
    world, roots = _world(config, config.seed)
    algorithm = p2p.web3recommend(walks=1000, length=100)
    start = jax.jit(algorithm.init)(
        jax.random.key(config.seed),
        (jnp.int32(roots[0]), world.known, jnp.asarray(world.plays[roots[0]], jnp.float32)),
    )
    step = jax.jit(algorithm.step, donate_argnums=0)
    seconds = []
    state = start
    for number in range(config.timed + 1):
        said = p2p.Statements(
            *map(jnp.asarray, ([roots[1]], [number], np.array([0.5], np.float32), [10 + number]))
        )
        news = p2p.Heard(said, said._replace(source=jnp.array([-1])), jnp.int32(number))
        began = time.perf_counter()
        state, metrics = step(state, (news, jax.random.fold_in(jax.random.key(0), number)))
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return np.array(seconds[1:])


def _single(config: Config, attack: str, stop: float, seed: int) -> list[float]:
    """The mean mass over roots, by the number of Sybils."""
    world, roots = _world(config, seed)
    few = roots[: config.few_roots]
    trust = np.asarray(world.known.trust)
    songs = world.known.affinity.shape[1]
    masses = []
    for size in config.sizes:
        own = []
        for root in few:
            known = p2p.praised_by_sybils(
                world.known, np.array([trust[root].argmax()]), attack, sybils=size
            )
            found = ranked(known, np.array([root]), seed, stop=stop, walks=300)
            own.append(found.scores(0.0)[0, songs:].sum())
        masses.append(float(np.mean(own)))
    return masses


def _seeds(config: Config) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))


def _world(config: Config, seed: int) -> tuple[Listening, np.ndarray]:
    world = listening(seed)
    friends = (np.asarray(world.known.trust) > 0).sum(1)
    rng = np.random.default_rng(seed)
    return world, rng.permutation(np.flatnonzero(friends > 3))[: config.roots]


def _attacked(
    world: Listening, roots: np.ndarray, config: Config, attack: str, sybils: int, seed: int
) -> p2p.View:
    others = np.setdiff1d(np.arange(len(world.favourite)), roots)
    chosen = np.random.default_rng(seed + 1).permutation(others)[: config.attackers]
    return p2p.praised_by_sybils(world.known, chosen, attack, sybils=sybils)


def _mass(found: dict[str, np.ndarray], world: Listening, beta: float) -> float:
    songs = world.known.affinity.shape[1]
    return float(Ranked(**found).scores(beta)[:, songs:].sum(1).mean())


def _figure(config: Config, curves: dict[str, np.ndarray]) -> Any:
    with figure(6.4, 4.0) as (drawn, axes):
        for place, (name, own) in enumerate(curves.items()):
            mean = own.mean(0)
            axes.errorbar(
                config.sizes,
                mean,
                np.stack([mean - own.min(0), own.max(0) - mean]),
                fmt=("o-", "s--", "^:")[place],
                capsize=3,
                label=name,
            )
        axes.set(
            xscale="log",
            xticks=config.sizes,
            xticklabels=[str(size) for size in config.sizes],
            ylim=(0, None),
            xlabel="Sybils of one attacker, the root's most trusted user",
            ylabel="share of the scores, before decay",
            title="200 listeners, 400 songs; bars: least and largest of 3 worlds",
        )
        axes.minorticks_off()
        axes.legend(title="attack")
    return drawn


STUDY = Study(
    Config,
    (
        Part("attacks", attacks, needs=()),
        Part("one attacker", single, needs=()),
        Part("relevance", relevance, needs=()),
    ),
    seconds=41,
    quick=Config(seeds=1, roots=8, few_roots=2, walks=100, sizes=(1, 8, 32), timed=3),
    pictures=(
        Picture(
            name="web3recommend",
            file="web3recommend.png",
            claim=(
                "The mass that Sybils gain saturates where walks stop soon, and decays by"
                " exactly 1 - beta."
            ),
            data="synthetic: 200 listeners, 400 songs",
            bands="bars: least to largest of 3 worlds",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
