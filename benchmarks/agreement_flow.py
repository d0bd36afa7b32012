"""`python -m benchmarks.agreement_flow`: our flow matching beside torchcfm and flow-matching."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from dflax import generative as gen
from dflax.generative import targets

B, D, STEPS = 32, 5, 20


def cases() -> list[tuple[str, str, dict[str, Any], list[np.ndarray]]]:
    """For each: our name, their function, its arguments, and what we make of the same arrays."""
    rng = np.random.default_rng(0)
    data, noise = rng.normal(size=(2, B, D))
    # Their variance-preserving path has no bound at the data's end.
    time = rng.uniform(0.02, 0.98, B)
    shared = {"data": data.tolist(), "noise": noise.tolist(), "time": time.tolist()}
    found: list[tuple[str, str, dict[str, Any], list[np.ndarray]]] = []
    paths = {
        "rectified": gen.rectified(),
        "cosine": gen.cosine(),
        "variance preserving": gen.variance_preserving(0.1, 20.0),
    }
    for name, path in paths.items():
        x = gen.noised(path, data, noise, time)
        wanted = targets.value(targets.velocity, path, *map(jnp.asarray, (data, noise, time)))
        ours = [np.asarray(x), np.asarray(wanted)]
        for theirs in ("matcher", "affine"):
            if theirs == "affine" or name != "variance preserving":
                found.append((f"{name}: x_t, target", theirs, {"path": name, **shared}, ours))
        for kind, target in (("noise", targets.noise), ("data", targets.data)):
            told = rng.normal(size=(B, D))
            moved = targets.velocity_of(target, path, jnp.asarray(told), x, jnp.asarray(time))
            given = {"prediction": told.tolist(), "x": np.asarray(x).tolist()}
            arguments = {"path": name, "kind": kind, "time": time.tolist(), **given}
            found.append(
                (f"{name}: velocity of {kind}", "converted", arguments, [np.asarray(moved)])
            )
    matrix = rng.normal(size=(D, D)) / 2

    def field(noised: gen.Noised, key: jax.Array) -> jax.Array:
        return noised.x @ matrix + noised.time[:, None]

    times = np.linspace(1.0, 0.0, STEPS + 1)
    last = gen.sample(field, gen.euler(gen.rectified()), noise, times, jax.random.key(0))
    arguments = {"matrix": matrix.tolist(), "start": noise.tolist(), "steps": STEPS}
    found.append((f"Euler, {STEPS} steps", "euler", arguments, [np.asarray(last)]))
    return found


def main() -> None:
    """Prints the largest difference of each case, relative to the largest entry."""
    with jax.enable_x64():
        known = cases()
    answer = peers.run("flow", "agreement_flow", cases=[case[1:3] for case in known])
    if answer is None:
        return
    table = Table("what", "theirs", "largest relative difference")
    for (name, theirs, _, ours), found in zip(known, answer["found"], strict=True):
        apart = max(
            float(np.abs(np.asarray(o) - np.asarray(f)).max() / np.abs(np.asarray(f)).max())
            for o, f in zip(ours, found, strict=True)
        )
        table.add_row(name, "torchcfm" if theirs == "matcher" else "flow-matching", f"{apart:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
