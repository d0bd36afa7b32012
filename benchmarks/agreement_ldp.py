"""`python -m benchmarks.agreement_ldp`: our frequency oracles beside those of two packages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from dflax.privacy import local_privacy as lp

USERS, SIZE = 500, 12
# Hadamard response has one block there up to epsilon 1, and 2^floor(log2 e^epsilon) beyond.
BUDGETS = {0.5: 1, 1.0: 1, 1.7: 4}


def cases() -> list[tuple[str, str, dict[str, Any], np.ndarray]]:
    """For each: our name, their function, its arguments, and what we make of the same reports."""
    found: list[tuple[str, str, dict[str, Any], np.ndarray]] = []
    domain = lp.domain(SIZE)
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.choice(SIZE, USERS, p=np.arange(1, SIZE + 1) / 78))
    shares = np.bincount(np.asarray(values), minlength=SIZE) / USERS
    for epsilon, blocks in BUDGETS.items():
        key = jax.random.fold_in(jax.random.key(0), int(10 * epsilon))
        common: dict[str, Any] = {"epsilon": epsilon, "size": SIZE}

        def add(ours: str, theirs: str, arguments: dict[str, Any], value: Any, e=epsilon) -> None:
            found.append((f"{ours}, epsilon {e:g}", theirs, arguments, np.asarray(value)))

        oracles: dict[str, tuple[lp.FrequencyOracle, str, dict[str, Any]]] = {
            "k_rr": (lp.k_rr(epsilon, other=False), "direct", {}),
            "oue": (lp.oue(epsilon), "unary", {"optimised": True}),
            "sue": (lp.sue(epsilon), "unary", {"optimised": False}),
        }
        odds = float(np.exp(epsilon))
        half = float(np.exp(epsilon / 2))
        laws = {
            "k_rr": (odds / (odds + SIZE - 1), 1 / (odds + SIZE - 1)),
            "oue": (0.5, 1 / (odds + 1)),
            "sue": (half / (half + 1), 1 / (half + 1)),
        }
        for name, (oracle, theirs, options) in oracles.items():
            reports = oracle.respond(key, values, domain)
            estimate = np.asarray(oracle.estimate(reports, domain).frequency)
            sent = whole_numbers(reports)
            add(name, theirs, common | options | {"reports": sent}, estimate)
            kept = np.maximum(estimate, 0) / np.maximum(estimate, 0).sum()
            arguments = common | options | {"reports": sent}
            add(f"{name}, clipped", f"clipped_{theirs}", arguments, kept)
            p, q = laws[name]
            arguments = {"p": p, "q": q, "users": USERS, "frequency": shares.tolist()}
            variance = oracle.variance(jnp.asarray(shares), USERS, domain)
            add(f"variance of {name}", "variance", arguments, variance)
        hashing = lp.olh(epsilon)
        told = hashing.estimate(hashing.respond(key, values, domain), domain)
        arguments = common | {"counts": np.asarray(told.counts).tolist(), "users": USERS}
        add("olh, from its counts", "hashing", arguments, told.frequency)
        response = lp.hadamard_response(epsilon, blocks=blocks)
        answers = response.respond(key, values, domain)
        rows = SIZE // blocks
        places = [(value % blocks) * rows + value // blocks for value in range(SIZE)]
        arguments = common | {"reports": whole_numbers(answers), "places": places}
        add(
            "hadamard_response",
            "hadamard",
            arguments,
            response.estimate(answers, domain).frequency,
        )
        memo = lp.rappor(epsilon, epsilon / 2)
        memory = memo.init(jax.random.fold_in(key, 1), USERS)
        told_bits = memo.respond(key, memory, values, domain)
        estimate = np.maximum(np.asarray(memo.estimate(told_bits, domain).frequency), 0)
        arguments = {"permanent": epsilon, "first": epsilon / 2}
        arguments |= {"size": SIZE, "reports": whole_numbers(told_bits)}
        add("rappor, clipped", "clipped_rappor", arguments, estimate / estimate.sum())
    return found


def whole_numbers(reports: Any) -> list[int]:
    """Reports of bits as one number each, as a command line takes no more; other reports as they are."""
    rows = np.asarray(reports).astype(int)
    return (rows if rows.ndim == 1 else rows @ (1 << np.arange(rows.shape[1]))).tolist()


def main() -> None:
    """The largest difference of each; frequencies are at most about 1."""
    known = cases()
    answer = peers.run("pure_ldp", "agreement_ldp", cases=[case[1:3] for case in known])
    if answer is None:
        return
    table = Table("ours", "their largest difference", title=f"{answer['peer']}, multi-freq-ldpy")
    for (name, _, _, ours), theirs in zip(known, answer["found"], strict=True):
        table.add_row(name, f"{np.abs(ours - np.asarray(theirs)).max():.0e}")
    Console().print(table)


if __name__ == "__main__":
    main()
