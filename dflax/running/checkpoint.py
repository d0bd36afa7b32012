"""Checkpoints of a run: saved while it goes on, checked before they are trusted, kept a few at a time.

A folder holds one run:

    history.bin            a fixed number of bytes per round, only ever appended to
    round_000000300/
      state/               the leaves of the state, by number, as orbax writes them
      manifest.json        written last: the rounds done, what run this is, and SHA-256 of every file
                           of `state` and of the history up to this round

A checkpoint is good if its manifest is whole and all that is listed there hashes to what it says. So
one that was being written when the process was killed, or that was damaged later, is never taken for
a good one. Loading reads arrays (tensorstore's OCDBT and zarr), JSON and raw bytes, and nothing that
could execute code: no pickle.
"""

import dataclasses
import os
import pathlib
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.running import manifest
from dflax.running.fingerprint import differences
from dflax.running.records import Records, encode

# What a stored run has in common with the one that resumes it, strict or not.
ALWAYS = ("start", "state", "metrics", "evaluations")
SHOWN = 6
ROUNDS = "round_" + 9 * "[0-9]"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often `run` saves its state.

    Attributes:
      folder: of this one run, on a disk that all of its processes share; made if it is missing.
      every_seconds: > 0, seconds between checkpoints; default 60, or none if `every_rounds` is given.
        While a checkpoint is still being written, the next one waits.
      every_rounds: >= 1, save after the rounds whose number (from 1) it divides. With both, whichever
        comes first.
      keep: how many of the latest checkpoints stay, >= 1.
      strict: refuse to resume a run whose algorithm, hyper-parameters, data, key, evaluation or
        initial values differ from the stored run's. False checks only the number of the first round
        and the shapes and types of state and metrics: to change a setting in the middle of a run, or
        the kind of device (clients then run together or in turn: another program), or the number of
        devices that `dflax.data.dealt` dealt the data over.

    Raises:
      TypeError, ValueError: naming the argument.
    """

    folder: str | os.PathLike
    every_seconds: float | None = None
    every_rounds: int | None = None
    keep: int = 3
    strict: bool = True

    def __post_init__(self):
        name = os.fspath(self.folder) if isinstance(self.folder, (str, os.PathLike)) else None
        if not isinstance(name, str):
            raise TypeError(
                f"checkpoint must be a folder's path or a Checkpoints, got {self.folder!r}."
            )
        if not name or "://" in name:
            raise ValueError(
                f"checkpoint must be a folder on a local or mounted disk, got {name!r}."
            )
        folder = pathlib.Path(name).absolute()
        file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        if file is not None:
            raise ValueError(
                f"checkpoint must be a folder, got {name!r}, but {file} is a file. "
                "Give a folder that exists or can be made."
            )
        if self.every_seconds is None and self.every_rounds is None:
            object.__setattr__(self, "every_seconds", 60.0)
        if self.every_seconds is not None:
            validation.real("every_seconds", self.every_seconds, low=0.0, low_open=True)
        if self.every_rounds is not None:
            validation.integer("every_rounds", self.every_rounds, low=1)
        validation.integer("keep", self.keep, low=1)
        validation.flag("strict", self.strict)


class Saved(NamedTuple):
    """A checkpoint as it is read back.

    Attributes:
      done: number of the last round that was done.
      state: the state after it.
      rows: what was recorded of the rounds so far, leaves `[rounds, ...]`.
      seconds: as in `History`, so far.
      compile_seconds: as in `History`, so far.
    """

    done: int
    state: Any
    rows: PyTree[np.ndarray]
    seconds: float
    compile_seconds: float


class Store:
    """The folder of one run, open for reading and writing.

    Args:
      settings: where and how often.
      identity: what this run is, in JSON's types; a stored run must have the same, or at least the
        entries named in `ALWAYS` if the settings are not strict.
      row: shapes and types of one row of what `record` takes.
    """

    def __init__(self, settings: Checkpoints, identity: dict[str, Any], row: PyTree):
        # Takes long to import, and only runs with checkpoints need it.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._settings, self._identity = settings, identity
        self._folder = pathlib.Path(settings.folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._records = Records(self._folder / "history.bin", row)
        self._arrays = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None
        self._saved: int | None = None
        self._good: list[int] = []
        self._pending: list[bytes] = []
        self._last = time.monotonic()

    def newest(self, state: Any, places: Sequence[Sharding | None]) -> Saved | None:
        """The newest good checkpoint, or None; warns of every damaged one that it skips.

        Args:
          state: what the stored state must look like: its tree, shapes and types.
          places: the sharding of each leaf; None for a new array on the default device.

        Raises:
          ValueError: the checkpoint is of another run; tells what differs.
        """
        found = sorted((_round(path) for path in self._folder.glob(ROUNDS)), reverse=True)
        for done in found:
            try:
                facts = manifest.checked(self._at(done))
                self._records.check(facts["history"])
            except manifest.DamagedError as damage:
                warnings.warn(
                    f"checkpoint {self._at(done)} is skipped: {damage}.",
                    RuntimeWarning,
                    stacklevel=3,
                )
                continue
            self._refuse_another_run(done, facts["run"])
            self._saved = done
            older = (round for round in found if round <= done)
            self._good = sorted(r for r in older if (self._at(r) / manifest.MANIFEST).exists())
            return Saved(
                done,
                self._restored(done, state, places),
                self._records.read(facts["history"]),
                facts["seconds"],
                facts["compile_seconds"],
            )
        return None

    def due(self, done: int) -> bool:
        """Whether it is time for a checkpoint after round `done`."""
        seconds, rounds = self._settings.every_seconds, self._settings.every_rounds
        if rounds is not None and done % rounds == 0:
            return True
        idle = self._writing is None or self._writing.done()
        return seconds is not None and idle and time.monotonic() - self._last >= seconds

    def cut(self, done: int, until: int) -> int:
        """`until`, or an earlier round after `done` whose number asks for a checkpoint."""
        rounds = self._settings.every_rounds
        return until if rounds is None else min(until, (done // rounds + 1) * rounds)

    def record(self, rows: PyTree[np.ndarray]) -> None:
        """Takes the rows of further rounds; they are written with the next checkpoint."""
        self._pending.append(encode(rows))

    def save(self, state: Any, done: int, seconds: float, compile_seconds: float) -> None:
        """Starts a checkpoint; returns once it no longer needs `state`, which may then be donated."""
        self.wait()
        if done == self._saved:
            return
        self._saved = done
        if jax.process_index() == 0 and self._at(done).exists():
            shutil.rmtree(self._at(done))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {done}")
        # Orbax refuses trees without arrays, and arrays without elements.
        leaves = {
            _name(index): jax.random.key_data(leaf) if _is_key(leaf) else leaf
            for index, leaf in enumerate(jax.tree.leaves(state))
            if leaf.size
        }
        arrays = self._ocp.args.PyTreeSave({"round": np.int32(done), **leaves})
        self._arrays.save(self._at(done) / "state", args=arrays)
        rows, self._pending = b"".join(self._pending), []
        facts = {"seconds": seconds, "compile_seconds": compile_seconds, "run": self._identity}
        self._writing = self._beside.submit(self._finish, done, rows, facts)
        self._last = time.monotonic()

    def wait(self) -> None:
        """Returns when the last checkpoint is safe on disk; raises what went wrong in writing it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for the last checkpoint and ends the threads."""
        try:
            self.wait()
        finally:
            self._beside.shutdown()
            self._arrays.close()

    def _finish(self, done: int, rows: bytes, facts: dict[str, Any]) -> None:
        """What remains once the arrays are on the host; runs beside the training."""
        self._arrays.wait_until_finished()
        if jax.process_index() != 0:
            return
        history = self._records.append(rows)
        manifest.seal(self._at(done), {"history": history, **facts})
        self._good = [*self._good, done][-self._settings.keep :]
        for path in self._folder.glob(ROUNDS):
            if _round(path) not in self._good:
                shutil.rmtree(path, ignore_errors=True)

    def _refuse_another_run(self, done: int, stored: dict[str, Any]) -> None:
        def differing(names: Iterable[str]) -> list[str]:
            mine = self._identity
            return [line for n in names for line in differences(n, stored.get(n), mine[n])]

        lines, escape = differing(ALWAYS), ""
        if not lines and self._settings.strict:
            lines, escape = differing(self._identity), ", or pass Checkpoints(..., strict=False)"
        if lines:
            more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise ValueError(
                f"checkpoint {self._at(done)} is of another run: {'; '.join(lines[:SHOWN])}{more}. "
                f"Give the arguments of the stored run, or choose another folder{escape}."
            )

    def _restored(self, done: int, state: Any, places: Sequence[Sharding | None]) -> Any:
        """The stored arrays in the tree of `state`."""
        ocp = self._ocp
        leaves, structure = jax.tree.flatten(state)
        named = {_name(index): pair for index, pair in enumerate(zip(leaves, places, strict=True))}
        arguments = {
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            if place is None
            else ocp.ArrayRestoreArgs(sharding=place)
            for name, (leaf, place) in named.items()
            if leaf.size
        }
        arguments["round"] = ocp.RestoreArgs(restore_type=np.ndarray)
        asked = ocp.args.PyTreeRestore(item=dict.fromkeys(arguments, 0), restore_args=arguments)
        stored = self._arrays.restore(self._at(done) / "state", args=asked)

        def array(name: str, leaf: Any, place: Sharding | None) -> Array:
            if not leaf.size:
                return jax.device_put(jnp.copy(leaf), place)
            # NumPy arrays are copied, so that their memory is JAX's own and can be donated.
            numbers = jnp.array(stored[name]) if place is None else stored[name]
            if _is_key(leaf):
                return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
            # Setting keeps a weak type, which could otherwise change what the next round computes.
            if not leaf.weak_type or leaf.dtype != numbers.dtype:
                return numbers
            return (leaf if place is None else jax.device_put(leaf, place)).at[...].set(numbers)

        return jax.tree.unflatten(structure, [array(name, *pair) for name, pair in named.items()])

    def _at(self, done: int) -> pathlib.Path:
        return self._folder / f"round_{done:09d}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(index: int) -> str:
    return f"{index:05d}"


def _round(path: pathlib.Path) -> int:
    return int(path.name.removeprefix("round_"))
