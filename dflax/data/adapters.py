"""Data sets of other libraries as a `Dataset`: pandas, Hugging Face datasets, PyTorch.

All of them keep the order of the examples. So the column that says whose an example is makes the
partition: `dflax.data.by_group(frame["user"])`.

No library is imported here: who has one of its data sets has imported it.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from dflax import validation
from dflax.data.arrays import from_arrays, verify_decoding
from dflax.data.dataset import AnyArray, Dataset

if TYPE_CHECKING:
    import datasets
    import pandas
    import torch

# What selects inputs among columns: one of them, several as the entries of a vector, or a dict of these.
Columns = str | Sequence[str] | Mapping[str, str | Sequence[str]]


def from_pandas(
    frame: "pandas.DataFrame",
    inputs: Columns,
    labels: str,
    *,
    classes: int | None = None,
    scale: Float[AnyArray, "..."] | float | None = None,
    shift: Float[AnyArray, "..."] | float | None = None,
    name: str = "",
) -> Dataset:
    """A `Dataset` from the columns of a pandas data frame.

    A list of columns gives inputs `[N, d]` in their order, float32 unless all are integers. A single
    name gives `[N]`, or `[N, ...]` where its cells are arrays or lists of one shape. A dict gives a
    dict of inputs. Nothing is dropped and the order stays, so `by_group(frame["user"])` is the
    partition by users.

    Args:
      frame: N rows, one an example.
      inputs: of each example: a column, a list of columns, or a dict of these.
      labels: the column of class numbers or of targets.
      classes: C; default one more than the largest label if labels are integers.
      scale: as in `from_arrays`.
      shift: as in `from_arrays`.
      name: for tables and figures.

    Returns:
      The `Dataset`, on the device.

    Raises:
      ValueError: a column that is not there, missing values, cells of several shapes.
      TypeError: a column that holds no numbers, something that is no data frame.
    """
    _verify_columns(inputs, labels)
    verify_decoding(classes, scale, shift, name)
    pandas = _library("pandas")
    if not isinstance(frame, _type_of(pandas, "DataFrame")):
        raise TypeError(_another("frame", frame, "pandas.DataFrame", "pandas.read_csv makes one."))
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise ValueError(f"frame must have columns of different names, got {repeated[0]!r} twice.")

    def column(place: str, wanted: Any) -> np.ndarray:
        values = frame[_known(place, wanted, list(frame.columns))]
        missing = int(values.isna().sum())
        if missing:
            raise ValueError(
                f"{place} must have a value in every row, got {missing} missing in column {wanted!r}. "
                "Leave these rows out with frame.dropna(), or fill them with frame.fillna(0)."
            )
        if isinstance(values.dtype, pandas.CategoricalDtype):
            raise TypeError(_no_numbers(place, wanted, "a categorical"))
        return _stacked(place, f"column {wanted!r}", values.to_numpy())

    chosen = _chosen(inputs, column)
    own = column("labels", labels)
    return from_arrays(chosen, own, classes=classes, scale=scale, shift=shift, name=name)


def from_huggingface(
    dataset: "datasets.Dataset",
    inputs: Columns,
    labels: str,
    *,
    classes: int | None = None,
    scale: Float[AnyArray, "..."] | float | None = None,
    shift: Float[AnyArray, "..."] | float | None = None,
    name: str = "",
) -> Dataset:
    """A `Dataset` from the columns of a Hugging Face dataset.

    Images are decoded to `[H, W, C]`, grey ones to `[H, W, 1]`, in uint8: say `scale=1 / 255`. They must
    be of one size. Columns are read one example after another, so what is stored as compressed images
    is never in memory twice. Nothing is dropped and the order stays, so `by_group(dataset["user"])` is
    the partition by users.

    Args:
      dataset: one split with N rows, not a dict of splits and not a stream.
      inputs: of each example: a column, a list of columns (numbers, the entries of a vector), or a
        dict of these.
      labels: the column of class numbers or of targets.
      classes: C; default that of the column's `ClassLabel`, else one more than the largest label if
        labels are integers.
      scale: as in `from_arrays`.
      shift: as in `from_arrays`.
      name: for tables and figures.

    Returns:
      The `Dataset`, on the device.

    Raises:
      ValueError: a column that is not there, missing values, images or lists of several sizes.
      TypeError: a column that holds no numbers, something that is no dataset.
    """
    _verify_columns(inputs, labels)
    verify_decoding(classes, scale, shift, name)
    datasets = _library("datasets")
    if not isinstance(dataset, _type_of(datasets, "Dataset")):
        fix = "Of a DatasetDict pass one split, such as splits['train']."
        if isinstance(dataset, _type_of(datasets, "IterableDataset")):
            fix = "Of a stream take rows: datasets.Dataset.from_list(list(stream.take(1000)))."
        raise TypeError(_another("dataset", dataset, "datasets.Dataset", fix))

    def column(place: str, wanted: Any) -> np.ndarray:
        feature = dataset.features[_known(place, wanted, dataset.column_names)]
        read = dataset.with_format(None).select_columns([wanted])
        cells = (row[wanted] for row in read)
        stacked = _stacked(place, f"column {wanted!r}", cells, len(dataset))
        grey = isinstance(feature, datasets.Image) and stacked.ndim == 3
        return stacked[..., None] if grey else stacked

    chosen = _chosen(inputs, column)
    own = column("labels", labels)
    feature = dataset.features[labels]
    if classes is None and isinstance(feature, datasets.ClassLabel):
        classes = feature.num_classes
    return from_arrays(chosen, own, classes=classes, scale=scale, shift=shift, name=name)


def from_torch(
    dataset: "torch.utils.data.Dataset",
    *,
    channels_first: bool = False,
    classes: int | None = None,
    scale: Float[AnyArray, "..."] | float | None = None,
    shift: Float[AnyArray, "..."] | float | None = None,
    name: str = "",
) -> Dataset:
    """A `Dataset` from a PyTorch dataset of pairs `(inputs, label)`.

    Every example is asked for once, in order, so what `__getitem__` draws at random is drawn once; an
    augmentation belongs into `Dataset.transform`. Of a `torch.utils.data.Subset` those are its own.
    Inputs are tensors, arrays, images, numbers, or dicts or tuples of these.

    Args:
      dataset: with a length, or an iterable one that ends.
      channels_first: inputs `[C, H, W]`, torchvision's order, become `[H, W, C]`, the order that
        `dflax.models` and flax want.
      classes: C; default one more than the largest label if labels are integers.
      scale: as in `from_arrays`.
      shift: as in `from_arrays`.
      name: for tables and figures.

    Returns:
      The `Dataset`, on the device.

    Raises:
      ValueError: no examples, examples of several shapes.
      TypeError: examples that are no pairs, or no numbers; something that is no dataset.
    """
    validation.flag("channels_first", channels_first)
    verify_decoding(classes, scale, shift, name)
    torch = _library("torch.utils.data")
    if not isinstance(dataset, _type_of(torch, "Dataset")):
        fix = "Of a DataLoader pass loader.dataset."
        raise TypeError(_another("dataset", dataset, "torch.utils.data.Dataset", fix))
    length = len(dataset) if hasattr(dataset, "__len__") else None
    examples = dataset if length is None else (dataset[row] for row in range(length))
    pairs = [_pair(row, example) for row, example in enumerate(examples)]
    if not pairs:
        raise ValueError("dataset must hold at least one example, got none.")
    structure: Any = jax.tree.structure(pairs[0][0])
    columns: list[list[Any]] = [[] for _ in range(structure.num_leaves)]
    for row, (own, _) in enumerate(pairs):
        if jax.tree.structure(own) != structure:
            raise ValueError(
                f"dataset must have inputs of one structure, got {structure} in example 0 and "
                f"{jax.tree.structure(own)} in example {row}."
            )
        for into, leaf in zip(columns, jax.tree.leaves(own), strict=True):
            into.append(leaf)
    stacked = [_stacked("dataset", "the inputs", leaves) for leaves in columns]
    if channels_first:
        for leaf in stacked:
            if leaf.ndim != 4:
                raise ValueError(
                    "channels_first needs inputs [C, H, W], got an example of shape "
                    f"{list(leaf.shape[1:])}. Leave it out."
                )
        stacked = [np.ascontiguousarray(np.moveaxis(leaf, 1, -1)) for leaf in stacked]
    chosen = jax.tree.unflatten(structure, stacked)
    own = _stacked("dataset", "the labels", [label for _, label in pairs])
    return from_arrays(chosen, own, classes=classes, scale=scale, shift=shift, name=name)


def _library(module: str) -> Any:
    """A library as far as it was imported by whoever made what is looked at; else None."""
    return sys.modules.get(module)


def _type_of(library: Any, name: str) -> Any:
    """A class of a library; nothing is of it where the library was not imported."""
    return getattr(library, name, ())


def _another(argument: str, value: Any, wanted: str, fix: str) -> str:
    extra = {"pandas": "pandas", "datasets": "huggingface"}.get(wanted.partition(".")[0], "torch")
    return (
        f"{argument} must be a {wanted}, got {type(value).__name__}. {fix} The library comes with "
        f"pip install 'dflax[{extra}]'."
    )


def _verify_columns(inputs: Any, labels: Any) -> None:
    """Refuse what names no columns, before it is looked whether they are there."""
    fix = "Name a column, several, or a dict of these."
    chosen = inputs if isinstance(inputs, Mapping) else {"": inputs}
    if not chosen:
        raise ValueError("inputs must choose at least one column, got an empty dict.")
    for key, wanted in chosen.items():
        place = f"inputs[{key!r}]" if isinstance(inputs, Mapping) else "inputs"
        if not isinstance(wanted, str):
            for one in validation.sequence(place, wanted, "columns", fix=fix):
                validation.text(place, one)
    validation.text("labels", labels)


def _pair(row: int, example: Any) -> tuple[Any, Any]:
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        given = f"{type(example).__name__}"
        if isinstance(example, (tuple, list)):
            given += f" of {len(example)}"
        raise TypeError(
            f"dataset must give pairs (inputs, label), got a {given} in example {row}. Wrap it in a "
            "dataset whose __getitem__ returns such pairs."
        )
    return example[0], example[1]


def _chosen(inputs: Any, column: Callable[[str, str], np.ndarray]) -> PyTree[np.ndarray]:
    """The inputs that columns were chosen for."""

    def read(place: str, wanted: Any) -> np.ndarray:
        if isinstance(wanted, str):
            return column(place, wanted)
        parts = [column(place, one) for one in wanted]
        for one, part in zip(wanted, parts, strict=True):
            if part.ndim != 1:
                raise ValueError(
                    f"{place} must be columns of numbers where there are several, got arrays of shape "
                    f"{list(part.shape[1:])} in {one!r}. Choose it alone, or pass a dict of inputs."
                )
        kind = np.result_type(*parts)
        whole = np.stack(parts, axis=1)
        return whole if np.issubdtype(kind, np.integer) else whole.astype(np.float32)

    if isinstance(inputs, Mapping):
        return {key: read(f"inputs[{key!r}]", wanted) for key, wanted in inputs.items()}
    return read("inputs", inputs)


def _known(place: str, wanted: str, columns: list[Any]) -> str:
    """A column's name, if there is such a column."""
    if wanted not in columns:
        few = f"{columns[:12]}" if len(columns) <= 12 else f"{columns[:12]} and more"
        raise ValueError(f"{place} must be columns that there are, {few}, got {wanted!r}.")
    return wanted


