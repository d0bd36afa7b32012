"""Final models as files: safetensors for every framework, orbax folders for the JAX world.

A pytree becomes arrays with names: the path to a leaf, joined by dots, so `params["Dense_0"]["kernel"]`
is "Dense_0.kernel". Reading a file back never executes anything that is in it. What `save` writes says
what its arrays hash to, so a damaged file is refused, not loaded with other numbers. A model that
another program wrote does not say so; of it shapes and sizes are checked before memory is taken.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.mesh import collect
from dflax.running.checkpoints import manifest, untrusted
from dflax.running.checkpoints.arrays import block_of

SEPARATOR = "."
ENDING = ".safetensors"
# Where a file's metadata say what its arrays hash to.
DIGEST = "dflax.sha256"
# No codec of orbax packs more: zstd repeats one byte 2^17 times with four.
DENSEST = 1 << 15
# What every reader of safetensors knows; NumPy's names of bfloat16 come from ml_dtypes.
STORABLE = frozenset(
    {"bool", "bfloat16", "complex64"}
    | {f"float{bits}" for bits in (16, 32, 64)}
    | {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
)


def save(path: str | pathlib.Path, params: Params, metadata: dict[str, str] | None = None) -> None:
    """Writes a model: a safetensors file, or an orbax item when the path has no ending.

    A file is written beside its place and then renamed, so a reader sees the old model or the new
    one, never a part. On several hosts every process calls this; process 0 writes the file, and an
    orbax folder gets every host's shards.

    Args:
      path: "NAME.safetensors" (replaced if it exists) or the name of a new folder.
      params: a pytree of arrays, for example `state.server.params`, or one client's row of
        `state.clients.params`. Containers without arrays are not stored.
      metadata: what the file should say about itself, strings to strings. The key "dflax.sha256" is
        ours.

    Raises:
      ValueError: another ending, a folder that exists, no arrays, names that clash.
      TypeError: a leaf or a metadata entry that cannot be stored.
      ImportError: safetensors is not installed.

    Examples:
      >>> import jax.numpy as jnp, pathlib, tempfile, dflax as dx
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> dx.export.save(path, {"dense": {"kernel": jnp.ones((2, 3))}}, metadata={"rounds": "40"})
      >>> dx.export.load(path)["dense"]["kernel"].shape
      (2, 3)
    """
    path = _checked(path)
    if metadata is not None and not (
        isinstance(metadata, dict)
        and all(isinstance(item, str) for pair in metadata.items() for item in pair)
    ):
        raise TypeError(
            f"metadata must be a dict of strings to strings, got {validation.shown(metadata)}. "
            "Store numbers as str(number)."
        )
    if metadata is not None and DIGEST in metadata:
        raise ValueError(
            f'metadata must not have the key "{DIGEST}". It is written by save itself.'
        )
    named = _named("params", params)
    if not named:
        raise ValueError(f"params must hold at least one array, got {validation.shown(params)}.")
    for name, leaf in named.items():
        _storable(name, leaf, path.suffix == ENDING)
    validation.arrays("params", params)
    if path.suffix == ENDING:
        _save_file(path, named, metadata)
    else:
        _save_folder(path, params, metadata)


def load(path: str | pathlib.Path, like: Params | None = None) -> Params:
    """Reads a model that `save`, or any other writer of safetensors or orbax, has written.

    Every value equals the saved one bit for bit. Leaves are JAX arrays, except that 64-bit ones stay
    NumPy arrays unless `jax_enable_x64` is on, because JAX would halve their precision.

    Args:
      path: a file "NAME.safetensors" or an orbax folder.
      like: a tree of arrays or `jax.ShapeDtypeStruct`s of the same structure, names, shapes and
        dtypes, for example `jax.eval_shape(model.init, key, example)["params"]`. None returns nested
        dicts; lists and tuples then come back as dicts with the keys "0", "1", ..., NamedTuples as
        dicts of their fields.

    Returns:
      The model, in the structure of `like`.

    Raises:
      FileNotFoundError: nothing at `path`.
      ValueError: another ending, not a file of this kind, a damaged one, or not a model like `like`.
      ImportError: safetensors is not installed.

    Examples:
      >>> import jax.numpy as jnp, pathlib, tempfile, dflax as dx
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> dx.export.save(path, [jnp.zeros(2), jnp.ones(3)])
      >>> [leaf.shape for leaf in dx.export.load(path, like=[jnp.zeros(2), jnp.zeros(3)])]
      [(2,), (3,)]
    """
    path = _existing(path)
    stored = _load_file(path) if path.suffix == ENDING else _load_folder(path)
    if like is None:
        return _nested({name: _on_device(values) for name, values in stored.items()})
    wanted = _named("like", like)
    if wanted.keys() != stored.keys():
        raise ValueError(
            f"like must have the names of {path}; only in like: {_few(wanted.keys() - stored.keys())}"
            f"; only in the file: {_few(stored.keys() - wanted.keys())}. Load without like to see "
            "what is there, or build the model with the sizes it was saved with."
        )
    for name, leaf in wanted.items():
        found = stored[name]
        dtype = np.dtype(jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype)
        if np.shape(leaf) != found.shape or dtype != found.dtype:
            raise ValueError(
                f'like must match {path} in every leaf, but "{name}" is {dtype.name}'
                f"{list(np.shape(leaf))} in like and {found.dtype.name}{list(found.shape)} in the "
                "file. Build the model with the sizes it was saved with; cast after loading."
            )
    return jax.tree.unflatten(jax.tree.structure(like), [_on_device(stored[n]) for n in wanted])


def read_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """The strings that `save` stored with the model; the arrays are not read."""
    path = _existing(path)
    with _refused(path):
        if path.suffix != ENDING:
            import orbax.checkpoint as orbax

            with orbax.PyTreeCheckpointer() as checkpointer:
                return dict(checkpointer.metadata(path).custom_metadata or {})
        told = _metadata(path)
    return {name: text for name, text in told.items() if name != DIGEST}


def _checked(path: str | pathlib.Path) -> pathlib.Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a string or a pathlib.Path, got {validation.shown(path)}.")
    path = pathlib.Path(path).expanduser().absolute()
    if path.suffix not in (ENDING, ""):
        raise ValueError(
            f'path must end in "{ENDING}" (a file) or have no ending (an orbax folder), got '
            f'"{path.name}". For example "model{ENDING}".'
        )
    return path


def _existing(path: str | pathlib.Path) -> pathlib.Path:
    path = _checked(path)
    kind = "file" if path.suffix == ENDING else "orbax folder"
    if not (path.is_file() if path.suffix == ENDING else path.is_dir()):
        raise FileNotFoundError(
            f"path must name an existing {kind}, got {path}. Write it with dflax.export.save; a "
            f'file\'s name ends in "{ENDING}".'
        )
    return path


def _named(argument: str, tree: PyTree) -> dict[str, Any]:
    """Leaves by name, in the order of the tree."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = [jax.tree_util.keystr((entry,), simple=True) for entry in path]
        name = SEPARATOR.join(parts)
        if name in named or any(SEPARATOR in part or not part for part in parts):
            raise ValueError(
                f'{argument} must have names that stay distinct when joined by "{SEPARATOR}", got '
                f"{jax.tree_util.keystr(path)}. Rename keys that are empty or hold a "
                f'"{SEPARATOR}".'
            )
        named[name] = leaf
    return named


