"""How a client sees its objective: gradients of a minibatch, and wrappers that change them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch

Loss = Callable[[Params, Batch, Key[Array, ""] | None], tuple[Float[Array, ""], Metrics]]


class Oracle(NamedTuple):
    """A first-order oracle of one client's objective.

    Attributes:
      evaluate: `(params, batch, key) -> (gradient, metrics)`. The gradient has the structure of
        `params`; metrics are a dict of arrays.
    """

    evaluate: Callable[[Params, Batch, Key[Array, ""]], tuple[Params, Metrics]]

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        """The gradient at `params` on a minibatch, and what was measured on the way."""
        return self.evaluate(params, batch, key)


def _as_it_is(seen: Params, noted: Any, params: Params, memory: Any) -> tuple[Params, Any]:
    return seen, noted


class Remembering(NamedTuple):
    """An oracle that carries something from one local step to the next; the solver takes it as well.

    Attributes:
      evaluate: `(params, batch, key, memory) -> (seen, metrics, noted)`: everything that reads
        examples. Clients that rest skip it.
      conclude: `(seen, noted, params, memory) -> (gradient, memory)`, entry by entry, the memory a
        tree of the same structure in and out. Default: what is seen and noted is the gradient and the
        memory. Sums belong here, where they are written over the memory in place.
      lasting: whether the memory is read after the last step, so that it must stand still while a
        client rests.
    """

    evaluate: Callable[[Params, Batch, Key[Array, ""], Any], tuple[Any, Metrics, Any]]
    conclude: Callable[[Any, Any, Params, Any], tuple[Params, Any]] = _as_it_is
    lasting: bool = True


def remembering(loss: Loss | Oracle | Remembering) -> Remembering:
    """Any oracle as one that remembers; what remembers nothing hands its memory on."""
    if isinstance(loss, Remembering):
        return loss
    oracle = gradient(loss)

    def evaluate(
        params: Params, batch: Batch, key: Key[Array, ""], memory: Any
    ) -> tuple[Params, Metrics, tuple[()]]:
        return *oracle(params, batch, key), ()

    def conclude(seen: Params, noted: tuple[()], params: Params, memory: Any) -> tuple[Params, Any]:
        return seen, memory

    return Remembering(evaluate, conclude, lasting=False)


def gradient(loss: Loss | Oracle) -> Oracle:
    """The plain oracle of a loss: `jax.value_and_grad`. An oracle is handed back as it is.

    Args:
      loss: `(params, batch, key) -> (scalar, metrics)`.

    Raises:
      TypeError: `loss` cannot be called, or is a model rather than a loss.
    """
    if isinstance(loss, Oracle):
        return loss
    if isinstance(loss, nn.Module):
        raise TypeError(
            "loss must be a function (params, batch, key) -> (loss, metrics), got the linen module "
            f"{type(loss).__name__}. Wrap it, for example dflax.losses.classification(model)."
        )
    validation.function(
        "loss",
        loss,
        "Make one with dflax.losses, or write (params, batch, key) -> (loss, metrics).",
    )
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        (_, metrics), gradients = differentiate(params, batch, key)
        return gradients, metrics

    return Oracle(evaluate)