def _stacked(place: str, of: str, cells: Iterable[Any], length: int | None = None) -> np.ndarray:
    """Cells of one shape as one array; refuses what holds no numbers, naming the cell."""
    if isinstance(cells, np.ndarray) and cells.dtype != object:
        if cells.dtype.kind not in "biuf":
            raise TypeError(_no_numbers(place, of.removeprefix("column "), f"{cells.dtype}"))
        return cells
    whole: np.ndarray | None = None
    rows: list[np.ndarray] = []
    for number, cell in enumerate(cells):
        array = _array(place, of, number, cell)
        if whole is None and length is not None:
            # Room for all at once: the cells may be large, and are not kept.
            whole = np.empty((length, *array.shape), array.dtype)
        first = whole[0] if whole is not None else (rows[0] if rows else array)
        if array.shape != first.shape:
            raise ValueError(
                f"{place} must have examples of one shape, got {list(first.shape)} and then "
                f"{list(array.shape)} in row {number} of {of}. Resize, cut or pad them before."
            )
        if whole is None:
            rows.append(array)
        else:
            if array.dtype != whole.dtype:
                whole = whole.astype(np.promote_types(array.dtype, whole.dtype))
            whole[number] = array
    if whole is None and not rows:
        raise ValueError(f"{place} must hold at least one example, got none in {of}.")
    return np.stack(rows) if whole is None else whole


def _array(place: str, of: str, number: int, cell: Any) -> np.ndarray:
    """One cell as an array of numbers."""
    if cell is None:
        raise ValueError(
            f"{place} must have a value in every row, got none in row {number} of {of}. Leave such "
            "rows out."
        )
    try:
        array = np.asarray(cell)
    except ValueError:
        raise ValueError(
            f"{place} must have lists of equal lengths, got others in row {number} of {of}. Pad them."
        ) from None
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{place} must hold what NumPy reads, got {type(cell).__name__} in row {number} of {of}: "
            f"{error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise TypeError(_no_numbers(place, of.removeprefix("column "), f"{array.dtype}"))
    return array


def _no_numbers(place: str, of: Any, given: str) -> str:
    return (
        f"{place} must hold numbers, got {given} in {of}. Number the names: "
        "names, numbers = numpy.unique(names, return_inverse=True), and pass a column of the numbers."
    )
