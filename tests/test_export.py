import json
import os
import pathlib
import pickle
import random
import shutil
import struct
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import export


class Layer(NamedTuple):
    kernel: object
    bias: object


def mixed_tree():
    return {
        "first": Layer(jnp.arange(6.0, dtype=jnp.bfloat16).reshape(2, 3) / 7, np.float64(1 / 3)),
        "counts": [jnp.array([-3, 4], jnp.int8), (np.arange(3, dtype=np.uint32), jnp.array(True))],
        "empty": {},
        "none": None,
        "wide": np.array([1.0 + 2.0**-50, -0.0, np.nan]),
        "long": np.array([2**60 + 1]),
    }


def bits(leaf):
    values = np.asarray(leaf)
    return values.dtype, values.shape, values.tobytes()


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert [bits(leaf) for leaf in jax.tree.leaves(first)] == [
        bits(leaf) for leaf in jax.tree.leaves(second)
    ]


@pytest.fixture(params=["model.safetensors", "model"])
def path(request, tmp_path):
    return tmp_path / "new" / request.param


def test_every_bit_comes_back_into_the_same_structure(path):
    tree = mixed_tree()
    export.save(path, tree)
    assert_same_bits(export.load(path, like=tree), tree)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
    assert_same_bits(export.load(path, like=shapes), tree)


def test_without_like_names_become_nested_dicts(path):
    tree = mixed_tree()
    export.save(path, tree)
    loaded = export.load(str(path))
    assert_same_bits(
        loaded,
        {
            "first": {"kernel": tree["first"].kernel, "bias": tree["first"].bias},
            "counts": {
                "0": tree["counts"][0],
                "1": dict(zip("01", tree["counts"][1], strict=True)),
            },
            "wide": tree["wide"],
            "long": tree["long"],
        },
    )
    assert isinstance(loaded["first"]["kernel"], jax.Array)
    assert isinstance(loaded["wide"], np.ndarray)


def test_one_array_alone_is_a_model_too(path):
    params = jnp.arange(3.0)
    export.save(path, params)
    assert_same_bits(export.load(path), params)
    assert_same_bits(export.load(path, like=params), params)


def test_layout_in_memory_does_not_change_what_is_stored(path):
    matrix = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    export.save(
        path, {"turned": matrix.T, "strided": matrix[:, ::2], "other": matrix.astype(">f4")}
    )
    loaded = export.load(path)
    np.testing.assert_array_equal(loaded["turned"], matrix.T)
    np.testing.assert_array_equal(loaded["strided"], matrix[:, ::2])
    np.testing.assert_array_equal(loaded["other"], matrix)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.text("abc_ /é", min_size=1, max_size=4), min_size=1, max_size=4, unique=True),
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(sorted(export.STORABLE)),
    seed=st.integers(0, 2**31),
)
def test_any_names_shapes_and_dtypes(tmp_path_factory, names, shape, dtype, seed):
    dtype = np.dtype(jnp.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    generator = np.random.default_rng(seed)
    high = 2 if dtype.kind == "b" else 256
    tree = {
        name: {
            "x": np.frombuffer(generator.integers(0, high, size, np.uint8), dtype).reshape(shape)
        }
        for name in names
    }
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    export.save(path, tree)
    assert_same_bits(export.load(path), tree)


def test_training_goes_on_from_a_loaded_model_as_if_never_saved(path):
    task = regression(clients=4)
    federation = dx.Federation(task.data, task.partition, local_steps=2, batch_size=4)
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.1))
    key = jax.random.key(0)
    state, _ = dx.run(algorithm, algorithm.init(key, task.params), federation, rounds=2, key=key)
    export.save(path, state.server.params)
    params = export.load(path, like=jax.eval_shape(lambda: task.params))
    resumed = state._replace(server=state.server._replace(params=params))
    straight, _ = dx.run(algorithm, state, federation, rounds=2, key=key)
    again, _ = dx.run(algorithm, resumed, federation, rounds=2, key=key)
    assert_trees_equal(straight.server.params, again.server.params)


def test_metadata_is_told_back(path):
    export.save(path, {"w": jnp.ones(2)}, {"algorithm": "FedAvg", "rounds": "300"})
    assert export.read_metadata(path) == {"algorithm": "FedAvg", "rounds": "300"}


def test_no_metadata_is_an_empty_dict(path):
    export.save(path, {"w": jnp.ones(2)})
    assert export.read_metadata(path) == {}


def test_a_model_sharded_over_devices_is_stored_whole(path):
    mesh = dx.client_mesh()
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    values = np.arange(32.0, dtype=np.float32).reshape(16, 2)
    export.save(path, {"w": jax.device_put(values, split)})
    np.testing.assert_array_equal(export.load(path)["w"], values)


