"""The folder of one run while it goes on: its newest checkpoint is read, further ones written."""

import contextlib
import math
import pathlib
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import PyTree

from dflax.running.checkpoints import manifest, untrusted
from dflax.running.checkpoints.arrays import BEST, STATE, Arrays
from dflax.running.checkpoints.checkpoint import Checkpoints
from dflax.running.checkpoints.fingerprint import Fingerprint, differences
from dflax.running.checkpoints.lock import InUseError, Lock
from dflax.running.checkpoints.records import Records, encode
from dflax.running.checkpoints.untrusted import DamagedError
from dflax.running.history import Best

# Of what is written; a folder of another one is not read.
FORMAT = 2
SHOWN = 6
ROUNDS = "round_" + 9 * "[0-9]"
FILES = ("history", "evaluations")


class Saved(NamedTuple):
    """A checkpoint as it is read back.

    Attributes:
      done: number of the last round that was done.
      state: the state after it.
      rows: what was recorded of the rounds so far, leaves `[rounds, ...]`.
      evaluations: what was recorded of the evaluations so far, leaves `[evaluations, ...]`.
      seconds: as in `History`, so far.
      compile_seconds: as in `History`, so far.
      best: the best state so far by what this run asks for; None where none was stored.
    """

    done: int
    state: Any
    rows: PyTree[np.ndarray]
    evaluations: PyTree[np.ndarray]
    seconds: float
    compile_seconds: float
    best: Best | None


