"""What a round sends between 256 devices, read from programs that are compiled and never run."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import dflax as dx
from benchmarks.measure import Row
from dflax import profile, topology
from dflax.gossip.products.rolls import rows_that_leave

DEVICES = 256
FEATURES, CLASSES = 784, 10
MODEL = 4 * (FEATURES + 1) * CLASSES
STEPS, BATCH = 2, 4
RESULTS = pathlib.Path("results")
# What a round of a server mean or of a graph of shifts may send, as a multiple of the least.
MOST = 1.1


def grid(clients: int) -> tuple[int, int]:
    """Rows and columns of the torus: 16 columns."""
    return clients // 16, 16


def graphs(clients: int) -> dict[str, topology.Graph]:
    """The graphs that are mixed by rolls."""
    return {
        "ring": topology.ring(clients),
        "torus": topology.torus(*grid(clients)),
        "exponential": topology.exponential(clients),
    }


def federation(clients: int, cohort: int | None) -> dx.Federation:
    """One example per client: what is exchanged does not depend on the examples."""
    data = dx.data.Dataset(
        jnp.zeros((clients, FEATURES), jnp.uint8), jnp.zeros(clients, jnp.int32), classes=CLASSES
    )
    rule = None if cohort is None else dx.participation.uniform(cohort)
    owned = [np.array([client]) for client in range(clients)]
    return dx.Federation(
        data,
        dx.data.from_indices(owned),
        local_steps=STEPS,
        batch_size=BATCH,
        participation=rule,
    )


def logits(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """A linear model."""
    return inputs.astype(jnp.float32) @ params["w"] + params["b"]


def audit(clients: int, devices: int) -> list[dict[str, Any]]:
    """Bytes that one device sends in a round of each algorithm, and the least that it has to."""
    loss = dx.losses.classification(logits)
    average = 2 * (devices - 1) / devices * MODEL
    algorithms: dict[str, tuple[dx.Algorithm, float, int | None]] = {
        "fedavg": (dx.server.fedavg(loss, optax.sgd(0.1)), average, None)
    }
    mixers = {name: dx.gossip.mixer(graph) for name, graph in graphs(clients).items()}
    least: dict[str, float] = {
        name: rows_that_leave(graph, devices) * MODEL for name, graph in graphs(clients).items()
    }
    mixers["complete"], least["complete"] = dx.gossip.complete(clients), average
    for name, mixer in mixers.items():
        algorithms[f"dfedavg, {name}"] = (
            dx.decentralized.dfedavg(loss, optax.sgd(0.1), mixer),
            least[name],
            None,
        )
    if clients > devices:
        # Who is drawn is known only when the program runs, so a fixed pattern has to bring any rows
        # to any device: a reduce-scatter of the cohort's rows there, an all-gather back.
        moved = 2 * devices * MODEL * (devices - 1) / devices
        algorithms[f"dfedavg, ring, {devices} take part"] = (
            dx.decentralized.dfedavg(loss, optax.sgd(0.1), mixers["ring"]),
            least["ring"] + moved,
            devices,
        )
    mesh = dx.client_mesh()
    params = {
        "w": jax.ShapeDtypeStruct((FEATURES, CLASSES), jnp.float32),
        "b": jax.ShapeDtypeStruct((CLASSES,), jnp.float32),
    }
    key = jax.random.key(0)
    found = []
    for name, (algorithm, minimum, cohort) in algorithms.items():
        state = jax.eval_shape(algorithm.init, key, params)
        cost = profile.round(algorithm, state, federation(clients, cohort), mesh=mesh)
        found.append(
            {
                "algorithm": name,
                "clients": clients,
                "devices": devices,
                "sent_bytes": cost.sent_bytes,
                "least_bytes": minimum,
                "compile_seconds": cost.compile_seconds,
                "collectives": [str(c) for c in cost.collectives],
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """One line per program."""
    lines = Table("round", "clients", "devices", "sent kB", "least kB", "of least", "compiled s")
    for line in found:
        lines.add_row(
            line["algorithm"],
            str(line["clients"]),
            str(line["devices"]),
            f"{line['sent_bytes'] / 1e3:.1f}",
            f"{line['least_bytes'] / 1e3:.1f}",
            f"{line['sent_bytes'] / line['least_bytes']:.3f}",
            f"{line['compile_seconds']:.2f}",
        )
    return lines


def refuse_excess(found: list[dict[str, Any]]) -> None:
    """Refuse an audit in which a round sends more than `MOST` times the least.

    Raises:
      RuntimeError: naming every such round and what its program exchanges.
    """
    excess = [
        f"{line['algorithm']} with {line['clients']} clients on {line['devices']} devices sends "
        f"{line['sent_bytes']:.0f} bytes, {line['sent_bytes'] / line['least_bytes']:.3f} times the "
        f"least ({'; '.join(line['collectives'])})"
        for line in found
        if line["sent_bytes"] > MOST * line["least_bytes"]
    ]
    if excess:
        raise RuntimeError(
            f"a round must send at most {MOST} times the least, but {', and '.join(excess)}. Look "
            "for a mixing or a mean that XLA no longer compiles to permutes or one all-reduce."
        )


def rows(quick: bool) -> list[Row]:
    """Prints the audit, writes results/collectives.json, and gives the time that compiling took.

    Raises:
      RuntimeError: some round sends more than `MOST` times the least; the audit is printed and
        written all the same.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    sizes = (DEVICES,) if quick else (DEVICES, 2 * DEVICES)
    # The number of devices is fixed when JAX starts, hence a process of its own.
    command = [sys.executable, "-m", "benchmarks.collectives", *map(str, sizes)]
    found = json.loads(subprocess.check_output(command, env=environment, text=True))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "collectives.json").write_text(json.dumps(found, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 120).print(table(found))
    refuse_excess(found)
    compiling = float(np.median([line["compile_seconds"] for line in found]))
    return [Row(f"compiling a round for {DEVICES} devices, median", 1e3 * compiling)]


if __name__ == "__main__":
    audits = [line for size in sys.argv[1:] for line in audit(int(size), jax.device_count())]
    print(json.dumps(audits))
