"""What a study has found so far, on disk: a killed study goes on from there."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

import dflax

Found = TypeVar("Found")
Stage = Callable[[str, Callable[[], Any]], Any]


def in_memory(name: str, compute: Callable[[], Found]) -> Found:
    """A stage that is kept nowhere, for a part of a study that is called by itself."""
    return compute()


class Kept:
    """What a run of a study has finished, kept in its folder until the study ends.

    A piece lies in `FOLDER/parts/` under a digest of its name, the settings, the source of dflax and of
    the experiments, and the version and platform of JAX, so that numbers of other code are never taken
    up. As a function, `kept(name, compute)`, it is a stage of a part: it says a line when it begins and
    one when it ends, and gives back what `compute()` found, now or in the run that was killed.

    Args:
      folder: of the study's results.
      config: its dataclass.
      say: prints a line.
    """

    def __init__(self, folder: pathlib.Path, config: Any, say: Callable[[str], None] = print):
        self.folder, self.say = folder / "parts", say
        self.settings = repr(dataclasses.asdict(config))

    def __call__(self, name: str, compute: Callable[[], Found]) -> Found:
        """`compute()`, a tree of arrays in dictionaries, lists and tuples; or what was kept of it."""
        path = self.path(name, "npz")
        found = _read(path, _load_tree)
        if found is not None:
            self.say(f"  {name}: kept from before")
            return found[0]
        self.say(f"  {name}: begins")
        began = time.perf_counter()
        computed = jax.tree.map(np.asarray, compute())
        self._write(path, functools.partial(_save_tree, computed))
        self.say(f"  {name}: {time.perf_counter() - began:.1f} s")
        return computed

    def text(self, name: str) -> Any:
        """The JSON that was kept under that name, or None."""
        return _read(self.path(name, "json"), lambda path: json.loads(path.read_text()))

    def keep_text(self, name: str, content: Any) -> None:
        """Keeps what JSON can hold."""
        text = json.dumps(content)
        self._write(self.path(name, "json"), lambda path: path.write_text(text))

    def forget(self) -> None:
        """Removes everything: the study has ended, and the next run computes anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str, ending: str) -> pathlib.Path:
        """Where a piece lies."""
        digest = hashlib.sha256("\n".join((name, self.settings, _program())).encode())
        return self.folder / f"{digest.hexdigest()[:24]}.{ending}"

    def _write(self, path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".tmp{path.suffix}")
        write(unfinished)
        unfinished.replace(path)


def _read(path: pathlib.Path, load: Callable[[pathlib.Path], Any]) -> Any:
    """What lies there, or None; a damaged file is removed."""
    if not path.exists():
        return None
    try:
        return load(path)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        path.unlink()
        return None


def _save_tree(tree: Any, path: pathlib.Path) -> None:
    arrays: list[np.ndarray] = []

    def shape(node: Any) -> Any:
        if isinstance(node, dict):
            if not all(isinstance(key, str) for key in node):
                raise TypeError(f"a stage must name what it found by text, got {list(node)!r:.80}.")
            return {"dict": {key: shape(entry) for key, entry in node.items()}}
        if type(node) in (list, tuple):
            return {type(node).__name__: [shape(entry) for entry in node]}
        if node is None:
            return None
        if not isinstance(node, np.ndarray) or node.dtype == object:
            raise TypeError(f"a stage must find arrays, got {type(node).__name__}.")
        arrays.append(node)
        return len(arrays) - 1

    structure = np.array(json.dumps(shape(tree)))
    named: dict[str, Any] = {str(place): leaf for place, leaf in enumerate(arrays)}
    with path.open("wb") as file:
        np.savez(file, structure=structure, **named)


def _load_tree(path: pathlib.Path) -> tuple[Any]:
    with np.load(path, allow_pickle=False) as file:

        def node(shape: Any) -> Any:
            if shape is None:
                return None
            if isinstance(shape, int):
                return file[str(shape)]
            ((kind, entries),) = shape.items()
            if kind == "dict":
                return {key: node(entry) for key, entry in entries.items()}
            several = [node(entry) for entry in entries]
            return tuple(several) if kind == "tuple" else several

        # In a tuple, since None is something that can be found.
        return (node(json.loads(str(file["structure"]))),)


@functools.cache
def _program() -> str:
    """A digest of everything that a number may depend on but for the settings."""
    total = hashlib.sha256(f"{jax.__version__} {jax.default_backend()}".encode())
    experiments = pathlib.Path(__file__).parent.parent
    for folder in (pathlib.Path(dflax.__file__ or "").parent, experiments):
        for path in sorted(folder.rglob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()
