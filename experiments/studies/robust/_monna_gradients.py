"""How many gradients MoNNA and LEARN need, by the number of faulty peers."""

from typing import Any, NamedTuple

import numpy as np

from dflax import gossip
from experiments.studies.robust._monna_methods import learn_along, learning, mixer, momentum
from experiments.tasks import robust_peers
from experiments.tasks.robust_peers import ATTACKS, HONEST, Attack
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage
from experiments.tools.study import Claim, Summary

BATCH, TARGET = 16, 0.9
METHODS = ("MoNNA", "LEARN")
# Rounds between two looks at the models: of MoNNA five steps, of LEARN two.
EVERY = {"MoNNA": 5, "LEARN": 4}


class Needed(NamedTuple):
    """Runs of one method among f faulty peers, axes attacks and seeds.

    Attributes:
      accuracy: `[A, S, looks]`.
      spent: `[looks]` gradients of a peer at each look.
      gradients: `[A, S]` at the first look from which the target is reached; infinite where it is not.
    """

    accuracy: np.ndarray
    spent: np.ndarray
    gradients: np.ndarray


Found = dict[str, dict[int, Needed]]


def rounds_of(method: str, config: Any) -> int:
    """MoNNA's are half of the study's; LEARN may compute four times as many gradients."""
    steps = config.rounds // 2 // 5 * 5
    if method == "MoNNA":
        return int(steps)
    return 2 * int(np.sqrt(8 * BATCH * steps) - 0.5) // 4 * 4


def spent_by(method: str, rounds: np.ndarray) -> np.ndarray:
    """Gradients of a peer after so many rounds: 16 a step, or 1, 2, 3, ... in every second round."""
    return BATCH * rounds if method == "MoNNA" else rounds // 2 * (rounds // 2 + 1) // 2


def on_faulty(config: Any, stage: Stage) -> Summary:
    """The same honest peers among 0, 1, 2, ... faulty ones; n and the graph follow."""
    found: Found = {
        method: {
            faulty: _needed(method, stage(f"{method}, f = {faulty}", _runs(method, faulty, config)))
            for faulty in config.faulty
        }
        for method in METHODS
    }
    rows = {}
    for method, by in found.items():
        for faulty, needed in by.items():
            for place, attack in enumerate(_attacks(faulty)):
                reached = needed.gradients[place]
                finite, computed = reached[np.isfinite(reached)], _at_least(needed)[place]
                rows[f"{method}, f = {faulty}, {attack}"] = {
                    "accuracy": float(needed.accuracy[place, :, -1].mean()),
                    "std": float(needed.accuracy[place, :, -1].std()),
                    "gradients to 0.9": float(finite.mean()) if len(finite) else np.nan,
                    "least": float(computed.min()),
                    "most": float(computed.max()),
                    "seeds there": len(finite),
                }
    return Summary(rows, claims(found), {"monna_gradients": _draw(found)})


def _attacks(faulty: int) -> dict[str, Attack]:
    return ATTACKS if faulty else {"none": Attack(1.0)}


