"""Folders that vouch for their contents: a manifest with the SHA-256 of every file, written last."""

import hashlib
import json
import os
import pathlib
from typing import Any

from dflax.running.checkpoints import untrusted
from dflax.running.checkpoints.untrusted import DamagedError

MANIFEST = "manifest.json"
# Bytes. A manifest names the files of one state: thousands at most.
LARGEST = 1 << 26


def seal(folder: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of the files below `folder`, with some facts (JSON), in one atomic step."""
    content = {"facts": facts, "files": _digests(folder)}
    unfinished = folder / f"{MANIFEST}.unfinished"
    untrusted.remove(unfinished)
    with untrusted.plain_file(unfinished, write=True) as file:
        file.write(json.dumps({"content": content, "sha256": _json_sha256(content)}).encode())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)


def checked(folder: pathlib.Path) -> dict[str, Any]:
    """The facts of a sealed folder, once the files in it are those that were sealed, bit for bit.

    Raises:
      DamagedError: no manifest, one that cannot be read, or a file that is missing, cut short,
        changed, new, or no plain file.
    """
    try:
        untrusted.plain_folder(folder)
        content = _content(folder)
        found = _digests(folder)
    except OSError as error:
        raise DamagedError(f"it cannot be read: {error}") from None
    for name in content["files"].keys() | found.keys():
        if name not in found:
            raise DamagedError(f"its file {name} is missing")
        if name not in content["files"]:
            raise DamagedError(f"its file {name} was not there when it was finished")
        if found[name] != content["files"][name]:
            raise DamagedError(f"its file {name} was changed or cut short")
    return content["facts"]


def file_sha256(path: pathlib.Path) -> str:
    """The digest of a plain file, read a block at a time."""
    digest = hashlib.sha256()
    with untrusted.plain_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _content(folder: pathlib.Path) -> dict[str, Any]:
    try:
        sealed = json.loads(untrusted.read(folder / MANIFEST, LARGEST))
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}: it was not finished") from None
    # Text nested too deeply is a RecursionError.
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise DamagedError(f"its {MANIFEST} cannot be read") from None
    except OSError as error:
        raise DamagedError(f"its {MANIFEST} cannot be read: {error}") from None
    content = sealed.get("content") if isinstance(sealed, dict) else None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), dict) for part in ("facts", "files")
    ):
        raise DamagedError(f"its {MANIFEST} cannot be read")
    if sealed.get("sha256") != _json_sha256(content):
        raise DamagedError(f"its {MANIFEST} was changed")
    return content


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in untrusted.files_below(folder)
        if path.relative_to(folder).as_posix() not in (MANIFEST, f"{MANIFEST}.unfinished")
    }


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
