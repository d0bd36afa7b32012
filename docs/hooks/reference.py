"""Pages that no file in docs/ holds: one for each room of dflax, and documents that lie elsewhere."""

import pathlib
import posixpath
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rooms import ROOT, Name, Room, anchor, homes, rooms

# Pages of the site that the repository keeps elsewhere; one that is not there is left out.
ELSEWHERE = {
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages, after the files of docs/ are found and before they are read."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    bare = [name.path for room in rooms() for name in room.names if not name.docstring]
    if bare:
        raise PluginError(f"public names without a docstring: {', '.join(sorted(set(bare)))}")
    for room in rooms():
        files.append(File.generated(config, room.page, content=page_of(room)))
    for page, path in ELSEWHERE.items():
        if (ROOT / path).is_file():
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=from_here(text, path)))
    return files


def page_of(room: Room) -> str:
    """The page of a room: what it is, a table of its names, and each of them with its docstring."""
    lines = [f"# `{room.spoken}`", "", room.docstring, ""]
    if room.rooms:
        links = ", ".join(
            f"[`dx{path.removeprefix('dflax')}`]({_page(path)})" for path, _ in room.rooms
        )
        lines += [f"Rooms in it: {links}.", ""]
    if room.names:
        lines += [
            "| name | what it is |",
            "|---|---|",
            *(_row(room, name) for name in room.names),
            "",
        ]
    for name in room.names:
        if homes()[name.path] == room and anchor(name) == f"{room.path}.{name.name}":
            lines += _entry(room, name)
    return "\n".join(lines)


def from_here(text: str, path: str) -> str:
    """A document of another folder, whose links are made those of a page in docs/."""
    pages = {outside: page for page, outside in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        return f"]({pages.get(place, place.removeprefix('docs/'))}"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)", link, text)


def _row(room: Room, name: Name) -> str:
    home = homes()[name.path]
    page = "" if home == room else pathlib.PurePosixPath(home.page).name
    # A bar in code stands for itself in a table, one in text ends a cell.
    parts = name.summary.split("`")
    parts[::2] = [text.replace("|", "&#124;") for text in parts[::2]]
    return f"| [`{name.name}`]({page}#{anchor(name)}) | {'`'.join(parts)} |"


def _entry(room: Room, name: Name) -> list[str]:
    # The definition's own path is the heading's anchor; users' links name the room's.
    other = (
        [] if f"{room.path}.{name.name}" == name.path else [f"[](){{#{room.path}.{name.name}}}", ""]
    )
    return [*other, f"::: {name.path}", "    options:", f'      heading: "{name.name}"', ""]


def _page(path: str) -> str:
    return f"{path.removeprefix('dflax.')}.md"
