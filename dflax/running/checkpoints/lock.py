"""One process at a time in a folder: a lock of the system's, which the death of its holder releases."""

import json
import os
import pathlib
import socket
import warnings
from types import TracebackType
from typing import BinaryIO

from dflax.running.checkpoints import untrusted

NAME = "lock"
LARGEST = 1 << 12


class InUseError(RuntimeError):
    """Another process trains in this folder."""


class Lock:
    """Holds a folder until `release`, or until the process ends, however it ends.

    The file stays when the lock is released: it says who had it last. On a disk or a system without
    locks (`flock`) nothing is held, with a warning.

    Args:
      folder: an existing one.

    Raises:
      InUseError: another process, or another run of this one, holds it; names process and host.
      DamagedError: something that is no plain file bears the lock's name.
    """

    def __init__(self, folder: pathlib.Path):
        self._file: BinaryIO | None = untrusted.plain_file(folder / NAME, write=True)
        try:
            if _taken(self._file, folder):
                raise InUseError(
                    f"checkpoint folder {folder} is in use by {_holder(self._file)}. Wait for it to "
                    "end, end it, or choose another folder: two runs in one folder would overwrite "
                    "each other's checkpoints."
                )
            told = json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode()
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(told)
            self._file.flush()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets others in; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _taken(file: BinaryIO, folder: pathlib.Path) -> bool:
    """Takes the lock, unless another has it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError) as error:
        warnings.warn(
            f"checkpoint folder {folder} cannot be locked here ({error}): make sure that no other "
            "process trains in it.",
            RuntimeWarning,
            stacklevel=5,
        )
    return False


def _holder(file: BinaryIO) -> str:
    try:
        told = json.loads(file.read(LARGEST))
        return f"process {int(told['process'])} on host {str(told['host'])[:255]!r}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
