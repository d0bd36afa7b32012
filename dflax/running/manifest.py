"""Folders that vouch for their contents: a manifest with the SHA-256 of every file, written last."""

import hashlib
import json
import os
import pathlib
from typing import Any

MANIFEST = "manifest.json"


class DamagedError(Exception):
    """Why a folder is not to be trusted."""


def seal(folder: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of the files below `folder`, with some facts (JSON), in one atomic step."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _file_sha256(path) for path in files}
    content = {"facts": facts, "files": digests}
    unfinished = folder / f"{MANIFEST}.unfinished"
    with unfinished.open("w") as file:
        json.dump({"content": content, "sha256": _json_sha256(content)}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)


def checked(folder: pathlib.Path) -> dict[str, Any]:
    """The facts of a sealed folder, once every file in it is as it was when it was sealed.

    Raises:
      DamagedError: no manifest, or a manifest or file that is missing, cut short or changed.
    """
    try:
        sealed = json.loads((folder / MANIFEST).read_bytes())
        content, digest = sealed["content"], sealed["sha256"]
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}: it was not finished") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"its {MANIFEST} cannot be read") from None
    if digest != _json_sha256(content):
        raise DamagedError(f"its {MANIFEST} was changed")
    for name, expected in content["files"].items():
        if not (folder / name).is_file():
            raise DamagedError(f"its file {name} is missing")
        if _file_sha256(folder / name) != expected:
            raise DamagedError(f"its file {name} was changed or cut short")
    return content["facts"]


def _file_sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