def test_other_programs_read_the_file(tmp_path):
    from safetensors.numpy import load_file

    export.save(tmp_path / "m.safetensors", {"dense": [{"kernel": jnp.eye(2)}]})
    stored = load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(stored["dense.0.kernel"], np.eye(2))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    export.save(path, {"w": jnp.zeros(3)})

    def full_disk(file):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            export.save(path, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(export.load(path)["w"], np.zeros(3))
    export.save(path, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(export.load(path)["w"], np.ones(3))
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_who_may_read_other_new_files_may_read_the_model(tmp_path):
    export.save(tmp_path / "m.safetensors", {"w": jnp.zeros(3)})
    (tmp_path / "other").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_is_never_overwritten(tmp_path):
    export.save(tmp_path / "m", {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="does not exist yet"):
        export.save(tmp_path / "m", {"w": jnp.ones(3)})
    np.testing.assert_array_equal(export.load(tmp_path / "m")["w"], np.zeros(3))


def test_a_file_that_would_execute_code_is_only_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="must name a safetensors file"):
        export.load(tmp_path / "m.safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["m.npz", "m.pickle", "runs.v1/m.bin"])
def test_unknown_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r'path must end in "\.safetensors"'):
        export.save(tmp_path / name, {"w": jnp.ones(1)})
    with pytest.raises(ValueError, match=r'path must end in "\.safetensors"'):
        export.load(tmp_path / name)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        export.load(path)
    with pytest.raises(FileNotFoundError, match=path.name):
        export.read_metadata(path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="must name a folder that holds one orbax tree"):
        export.load(tmp_path / "other")


def test_a_model_of_another_shape_names_leaf_and_shapes(path):
    export.save(path, {"dense": {"kernel": jnp.ones((2, 3))}})
    with pytest.raises(ValueError, match=r'"dense.kernel" is float32\[2, 4\].*float32\[2, 3\]'):
        export.load(path, like={"dense": {"kernel": jnp.ones((2, 4))}})
    with pytest.raises(ValueError, match=r'"dense.kernel" is bfloat16\[2, 3\].*float32\[2, 3\]'):
        export.load(path, like={"dense": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}})


def test_a_model_with_other_names_lists_them(path):
    export.save(path, {"a": jnp.ones(1), "b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"only in like: c; only in the file: b\."):
        export.load(path, like={"a": jnp.ones(1), "c": jnp.ones(1)})


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ValueError, "at least one array"),
        ({"a.b": jnp.ones(1)}, ValueError, "stay distinct"),
        ({"": jnp.ones(1)}, ValueError, "empty"),
        ({"w": "text"}, TypeError, "must hold arrays, got 'text' at \"w\""),
        ({"key": jax.random.key(0)}, TypeError, 'typed key at "key"'),
        ({"w": jnp.ones(2, jnp.float8_e4m3fn)}, TypeError, "save an orbax folder"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, params, error, message):
    with pytest.raises(error, match=message):
        export.save(tmp_path / "m.safetensors", params)
    assert os.listdir(tmp_path) == []


def test_an_orbax_folder_holds_no_empty_arrays(tmp_path):
    with pytest.raises(ValueError, match=r'no empty arrays.*\(0, 3\) at "w"'):
        export.save(tmp_path / "m", {"w": jnp.zeros((0, 3))})


def test_arguments_of_wrong_types_are_refused(path):
    with pytest.raises(TypeError, match="path must be"):
        export.save(3, {"w": jnp.ones(1)})
    with pytest.raises(TypeError, match="metadata must be"):
        export.save(path, {"w": jnp.ones(1)}, {"rounds": 300})


def test_foreign_names_that_clash_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(1), "a.b": np.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match='path holds "a'):
        export.load(tmp_path / "m.safetensors")


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("m.safetensors", "m"):
        export.save(f"~/models/{name}", {"w": jnp.ones(2)}, {"a": "b"})
        assert (tmp_path / "models" / name).exists()
        np.testing.assert_array_equal(export.load(f"~/models/{name}")["w"], np.ones(2))
        assert export.read_metadata(f"~/models/{name}") == {"a": "b"}


def model():
    return {"w": jnp.arange(500.0).reshape(20, 25), "b": np.array([True, False]), "n": jnp.int32(7)}


def damage(path, draw):
    data = bytearray(path.read_bytes())
    if draw.random() < 0.3 or not data:
        data = data[: draw.randrange(len(data) + 1)]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def loads_equal_or_is_refused(path):
    loaded, refusal = attempt(export.load, path)
    if refusal is None:
        assert_same_bits(loaded, model())
    return refusal is None


def attempt(read, path):
    """What was read, or our own refusal."""
    refusal = None
    try:
        return read(path), None
    except ValueError as error:
        refusal = str(error)
    assert refusal.startswith("path must name a")
    assert str(path) in refusal
    return None, refusal


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_model_is_loaded_whole_or_refused(path):
    export.save(path, model(), {"made": "by this test"})
    draw = random.Random(3)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    outcomes = set()
    for _ in range(60 if path.is_file() else 2):
        for file in files:
            kept = file.read_bytes()
            damage(file, draw)
            outcomes.add(loads_equal_or_is_refused(path))
            attempt(export.read_metadata, path)
            file.write_bytes(kept)
    assert False in outcomes
    assert loads_equal_or_is_refused(path)


def test_every_file_of_a_folder_counts(tmp_path):
    export.save(tmp_path / "m", model())
    names = sorted(
        p.relative_to(tmp_path / "m") for p in (tmp_path / "m").rglob("*") if p.is_file()
    )
    for number, name in enumerate(names):
        copy = shutil.copytree(tmp_path / "m", tmp_path / f"{number}")
        (copy / name).unlink()
        # Without the manifest it is as if another program had written it.
        assert loads_equal_or_is_refused(copy) == (name.name == "manifest.json")


def foreign(path, **arrays):
    """As another program writes it: no manifest, an array a folder, its shape in a text."""
    import orbax.checkpoint as orbax

    handler = orbax.PyTreeCheckpointHandler(use_ocdbt=False)
    with orbax.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=orbax.args.PyTreeSave(arrays))


