"""One Sybil in every neighbourhood: who sees that distant neighbours are twins, and what it costs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dflax import aggregation, gossip
from dflax.gossip.mixer import reunited
from dflax.gossip.rules.sybilwall.rule import Memory
from experiments.tasks.inputs import DIGITS
from experiments.tasks.sybils import Attack, Peers, Setting
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary

Found = dict[str, np.ndarray]
Rule = Callable[[int, int], gossip.NeighbourRule]
WALL, ALONE, LOCAL = "SybilWall", "SybilWall without gossip", "local FoolsGold"
MEAN, MEDIAN, KRUM = "mean", "median", "Multi-Krum"


def wall(honest: int, nodes: int, **options: Any) -> gossip.NeighbourRule:
    """SybilWall with room for everyone; Sybils pass nothing on."""
    return gossip.sybilwall(nodes - 1, silent=range(honest, nodes), **options)


def of(aggregator: Callable[[], Any]) -> Rule:
    """The rule of an aggregator, for any number of nodes."""
    return lambda honest, nodes: gossip.aggregating(aggregator())


# Of the numbers of honest nodes and of all nodes.
RULES: dict[str, Rule] = {
    MEAN: of(aggregation.mean),
    MEDIAN: of(aggregation.median),
    KRUM: of(lambda: aggregation.multi_krum(1)),
    LOCAL: lambda honest, nodes: gossip.local_foolsgold(),
    ALONE: lambda honest, nodes: wall(honest, nodes, passing_on=False),
    WALL: wall,
}
VARIANTS: dict[str, Rule] = {
    "Krum": of(lambda: aggregation.krum(1)),
    "SybilWall, updates": lambda h, n: wall(h, n, history="update"),
    "SybilWall, filtered mean": lambda h, n: wall(h, n, combine="filtered mean"),
    "SybilWall, better half": lambda h, n: wall(h, n, combine="better half"),
    "SybilWall, weighted median": lambda h, n: wall(h, n, combine="weighted median"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      densities: phi of the label flip, attack edges of an honest node on the mean; 0 for no attack.
      planted: phi of the backdoor; none leaves it out.
      selecting: whether the median and Multi-Krum, of which nothing is claimed, are run, too.
      variants: whether more rules are run at one Sybil per neighbourhood.
      rounds: T.
      seeds: repetitions, with graphs, splits, starts and minibatches of their own.
      seed: the first of them.
      setting: the peers and their task.
    """

    densities: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    planted: tuple[float, ...] = (1.0, 2.0)
    selecting: bool = True
    variants: bool = True
    rounds: int = 25
    seeds: int = 8
    seed: int = 0
    setting: Setting = dataclasses.field(default_factory=Setting)


def peers(config: Config, attack: Attack, density: float) -> Peers:
    """All seeds of an attack and a density."""
    seeds = list(range(config.seed, config.seed + config.seeds))
    return Peers(config.setting, attack, density, seeds, config.rounds)


def sybil_weight(honest: int) -> Callable[[Any], dict[str, jax.Array]]:
    """Of SybilWall: the share of Sybils in an honest node's model, on the mean; of a round's state."""

    def measure(state: Any) -> dict[str, jax.Array]:
        mixing = reunited(state.server.mixer, state.clients.mixer)
        mixing = mixing if hasattr(mixing, "memory") else mixing[0]
        memory = mixing.memory.rows
        if not isinstance(memory, Memory):
            return {}
        trust, neighbours = memory.trust[:honest], mixing.tables[0][:honest]
        theirs = jnp.where(neighbours >= honest, trust, 0).sum(1)
        return {"sybil weight": (theirs / (1 + trust.sum(1))).mean()}

    return measure


def runs(
    config: Config, given: Peers, rules: dict[str, Rule], stage: Stage, what: str
) -> dict[str, Found]:
    """Every rule on all seeds, `[seeds, rounds]`."""
    honest = config.setting.honest
    return {
        name: stage(
            f"{what}, {name}",
            lambda rule=rule: given.run(lambda: rule(honest, given.nodes), sybil_weight(honest)),
        )
        for name, rule in rules.items()
    }


