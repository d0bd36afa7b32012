"""Where and how often a run is saved, and what a folder of checkpoints looks like.

A folder holds one run:

    lock                   held by the process that trains here; says which one
    history.bin            a fixed number of bytes per round, only ever appended to
    evaluations.bin        the same, per evaluation
    round_000000300/
      state/               the leaves of the state, by number, as orbax writes them
      best/                the same of the best state so far, where `keep_best` asks for it
      manifest.json        written last: the round, what run this is, and SHA-256 of every file of
                           `state` and of the history up to this round

A checkpoint is good if its manifest is whole, says the round that the folder's name says, and all
that is listed there hashes to what it says. So one that was being written when the process was
killed, that was damaged later, renamed, or brought from another run, is never taken for a good one.

A folder may come from anywhere. Loading reads arrays (tensorstore's OCDBT and zarr), JSON and raw
bytes, and nothing that could execute code: no pickle. Links in the folder are not followed, and
shapes are those of the run at hand, not those that a file claims. (Hashes do not tell who wrote a
folder: whoever can write there can also seal other numbers.)
"""

import dataclasses
import os
import pathlib

from dflax import validation


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often `run` saves its state.

    Attributes:
      folder: of this one run, on a disk that all of its processes share; made if it is missing. One
        process at a time trains in it (on a disk with locks): a second one is refused, and is told
        which one is there.
      every_seconds: > 0, seconds between checkpoints; default 60, or none if `every_rounds` is given.
        While a checkpoint is still being written, the next one waits.
      every_rounds: >= 1, save after the rounds whose number (from 1) it divides. With both, whichever
        comes first.
      keep: how many of the latest checkpoints stay, >= 1.
      strict: refuse to resume a run whose algorithm, hyper-parameters, data, key, evaluation or
        initial values differ from the stored run's. If False, only the number of the first
        round and the shapes and types of state and metrics are compared. That allows to change a
        setting in the middle of a run, the kind of device (clients then run together or in turn, which
        is another program), or the number of devices that `dflax.data.dealt` dealt the data over.

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
                "checkpoint must be a folder's path or a Checkpoints, got "
                f"{validation.shown(self.folder)}."
            )
        if not name or "://" in name:
            raise ValueError(
                f"checkpoint must be a folder on a local or mounted disk, got {validation.shown(name)}."
            )
        folder = pathlib.Path(name).expanduser().absolute()
        file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        if file is not None:
            raise ValueError(
                f"checkpoint must be a folder, got {validation.shown(name)}, but {file} is a file. "
                "Give a folder that exists or can be made."
            )
        object.__setattr__(self, "folder", folder)
        if self.every_seconds is None and self.every_rounds is None:
            object.__setattr__(self, "every_seconds", 60.0)
        if self.every_seconds is not None:
            validation.real(
                "every_seconds", self.every_seconds, low=0.0, low_open=True, scalar=True
            )
        if self.every_rounds is not None:
            validation.integer("every_rounds", self.every_rounds, low=1)
        validation.integer("keep", self.keep, low=1)
        validation.flag("strict", self.strict)


__all__ = [
    "Checkpoints",
]


def __dir__() -> list[str]:
    return __all__
