"""Data sets from arrays in memory, and the split into training and test examples."""

import dataclasses
import math
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray, Dataset, Split

LARGEST_INTEGER = 2**31 - 1
# A pytree of inputs has a few leaves; a longer list is one of examples.
MOST_LEAVES = 64


@overload
def from_arrays(
    inputs: PyTree[AnyArray],
    labels: AnyArray,
    *,
    classes: int | None = ...,
    scale: Float[AnyArray, "..."] | float | None = ...,
    shift: Float[AnyArray, "..."] | float | None = ...,
    name: str = ...,
) -> Dataset: ...


@overload
def from_arrays(
    inputs: PyTree[AnyArray],
    labels: AnyArray,
    *,
    test: tuple[PyTree[AnyArray], AnyArray] | None = ...,
    test_fraction: float | None = ...,
    classes: int | None = ...,
    scale: Float[AnyArray, "..."] | float | None = ...,
    shift: Float[AnyArray, "..."] | float | None = ...,
    name: str = ...,
    seed: int = ...,
) -> Split: ...


def from_arrays(
    inputs: PyTree[AnyArray],
    labels: AnyArray,
    *,
    test: tuple[PyTree[AnyArray], AnyArray] | None = None,
    test_fraction: float | None = None,
    classes: int | None = None,
    scale: Float[AnyArray, "..."] | float | None = None,
    shift: Float[AnyArray, "..."] | float | None = None,
    name: str = "",
    seed: int = 0,
) -> Split | Dataset:
    """A `Split` from arrays of one's own, or a `Dataset` where nothing is held out.

    Inputs keep their storage dtype; without JAX's x64 mode 64-bit ones become 32-bit. A minibatch is
    decoded as `inputs * scale + shift` in float32 (float64 for float64 inputs) if `scale` is given, and
    handed out as stored if not: for uint8 images say `scale=1 / 255`.

    Args:
      inputs: `[N, ...]` array or pytree of arrays.
      labels: `[N, ...]` class numbers (integers or booleans) or targets (floats).
      test: `(inputs, labels)` of the test examples.
      test_fraction: in (0, 1), the share of the examples that is held out, see `split`; instead of
        `test`.
      classes: C; default one more than the largest label if labels are integers `[N]`, else None.
      scale: broadcasts against one decoded input.
      shift: broadcasts against one decoded input; needs `scale`.
      name: for tables and figures.
      seed: of the split by `test_fraction`.

    Returns:
      The `Split` on the device; with neither `test` nor `test_fraction` the `Dataset` of all examples,
      for measures that need no test set of their own (each client's own examples, a training loss).

    Raises:
      ValueError: lengths that differ, NaN or infinite entries, labels outside [0, C), both `test` and
        `test_fraction`.
      TypeError: entries that are no numbers, inputs that are a list of examples.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> images, labels = np.zeros((50, 8, 8, 1), np.uint8), np.arange(50) % 10
      >>> data = dx.data.from_arrays(images, labels, scale=1 / 255, test_fraction=0.2)
      >>> len(data.train), len(data.test), data.classes, data.example.dtype.name
      (40, 10, 10, 'float32')
    """
    if test is not None and test_fraction is not None:
        raise ValueError(
            "give at most one of test and test_fraction, got both. test_fraction=0.2 holds out a fifth."
        )
    verify_decoding(classes, scale, shift, name)
    if test is not None and not (isinstance(test, (tuple, list)) and len(test) == 2):
        raise TypeError(
            f"test must be a pair (inputs, labels), got {type(test).__name__}. To hold out a share "
            "of the examples say test_fraction."
        )
    inputs, labels = _checked("inputs", inputs, "labels", labels)
    for argument, value in (("scale", scale), ("shift", shift)):
        if value is not None:
            _verify_broadcasts(argument, value, inputs)
    if test is not None:
        test = _checked("test[0]", test[0], "test[1]", test[1])
        _same_kind(inputs, labels, *test)
    parts = [labels] if test is None else [labels, test[1]]
    classes = _classes(parts, classes)
    wide = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(inputs))
    kind = jnp.float64 if wide else jnp.float32
    affine = (
        None if scale is None else jnp.asarray(scale, kind),
        None if shift is None else jnp.asarray(shift, kind),
    )
    train = Dataset(
        jax.tree.map(jnp.asarray, inputs), jnp.asarray(labels), *affine, classes=classes, name=name
    )
    if test_fraction is not None:
        return split(train, test_fraction, seed)
    if test is None:
        return train
    held_out = dataclasses.replace(
        train, inputs=jax.tree.map(jnp.asarray, test[0]), labels=jnp.asarray(test[1])
    )
    return Split(train, held_out)


