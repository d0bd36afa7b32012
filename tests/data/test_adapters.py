"""Data sets of pandas, Hugging Face and PyTorch: what arrives, and what is refused by name."""

import importlib.util
import sys

import numpy as np
import pytest

from dflax import data

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)
LABELS = [0, 1, 2, 2, 1, 0]
USERS = ["bob", "ann", "bob", "cas", "ann", "bob"]


def needs(module, extra):
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"needs dflax[{extra}]"
    )


def owned(partition):
    return [sorted(own.tolist()) for own in partition.as_lists()]


BY_USERS = [[1, 4], [0, 2, 5], [3]]


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas", reason="needs dflax[pandas]")
    return pandas.DataFrame(
        {
            "user": USERS,
            "age": [20, 30, 40, 50, 60, 70],
            "height": [1.5, 1.6, 1.7, 1.8, 1.9, 2.0],
            "image": list(IMAGES),
            "ragged": [[1, 2]] * 5 + [[1]],
            "kind": pandas.Categorical(USERS),
            "gaps": [1.0, None, 3.0, None, 5.0, 6.0],
            "nullable": pandas.array(LABELS, dtype="Int64"),
            "label": LABELS,
        }
    )


def test_columns_of_a_frame_become_inputs_and_its_users_clients(frame):
    both = data.from_pandas(frame, inputs=["age", "height"], labels="label", name="people")
    assert both.inputs.dtype == np.float32
    np.testing.assert_array_equal(
        both.inputs, np.float32(np.stack([frame["age"], frame["height"]], 1))
    )
    assert (both.labels.tolist(), both.classes, both.name) == (LABELS, 3, "people")
    assert owned(data.by_group(frame["user"])) == BY_USERS
    one = data.from_pandas(frame, "age", "height")
    assert (one.inputs.dtype, one.inputs.shape, one.classes) == (np.int32, (6,), None)
    assert data.from_pandas(frame, ["age"], "nullable").inputs.shape == (6, 1)


def test_cells_of_a_frame_may_be_arrays_and_inputs_several(frame):
    several = {"image": "image", "about": ["age", "label"]}
    both = data.from_pandas(frame, several, "label", scale=1 / 255, classes=5)
    assert both.inputs["image"].dtype == np.uint8
    np.testing.assert_array_equal(both.inputs["image"], IMAGES)
    assert both.inputs["about"].dtype == np.int32
    assert both.classes == 5


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        ("hight", "label", r"inputs must be columns that there are, \['user', 'age'.*got 'hight'"),
        (["age", "hight"], "label", "inputs must be columns that there are"),
        ("age", "lable", "labels must be columns that there are"),
        ({"a": "hight"}, "label", r"inputs\['a'\] must be columns that there are"),
        ("age", ["label"], "labels must be a string"),
        ("user", "label", "inputs must hold numbers, got <U3 in 'user'. Number the names"),
        ("age", "kind", "labels must hold numbers, got a categorical"),
        ("gaps", "label", "inputs must have a value in every row, got 2 missing in column 'gaps'"),
        ("ragged", "label", r"one shape, got \[2\] and then \[1\] in row 5 of column 'ragged'"),
        (
            ["age", "image"],
            "label",
            r"inputs must be columns of numbers where .* \[4, 5, 3\] in 'im",
        ),
        ([], "label", "inputs must be a list of at least one columns"),
        ({}, "label", "inputs must choose at least one column"),
    ],
)
def test_columns_that_do_not_fit_are_refused_by_name(frame, inputs, labels, words):
    with pytest.raises((TypeError, ValueError), match=words):
        data.from_pandas(frame, inputs, labels)


def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(TypeError, match=r"frame must be a pandas\.DataFrame, got dict"):
        data.from_pandas({"a": [1]}, "a", "a")
    with pytest.raises(
        ValueError, match="frame must have columns of different names, got 'age' twi"
    ):
        data.from_pandas(frame[["age", "age"]], "age", "age")


