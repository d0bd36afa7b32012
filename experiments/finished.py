"""Parts of a long study that outlive a kill: what is finished is read, not computed again."""

import dataclasses
import functools
import hashlib
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

import dflax
from experiments import study as study_module


def part(study: str, config: Any, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """`compute()`, or what an interrupted run of the same study with the same settings left of it.

    A part lies in `results/STUDY/parts/` under a digest of its name, the settings and the source of
    dflax and of the experiments, so that numbers of other code are never taken up.

    Args:
      study: the study's name.
      config: its dataclass.
      name: of the part within the study.
      compute: makes the array.
    """
    text = "\n".join((name, repr(dataclasses.asdict(config)), _source()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    folder = study_module.RESULTS / study / "parts"
    path = folder / f"{digest}.npy"
    if path.exists():
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile):
            path.unlink()
    found = np.asarray(compute())
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{digest}.tmp"
    with unfinished.open("wb") as file:
        np.save(file, found)
    unfinished.replace(path)
    return found


def forget(study: str) -> None:
    """Removes the parts of a study that has ended: the next run computes anew."""
    shutil.rmtree(study_module.RESULTS / study / "parts", ignore_errors=True)


@functools.cache
def _source() -> str:
    """A digest of everything that a number may depend on."""
    total = hashlib.sha256()
    for module in (dflax, study_module):
        for path in sorted(pathlib.Path(module.__file__ or "").parent.rglob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()
