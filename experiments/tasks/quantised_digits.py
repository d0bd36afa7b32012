"""Digits by an MLP and by a mixture of experts, trained here and quantised without training."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import dflax as dx
from dflax.inference import supernode as sn
from dflax.models.moe.routing import Routing, route

WIDTH, EXPERTS, ACTIVE, HIDDEN, CLASSES = 200, 8, 2, 100, 10
OUTLIERS = 0.01
# By what 1 % of the hidden units are enlarged.
FACTORS = {"": 1.0, ", outliers x30": 30.0, ", outliers x300": 300.0}
SEEN = 512
# How weights are made from what the networks see.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"smooth": 0.5},
    "smoothed, searched": {"smooth": 0.5, "search": True},
    "smoothed, searched, compensated": {"smooth": 0.5, "search": True, "compensate": True},
}
MLP = dx.models.MLP((WIDTH, WIDTH), CLASSES)


class Mixture(nn.Module):
    """Pixels to 32 numbers, a mixture of experts beside them, and classes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Scores of the classes."""
        x = nn.Dense(32, name="enter")(x)
        layer = dx.models.MoE(EXPERTS, ACTIVE, hidden=HIDDEN, normalised=True, name="experts")
        return nn.Dense(CLASSES, name="leave")(x + layer(x))


class Digits(NamedTuple):
    """One seed's split, a leading axis of seeds in front.

    Attributes:
      known: `[1437, 64]` inputs to learn from.
      known_labels: `[1437]`.
      inputs: `[360, 64]` inputs of the test.
      labels: `[360]`.
    """

    known: Any
    known_labels: Any
    inputs: Any
    labels: Any


def digits(seeds: range) -> Digits:
    """The splits of several seeds."""
    parts = [dx.data.digits(seed=seed) for seed in seeds]

    def of(name: str) -> tuple[Any, Any]:
        sets = [getattr(part, name) for part in parts]
        rows = [d.fetch(jnp.arange(len(d))).inputs.reshape(len(d), -1) for d in sets]
        return jnp.stack(rows), jnp.stack([jnp.asarray(d.labels, jnp.int32) for d in sets])

    return Digits(*of("train"), *of("test"))


def trained(model: Any, split: Digits, key: Any, epochs: int) -> Any:
    """Weights after Adam, 32 examples at a time; of a mixture with a loss that keeps loads even."""
    adam, start = optax.adam(2e-3), model.init(key, split.known[:1])["params"]
    count = split.known.shape[0] // 32

    def loss(params: Any, rows: Any) -> Any:
        found, sown = model.apply({"params": params}, split.known[rows], mutable=["routing"])
        wrong = optax.softmax_cross_entropy_with_integer_labels(found, split.known_labels[rows])
        even = [dx.models.balance_loss(each) for each in _loads(sown)]
        return wrong.mean() + 0.01 * sum(even, jnp.zeros(()))

    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params, rows), state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: Any, own: Any) -> tuple[Any, None]:
        order = jax.random.permutation(own, split.known.shape[0])[: 32 * count]
        return jax.lax.scan(step, carry, order.reshape(count, 32))

    keys = jax.random.split(jax.random.fold_in(key, 1), epochs)
    return jax.lax.scan(epoch, (start, adam.init(start)), keys)[0][0]


def _loads(sown: Any) -> list[Any]:
    is_load = lambda leaf: isinstance(leaf, dx.models.Load)  # noqa: E731
    return [leaf for leaf in jax.tree.leaves(sown, is_leaf=is_load) if is_load(leaf)]


def with_outliers(kernel: Any, bias: Any, reads: Any, key: Any, by: Any) -> tuple[Any, Any, Any]:
    """The same function with 1 % of the hidden units `by` times as large, and read at as little."""
    units = kernel.shape[-1]
    large = jax.random.permutation(key, units) < max(round(OUTLIERS * units), 1)
    factor = jnp.where(large, by, 1.0)
    return kernel * factor, bias * factor, reads / factor[:, None]


def mlp_scores(params: Any, split: Digits, key: Any, by: Any) -> dict[str, Any]:
    """Scores of the MLP on the test set: in float32, and in INT8 each way."""
    layers = [(params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]) for i in range(3)]
    for i in range(2):
        own = jax.random.fold_in(key, i)
        kernel, bias, reads = with_outliers(*layers[i], layers[i + 1][0], own, by)
        layers[i : i + 2] = [(kernel, bias), (reads, layers[i + 1][1])]
    found = {"float32": _through([_exact(*layer) for layer in layers], split.inputs)}
    for name, way in WAYS.items():
        seen, made = split.known[:SEEN], []
        for kernel, bias in layers:
            made.append(
                functools.partial(sn.int8_apply, sn.int8_linear(kernel, seen, bias=bias, **way))
            )
            seen = jax.nn.relu(seen @ kernel + bias)
        found[name] = _through(made, split.inputs)
    return found


def _exact(kernel: Any, bias: Any) -> Any:
    return lambda x: x @ kernel + bias


def _through(layers: list[Any], x: Any) -> Any:
    for layer in layers[:-1]:
        x = jax.nn.relu(layer(x))
    return layers[-1](x)


def mixture_scores(params: Any, split: Digits, key: Any, by: Any) -> dict[str, Any]:
    """Scores of the mixture on the test set; routing stays in float32."""
    enter, leave, moe = (params[name] for name in ("enter", "leave", "experts"))
    gate, up, down = (moe[name] for name in ("gate", "up", "down"))
    keys, nothing = jax.random.split(key, EXPERTS), jnp.zeros((EXPERTS, HIDDEN))
    changed = jax.vmap(with_outliers, (0, 0, 0, 0, None))(up, nothing, down, keys, by)
    up, down = changed[0], changed[2]
    model = Mixture()
    same = params | {"experts": moe | {"up": up, "down": down}}
    found = {"float32": model.apply({"params": same}, split.inputs)}
    seen = split.known[:SEEN]
    for name, way in WAYS.items():
        first = sn.int8_linear(enter["kernel"], seen, bias=enter["bias"], **way)
        tokens = seen @ enter["kernel"] + enter["bias"]
        experts = sn.int8_experts((gate, up, down), tokens, **way)
        exact = dx.models.MoE(EXPERTS, ACTIVE, hidden=HIDDEN, normalised=True)
        after = tokens + exact.apply({"params": same["experts"]}, tokens)
        last = sn.int8_linear(leave["kernel"], after, bias=leave["bias"], **way)
        x = sn.int8_apply(first, split.inputs)
        y = x + sn.int8_mixture(experts, x, routed(moe, x))
        found[name] = sn.int8_apply(last, y)
    return found


def routed(moe: Any, x: Any) -> Routing:
    """Where the mixture sends its tokens."""
    return route(x @ moe["router"]["kernel"], ACTIVE, normalised=True)


def measured(seeds: range, epochs: int) -> dict[str, dict[str, np.ndarray]]:
    """By network and outliers, and by way: accuracy, and error of the scores, per seed.

    Under "devices" the mixture of the first seed with its experts on the devices that there are.
    """
    splits = digits(seeds)
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))
    found: dict[str, dict[str, np.ndarray]] = {}
    params: Any = None
    for name, model, scores in (("MLP", MLP, mlp_scores), ("mixture", Mixture(), mixture_scores)):
        params = _fit(model, epochs)(splits, keys)
        run = jax.jit(jax.vmap(scores, (0, 0, 0, None)))
        for words, by in FACTORS.items():
            told = run(params, splits, keys, by)
            exact = told["float32"]
            own = found[f"{name}{words}"] = {}
            for way, value in told.items():
                right = jnp.mean(jnp.argmax(value, -1) == splits.labels, axis=1)
                error = jnp.linalg.norm(value - exact, axis=(1, 2))
                own[way] = np.asarray(right)
                own[f"{way}, error"] = np.asarray(error / jnp.linalg.norm(exact, axis=(1, 2)))
    first = jax.tree.map(lambda leaf: leaf[0], (params, splits))
    return found | {"devices": dealt(*first)}


def _fit(model: Any, epochs: int) -> Any:
    """All seeds by one program, one after the other."""
    return jax.jit(
        lambda splits, keys: jax.lax.map(
            lambda lane: trained(model, lane[0], lane[1], epochs), (splits, keys)
        )
    )


def dealt(params: Any, split: Digits) -> dict[str, np.ndarray]:
    """A trained mixture's experts on the devices that there are, against the dense layer."""
    mesh, moe = dx.client_mesh(), params["experts"]
    ranks = mesh.shape["clients"]
    rows = split.inputs.shape[0] // ranks * ranks
    x = split.inputs[:rows] @ params["enter"]["kernel"] + params["enter"]["bias"]
    routing, matrices = routed(moe, x), tuple(moe[name] for name in ("gate", "up", "down"))
    exact = dx.models.MoE(
        EXPERTS, ACTIVE, hidden=HIDDEN, normalised=True, dispatch=dx.models.Dispatch.DENSE
    )
    wanted: Any = exact.apply({"params": moe}, x)
    found: dict[str, Any] = {"ranks": ranks}

    def right(y: Any) -> Any:
        scores = (x + y) @ params["leave"]["kernel"] + params["leave"]["bias"]
        return jnp.mean(jnp.argmax(scores, -1) == split.labels[:rows])

    found["dense, accuracy"] = right(wanted)
    for name, options in {
        "float32": {"places": rows // ranks},
        "INT8 dispatch": {"places": rows // ranks, "early_int8": True},
        "few places": {"places": max(rows * ACTIVE // EXPERTS // ranks, 1)},
    }.items():
        own: Any = options
        run = jax.jit(lambda x, m, r, own=own: sn.expert_parallel(x, m, r, mesh, **own))
        got = run(x, matrices, routing)
        found |= {
            f"{name}, error": jnp.max(jnp.abs(got.outputs - wanted)) / jnp.max(jnp.abs(wanted)),
            f"{name}, overflow": got.overflow / (rows * ACTIVE),
            f"{name}, accuracy": right(got.outputs),
        }
    return jax.tree.map(np.asarray, found)