def test_a_folder_of_another_program_is_read(tmp_path):
    foreign(tmp_path / "m", w=jnp.zeros((300, 400)), b=jnp.arange(3.0))
    np.testing.assert_array_equal(export.load(tmp_path / "m")["w"], np.zeros((300, 400)))
    np.testing.assert_array_equal(export.load(tmp_path / "m")["b"], np.arange(3.0))


@pytest.mark.parametrize(
    "claim",
    [
        {"shape": [131072, 131072]},
        {"shape": [131072, 131072], "chunks": [131072, 131072]},
        {"chunks": [131072, 131072]},
    ],
)
def test_a_claim_of_more_than_the_files_can_hold_is_refused_before_memory_is_taken(tmp_path, claim):
    foreign(tmp_path / "m", w=jnp.zeros((4, 4)))
    (about,) = (tmp_path / "m").rglob(".zarray")
    about.write_text(json.dumps(json.loads(about.read_text()) | claim))
    with pytest.raises(ValueError, match="path must name a folder that holds one orbax tree"):
        export.load(tmp_path / "m")


def test_large_models_of_equal_numbers_are_not_mistaken_for_a_false_claim(tmp_path):
    zeros = {"w": np.zeros((3000, 3000), np.float32)}
    export.save(tmp_path / "m", zeros)
    np.testing.assert_array_equal(export.load(tmp_path / "m")["w"], zeros["w"])


@pytest.mark.parametrize("harm", ["link", "pipe", "deep", "empty", "directory"])
def test_a_folder_of_tricks_is_refused_by_name(tmp_path, harm):
    foreign(tmp_path / "m", w=jnp.zeros((4, 4)))
    (tmp_path / "outside").write_text("precious")
    about = tmp_path / "m" / "_METADATA"
    about.unlink()
    {
        "link": lambda: about.symlink_to(tmp_path / "outside"),
        "pipe": lambda: os.mkfifo(about),
        "deep": lambda: about.write_text("[" * 100_000),
        "empty": lambda: about.write_text("{}"),
        "directory": lambda: about.mkdir(),
    }[harm]()
    with pytest.raises(
        ValueError, match="path must name a folder that holds one orbax tree"
    ) as told:
        export.load(tmp_path / "m")
    assert "NoneType" not in str(told.value)
    assert (tmp_path / "outside").read_text() == "precious"


def test_a_link_to_a_model_is_the_users_own(path):
    export.save(path, model())
    link = path.parent / f"link{path.suffix}"
    link.symlink_to(path)
    assert_same_bits(export.load(link), model())


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_booleans_that_are_neither_true_nor_false_are_refused(tmp_path, byte):
    header = json.dumps({"mask": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([0, 1, byte]))
    with pytest.raises(ValueError, match='"mask" holds booleans that are neither true nor false'):
        export.load(path)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([0, 1, 1]))
    assert export.load(path)["mask"].tolist() == [False, True, True]


def test_a_file_of_another_program_is_read_and_has_no_digest(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, tmp_path / "m.safetensors", metadata={"a": "b"})
    np.testing.assert_array_equal(export.load(tmp_path / "m.safetensors")["w"], np.ones(2))
    assert export.read_metadata(tmp_path / "m.safetensors") == {"a": "b"}


def test_the_key_of_the_digest_is_not_the_users(path):
    with pytest.raises(ValueError, match="metadata must not have the key"):
        export.save(path, model(), {export.DIGEST: "0"})
    assert not pathlib.Path(path).exists()