def last(found: Found, name: str = "attack_success") -> np.ndarray:
    """`[seeds]` after the last round."""
    return found[name][:, -1]


def row(found: Found) -> dict[str, float]:
    """What the table shows: the honest nodes after the last round."""
    success = last(found)
    shown = {
        "accuracy": float(last(found, "accuracy").mean()),
        "attack success": float(success.mean()),
        "lowest": float(success.min()),
        "highest": float(success.max()),
    }
    if "sybil weight" in found:
        shown["weight of Sybils"] = float(found["sybil weight"].mean())
    return shown


def flipped(config: Config, stage: Stage = in_memory) -> Summary:
    """0 and 1 taught as each other, over the number of Sybils; more rules at one per neighbourhood."""
    found: dict[float, dict[str, Found]] = {}
    for density in config.densities:
        given = peers(config, "label flip", density)
        rules = RULES | (VARIANTS if density == 1 and config.variants else {})
        if not config.selecting:
            rules = {name: rule for name, rule in rules.items() if name not in (MEDIAN, KRUM)}
        found[density] = runs(config, given, rules, stage, f"phi = {density:g}")
    rows = {
        f"phi = {density:g}: {name}": row(runs)
        for density, several in found.items()
        for name, runs in several.items()
    }
    tables = {
        f"label flip, phi = {density:g}": [f"phi = {density:g}: {name}" for name in several]
        for density, several in found.items()
    }
    return Summary(rows, _claims(found), {"sybilwall": _draw(found)}, tables)


def planted(config: Config, stage: Stage = in_memory) -> Summary:
    """A patch taught as the digit 1, with one Sybil in every neighbourhood and with two."""
    rules = {name: RULES[name] for name in (MEAN, KRUM, LOCAL, ALONE, WALL)}
    rows: dict[str, dict[str, float]] = {}
    successes: dict[float, dict[str, np.ndarray]] = {}
    for density in config.planted:
        found = runs(
            config, peers(config, "backdoor", density), rules, stage, f"backdoor, phi = {density:g}"
        )
        rows |= {f"backdoor, phi = {density:g}: {name}": row(one) for name, one in found.items()}
        successes[density] = {name: last(one) for name, one in found.items()}
    claims = []
    if 1.0 in successes:
        lowered = successes[1.0][ALONE] - successes[1.0][WALL]
        text = "backdoor, one Sybil per neighbourhood: gossip lowers its success by 0.3 or more"
        claims.append(_mean(text, lowered, at_least=0.3))
    if 2.0 in successes:
        seen = np.maximum(successes[2.0][LOCAL], successes[2.0][WALL])
        text = "backdoor, two per neighbourhood: FoolsGold and SybilWall below 0.2"
        claims.append(_mean(text, seen, at_most=0.2))
    return Summary(rows, claims)


def _every(
    text: str, values: np.ndarray, *, at_least: float = -np.inf, at_most: float = np.inf
) -> Claim:
    holds = bool(((values >= at_least) & (values <= at_most)).all())
    limit = at_least if np.isfinite(at_least) else at_most
    return Claim(f"{text}, every seed", holds, _shown(values), limit)


def _mean(
    text: str, values: np.ndarray, *, at_least: float = -np.inf, at_most: float = np.inf
) -> Claim:
    mean = float(values.mean())
    limit = at_least if np.isfinite(at_least) else at_most
    shown = [round(mean, 3), *_shown(values)]
    return Claim(f"{text}, mean and seeds", at_least <= mean <= at_most, shown, limit)


def _shown(values: np.ndarray) -> list[float]:
    return np.round(values.astype(np.float64), 3).tolist()


