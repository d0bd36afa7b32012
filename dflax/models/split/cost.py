"""What a split model sends and computes, counted from shapes and traced programs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.split.split import Frozen, Split, Trained
from dflax.programs import walk

# A pass that trains costs three forward ones: forward, and two products backward for each.
TRAINED_PASS = 3


class SplitCost(NamedTuple):
    """Counts of a split model; Python integers, exact at any size.

    Attributes:
      activations_up: numbers that one example sends over the first cut.
      activations_down: over the second.
      gradients_up: numbers that come back for it over the second cut; 0 without prompts.
      gradients_down: over the first; 0 without prompts.
      trained: parameters of prompts and tail.
      head: parameters of the head, which a client gets once.
      body: parameters of the body.
      head_products: multiplications that are added up in one example's way through the head.
      body_products: through the body.
      tail_products: through the tail.
    """

    activations_up: int
    activations_down: int
    gradients_up: int
    gradients_down: int
    trained: int
    head: int
    body: int
    head_products: int
    body_products: int
    tail_products: int

    def numbers(self, examples: int, clients: int = 1) -> int:
        """Numbers sent in a round: `examples` once over both cuts, prompts and tail down and up."""
        crossing = self.activations_up + self.activations_down
        crossing += self.gradients_up + self.gradients_down
        return crossing * examples + 2 * self.trained * clients

    def client_products(self, trained: int, scored: int = 0) -> int:
        """Products on clients: a pass that trains counts as three, one that scores as one."""
        return (TRAINED_PASS * trained + scored) * (self.head_products + self.tail_products)


def split_cost(split: Split, params: Params, inputs: PyTree[Array]) -> SplitCost:
    """The counts of a split model, from shapes alone: nothing is computed.

    Args:
      split: the model.
      params: what `split.divide` takes, or its shapes (`jax.eval_shape(model.init, ...)["params"]`).
      inputs: one example `[1, ...]`, or its shape.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("split", split, Split, "Make one with dflax.models.split_transformer.")
    validation.leading_axis("inputs", inputs, 1)
    if not jax.tree.leaves(params) or not all(hasattr(x, "shape") for x in jax.tree.leaves(params)):
        raise TypeError(
            f"params must be a tree of arrays or shapes, got {validation.shown(params)}. Pass what "
            "split.divide takes."
        )
    frozen, trained = _divided(split, params)
    up = jax.eval_shape(split.head, frozen.head, trained.prompts, inputs)
    down = jax.eval_shape(split.body, frozen.body, up)
    prompted = bool(jax.tree.leaves(trained.prompts))
    return SplitCost(
        activations_up=_size(up),
        activations_down=_size(down),
        gradients_up=_size(down) if prompted else 0,
        gradients_down=_size(up) if prompted else 0,
        trained=_size(trained),
        head=_size(frozen.head),
        body=_size(frozen.body),
        head_products=products(split.head, frozen.head, trained.prompts, inputs),
        body_products=products(split.body, frozen.body, up),
        tail_products=products(split.tail, trained.tail, down),
    )


def products(function: Callable[..., Any], *arguments: PyTree[Array]) -> int:
    """Multiplications that a function adds up in matrix products and convolutions, when it is traced.

    A product of `[m, k]` and `[k, n]` counts m k n. Both branches of a conditional count.
    """

    def visit(operation: walk.Operation, inside: list[int]) -> int:
        times = [part.times for part in walk.inner(operation)]
        nested = sum(t * value for t, value in zip(times, inside, strict=True))
        return nested + _own_products(operation)

    return walk.fold(jax.make_jaxpr(function)(*arguments), visit, sum)


def _own_products(operation: walk.Operation) -> int:
    name = operation.primitive.name
    if name not in ("dot_general", "conv_general_dilated"):
        return 0
    first, second = walk.operands(operation)
    (result,) = walk.results(operation)
    numbers = operation.params["dimension_numbers"]
    if name == "dot_general":
        (contracted, _), _ = numbers
        return math.prod(result.shape) * math.prod(first.shape[axis] for axis in contracted)
    outputs = second.shape[numbers.rhs_spec[0]]
    return math.prod(result.shape) * math.prod(second.shape) // outputs


def _divided(split: Split, params: Params) -> tuple[Frozen, Trained]:
    return jax.eval_shape(lambda params: split.divide(params, jax.random.key(0)), params)


def _size(tree: PyTree[Array]) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