def split(data: Dataset, test_fraction: float, seed: int = 0) -> Split:
    """Hold out ceil(test_fraction N) random examples.

    Where labels are classes the split is stratified: of a class with N_c examples the test set gets
    test_fraction N_c, rounded down or up.

    Args:
      data: N examples.
      test_fraction: in (0, 1).
      seed: of the choice.

    Returns:
      The `Split`; both parts keep the order of `data`.

    Raises:
      ValueError: a fraction out of range, or one that leaves a part empty.
      TypeError: `data` is no `Dataset`.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> data = dx.data.from_arrays(np.zeros((10, 4), np.float32), np.arange(10) % 2)
      >>> train, test = dx.data.split(data, test_fraction=0.2)
      >>> len(train), len(test), train.classes
      (8, 2, 2)
    """
    validation.instance("data", data, Dataset, "Of a Split pass .train; of arrays use from_arrays.")
    validation.probability("test_fraction", test_fraction, low_open=True, high_open=True)
    validation.seed("seed", seed)
    labels = np.asarray(data.labels)
    # The product's last bit must not add an example: 0.1 * 30 is just above 3.
    held_out = math.ceil(test_fraction * len(labels) - 1e-9)
    if not 0 < held_out < len(labels):
        raise ValueError(
            f"test_fraction must leave both parts an example, got {test_fraction} of {len(labels)}: "
            f"{held_out} would be held out."
        )
    strata = labels if data.classes is not None and labels.ndim == 1 else np.zeros(len(labels), int)
    counts = np.bincount(strata)
    quotas = _largest_remainders(counts, held_out)
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), strata))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), bool)
    chosen[order[rank < np.repeat(quotas, counts)]] = True
    return Split(_rows(data, np.flatnonzero(~chosen)), _rows(data, np.flatnonzero(chosen)))


def verify_decoding(classes: Any, scale: Any, shift: Any, name: Any) -> None:
    """Refuse wrong arguments of `from_arrays` that need no data to be seen as wrong."""
    validation.text("name", name)
    if classes is not None:
        validation.integer("classes", classes, low=1)
    if shift is not None and scale is None:
        raise ValueError("shift needs scale, got scale=None. Pass scale=1.0 to shift alone.")
    for argument, value in (("scale", scale), ("shift", shift)):
        if value is not None:
            validation.real(argument, value)


def _verify_broadcasts(name: str, value: AnyArray | float, inputs: PyTree[np.ndarray]) -> None:
    for leaf in jax.tree.leaves(inputs):
        one = leaf.shape[1:]
        try:
            fits = len(np.broadcast_shapes(np.shape(value), one)) == len(one)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must broadcast against one input of shape {one}, got shape "
                f"{np.shape(value)}. Pass a number or one per entry of the last axis."
            )


def _rows(data: Dataset, indices: np.ndarray) -> Dataset:
    return dataclasses.replace(
        data,
        inputs=jax.tree.map(lambda x: x[indices], data.inputs),
        labels=data.labels[indices],
    )


