"""How a client sees its objective: gradients of a minibatch, and wrappers that change them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import require_structure
from dflax.data.dataset import Batch

# What can be averaged.
NUMBERS = (jnp.floating, jnp.integer, jnp.bool_)
Loss = Callable[[Params, Batch, Key[Array, ""] | None], tuple[Float[Array, ""], Metrics]]
"""`(params, batch, key) -> (loss, metrics)`: the mean over a minibatch; no key means evaluation."""


class Oracle(NamedTuple):
    """How a client sees its objective: the gradient of a minibatch, or what stands for it.

    An oracle with `conclude` remembers: it carries something from one local step to the next.

    Attributes:
      evaluate: `(params, batch, key) -> (gradient, metrics)`. The gradient has the structure of
        `params`; metrics are a dict of arrays, empty where nothing is measured. Of an oracle that
        remembers `(params, batch, key, memory) -> (seen, metrics, noted)`: everything that reads
        examples. Clients that rest skip it.
      objective: the loss of which `evaluate` gives the gradient, for optimisers that ask for values
        (`optax.polyak_sgd`, `optax.lbfgs`); None where there is none.
      conclude: `(seen, noted, params, memory) -> (gradient, memory)`, entry by entry, the memory a
        tree of the same structure in and out. Sums belong here, where they are written over the
        memory in place. None: nothing is remembered.
      lasting: whether the memory is read after the last step, so that it must stand still while a
        client rests.
    """

    evaluate: Callable[..., tuple[Any, ...]]
    objective: Loss | None = None
    conclude: Callable[[Any, Any, Params, Any], tuple[Params, Any]] | None = None
    lasting: bool = True

    def __call__(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        """The gradient at `params` on a minibatch, and what was measured on the way."""
        seen, metrics = _pair("an oracle", "(gradient, metrics)", self.evaluate(params, batch, key))
        return seen, metrics

    def look(
        self, params: Params, batch: Batch, key: Key[Array, ""], memory: Any
    ) -> tuple[Any, Metrics, Any]:
        """What the client sees, measures and notes, whether it remembers anything or not."""
        if self.conclude is not None:
            return self.evaluate(params, batch, key, memory)
        seen, metrics = _pair("an oracle", "(gradient, metrics)", self.evaluate(params, batch, key))
        _require_like(seen, params)
        return seen, _arrays("an oracle", metrics), ()

    def end(self, seen: Any, noted: Any, params: Params, memory: Any) -> tuple[Params, Any]:
        """The gradient and the memory that follow from what was seen and noted."""
        return (
            (seen, memory) if self.conclude is None else self.conclude(seen, noted, params, memory)
        )


def gradient(loss: Loss | Oracle) -> Oracle:
    """The plain oracle of a loss: `jax.value_and_grad`. One without memory is handed back as it is.

    Args:
      loss: `(params, batch, key) -> (scalar, metrics)`, metrics a dict of arrays; {} for none.

    Raises:
      TypeError: `loss` cannot be called, is a model rather than a loss, or an oracle that remembers;
        and, when the oracle is traced, a loss that returns something else.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> loss = lambda params, batch, key: (0.5 * params @ params, {"first": params[0]})
      >>> oracle = dx.local.gradient(loss)
      >>> seen, metrics = oracle(jnp.array([3.0, 4.0]), None, jax.random.key(0))
      >>> seen.tolist(), float(metrics["first"])
      ([3.0, 4.0], 3.0)
    """
    if isinstance(loss, Oracle):
        if loss.conclude is not None:
            raise TypeError(
                "loss must be a loss or an Oracle without memory, got one that remembers (it has "
                "conclude). Give that to dflax.local.solver, and wrap what it is made of."
            )
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

    def objective(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        value, metrics = _pair("loss", "(loss, metrics)", loss(params, batch, key))
        shape, dtype = jnp.shape(value), jnp.result_type(value)
        if shape or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "loss must return (loss, metrics) with one real number for the loss, got "
                f"{dtype} of shape {shape}. Take the mean over the minibatch."
            )
        return value, _arrays("loss", metrics)

    differentiate = jax.value_and_grad(objective, has_aux=True)

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        (_, metrics), gradients = differentiate(params, batch, key)
        return gradients, metrics

    return Oracle(evaluate, objective)


def _pair(name: str, wanted: str, made: Any) -> tuple[Any, Any]:
    if not isinstance(made, tuple) or len(made) != 2:
        given = "one array" if hasattr(made, "dtype") else type(made).__name__
        given = f"a tuple of {len(made)}" if isinstance(made, tuple) else given
        raise TypeError(
            f"{name} must return {wanted}, got {given}. Where nothing is measured, metrics are an "
            "empty dict: {}."
        )
    return made


def _require_like(seen: Params, params: Params) -> None:
    require_structure("the gradient of an oracle", seen, params)
    for (path, given), leaf in zip(
        jax.tree_util.tree_leaves_with_path(seen), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(given) != jnp.shape(leaf):
            raise ValueError(
                f"the gradient of an oracle must have shape {jnp.shape(leaf)}, that of params"
                f"{jax.tree_util.keystr(path)}, got {jnp.shape(given)}."
            )


def _arrays(name: str, metrics: Any) -> Metrics:
    """Metrics as a dict of arrays; the message names what is none."""
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{name} must return a dict of arrays for its metrics, got {type(metrics).__name__}. Where "
            "nothing is measured return an empty one: {}."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(metrics):
        known = isinstance(leaf, (bool, int, float)) or hasattr(leaf, "dtype")
        dtype = jnp.result_type(leaf) if known else None
        if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in NUMBERS):
            raise TypeError(
                f"{name} must return arrays of numbers for its metrics, got "
                f"metrics{jax.tree_util.keystr(path)} of type {type(leaf).__name__}."
            )
    return jax.tree.map(jnp.asarray, dict(metrics))