def _runs(method: str, faulty: int, config: Any) -> Any:
    """All attacks and seeds as one program."""
    rounds = rounds_of(method, config)
    pieces = 1 if method == "MoNNA" else -(-rounds // 2 // BATCH)

    def run() -> dict[str, Any]:
        seeds = range(config.seed, config.seed + config.seeds)
        given = robust_peers.peers(seeds, faulty=faulty, pieces=pieces)
        points = [
            (place, 0.9, attack)
            for attack in _attacks(faulty).values()
            for place in range(config.seeds)
        ]
        rule, along = momentum(mixer(gossip.nna(faulty), faulty)), robust_peers.back
        if method == "LEARN":
            rule, along = learning(faulty), learn_along
        seen = robust_peers.run(given, rule, points, rounds, along, EVERY[method])
        return {"accuracy": seen.accuracy.reshape(-1, config.seeds, rounds // EVERY[method])}

    return run


def _needed(method: str, seen: dict[str, Any]) -> Needed:
    accuracy = np.asarray(seen["accuracy"])
    spent = spent_by(method, EVERY[method] * np.arange(1, accuracy.shape[-1] + 1))
    there = accuracy >= TARGET
    first = np.where(there.any(-1), spent[there.argmax(-1)], np.inf)
    return Needed(accuracy, spent, first)


def claims(found: Found) -> list[Claim]:
    """What f costs MoNNA and LEARN where n >= 5 f, and what becomes of MoNNA where n is less."""
    ours, theirs = found["MoNNA"], found["LEARN"]
    few = [f for f in ours if 0 < 5 * f <= HONEST + f]
    many = [f for f in ours if 5 * f > HONEST + f]
    alone = ours[0].gradients.mean()
    # For every attack the mean over seeds, against the same seeds without faulty peers.
    ratios = {f: _at_least(ours[f]).mean(1) / alone for f in few}
    worst = [float(ratios[f].max()) for f in few]
    reached = all(np.isfinite(ours[f].gradients).all() for f in few)
    # Of the line through 1 at f = 0.
    slope = sum(f * float((ratios[f] - 1).sum()) for f in few) / sum(
        f * f * ratios[f].size for f in few
    )
    more = np.array([_at_least(theirs[f]).mean(1) / _at_least(ours[f]).mean(1) for f in few])
    grown = more[-1] / more[0]
    steps = np.array([_last_step(_at_least(theirs[f])[0]) for f in few])
    ends = np.array([ours[f].accuracy[:2, :, -1].mean(1) for f in many])
    return [
        Claim(
            "where n >= 5 f MoNNA's gradients to 0.9 grow at most linearly, to less than 1 + f times "
            "those without faulty peers, every attack, mean over seeds",
            bool(reached and all(one < 1 + f for one, f in zip(worst, few, strict=True))),
            worst,
            [1 + f for f in few],
        ),
        Claim(
            "there each faulty peer adds less than half of them, by a line through all attacks",
            bool(slope < 0.5),
            slope,
            0.5,
        ),
        Claim(
            "there LEARN computes more gradients to 0.9, every f and attack, mean over seeds",
            bool((more > 1).all()),
            more.tolist(),
            1.0,
        ),
        Claim(
            "from the first f to the last LEARN's gradients grow more than MoNNA's, every attack",
            bool((grown > 1).all()),
            grown.tolist(),
            1.0,
        ),
        Claim(
            "under sign flip LEARN's last step to 0.9 takes more gradients than MoNNA's 16, every seed",
            bool((steps > BATCH).all()),
            [float(one.min()) for one in steps],
            BATCH,
        ),
        Claim(
            "where n < 5 f sign flip and FoE break MoNNA: it ends below 0.8, mean over seeds",
            bool((ends < 0.8).all()),
            ends.tolist(),
            0.8,
        ),
    ]


def _at_least(needed: Needed) -> np.ndarray:
    """Gradients to the target, all that were computed where it is not reached."""
    return np.where(np.isfinite(needed.gradients), needed.gradients, needed.spent[-1])


def _last_step(gradients: np.ndarray) -> np.ndarray:
    """T of T (T + 1) / 2."""
    return (np.sqrt(8 * gradients + 1) - 1) / 2


def _draw(found: Found) -> Any:
    numbers = list(found["MoNNA"])
    some = [f for f in numbers if f]
    with figure(12.0, 5.0, ncols=2) as (drawn, axes):
        needs, curves = axes
        for method, colour in zip(METHODS, ("C0", "C3"), strict=True):
            for place, attack in enumerate(ATTACKS):
                kept = [_at_least(found[method][f])[place] for f in some]
                there = [np.isfinite(found[method][f].gradients[place]).all() for f in some]
                style = ("-", "--", "-.", ":")[place]
                marker = ("os^v" if method == "MoNNA" else "DP>X")[place]
                at = np.array(some) + 0.06 * (place - 1.5) + (0.03 if method == "LEARN" else 0)
                mean = np.array([one.mean() for one in kept])
                spread = np.abs([[one.min() for one in kept], [one.max() for one in kept]] - mean)
                needs.errorbar(
                    at, mean, spread, color=colour, linestyle=style, linewidth=1.2, elinewidth=0.7
                )
                faces = [colour if all_there else "white" for all_there in there]
                needs.scatter(at, mean, s=22, marker=marker, c=faces, edgecolors=colour, zorder=3)
                shown = f"{method}, {attack}"
                needs.plot([], [], f"{marker}{style}", color=colour, markersize=4, label=shown)
        base = found["MoNNA"][0].gradients[0].mean()
        needs.plot(
            some, [base * (1 + f) for f in some], color="0.5", label="(1 + f) x MoNNA's at f = 0"
        )
        needs.set(yscale="log", xlabel="faulty peers f beside 12 honest ones", xticks=some)
        needs.set(ylabel="gradients of a peer to accuracy 0.9")
        needs.set_title("digits; mean and range over seeds; hollow: not reached by all")
        handles = needs.get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=5, fontsize=8)
        for method, colour in zip(METHODS, ("C0", "C3"), strict=True):
            for place, f in enumerate((some[0], min(3, some[-1]))):
                needed = found[method][f]
                label = f"{method}, f = {f}"
                look = looks("abcd")["ab"[place] if method == "MoNNA" else "cd"[place]]
                look = look._replace(color=colour)
                curve(curves, needed.spent, needed.accuracy[0], look, label)
        curves.axhline(TARGET, color="0.5", linewidth=0.8)
        curves.set(xscale="log", xlim=(10, None), ylim=(0.4, 1), xlabel="gradients of a peer")
        curves.set(ylabel="test accuracy, mean of the honest", title="sign flip; mean and range")
        curves.legend(loc="center left")
    return drawn