class Store:
    """The folder of one run, open for reading and writing; nobody else may open it meanwhile.

    Args:
      settings: where and how often.
      run: what this run is; a stored run must be the same, or at least of the same shapes if the
        settings are not strict.
      row: shapes and types of what `record` takes of a round.
      evaluation: the same, of an evaluation.
      by: what the best state is chosen by, in words; one chosen otherwise is not read.

    Raises:
      InUseError: another process trains there.
      OSError: nothing can be written there.
    """

    def __init__(
        self,
        settings: Checkpoints,
        run: Fingerprint,
        row: PyTree,
        evaluation: PyTree,
        *,
        by: str = "",
    ):
        self._settings, self._run, self._by = settings, run, by
        self._folder = pathlib.Path(settings.folder)
        # What looks finished; `newest` checks it.
        self._good = [done for done in self._found() if self._sealed(done)]
        self._lock = self._entered()
        self._records = {
            name: Records(self._folder / f"{name}.bin", shapes)
            for name, shapes in zip(FILES, (row, evaluation), strict=True)
        }
        self._pending: dict[str, list[bytes]] = {name: [] for name in FILES}
        self._arrays = Arrays()
        # The best state has a writer of its own, so that neither waits for the other.
        self._best_arrays = Arrays() if by else None
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None
        self._saved: int | None = None
        self._last = time.monotonic()

    def newest(self, state: Any, places: Sequence[Sharding | None]) -> Saved | None:
        """The newest good checkpoint, or None; warns of every damaged one that it skips.

        Args:
          state: what the stored state must look like: its tree, shapes and types.
          places: the sharding of each leaf; None for a new array on the default device.

        Raises:
          ValueError: the checkpoint is of another run; tells what differs.
        """
        for done in reversed(self._found()):
            try:
                facts = self._checked(done)
                self._refuse_another_run(done, facts)
                self._verify_records(done, facts)
                restored = self._arrays.restore(self._at(done) / STATE, state, places, done)
                best = self._restored_best(done, facts, state, places)
            except DamagedError as damage:
                warnings.warn(
                    f"checkpoint {self._at(done)} is skipped: {damage}.",
                    RuntimeWarning,
                    stacklevel=3,
                )
                continue
            self._saved = done
            self._good = [earlier for earlier in self._good if earlier <= done]
            rows, evaluations = (self._records[name].read(facts[name]) for name in FILES)
            return Saved(
                done, restored, rows, evaluations, facts["seconds"], facts["compile_seconds"], best
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

    def record(self, rows: PyTree[np.ndarray], evaluations: PyTree[np.ndarray]) -> None:
        """Takes what further rounds measured; it is written with the next checkpoint."""
        for name, new in zip(FILES, (rows, evaluations), strict=True):
            self._pending[name].append(encode(new))

    def save(
        self,
        state: Any,
        done: int,
        seconds: float,
        compile_seconds: float,
        best: Best | None = None,
    ) -> None:
        """Starts a checkpoint; returns once it no longer needs `state`, which may then be donated.

        Args:
          state: after round `done`.
          done: number of that round.
          seconds: as in `History`, so far.
          compile_seconds: as in `History`, so far.
          best: the best state so far, written beside it.

        Raises:
          OSError: it, or the one before, could not be written.
        """
        self.wait()
        if done == self._saved:
            return
        with self._writes():
            if jax.process_index() == 0:
                untrusted.remove(self._at(done))
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"checkpoint {done}")
            self._arrays.save(self._at(done) / STATE, state, done)
            if best is not None and self._best_arrays is not None:
                self._best_arrays.save(self._at(done) / BEST, best.state, best.round)
        self._saved = done
        rows = {name: b"".join(self._pending[name]) for name in FILES}
        self._pending = {name: [] for name in FILES}
        facts = {
            "format": FORMAT,
            "round": done,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            "run": self._run.identity,
            "settings": self._run.settings,
            "best": None
            if best is None
            else {"round": best.round, "value": best.value, "by": self._by},
        }
        self._writing = self._beside.submit(self._finish, done, rows, facts)

    def wait(self) -> None:
        """Returns once the checkpoint that was started last is safe.

        Raises:
          OSError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with self._writes():
                writing.result()
            self._last = time.monotonic()

    def close(self, error: BaseException | None = None) -> None:
        """Waits for what is being written, and lets others into the folder.

        Args:
          error: that ends the run, if one does; that nothing more can be written is then no news.
        """
        try:
            self.wait()
        except OSError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._beside.shutdown()
            for arrays in (self._arrays, self._best_arrays):
                with contextlib.suppress(Exception):
                    if arrays is not None:
                        arrays.close()
            if self._lock is not None:
                self._lock.release()

    def _entered(self) -> Lock | None:
        """Makes and locks the folder: on several hosts process 0 does, for all of them."""
        lock, refusal = None, None
        try:
            if jax.process_index() == 0:
                with self._writes():
                    self._folder.mkdir(parents=True, exist_ok=True)
                    for name in FILES:
                        untrusted.verify_plain(self._folder / f"{name}.bin")
                    lock = Lock(self._folder)
        except (OSError, InUseError, ValueError) as error:
            refusal = error
        if jax.process_count() > 1:
            refused = multihost_utils.process_allgather(np.array(refusal is not None))
            if np.any(refused) and refusal is None:
                if lock is not None:
                    lock.release()
                raise InUseError(f"checkpoint folder {self._folder} was refused by process 0.")
        if refusal is not None:
            raise refusal
        return lock

    def _finish(self, done: int, rows: dict[str, bytes], facts: dict[str, Any]) -> None:
        """What remains once the arrays are on the host; runs beside the training."""
        self._arrays.wait()
        if self._best_arrays is not None:
            self._best_arrays.wait()
        if jax.process_index() != 0:
            return
        written = {name: self._records[name].append(rows[name]) for name in FILES}
        manifest.seal(self._at(done), {**written, **facts})
        self._good = [*self._good, done][-self._settings.keep :]
        for other in self._found():
            if other not in self._good:
                with contextlib.suppress(OSError):
                    untrusted.remove(self._at(other))

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """One error for everything that can go wrong on a disk."""
        try:
            yield
        except InUseError:
            raise
        except DamagedError as damage:
            raise ValueError(
                f"checkpoint folder {self._folder} is not one that a run left behind: {damage}. "
                "Remove it, or choose another folder."
            ) from None
        except Exception as error:
            stands = (
                f"The checkpoint of round {self._good[-1]} in it stands"
                if self._good
                else "It holds no finished checkpoint yet"
            )
            raise OSError(
                f"checkpoint folder {self._folder} could not be written: {error}. {stands}. Make "
                "room, or allow writing there, and make the same call again to go on from it."
            ) from error

    def _checked(self, done: int) -> dict[str, Any]:
        """The facts of a checkpoint that is whole, and is the one its name says."""
        facts = manifest.checked(self._at(done))
        if facts.get("format") != FORMAT:
            raise ValueError(
                f"checkpoint {self._at(done)} was written by another version of dflax (format "
                f"{facts.get('format')}, this one reads {FORMAT}). Choose another folder."
            )
        if type(facts.get("round")) is not int or facts["round"] != done:
            raise DamagedError(f"it holds round {facts.get('round')}, so it was renamed or copied")
        times = (facts.get("seconds"), facts.get("compile_seconds"))
        if not all(type(time) is float and math.isfinite(time) for time in times):
            raise DamagedError(f"its {manifest.MANIFEST} has no times")
        if not isinstance(facts.get("run"), dict):
            raise DamagedError(f"its {manifest.MANIFEST} does not say of which run it is")
        return facts

    def _restored_best(
        self, done: int, facts: dict[str, Any], state: Any, places: Sequence[Sharding | None]
    ) -> Best | None:
        """The best state that lies beside a state, if it was chosen by what this run asks for."""
        told = facts.get("best")
        if self._best_arrays is None or told is None:
            return None
        told = told if isinstance(told, dict) else {}
        number, value = told.get("round"), told.get("value")
        if type(number) is not int or type(value) is not float or not 0 < number <= done:
            raise DamagedError(f"its {manifest.MANIFEST} does not tell its best state")
        if told.get("by") != self._by:
            return None
        restored = self._best_arrays.restore(self._at(done) / BEST, state, places, number)
        return Best(number, value, restored)

    def _verify_records(self, done: int, facts: dict[str, Any]) -> None:
        rounds = max(done - self._run.identity["start"], 0)
        self._records["history"].check(facts.get("history"), rows=rounds)
        self._records["evaluations"].check(facts.get("evaluations"))

    def _refuse_another_run(self, done: int, facts: dict[str, Any]) -> None:
        lines = differences(facts["run"], facts.get("settings"), self._run, strict=False)
        escape = ""
        if not lines and self._settings.strict:
            lines = differences(facts["run"], facts.get("settings"), self._run, strict=True)
            escape = ", or pass Checkpoints(..., strict=False)"
        if lines:
            more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise ValueError(
                f"checkpoint {self._at(done)} is of another run: {'; '.join(lines[:SHOWN])}{more}. "
                f"Give the arguments of the stored run, or choose another folder{escape}."
            )

    def _found(self) -> list[int]:
        return sorted(int(p.name.removeprefix("round_")) for p in self._folder.glob(ROUNDS))

    def _sealed(self, done: int) -> bool:
        return (self._at(done) / manifest.MANIFEST).is_file()

    def _at(self, done: int) -> pathlib.Path:
        return self._folder / f"round_{done:09d}"
