"""Nodes that do not run the model that they are paid for."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import AnyArray


class Fault(NamedTuple):
    """What a node does instead of running the model.

    Attributes:
      alter: `alter(params) -> params`, the weights that it runs; None: the right ones.
      lie: `lie(key, outputs) -> outputs`, what it tells of what it has; None: that.
      colludes: whether all nodes with this fault lie by one key, that of the query.
      copies: whether it tells what another member has revealed before it, where nodes need not commit
        first; `lie` is what it tells otherwise.
    """

    alter: Callable[[Params], Params] | None = None
    lie: Callable[[Key[Array, ""], Array], Array] | None = None
    colludes: bool = False
    copies: bool = False


class Nodes(NamedTuple):
    """Who of n nodes is faulty, and how.

    Attributes:
      kinds: `[n]` int32: 0 for honest nodes, j for those that have the fault number j, from 1.
      faults: by number.
      rate: `[]` or `[n]`, the probability with which a faulty node is so at a query; else it is honest.
    """

    kinds: Int[Array, " n"]
    faults: tuple[Fault, ...]
    rate: Float[Array, "..."]


def nodes(
    kinds: Int[AnyArray, " n"],
    faults: Sequence[Fault] = (),
    *,
    rate: float | Float[Array, "..."] = 1.0,
) -> Nodes:
    """Honest and faulty nodes.

    With `kinds` of ones and a rate f every node is faulty with probability f at each query,
    independently: the number of faulty ones in a committee is binomial. With fixed kinds it is
      hypergeometric.

    Args:
      kinds: `[n]` integers in [0, number of faults]; 0 is honest.
      faults: see `fewer_bits`, `other_weights`, `random_output`, `label_flip`, `copying`, `colluding`.
      rate: in [0, 1], traceable; one number, or one for each node.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    held = validation.sequence("faults", faults, "faults", least=0)
    for place, fault in enumerate(held):
        validation.instance(f"faults[{place}]", fault, Fault, "For example label_flip(1).")
    fix = "0 is honest, j has the fault number j, counted from 1."
    given = validation.array(
        "kinds", kinds, kind="integer", shape=("n",), low=0, high=len(held), fix=fix
    )
    validation.real("rate", rate, low=0.0, high=1.0)
    if np.ndim(rate) and np.shape(rate) != given.shape:
        raise ValueError(
            f"rate must be one number or one for each of the {given.shape[0]} nodes, got shape "
            f"{np.shape(rate)}."
        )
    return Nodes(jnp.asarray(given, jnp.int32), tuple(held), jnp.asarray(rate, jnp.float32))


def fewer_bits(bits: int) -> Fault:
    """Runs weights of so many bits.

    Each array is rounded to `2^(bits - 1) - 1` steps up to its largest entry.
    Nodes with the same bits have the same outputs, as if they colluded.

    Args:
      bits: in [2, 16], with sign.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("bits", bits, low=2, high=16)
    steps = 2 ** (bits - 1) - 1

    def rounded(leaf: Array) -> Array:
        most = jnp.max(jnp.abs(leaf))
        step = jnp.where(most > 0, most / steps, 1.0)
        return (jnp.round(leaf / step) * step).astype(leaf.dtype)

    return Fault(alter=lambda params: jax.tree.map(rounded, params))


def other_weights(params: Params) -> Fault:
    """Runs other weights of the same shapes: old ones, or those of a smaller model, see `zero_padded`.

    Args:
      params: the weights.

    Raises:
      TypeError: naming the argument.
    """
    validation.model("params", params)

    def alter(right: Params) -> Params:
        own: Any = jax.tree.map(jnp.shape, params)
        if own != jax.tree.map(jnp.shape, right):
            raise ValueError(
                "params of other_weights must have the shapes of the model's weights, see zero_padded."
            )
        return jax.tree.map(lambda own, like: jnp.asarray(own, like.dtype), params, right)

    return Fault(alter=alter)


def zero_padded(small: Params, like: Params) -> Params:
    """The weights of a smaller network in the shapes of a larger one: zeros at the end of every axis.

    Of dense layers with ReLU the outputs stay what they were.

    Args:
      small: a tree of arrays.
      like: a tree of the same structure whose arrays are at least as large, or its shapes.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.model("small", small)
    validation.model("like", like)
    wanted: Any = jax.tree.structure(like)
    if jax.tree.structure(small) != wanted:
        raise ValueError("like must have the structure of small: the same layers, by name.")

    def padded(path: Any, own: Array, wide: Array) -> Array:
        pairs = list(zip(own.shape, wide.shape, strict=False))
        if own.ndim != len(wide.shape) or any(a > b for a, b in pairs):
            raise ValueError(
                f"like{jax.tree_util.keystr(path)} must be at least as large as small's, {own.shape}, "
                f"got {wide.shape}."
            )
        return jnp.pad(jnp.asarray(own), [(0, b - a) for a, b in pairs])

    return jax.tree_util.tree_map_with_path(padded, small, like)


