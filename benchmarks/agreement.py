"""`python -m benchmarks.agreement`: our robust rules and attacks beside ByzFL's, on the same rows."""

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.tasks import unlike_messages
from dflax import aggregation, attacks
from dflax.aggregation import Aggregator, Combining
from dflax.channel import Channel, Sending

KEY = jax.random.key(0)
KINDS = ("random", "tied", "heavy-tailed")
SIZES = ((11, 2), (15, 4), (9, 1))
# Where the two do not agree, and why.
DIFFER = {
    "CAF": "one step of the power method there, exact eigenvectors here",
    "SMEA": "one step of the power method there, exact eigenvalues here",
    "Meamed": "of values equally near, any there, those further down here",
    "NNM": "of messages equally near, any there, those of lower numbers here",
}


def rules(f: int) -> dict[str, tuple[dict, Aggregator, str]]:
    """By ByzFL's name: its arguments, our rule, and what is made of a pre-aggregator's rows."""
    mean, median = aggregation.mean(), aggregation.median()
    return {
        "TrMean": ({"f": f}, aggregation.trimmed_mean(f), ""),
        "GeometricMedian": ({}, aggregation.geometric_median(), ""),
        "Krum": ({"f": f}, aggregation.krum(f, others="m-f-1"), ""),
        "MultiKrum": ({"f": f}, aggregation.multi_krum(f, others="m-f-1"), ""),
        "MDA": ({"f": f}, aggregation.mda(f), ""),
        "SMEA": ({"f": f}, aggregation.smea(f), ""),
        "CAF": ({"f": f}, aggregation.caf(f), ""),
        "Meamed": ({"f": f}, aggregation.mea_med(f), ""),
        "CenteredClipping": ({"tau": 3.0, "L": 2}, aggregation.centred_clipping(3.0, 2), ""),
        "NNM": ({"f": f}, aggregation.nnm(median, f), "median"),
        "ARC": ({"f": f}, aggregation.arc(mean, f), "mean"),
        "Clipping": ({"c": 2.0}, aggregation.static_clipping(mean, 2.0), "mean"),
    }


def lies(f: int) -> dict[str, tuple[dict, Channel]]:
    """By ByzFL's name: its arguments and our channel, in which the first f clients are hostile."""
    hostile = tuple(range(f))
    return {
        "SignFlipping": ({}, attacks.inner_product(hostile, 1.0)),
        "InnerProductManipulation": ({"tau": 3.0}, attacks.inner_product(hostile, 3.0)),
        "ALittleIsEnough": ({"tau": 1.5}, attacks.little_is_enough(hostile, 1.5)),
        "Mimic": ({"epsilon": 1}, attacks.mimic(hostile, f + 1)),
        "Inf": ({}, attacks.constant(hostile, float("inf"))),
    }


def ours() -> tuple[list[tuple[str, str]], list[list], list[np.ndarray]]:
    """What is compared, ByzFL's calls, and our results, in float64."""
    names: list[tuple[str, str]] = []
    calls: list[list] = []
    found: list[np.ndarray] = []
    for kind in KINDS:
        for count, f in SIZES:
            given = unlike_messages(kind, count)
            for name, (arguments, rule, after) in rules(f).items():
                state = rule.init(jnp.asarray(given[0]))
                out, _, _ = rule.apply(jnp.asarray(given), jnp.ones(count), state, Combining(KEY))
                names.append((name, kind))
                calls.append([name, arguments, kind, count, 0, after])
                found.append(np.asarray(out))
            for name, (arguments, channel) in lies(f).items():
                sending = Sending(KEY, 0, jnp.arange(count))
                sent, *_ = channel.apply(jnp.asarray(given), jnp.ones(count), (), sending)
                names.append((name, kind))
                calls.append([name, arguments, kind, count, f, ""])
                found.append(np.asarray(sent)[0])
    return names, calls, found


def main() -> None:
    """The largest difference of each, relative to the largest number of the result, at least 1."""
    with jax.enable_x64(True):
        names, calls, found = ours()
    answer = peers.run("byzfl", "agreement_byzfl", cases=calls)
    if answer is None:
        return
    worst: dict[tuple[str, str], float] = {}
    for place, own, theirs in zip(names, found, answer["found"], strict=True):
        same = own == np.asarray(theirs)
        apart = np.where(same, 0, np.abs(np.where(same, 0, own) - np.where(same, 0, theirs)))
        size = max(1.0, float(np.abs(np.where(same, 0, own)).max()))
        worst[place] = max(worst.get(place, 0.0), float(apart.max()) / size)
    table = Table("ByzFL's name", *KINDS, "where they differ", title=answer["peer"])
    for name in dict.fromkeys(name for name, _ in names):
        largest = [worst[name, kind] for kind in KINDS]
        why = DIFFER.get(name, "") if max(largest) > 1e-5 else ""
        table.add_row(name, *(f"{one:.0e}" for one in largest), why)
    Console().print(table)


if __name__ == "__main__":
    main()