def _claims(found: dict[float, dict[str, Found]]) -> list[Claim]:
    """What is said of the label flip, of those densities that were run."""
    success = {phi: {name: last(one) for name, one in runs.items()} for phi, runs in found.items()}
    claims = []
    if 1.0 in found:
        one = success[1.0]
        claims += [
            _every("one Sybil per neighbourhood fools local FoolsGold", one[LOCAL], at_least=0.5),
            _every(
                "one Sybil per neighbourhood: gossip lowers SybilWall's attack success by 0.3 or more",
                one[ALONE] - one[WALL],
                at_least=0.3,
            ),
            _mean("one Sybil per neighbourhood: SybilWall below 0.3", one[WALL], at_most=0.3),
        ]
    if 2.0 in found:
        two = success[2.0]
        seen = np.maximum(two[LOCAL], two[WALL])
        claims += [
            _every("two per neighbourhood: FoolsGold and SybilWall below 0.1", seen, at_most=0.1),
            _every("two per neighbourhood: the mean follows them", two[MEAN], at_least=0.9),
        ]
    if {1.0, 2.0, 4.0} <= set(found):
        falls = success[1.0][WALL] - np.maximum(success[2.0][WALL], success[4.0][WALL])
        claims.append(_every("more Sybils succeed less with SybilWall", falls, at_least=0.0))
    if 0.0 in found:
        lost = last(found[0.0][MEAN], "accuracy") - last(found[0.0][WALL], "accuracy")
        claims.append(
            _mean("without an attack SybilWall costs 0.05 accuracy or more", lost, at_least=0.05)
        )
    return claims


def _draw(found: dict[float, dict[str, Found]]) -> Any:
    attacked: Sequence[float] = [density for density in found if density]
    shown = 1.0 if 1.0 in found else attacked[0]
    with figure(12.0, 4.2, ncols=3) as (drawn, axes):
        for place, (name, look) in enumerate(looks(RULES).items()):
            if name not in found[shown]:
                continue
            success = found[shown][name]["attack_success"]
            curve(axes[0], np.arange(1, success.shape[1] + 1), success, look, name)
            for panel, densities, key in (
                (axes[1], attacked, "attack_success"),
                (axes[2], list(found), "accuracy"),
            ):
                ends = np.stack([last(found[density][name], key) for density in densities])
                spread = np.stack([ends.mean(1) - ends.min(1), ends.max(1) - ends.mean(1)])
                # Side by side, so that spreads can be told apart.
                places = np.arange(len(densities)) + 0.06 * (place - 2.5)
                panel.errorbar(
                    places,
                    ends.mean(1),
                    spread,
                    marker=look.marker,
                    linestyle=look.line,
                    ms=5,
                    lw=1.2,
                    elinewidth=0.8,
                    color=look.color,
                )
                panel.set_xticks(range(len(densities)), [f"{density:g}" for density in densities])
        axes[0].set(
            xlabel="round",
            ylabel="0 and 1 taken for each other",
            title=f"attack success, {shown:g} Sybil a neighbourhood",
        )
        axes[0].xaxis.get_major_locator().set_params(integer=True)
        axes[1].set(xlabel="Sybils a neighbourhood", title="attack success after the last round")
        axes[1].set_ylabel("0 and 1 taken for each other")
        axes[2].set_ylabel("test accuracy")
        axes[2].set(xlabel="Sybils a neighbourhood", title="accuracy of the honest nodes")
        for panel in axes:
            panel.set_ylim(-0.02, 1.02)
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return drawn


STUDY = Study(
    Config,
    (
        Part("label flip", flipped, needs=(DIGITS,)),
        Part("backdoor", planted, needs=(DIGITS,), wanted=lambda config: len(config.planted) > 0),
    ),
    seconds=620,
    quick=Config(densities=(1.0,), planted=(), selecting=False, variants=False, rounds=6, seeds=1),
    pictures=(
        Picture(
            name="sybilwall",
            file="sybilwall.png",
            claim=(
                "One Sybil in every neighbourhood fools local FoolsGold, two fool the "
                "median and Multi-Krum; records that gossip passes on reveal distant "
                "twins, at a cost of accuracy where nobody attacks."
            ),
            data="digits (scikit-learn), 20 honest nodes, labels 0 and 1 flipped",
            bands="bands and bars: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
