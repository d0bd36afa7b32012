"""Signals that ask a run to end, held back until its checkpoint is safe."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn


class Terminated(SystemExit):
    """Raised by `run` after a SIGTERM, when the checkpoint is safe: ends the process with code 143."""


class LimitReached(UserWarning):
    """A run ended at its `limit`, before the last round that was asked for."""


@contextlib.contextmanager
def held_signals() -> Iterator[list[int]]:
    """Collects the first SIGTERM or Ctrl-C instead of obeying it; a second one acts at once.

    In the main thread only, where Python allows it; signals that are ignored stay ignored.
    """
    received: list[int] = []
    usual: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                usual[number] = handler
                signal.signal(number, note)
    try:
        yield received
    finally:
        for held, handler in usual.items():
            signal.signal(held, handler)


def obey(number: int) -> NoReturn:
    """Ends the run as the signal asked: `KeyboardInterrupt` for Ctrl-C, else `Terminated`."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


__all__ = [
    "LimitReached",
    "Terminated",
    "held_signals",
    "obey",
]


def __dir__() -> list[str]:
    return __all__
