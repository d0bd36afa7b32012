"""Federated averaging by DrJAX's MapReduce: broadcast, local descent under map_fn, reduce_mean."""

import logging
from collections.abc import Callable
from typing import Any

import drjax
import jax
import jax.numpy as jnp

from benchmarks.peers.timing import milliseconds
from benchmarks.tasks import Task

# DrJAX shards the clients over a mesh; where the processor is all there is, over two devices on it.
DEVICES = 2


def perceptron(params: list, inputs: jax.Array) -> jax.Array:
    """Logits of the linear model, or of the perceptron that more than one layer makes."""
    *hidden, (weight, bias) = params
    for inner, shift in hidden:
        inputs = jax.nn.relu(inputs @ inner + shift)
    return inputs @ weight + bias


def cnn(params: list, inputs: jax.Array) -> jax.Array:
    """Logits of two convolutions of 3 x 3, each pooled by 2 x 2, and a perceptron behind them.

    Convolutions are products with patches: of many clients at once, XLA runs them many times faster
    than `lax.conv`, which becomes one of as many groups.
    """
    images = inputs.reshape(-1, 28, 28, 1)
    for kernel, bias in params[:2]:
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = jnp.concatenate(shifted, axis=-1)
        images = jax.nn.relu(patches @ kernel.reshape(-1, kernel.shape[-1]) + bias)
        images = images.reshape(-1, height // 2, 2, width // 2, 2, kernel.shape[-1]).max((2, 4))
    return perceptron(params[2:], images.reshape(images.shape[0], -1))


NETWORKS: dict[str, tuple[Callable, Callable]] = {
    "perceptron": (Task.layers, perceptron),
    "cnn": (Task.convolutional, cnn),
}


def loss(network: str, params: list, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    logs = jax.nn.log_softmax(NETWORKS[network][1](params, inputs))
    return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()


def rollout(work: Task, network: str, rounds: int) -> Callable[..., list]:
    """From parameters, examples and a key to the parameters after some rounds, one program."""

    @drjax.program(clients=work.cohort)
    def averaged(params: list, minibatches: tuple) -> list:
        def local(params: list, minibatches: tuple) -> list:
            def step(params: list, minibatch: tuple) -> tuple[list, None]:
                gradients = jax.grad(loss, argnums=1)(network, params, *minibatch)
                return jax.tree.map(lambda p, g: p - work.rate * g, params, gradients), None

            return jax.lax.scan(step, params, minibatches, unroll=work.steps)[0]

        return drjax.reduce_mean(drjax.map_fn(local, (drjax.broadcast(params), minibatches)))

    taken = work.steps * work.batch
    # Who owns fewer examples than a round takes goes over them again.
    passes = -(-taken // work.owned)

    def one(params: list, key: jax.Array, examples: Any) -> tuple[list, None]:
        ours, theirs = jax.random.split(key)
        cohort = jnp.arange(work.clients)
        if work.cohort < work.clients:
            cohort = jnp.argsort(jax.random.bits(ours, (work.clients,)))[: work.cohort]
        order = jnp.argsort(jax.random.bits(theirs, (work.cohort, passes, work.owned)))
        rows = order.reshape(work.cohort, -1)[:, :taken] + work.owned * cohort[:, None]
        rows = rows.reshape(work.cohort, work.steps, work.batch)
        return averaged(params, jax.tree.map(lambda x: x[rows], examples)), None

    def run(params: list, examples: Any, key: jax.Array) -> list:
        keys = jax.random.split(key, rounds)
        return jax.lax.scan(lambda params, key: one(params, key, examples), params, keys)[0]

    return jax.jit(run)


def begun(work: Task, network: str) -> tuple[list, tuple[jax.Array, jax.Array]]:
    """The parameters at the start, and all examples."""
    inputs, labels = work.examples()
    return (
        jax.tree.map(jnp.asarray, NETWORKS[network][0](work)),
        (jnp.asarray(inputs), jnp.asarray(labels)),
    )


def measure(task: list, network: str, rounds: int) -> dict[str, Any]:
    """Milliseconds per round by the faster mesh, and losses of the task without chance."""
    work = Task(*task)
    # That there is no mesh is told at every call.
    logging.getLogger("absl").setLevel(logging.ERROR)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    found = losses(work.whole(), network)
    modes = {f"mesh of {n}": _ms(work, network, rounds, n) for n in (1, DEVICES)}
    mode = min(modes, key=modes.__getitem__)
    return {"ms": modes[mode], "losses": found, "mode": mode, "modes": modes}


def _ms(work: Task, network: str, rounds: int, devices: int) -> float:
    """Milliseconds per round on a mesh."""
    kind = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((devices,), ("clients",), (kind,), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        given = jax.device_put((*begun(work, network), jax.random.key(0)), everywhere)
        run = rollout(work, network, rounds)
        return milliseconds(lambda: jax.block_until_ready(run(*given)), repeats=3, units=rounds)


def losses(work: Task, network: str) -> list[float]:
    """The mean loss of all examples after each of three rounds."""
    params, examples = begun(work, network)
    run = rollout(work, network, 1)
    found = []
    for _ in range(3):
        params = run(params, examples, jax.random.key(0))
        found.append(float(loss(network, params, *examples)))
    return found