@pytest.fixture
def hugging():
    datasets = pytest.importorskip("datasets", reason="needs dflax[huggingface]")
    image = pytest.importorskip("PIL.Image", reason="needs dflax[huggingface]")
    columns = {
        "image": [image.fromarray(pixels) for pixels in IMAGES],
        "grey": [image.fromarray(pixels[..., 0]) for pixels in IMAGES],
        "sizes": [image.fromarray(IMAGES[row, : 4 - row // 5]) for row in range(6)],
        "tokens": [[row, row + 1] for row in range(6)],
        "length": [float(row) for row in range(6)],
        "gaps": [1, None, 3, 4, 5, 6],
        "user": USERS,
        "label": LABELS,
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "grey": datasets.Image(),
            "sizes": datasets.Image(),
            "tokens": datasets.Sequence(datasets.Value("int32")),
            "length": datasets.Value("float32"),
            "gaps": datasets.Value("int32"),
            "user": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["a", "b", "c", "d"]),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.slow
def test_a_hugging_face_dataset_arrives_with_its_images_and_classes(hugging):
    both = data.from_huggingface(hugging, "image", "label", scale=1 / 255)
    assert (both.inputs.dtype, both.classes) == (np.uint8, 4)
    np.testing.assert_array_equal(both.inputs, IMAGES)
    grey = data.from_huggingface(hugging, {"x": "grey", "t": "tokens"}, "length")
    np.testing.assert_array_equal(grey.inputs["x"], IMAGES[..., :1])
    assert (grey.inputs["t"].shape, grey.classes) == ((6, 2), None)
    assert owned(data.by_group(hugging["user"])) == BY_USERS
    # A format that was set is not in the way.
    again = data.from_huggingface(hugging.with_format("numpy"), "tokens", "label", classes=7)
    assert (again.inputs.tolist()[5], again.classes) == ([5, 6], 7)


@pytest.mark.slow
def test_a_hugging_face_dataset_that_does_not_fit_is_refused_by_name(hugging):
    import datasets

    for inputs, words in (
        ("imgae", "inputs must be columns that there are"),
        (
            "sizes",
            r"examples of one shape, got \[4, 5, 3\] and then \[3, 5, 3\] in row 5",
        ),
        ("user", "inputs must hold numbers"),
        ("gaps", "inputs must have a value in every row, got none in row 1 of column 'gaps'"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            data.from_huggingface(hugging, inputs, "label")
    splits = datasets.DatasetDict({"train": hugging})
    with pytest.raises(TypeError, match="Of a DatasetDict pass one split"):
        data.from_huggingface(splits, "image", "label")
    with pytest.raises(TypeError, match="Of a stream take rows"):
        data.from_huggingface(hugging.to_iterable_dataset(), "image", "label")
    with pytest.raises(ValueError, match="inputs must hold at least one example, got none"):
        data.from_huggingface(hugging.select([]), "image", "label")


@pytest.mark.slow
@needs("torch", "torch")
def test_a_torch_dataset_arrives_in_its_order_and_channels_last():
    import torch
    from torch.utils.data import IterableDataset, Subset, TensorDataset

    first = np.moveaxis(IMAGES, -1, 1).copy()
    pairs = TensorDataset(torch.tensor(first), torch.tensor(LABELS))
    both = data.from_torch(pairs, channels_first=True, scale=1 / 255)
    np.testing.assert_array_equal(both.inputs, IMAGES)
    assert (both.inputs.dtype, both.labels.dtype, both.classes) == (np.uint8, np.int32, 3)
    assert data.from_torch(Subset(pairs, [4, 0])).labels.tolist() == [1, 0]

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([({"x": torch.ones(2), "n": row}, row / 2) for row in range(3)])

    several = data.from_torch(Stream(), name="stream")
    assert several.inputs["x"].shape == (3, 2)
    assert several.inputs["n"].tolist() == [0, 1, 2]
    assert several.classes is None


@pytest.mark.slow
@needs("torch", "torch")
def test_a_torch_dataset_that_does_not_fit_is_refused_by_name():
    import torch
    from torch.utils.data import DataLoader, Dataset, TensorDataset

    class Listed(Dataset):
        def __init__(self, *examples):
            self.examples = examples

        def __len__(self):
            return len(self.examples)

        def __getitem__(self, row):
            return self.examples[row]

    x, parameter = torch.ones(2), torch.ones(2, requires_grad=True)
    for examples, words in (
        ([], "dataset must hold at least one example"),
        ([x], r"dataset must give pairs \(inputs, label\), got a Tensor in example 0"),
        ([(x, 1, 2)], "got a tuple of 3 in example 0"),
        (
            [(x, 1), (torch.ones(3), 1)],
            r"one shape, got \[2\] and then \[3\] in row 1 of the inputs",
        ),
        ([(x, "a")], "dataset must hold numbers, got <U1 in the labels"),
        ([(x, None)], "dataset must have a value in every row, got none in row 0 of the labels"),
        ([(parameter, 1)], "dataset must hold what NumPy reads, got Tensor in row 0"),
        ([((x, x), 1), (x, 1)], "dataset must have inputs of one structure"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            data.from_torch(Listed(*examples))
    with pytest.raises(ValueError, match=r"channels_first needs inputs \[C, H, W\]"):
        data.from_torch(Listed((x, 1)), channels_first=True)
    loader = DataLoader(TensorDataset(x, x))
    with pytest.raises(TypeError, match=r"Of a DataLoader pass loader\.dataset"):
        data.from_torch(loader)


@pytest.mark.parametrize("name", ["pandas", "huggingface", "torch"])
def test_without_the_library_the_extra_is_named(name, monkeypatch):
    module = {"huggingface": "datasets", "torch": "torch.utils.data"}.get(name, name)
    monkeypatch.delitem(sys.modules, module, raising=False)
    call = getattr(data, f"from_{name}")
    columns = () if name == "torch" else ("x", "y")
    with pytest.raises(TypeError, match=rf"got dict.*pip install 'dflax\[{name}\]'"):
        call({}, *columns)