def _largest_remainders(counts: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total`, in proportion to `counts` to within one."""
    exact = counts * (total / counts.sum())
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    short = total - quotas.sum()
    quotas[np.argsort(quotas - exact, kind="stable")[:short]] += 1
    return quotas


def _checked(
    inputs_name: str, inputs: PyTree[AnyArray], labels_name: str, labels: AnyArray
) -> tuple[PyTree[np.ndarray], np.ndarray]:
    """Both as arrays that JAX can hold, after all checks that need no second data set."""
    _verify_arrays(inputs_name, inputs)
    inputs = jax.tree.map(lambda leaf: _numbers(inputs_name, leaf), inputs)
    labels = _numbers(labels_name, labels)
    if labels.dtype == bool:
        labels = labels.astype(np.int32)
    length = validation.leading_axis(labels_name, labels)
    if length == 0:
        raise ValueError(f"{labels_name} must hold at least one example, got none.")
    examples = validation.leading_axis(inputs_name, inputs)
    if examples != length:
        raise ValueError(
            f"{labels_name} must have one row per example of {inputs_name}, {examples}, got {length}."
        )
    if np.issubdtype(labels.dtype, np.integer):
        labels = _class_numbers(labels_name, labels)
    return inputs, labels


def _class_numbers(name: str, labels: np.ndarray) -> np.ndarray:
    """Integers as int32, which they must fit, also where JAX could hold wider ones."""
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if max(-low, high) > LARGEST_INTEGER:
        raise ValueError(
            f"{name} must fit 32-bit integers, got {low} to {high}. Number the values anew, for example "
            "with numpy.unique(..., return_inverse=True)."
        )
    return labels.astype(np.int32)


def _verify_arrays(name: str, inputs: PyTree[AnyArray]) -> None:
    """Refuse a list of examples: as a pytree it would be a leaf for every number in it."""
    if not isinstance(inputs, (list, tuple)):
        return
    leaves = jax.tree.leaves(inputs, is_leaf=lambda node: node is None)
    if any(np.ndim(leaf) == 0 for leaf in leaves[:1]):
        raise TypeError(
            f"{name} must be an array or a pytree of arrays, got a {type(inputs).__name__} of "
            f"{len(inputs)} rows. Make one array of them with numpy.asarray."
        )
    if isinstance(inputs, list) and len(inputs) > MOST_LEAVES:
        raise TypeError(
            f"{name} must be an array or a pytree of a few arrays, got a list of {len(inputs)}. If "
            "each is an example, make one array of them with numpy.stack."
        )


def _numbers(name: str, leaf: AnyArray) -> np.ndarray:
    """A leaf as an array of a dtype that JAX can hold: 64 bits only in its x64 mode."""
    try:
        array = np.asarray(leaf)
    except ValueError as error:
        raise ValueError(
            f"{name} must be an array with rows of equal lengths, got a {type(leaf).__name__} of other "
            f"ones ({error}). Pad them to one length."
        ) from error
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    if array.dtype == np.bool_ or jnp.issubdtype(array.dtype, np.integer):
        wide = not x64 and (array.dtype.itemsize == 8 or array.dtype == np.uint32)
        if wide and array.size and max(-int(array.min()), int(array.max())) > LARGEST_INTEGER:
            raise ValueError(
                f"{name} must fit 32-bit integers, got {array.min()} to {array.max()}. "
                "Number the values anew, for example with numpy.unique(..., return_inverse=True)."
            )
        return array.astype(np.int32) if wide else array
    if jnp.issubdtype(array.dtype, np.floating):
        widest = 8 if x64 else 4
        if array.dtype.itemsize > widest:
            # What overflows is refused below, with a message of its own.
            with np.errstate(over="ignore"):
                array = array.astype(np.float64 if x64 else np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            limit = "" if x64 else " (64-bit numbers become 32-bit)"
            raise ValueError(
                f"{name} must be finite, got {int((~finite).sum())} NaN or infinite entries{limit}. "
                "Drop or fill these examples first."
            )
        return array
    fix = ""
    if array.dtype.kind in "USTO":
        fix = (
            " Number the names: names, numbers = numpy.unique(names, return_inverse=True), and pass the "
            "numbers."
        )
    raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}.{fix}")


def _classes(parts: list[np.ndarray], classes: int | None) -> int | None:
    integers = np.issubdtype(parts[0].dtype, np.integer)
    if classes is not None and not integers:
        raise TypeError(
            f"labels must be integers in [0, {classes}) if classes is given, got dtype "
            f"{parts[0].dtype}."
        )
    if not integers:
        return None
    low, high = min(int(p.min()) for p in parts), max(int(p.max()) for p in parts)
    if classes is None and parts[0].ndim == 1:
        classes = high + 1
    if classes is not None and (low < 0 or high >= classes):
        raise ValueError(f"labels must lie in [0, {max(classes, 1)}), got {low} to {high}.")
    return classes


def _same_kind(
    inputs: PyTree[np.ndarray],
    labels: np.ndarray,
    test_inputs: PyTree[np.ndarray],
    test_labels: np.ndarray,
) -> None:
    def kind(tree: PyTree[np.ndarray]) -> tuple:
        return jax.tree.structure(tree), [(x.shape[1:], x.dtype) for x in jax.tree.leaves(tree)]

    for name, train, test in (
        ("inputs", inputs, test_inputs),
        ("labels", labels, test_labels),
    ):
        if kind(train) != kind(test):
            raise ValueError(
                f"test must have {name} of the same structure, shapes and dtypes as training, got "
                f"{kind(test)} for {kind(train)}."
            )
