"""Compile time and steady time per round of the quickstart's algorithms, each in its own process."""

import json
import os
import subprocess
import sys
import tempfile

from benchmarks.measure import Row

PROGRAM = """
import json, sys
import jax
import optax
import dflax as dx

name, rounds = sys.argv[1], int(sys.argv[2])
data = dx.data.digits()
n = 100
partition = dx.data.dirichlet(data.labels, n, 0.3)
federation = dx.Federation(data, partition, local_steps=10, batch_size=20)
model = dx.models.MLP((100,), classes=10)
key = jax.random.key(0)
params = model.init(key, data.example)["params"]
loss, descent = dx.losses.classification(model.apply), optax.sgd(0.1)
algorithm = {
    "fedavg": lambda: dx.server.fedavg(loss, descent),
    "dfedavg, ring": lambda: dx.decentralized.dfedavg(loss, descent, dx.gossip.ring(n)),
    "dfedavg, exponential": lambda: dx.decentralized.dfedavg(
        loss, descent, dx.gossip.exponential(n)
    ),
    "dpsgd, exponential": lambda: dx.decentralized.dpsgd(loss, descent, dx.gossip.exponential(n)),
}[name]()
_, history = dx.run(algorithm, algorithm.init(key, params), federation, rounds=rounds, key=key)
print(json.dumps([1e3 * history.compile_seconds, 1e3 * history.seconds / rounds]))
"""
NAMES = ("fedavg", "dfedavg, ring", "dfedavg, exponential", "dpsgd, exponential")


def rows(quick: bool) -> list[Row]:
    """For each algorithm: compiling without and with the persistent cache, then a round."""
    found = []
    for name in NAMES[:2] if quick else NAMES:
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            command = [sys.executable, "-c", PROGRAM, name, "5" if quick else "20"]
            cold, warm = (
                json.loads(subprocess.check_output(command, text=True, env=environment))
                for _ in range(2)
            )
        compiling = f"compile {name}, 100 clients"
        found.append(Row(compiling, warm[0], "without the persistent cache", cold[0]))
        found.append(Row(f"round of {name}, 100 clients", warm[1]))
    return found