def _storable(name: str, leaf: Any, as_file: bool) -> None:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and isinstance(leaf, (bool, int, float, complex)):
        dtype = np.asarray(leaf).dtype
    if dtype is None or isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f'params must hold arrays, got {validation.shown(leaf)} at "{name}". Save outside of '
            "compiled code, and only what is numbers."
        )
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f'params must hold numbers, got a typed key at "{name}". Store jax.random.key_data(key), '
            "or keep whole states in the checkpoints of a run."
        )
    if not as_file and np.size(leaf) == 0:
        raise ValueError(
            f"params must hold no empty arrays for an orbax folder, got shape {np.shape(leaf)} at "
            f'"{name}". Save a "{ENDING}" file.'
        )
    if as_file and np.dtype(dtype).name not in STORABLE:
        raise TypeError(
            f"params must hold dtypes among {sorted(STORABLE)} for a safetensors file, got {dtype} at "
            f'"{name}". Cast it, or save an orbax folder.'
        )


def _save_file(path: pathlib.Path, named: dict[str, Any], metadata: dict[str, str] | None) -> None:
    safetensors = _safetensors()
    # The writer reads raw memory: anything but a contiguous array would be stored scrambled.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in collect(named).items()}
    told = (metadata or {}) | {DIGEST: _sha256(arrays)}
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = pathlib.Path(folder) / path.name
            # Written here, because the library's own writer leaves a file no other user may read.
            with beside.open("wb") as file:
                file.write(safetensors.numpy.save(arrays, metadata=told))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    _together(path)