def random_output(deviation: float | Float[Array, ""] = 1.0) -> Fault:
    """Tells normal noise, without running anything.

    Args:
      deviation: of its entries, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("deviation", deviation, low=0.0, low_open=True, scalar=True)

    def lie(key: Array, outputs: Array) -> Array:
        return deviation * jax.random.normal(key, outputs.shape, outputs.dtype)

    return Fault(lie=lie)


def label_flip(shift: int | None = None) -> Fault:
    """Runs the model and tells the scores of other classes: those of class c for class c + shift.

    Args:
      shift: classes, not 0 modulo their number, the same for all who flip; None: drawn by each for
        each query.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if shift is not None:
        validation.integer("shift", shift, low=1)

    def lie(key: Array, outputs: Array) -> Array:
        classes = outputs.shape[-1]
        if classes < 2 or (shift is not None and shift % classes == 0):
            raise ValueError(
                f"shift must move the labels of {classes} classes, got {shift}. Use at least two "
                "classes and a shift below their number."
            )
        if shift is not None:
            return jnp.roll(outputs, shift, axis=-1)
        return jnp.roll(outputs, jax.random.randint(key, (), 1, classes), axis=-1)

    return Fault(lie=lie, colludes=shift is not None)


def colluding(fault: Fault) -> Fault:
    """The same, all who have it lie alike: their random choices follow from the query alone.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("fault", fault, Fault, "For example random_output().")
    return fault._replace(colludes=True)


def copying(otherwise: Fault | None = None) -> Fault:
    """Runs nothing and tells what the first honest-working member revealed, if it can read it in time.

    Where nodes commit to a hash of their answer before any is revealed, it cannot.

    Args:
      otherwise: what it does where it cannot copy; default `random_output()`.

    Raises:
      TypeError: naming the argument.
    """
    if otherwise is not None:
        validation.instance("otherwise", otherwise, Fault, "For example random_output().")
    return (random_output() if otherwise is None else otherwise)._replace(copies=True)


def variants(params: Params, faults: tuple[Fault, ...]) -> tuple[PyTree[Array], tuple[int, ...]]:
    """All weights that anybody runs, stacked, the right ones first, and which of them each kind runs."""
    trees, place = [params], [0]
    for fault in faults:
        if fault.alter is None:
            place.append(0)
            continue
        place.append(len(trees))
        trees.append(fault.alter(params))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees), tuple(place)


def told(
    faults: tuple[Fault, ...],
    kinds: Int[Array, " k"],
    keys: Key[Array, " k"],
    query_key: Key[Array, ""],
    outputs: Float[Array, "k ..."],
) -> Float[Array, "k ..."]:
    """What members tell; `kinds` is 0 for those that are honest at this query."""
    for number, fault in enumerate(faults, start=1):
        if fault.lie is None:
            continue
        if fault.colludes:
            own = jax.random.fold_in(query_key, number)
            lies = jax.vmap(lambda one, lie=fault.lie, own=own: lie(own, one))(outputs)
        else:
            lies = jax.vmap(fault.lie)(keys, outputs)
        has = (kinds == number).reshape(-1, *(1,) * (outputs.ndim - 1))
        outputs = jnp.where(has, lies, outputs)
    return outputs


def copied(
    faults: tuple[Fault, ...],
    kinds: Int[Array, " k"],
    present: Array,
    outputs: Float[Array, "k ..."],
) -> Float[Array, "k ..."]:
    """What members tell where they need not commit first: copiers repeat the first who is none."""
    copies = jnp.asarray([False, *(fault.copies for fault in faults)])[kinds]
    working = present & ~copies
    first = outputs[jnp.argmax(working)]
    rows = (copies & jnp.any(working)).reshape(-1, *(1,) * (outputs.ndim - 1))
    return jnp.where(rows, first, outputs)
