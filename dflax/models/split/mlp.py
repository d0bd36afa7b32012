"""A multi-layer perceptron cut behind two of its layers."""

from typing import Any

import jax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.mlp import MLP
from dflax.models.split.split import Frozen, Split, Trained


def split_mlp(model: MLP, cut: tuple[int, int] = (1, 0)) -> Split:
    """An `MLP` as head, body and tail: first and last layers are the client's, the others the server's.

    A layer goes with its relu. With cut = (s, 0) the server has the last layer, and the client gets
    scores; with a tail the server sees neither inputs nor scores. The composite is the model.

    Args:
      model: whose weights `Split.divide` will be given.
      cut: layers of head and tail, both >= 0, together at most the number of layers,
        `len(model.features) + 1`.

    Returns:
      A `Split` without prompts. `divide(params, key)` takes `model.init(...)["params"]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("model", model, MLP, "Its layers are known.")
    depth = len(model.features) + 1
    if not isinstance(cut, (tuple, list)) or len(cut) != 2:
        raise TypeError(
            f"cut must be a pair, layers of head and of tail, got {validation.shown(cut)}. For "
            "example (1, 0)."
        )
    for count in cut:
        validation.integer("cut", count, low=0, high=depth)
    first, last = map(int, cut)
    if first + last > depth:
        raise ValueError(
            f"cut must leave head and tail layers of their own, at most {depth} together, got {cut}."
        )
    names = [f"Dense_{place}" for place in range(depth)]
    held = (names[:first], names[first : depth - last], names[depth - last :])

    def through(params: Params, names: list[str], x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for name in names:
            x = x @ params[name]["kernel"].astype(x.dtype) + params[name]["bias"].astype(x.dtype)
            if name != f"Dense_{depth - 1}":
                x = jax.nn.relu(x)
        return x

    def head(params: Params, prompts: PyTree[Array], inputs: Array) -> Float[Array, "B u"]:
        return through(params, held[0], inputs)

    def body(params: Params, x: Float[Array, "B u"]) -> Float[Array, "B v"]:
        return through(params, held[1], x)

    def tail(params: Params, x: Float[Array, "B v"]) -> Float[Array, "B C"]:
        return through(params, held[2], x)

    def divide(params: Params, key: Key[Array, ""]) -> tuple[Frozen, Trained]:
        validation.model("params", params)
        validation.typed_key("key", key)
        if not isinstance(params, dict) or sorted(params) != sorted(names):
            found = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(
                f"params must be the weights of model, {names}, got {found}. Pass "
                'model.init(key, inputs)["params"].'
            )
        parts: list[Any] = [{name: params[name] for name in part} for part in held]
        return Frozen(parts[0], parts[1]), Trained((), parts[2])

    return Split(head, body, tail, divide)