def _together(path: pathlib.Path) -> None:
    """Returns once every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"saved {path.name}")


def _load_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors()
    with _refused(path):
        arrays = safetensors.numpy.load_file(path)
        for name, values in arrays.items():
            if values.dtype == bool and np.any(values.view(np.uint8) > 1):
                raise ValueError(f'"{name}" holds booleans that are neither true nor false')
        told = _metadata(path).get(DIGEST)
        if told is not None and told != _sha256(arrays):
            raise ValueError("its arrays are not those that were saved; it was changed")
    return arrays


def _metadata(path: pathlib.Path) -> dict[str, str]:
    with _safetensors().safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _sha256(arrays: dict[str, np.ndarray]) -> str:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.name}{list(values.shape)} ".encode())
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _refused(path: pathlib.Path) -> Iterator[None]:
    """One error for all that a reader may say of a file that is not what it should be."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        kind = "safetensors file" if path.suffix == ENDING else "folder that holds one orbax tree"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"path must name a {kind}, got {path}: {lines[0][:300]}.") from None


def _save_folder(path: pathlib.Path, params: Params, metadata: dict[str, str] | None) -> None:
    import orbax.checkpoint as orbax

    if path.exists():
        raise ValueError(
            f"path must name a folder that does not exist yet, got {path}. Choose another name, or "
            "remove the old model first."
        )
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, params, custom_metadata=metadata)
    if jax.process_index() == 0:
        manifest.seal(path, {})
    _together(path)


def _load_folder(path: pathlib.Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as orbax

    with _refused(path), orbax.PyTreeCheckpointer() as checkpointer:
        # The folder may be a link that the user made; what lies in it may not.
        folder = path.resolve()
        stored = sum(file.lstat().st_size for file in untrusted.files_below(folder))
        if (folder / manifest.MANIFEST).exists():
            manifest.checked(folder)
        about = checkpointer.metadata(folder).item_metadata
        if about is None:
            raise ValueError("it does not say what arrays it has")
        _verify_sizes(about.tree, stored)
        # As NumPy arrays, so that it does not matter on how many devices the model was saved.
        as_numpy = jax.tree.map(lambda leaf: orbax.RestoreArgs(restore_type=np.ndarray), about.tree)
        return _named("path", checkpointer.restore(folder, restore_args=as_numpy))


def _verify_sizes(tree: PyTree, stored: int) -> None:
    """Refuses arrays, or blocks of them, that files of so many bytes cannot hold however packed."""
    claimed = 0
    for leaf in jax.tree.leaves(tree):
        size = np.dtype(getattr(leaf, "dtype", None) or np.uint8).itemsize
        shape = getattr(leaf, "shape", None) or ()
        claimed += max(math.prod(shape), math.prod(block_of(leaf))) * size
    if claimed > DENSEST * stored:
        raise ValueError(f"it claims {claimed} bytes of arrays in files of {stored} bytes")


def _on_device(values: np.ndarray) -> Array | np.ndarray:
    fits = jax.dtypes.canonicalize_dtype(values.dtype) == values.dtype
    return jnp.array(values) if fits else values


def _nested(named: dict[str, Any]) -> Any:
    if list(named) == [""]:
        return named[""]
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise ValueError(f'path holds "{name}" and an array whose name is a part of this one.')
        node[last] = leaf
    return tree


def _few(names: Any) -> str:
    names = sorted(names)
    return (
        ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"
    )


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "dflax.export needs safetensors for a .safetensors file: pip install 'dflax[export]'."
        ) from error
    return safetensors


__all__ = [
    "load",
    "read_metadata",
    "save",
]


def __dir__() -> list[str]:
    return __all__
