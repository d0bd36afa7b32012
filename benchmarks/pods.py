"""`python -m benchmarks.pods [NAMES]`: what fits on machines that are not here, and what is sent there.

Needs the extras `plan-tpu` and `plan-gpu`. Prints the table of docs/pods.md, and keeps the numbers of
every row in results/pods.json, so that a run that was killed goes on.
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import profile

RESULTS = pathlib.Path("results") / "pods.json"
CLIENTS = 1024
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


class Task(NamedTuple):
    """A model and its clients' data.

    Attributes:
      loss: of the model.
      params: their shapes.
      inputs: of one example, a shape and a dtype.
      classes: of the labels; None for sequences of tokens.
      batch: examples of a local step.
      owned: examples of one client.
    """

    loss: Any
    params: Any
    inputs: tuple[tuple[int, ...], Any]
    classes: int | None
    batch: int
    owned: int


class Plan(NamedTuple):
    """A row of the table.

    Attributes:
      task: what is trained.
      method: how.
      machine: where.
      clients: n.
      cohort: of a round; None for all.
      model: devices that share a model.
      at_once: clients that a device computes at the same time.
    """

    task: str
    method: str
    machine: str
    clients: int = CLIENTS
    cohort: int | None = None
    model: int = 1
    at_once: int | None = 1


@functools.cache
def resnet() -> Task:
    """ResNet-18 on images of 32x32."""
    network = dx.models.ResNet18(classes=10)
    variables = jax.eval_shape(network.init, KEY, jnp.zeros((1, 32, 32, 3)))
    loss = dx.losses.classification(network.apply)
    return Task(loss, variables["params"], ((32, 32, 3), jnp.uint8), 10, 32, 32)


@functools.cache
def cnn() -> Task:
    """The convolutional network of the image studies, on images of 28x28."""
    network = dx.models.CNN(classes=10)
    variables = jax.eval_shape(network.init, KEY, jnp.zeros((1, 28, 28, 1)))
    loss = dx.losses.classification(network.apply)
    return Task(loss, variables["params"], ((28, 28, 1), jnp.uint8), 10, 32, 32)


@functools.cache
def transformer() -> Task:
    """A language model of 1.3 billion parameters, computed in bfloat16, on sequences of 512 tokens."""
    network = dx.models.TransformerLM(
        vocabulary=50_257,
        length=512,
        width=2048,
        depth=24,
        heads=16,
        scan_blocks=True,
        dtype=jnp.bfloat16,
    )
    variables = jax.eval_shape(network.init, KEY, jnp.zeros((1, 512), jnp.int32))
    loss = dx.losses.language_modelling(network.apply)
    return Task(loss, variables["params"], ((512,), jnp.int32), None, 1, 2)


@functools.cache
def mixture() -> Task:
    """A language model of 4 layers with 256 experts each, one for every node of 256."""
    network = dx.models.TransformerLM(
        vocabulary=8192,
        length=256,
        width=512,
        depth=4,
        heads=8,
        mixture=dx.models.MoE(EXPERTS, active=4, hidden=512),
    )
    variables = jax.eval_shape(network.init, KEY, jnp.zeros((1, 256), jnp.int32))
    loss = dx.experts.routed_language_modelling(network)
    return Task(loss, variables["params"], ((256,), jnp.int32), None, 2, 4)


EXPERTS = 256
MIXTURE = "mixture of 256 experts"
TASKS = {
    "CNN": cnn,
    "ResNet-18": resnet,
    "transformer, 1.3B": transformer,
    MIXTURE: mixture,
}
METHODS: dict[str, Callable[[Task, Plan], dx.Algorithm]] = {
    "FedAvg": lambda task, plan: dx.server.fedavg(task.loss, SGD, at_once=plan.at_once),
    "FedAvg, median": lambda task, plan: dx.server.fedavg(
        task.loss, SGD, aggregator=dx.aggregation.median(), at_once=plan.at_once
    ),
    "FedAvg, Krum": lambda task, plan: dx.server.fedavg(
        task.loss, SGD, aggregator=dx.aggregation.krum(plan.clients // 8), at_once=plan.at_once
    ),
    "DFedAvg, random neighbours": lambda task, plan: dx.decentralized.dfedavg(
        task.loss, SGD, dx.gossip.random_neighbours(plan.clients, 3), at_once=plan.at_once
    ),
    "DFedADMM, ring": lambda task, plan: dx.decentralized.dfedadmm(
        task.loss, SGD, dx.gossip.ring(plan.clients), at_once=plan.at_once
    ),
}
METHODS |= {
    "SPES": lambda task, plan: dx.experts.spes(
        task.loss,
        optax.adamw(1e-3),
        experts=EXPERTS,
        nodes=plan.clients,
        as_seen=dx.models.Owned,
        at_once=plan.at_once,
    ),
    "FedAvg, AdamW kept": lambda task, plan: dx.server.fedavg(
        task.loss,
        optax.adamw(1e-3),
        keep_optimizer=True,
        clients=plan.clients,
        at_once=plan.at_once,
    ),
}
PLANS = (
    Plan("CNN", "FedAvg", "v5e:16x16", clients=256),
    Plan("CNN", "FedAvg, Krum", "v5e:16x16", clients=256),
    Plan("CNN", "DFedAvg, random neighbours", "v5e:16x16", clients=256),
    Plan("CNN", "FedAvg", "v5e:2x4", clients=64, model=2),
    Plan("CNN", "FedAvg, median", "8xH100", clients=64),
    Plan("CNN", "DFedAvg, random neighbours", "8xH100", clients=64, model=2),
    Plan("ResNet-18", "FedAvg", "v5e:16x16"),
    Plan("ResNet-18", "FedAvg", "8xH100"),
    Plan("ResNet-18", "DFedADMM, ring", "v5e:16x16"),
    Plan("ResNet-18", "DFedADMM, ring", "8xH100"),
    Plan("transformer, 1.3B", "DFedADMM, ring", "v5e:16x16", model=16),
    Plan("transformer, 1.3B", "DFedADMM, ring", "8xH100"),
    Plan("transformer, 1.3B", "FedAvg", "8xH100"),
    Plan("transformer, 1.3B", "FedAvg", "8xH100", cohort=8),
    Plan("transformer, 1.3B", "FedAvg", "v5e:16x16", cohort=256),
    Plan("transformer, 1.3B", "FedAvg", "v5e:16x16", cohort=16, model=16),
    Plan(MIXTURE, "SPES", "v5e:16x16", clients=256),
    Plan(MIXTURE, "FedAvg, AdamW kept", "v5e:16x16", clients=256),
)


def federation(task: Task, plan: Plan, mesh: jax.sharding.Mesh) -> dx.Federation:
    """Two local steps a round; data dealt over the devices where every client takes part."""
    shape, dtype = task.inputs
    count = plan.clients * task.owned
    inputs = np.zeros((count, *shape), dtype)
    labels = np.zeros(count if task.classes is not None else (count, *shape), np.int32)
    data = dx.data.Dataset(inputs, jnp.asarray(labels), classes=task.classes)
    owned = np.arange(count).reshape(plan.clients, task.owned)
    rule = None if plan.cohort is None else dx.participation.uniform(plan.cohort)
    whole = dx.Federation(
        data,
        dx.data.from_indices(list(owned)),
        local_steps=2,
        batch_size=task.batch,
        participation=rule,
    )
    return whole if plan.cohort is not None else dx.data.deal(whole, mesh)


def measured(plan: Plan) -> dict[str, Any]:
    """What a plan costs, or why it does not fit."""
    mesh = dx.mesh.planned(plan.machine, model=plan.model)
    task = TASKS[plan.task]()
    algorithm = METHODS[plan.method](task, plan)
    state = jax.eval_shape(algorithm.init, KEY, task.params)
    began = time.perf_counter()
    told: dict[str, Any] = {"compile_seconds": None, "refused": None}
    try:
        cost = profile.round(algorithm, state, federation(task, plan, mesh), mesh=mesh)
    except profile.TooLargeError as error:
        told |= {"refused": str(error), "peak": error.needed, "usable": error.available}
        return told | {"compile_seconds": time.perf_counter() - began}
    assert cost.memory is not None  # of a machine by name
    return told | {
        "peak": cost.peak_bytes,
        "usable": cost.memory.usable,
        "arguments": cost.argument_bytes,
        "sent": cost.sent_bytes,
        "least": cost.least_sent_bytes,
        "layers": cost.sent_within_models,
        "flops": cost.flops,
        "compile_seconds": cost.compile_seconds,
        "estimated_seconds": cost.estimated_seconds,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        "| model | method | machine | clients a round of all | fits | memory a device "
        "| sent a device, least | arithmetic a device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for plan in PLANS:
        told = found.get(repr(plan))
        if told is None:
            continue
        devices = f"{plan.machine}, {plan.model} to a model" if plan.model > 1 else plan.machine
        members = f"{plan.cohort or plan.clients:,} of {plan.clients:,}"
        peak = None if told["peak"] is None else told["peak"] / 2**30
        needed = "more" if peak is None else f"{peak:,.0f}" if peak > 100 else f"{peak:.3g}"
        memory = f"{needed} of {told['usable'] / 2**30:.4g} GiB"
        fits, sent, arithmetic = "no", "", ""
        if told["refused"] is None:
            fits = "yes"
            between = told["sent"] - told["layers"]
            sent = f"{between / 2**20:.4g}, {told['least'] / 2**20:.4g} MiB"
            sent += f"; {told['layers'] / 2**20:.4g} for layers" if told["layers"] else ""
            count = int(np.prod(dx.mesh.planned(plan.machine).devices.shape))
            work = told["flops"] / count / 1e12
            arithmetic = f"{work:,.0f} TFLOP" if work > 100 else f"{work:.3g} TFLOP"
        cells = (plan.task, plan.method, devices, members, fits, memory, sent, arithmetic)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Every plan whose task or machine is named, or all; then the table."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for plan in PLANS:
        wanted = not sys.argv[1:] or {plan.task, plan.method, plan.machine} & set(sys.argv[1:])
        if not wanted or repr(plan) in found:
            continue
        print(f"compiling {plan} ...", file=sys.stderr, flush=True)
        found[repr(plan)] = measured(plan)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
