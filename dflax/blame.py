"""Errors in tracing: those of the user come out as they are, a state that does not fit with a hint."""

import contextlib
import functools
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

# Packages whose frames are not the user's.
OURS = ("dflax", "jax", "jaxlib", "optax", "chex")
HINT = (
    "The state must come from this algorithm's init, the source must draw what its step takes, and "
    "evaluate must measure what the state has: evaluation.server_model for a model at the server, "
    "client_models, mean_model or consensus for models of the clients."
)


def blamed(what: str, trace: Callable[..., Any], *arguments: Any) -> Any:
    """`trace(*arguments)`; tells what does not fit where that is known, and leaves other errors alone.

    An error raised in the user's own function, or in what it calls, keeps its type, its words and the
    user's frames; those of this package between the call of `run` and the user's function are left
    out. Our own checks come through unchanged. What remains are arrays and attributes that our code
    looks for in vain: state, source and algorithm are then not of the same run.

    Args:
      what: is traced, for example "algorithm.step".
      trace: traces it.
      *arguments: of `trace`.

    Raises:
      TypeError: something that `what` needs is not there.
    """
    # Not a context manager: those of contextlib put the whole traceback back.
    try:
        return trace(*arguments)
    except Exception as error:
        frames = _frames(error.__traceback__)
        last = max((n for n, frame in enumerate(frames) if not _ours(frame)), default=None)
        if last is not None:
            kept = [f for n, f in enumerate(frames) if n > last or not _ours(f)]
            raise error.with_traceback(_linked(kept)) from error.__cause__
        if not _unfitting(error, frames):
            raise
        cause = error.with_traceback(_linked(frames[-1:]))
        text = f"{type(error).__name__}: {error}"
        raise TypeError(
            f"{what} does not fit the state and source of this run: {text}. {HINT}"
        ) from cause


def _unfitting(error: Exception, frames: list[types.TracebackType]) -> bool:
    """Whether code of ours did not find what it looked for, or jax could not join the shapes."""
    raised_in = _package(frames[-1])
    return isinstance(error, (AttributeError, LookupError)) or (
        isinstance(error, TypeError) and raised_in != "dflax"
    )


def _frames(traceback: types.TracebackType | None) -> list[types.TracebackType]:
    """From the tracing inward; the first frame is that of `blamed` itself."""
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return frames


def _linked(frames: list[types.TracebackType]) -> types.TracebackType | None:
    linked = None
    for frame in reversed(frames):
        linked = types.TracebackType(linked, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return linked


def _ours(frame: types.TracebackType) -> bool:
    return _package(frame) is not None


def _package(frame: types.TracebackType) -> str | None:
    """Which of our packages, or "python" for its standard library; None for anybody else's code."""
    return _package_of(frame.tb_frame.f_code.co_filename)


@functools.lru_cache(maxsize=4096)
def _package_of(filename: str) -> str | None:
    path = pathlib.Path(filename)
    for name in OURS:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file is not None and path.is_relative_to(pathlib.Path(file).parent):
            return name
    library = pathlib.Path(contextlib.__file__).parent
    return "python" if path.parent == library else None
