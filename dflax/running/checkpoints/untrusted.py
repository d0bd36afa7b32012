"""Files of a folder that anybody may have written: no links, and sizes known before they are read.

A folder of a run may come from a shared disk or from a stranger. A symbolic link in it could name a
file elsewhere, a pipe would hang the reader, and a size that a text claims could fill the memory.
"""

import os
import pathlib
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO


class DamagedError(ValueError):
    """Why a folder or file is not to be trusted."""


def plain_file(path: pathlib.Path, *, write: bool = False) -> BinaryIO:
    """Opens a plain file, for reading or for reading and writing; makes it for writing.

    Raises:
      FileNotFoundError: there is none to read.
      DamagedError: a symbolic link, a folder, a pipe or a device lies there.
    """
    flags = (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | getattr(os, "O_NONBLOCK", 0)
    verify_plain(path)
    # Between the look and the opening the file may have been replaced: the system refuses a link.
    opened = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        _refuse_unless_plain(path, os.fstat(opened).st_mode)
        return os.fdopen(opened, "r+b" if write else "rb")
    except BaseException:
        os.close(opened)
        raise


def verify_plain(path: pathlib.Path) -> None:
    """Refuses what is there and no plain file."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    _refuse_unless_plain(path, kind)


def read(path: pathlib.Path, most: int) -> bytes:
    """All bytes of a plain file that has at most so many.

    Raises:
      FileNotFoundError: there is none.
      DamagedError: it is no plain file, or a larger one.
    """
    with plain_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DamagedError(f"its {path.name} has {size} bytes, more than {most}")
        return file.read(most)


def files_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Every plain file below a folder, which itself is a folder and not a link to one.

    Raises:
      DamagedError: the folder, or anything below it, is a link, a pipe or a device.
    """
    plain_folder(folder)
    for entry in sorted(folder.iterdir()):
        if stat.S_ISDIR(entry.lstat().st_mode):
            yield from files_below(entry)
        else:
            _refuse_unless_plain(entry, entry.lstat().st_mode)
            yield entry


def plain_folder(path: pathlib.Path) -> None:
    """Refuses what is no folder, such as a link to one."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise DamagedError(f"its {path.name} is no folder, or a link to one")


def remove(path: pathlib.Path) -> None:
    """Removes what lies there, whatever it is; of a link the link, never what it names."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _refuse_unless_plain(path: pathlib.Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise DamagedError(f"its {path.name} is a symbolic link, and links are not followed")
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe or device"
        raise DamagedError(f"its {path.name} is a {kind}, not a file")
