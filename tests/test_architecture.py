"""The picture of the rooms in docs/architecture.md is what the imports are."""

import ast
import pathlib
import re

import dflax

ROOT = pathlib.Path(dflax.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"
ROWS = [
    re.findall(r"`(\w+)`", line)
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| [^|]+ \| `", line)
]
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}


def imported_rooms(file):
    """The rooms that a file imports from, wherever in it that happens."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dflax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dflax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dflax."):
                    yield alias.name.split(".")[1]


def room_of(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_the_page_names_every_room_once():
    rooms = {room_of(file) for file in ROOT.rglob("*.py")} - {"__init__"}
    assert sorted(room for row in ROWS for room in row) == sorted(rooms)


def test_no_import_points_up_or_sideways():
    wrong = [
        f"{file.relative_to(ROOT)} ({room_of(file)}) imports {room}"
        for file in sorted(ROOT.rglob("*.py"))
        if file != ROOT / "__init__.py"
        for room in imported_rooms(file)
        if room != room_of(file) and ROW[room] >= ROW[room_of(file)]
    ]
    assert not wrong, f"{wrong}: see docs/architecture.md"
