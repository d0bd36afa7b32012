"""One process of a run on two hosts: `python two_hosts.py PORT PROCESS FOLDER`.

Both processes run this same program; what they find goes to files in FOLDER, which
`test_several_hosts.py` compares with the same training in one process.
"""

import contextlib
import json
import pathlib
import sys
from typing import ClassVar

import jax
import numpy as np
import optax
from tasks import regression, softmax_loss

import dflax as dx
from dflax import export
from dflax.data.dealt import deal
from dflax.running.checkpoints.lock import InUseError, Lock

CLIENTS = 16
ROUNDS = 5


class Watched(np.ndarray):
    """An array on disk, as far as this test goes: notes which rows are read."""

    rows_read: ClassVar[set] = set()

    def __getitem__(self, rows):
        Watched.rows_read |= set(np.asarray(rows).tolist())
        return np.asarray(self)[rows]


def federation(wrap=np.asarray):
    task = regression(clients=CLIENTS)
    data = dx.data.Dataset(wrap(task.data.inputs), np.asarray(task.data.labels), classes=3)
    return dx.Federation(data, task.partition, local_steps=3, batch_size=4)


def algorithms():
    sgd = optax.sgd(0.1)
    return {
        "fedavg": dx.server.fedavg(softmax_loss, sgd),
        "dfedavg": dx.decentralized.dfedavg(softmax_loss, sgd, dx.gossip.ring(CLIENTS)),
    }


def norms(state):
    """One number a client: a metric that the compiler may leave spread over the hosts."""
    models = state.clients.params if hasattr(state.clients, "params") else ()
    return {
        "norms": [jax.vmap(lambda leaf: (leaf**2).sum())(leaf) for leaf in jax.tree.leaves(models)]
    }


def train(algorithm, federation, mesh=None, sinks=(), checkpoint=None):
    key = jax.random.key(0)
    state = algorithm.init(key, regression(clients=CLIENTS).params)
    return dx.run(
        algorithm,
        state,
        federation,
        rounds=ROUNDS,
        key=key,
        evaluate=norms,
        sinks=sinks,
        mesh=mesh,
        checkpoint=checkpoint,
    )


def main(port, process, folder):
    dx.mesh.start_hosts(f"127.0.0.1:{port}", 2, process, timeout=60)
    mesh = dx.client_mesh()
    clients = dx.mesh.host_clients(CLIENTS, mesh)
    report = {
        "devices": [jax.process_count(), jax.local_device_count(), jax.device_count()],
        "clients": [clients.start, clients.stop],
        "others": list(dx.mesh.host_clients(CLIENTS, mesh, 1 - process)),
    }

    results, methods = {}, algorithms()
    for name, algorithm in methods.items():
        sink = dx.sinks.jsonl(folder / f"{name} {process}.jsonl")
        state, history = train(algorithm, federation(), mesh, [sink])
        results[name] = (state, history.metrics, history.evaluations)
    dealt = deal(federation(lambda inputs: np.asarray(inputs).view(Watched)), mesh)
    report["rows_read"] = sorted(Watched.rows_read)
    report["rows_held"] = sum(s.data.shape[0] for s in dealt.data.inputs.addressable_shards)
    state, history = train(methods["dfedavg"], dealt, mesh)
    results["dealt"] = (state, history.metrics, history.evaluations)

    # Process 0 alone holds the lock, for both; a folder that it cannot have, neither has.
    saved, history = train(methods["dfedavg"], federation(), mesh, checkpoint=folder / "run")
    results["saved"] = (saved, history.metrics, history.evaluations)
    stored, history = train(methods["dfedavg"], federation(), mesh, checkpoint=folder / "run")
    results["stored"] = (stored, history.metrics, history.evaluations)
    with Lock(folder / "run") if process == 0 else contextlib.nullcontext():
        try:
            train(methods["dfedavg"], federation(), mesh, checkpoint=folder / "run")
        except InUseError as error:
            report["in_use"] = str(error)

    export.save(folder / "models.safetensors", results["dfedavg"][0].clients.params)
    export.save(folder / "models", results["dfedavg"][0].clients.params)

    key = jax.random.key(3)
    placed = dx.mesh.place({"key": key, "count": 2}, jax.NamedSharding(mesh, jax.P()))
    report["placed"] = [placed["key"].is_fully_addressable, placed["count"].is_fully_addressable]
    report["key"] = bool(jax.random.key_data(placed["key"]).tolist() == [0, 3])
    try:
        dx.mesh.shard({"same": np.ones(3), "mine": np.full(3, process)}, mesh)
    except ValueError as error:
        report["refused"] = str(error)

    leaves = [jax.tree.leaves(dx.mesh.collect(result)) for result in results.values()]
    arrays = {
        f"{name} {number}": leaf
        for name, tree in zip(results, leaves, strict=True)
        for number, leaf in enumerate(tree)
    }
    np.savez(folder / f"{process}.npz", **arrays)
    (folder / f"{process}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
