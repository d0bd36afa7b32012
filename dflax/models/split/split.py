"""A model as head, body and tail, of which a client holds the ends and a server the middle."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key, PyTree

from dflax import validation
from dflax.algorithm import Params


class Frozen(NamedTuple):
    """What is never trained.

    Attributes:
      head: weights of the head, on the client.
      body: weights of the body, on the server.
    """

    head: Params
    body: Params


class Trained(NamedTuple):
    """What is trained, and averaged.

    Attributes:
      prompts: `[p, d]` vectors that stand before the tokens; () for none.
      tail: weights of the tail, on the client.
    """

    prompts: PyTree[Array]
    tail: Params


class Split(NamedTuple):
    """A model in three parts: `scores = tail(body(head(inputs; prompts)))`. Pure functions.

    Attributes:
      head: `(weights, prompts, inputs) -> activations`.
      body: `(weights, activations) -> activations`.
      tail: `(weights, activations) -> scores [B, C]`; takes what the head gives, too.
      divide: `(params, key) -> (Frozen, Trained)`: a model's weights in parts, and the first prompts.
    """

    head: Callable[[Params, PyTree[Array], PyTree[Array]], PyTree[Array]]
    body: Callable[[Params, PyTree[Array]], PyTree[Array]]
    tail: Callable[[Params, PyTree[Array]], Array]
    divide: Callable[[Params, Key[Array, ""]], tuple[Frozen, Trained]]

    def apply(self, params: tuple[Frozen, Trained], inputs: PyTree[Array]) -> Array:
        """Scores of the whole model: what is evaluated."""
        frozen, trained = params
        sent = self.head(frozen.head, trained.prompts, inputs)
        return self.tail(trained.tail, self.body(frozen.body, sent))

    def shortcut(self, params: tuple[Frozen, Trained], inputs: PyTree[Array]) -> Array:
        """Scores without the body, the tail fed by the head: what a client can compute alone."""
        frozen, trained = params
        return self.tail(trained.tail, self.head(frozen.head, trained.prompts, inputs))


class Exchange(NamedTuple):
    """What one minibatch sends over the two cuts.

    Attributes:
      activations_up: of the head, to the server.
      activations_down: of the body, to the client.
      gradients_up: of the loss by the body's activations, to the server; None if no prompts ask for it.
      gradients_down: by the head's activations, to the client; None likewise.
    """

    activations_up: PyTree[Array]
    activations_down: PyTree[Array]
    gradients_up: PyTree[Array] | None
    gradients_down: PyTree[Array] | None


def split_gradient(
    split: Split,
    loss: Callable[[Params, Any], tuple[Array, Any]],
    params: tuple[Frozen, Trained],
    inputs: PyTree[Array],
) -> tuple[Trained, Any, Exchange]:
    """The gradient by prompts and tail as client and server find it, each from its own part alone.

        client:  a1 = head(inputs; prompts)                                    a1 up
        server:  a2 = body(a1)                                                 a2 down
        client:  loss(tail, a2), its gradients by the tail and by a2: g2       g2 up
        server:  g1 = (d a2 / d a1)^T g2                                       g1 down
        client:  the gradient by the prompts, (d a1 / d prompts)^T g1

    It equals the gradient of the composite. Without prompts nobody asks for g2 and g1.

    Args:
      split: the model.
      loss: `(tail weights, a2) -> (scalar, aux)`.
      params: weights of all parts.
      inputs: `[B, ...]`.

    Returns:
      The gradient, what the loss gives beside its value, and what was sent.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("split", split, Split, "Make one with dflax.models.split_transformer.")
    validation.function("loss", loss, "(tail weights, activations) -> (loss, metrics).", takes=2)
    frozen, trained = parts_of(params)
    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    if not jax.tree.leaves(trained.prompts):
        up = split.head(frozen.head, trained.prompts, inputs)
        down = split.body(frozen.body, up)
        (_, aux), (tail, _) = differentiate(trained.tail, down)
        return Trained(trained.prompts, tail), aux, Exchange(up, down, None, None)
    up, to_prompts = jax.vjp(lambda p: split.head(frozen.head, p, inputs), trained.prompts)
    down, to_head = jax.vjp(lambda a: split.body(frozen.body, a), up)
    (_, aux), (tail, back_up) = differentiate(trained.tail, down)
    (back_down,) = to_head(back_up)
    (prompts,) = to_prompts(back_down)
    return Trained(prompts, tail), aux, Exchange(up, down, back_up, back_down)


def parts_of(params: Any) -> tuple[Frozen, Trained]:
    """Weights as (Frozen, Trained), refused where they are not."""
    pair = isinstance(params, tuple) and len(params) == 2
    if not (pair and isinstance(params[0], Frozen) and isinstance(params[1], Trained)):
        raise TypeError(
            "params must be a pair (Frozen, Trained), got "
            f"{validation.shown(params)}. Make it with split.divide(params, key)."
        )
    return params[0], params[1]
