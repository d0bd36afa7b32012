"""The rooms of dflax and their public names, read from the sources: nothing of dflax is imported."""

import ast
import functools
import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "dflax"


class Name(NamedTuple):
    """A public name of a room.

    Attributes:
      name: as users write it after the room's.
      path: where it is defined, `dflax.server.fedavg.fedavg`.
      docstring: its own; "" for none.
    """

    name: str
    path: str
    docstring: str

    @property
    def summary(self) -> str:
        """The first sentence or line of the docstring."""
        paragraph = " ".join(self.docstring.split("\n\n")[0].split())
        return paragraph.removesuffix(":")


class Room(NamedTuple):
    """A module that users reach from `dflax` by public names.

    Attributes:
      path: as users reach it: `dflax`, `dflax.server`, `dflax.profile`.
      source: where its file is: `dflax`, `dflax.server`, `dflax.running.profile`.
      docstring: the module's.
      names: what it offers but for the rooms in it, sorted as its `__all__` is.
      rooms: the rooms in it, their paths and sources.
    """

    path: str
    source: str
    docstring: str
    names: tuple[Name, ...]
    rooms: tuple[tuple[str, str], ...]

    @property
    def spoken(self) -> str:
        """As users write it: `dx.server`."""
        return "dx" + self.path.removeprefix(PACKAGE)

    @property
    def page(self) -> str:
        """The room's page in the site's sources."""
        return f"reference/{self.path.removeprefix(PACKAGE + '.')}.md"


class _Module(NamedTuple):
    docstring: str
    public: tuple[str, ...]
    imported: dict[str, tuple[str, str]]
    defined: dict[str, str]


@functools.cache
def rooms(package: str = PACKAGE) -> tuple[Room, ...]:
    """The package and all rooms that are reached from it, the package first, the others sorted."""
    found: dict[str, Room] = {}
    left = [(package, package)]
    while left:
        path, source = left.pop(0)
        if source not in found:
            found[source] = _room(path, source)
            left += found[source].rooms
    return tuple(sorted(found.values()))


@functools.cache
def homes() -> dict[str, Room]:
    """For each definition the room whose page shows it: the first that offers it."""
    found: dict[str, Room] = {}
    for room in rooms():
        for name in room.names:
            found.setdefault(name.path, room)
    return found


@functools.cache
def spoken() -> dict[str, tuple[str, str]]:
    """For `dx.server`, `dx.server.fedavg` and all like them: a page's source and the anchor on it."""
    found = {}
    for room in rooms():
        found[room.spoken] = (room.page, "")
        for name in room.names:
            found[f"{room.spoken}.{name.name}"] = (homes()[name.path].page, anchor(name))
    return found


def anchor(name: Name) -> str:
    """The place of a name on the page of its room: `dflax.server.fedavg`."""
    room = homes()[name.path]
    return f"{room.path}.{next(own.name for own in room.names if own.path == name.path)}"


def _room(path: str, source: str) -> Room:
    module = _module(source)
    names, within = [], []
    for public in module.public:
        place = _definition(source, public)
        if _file(place) is not None:
            within.append((f"{path}.{public}", place))
        elif public != "__version__":
            owner, _, own = place.rpartition(".")
            names.append(Name(public, place, _module(owner).defined[own]))
    return Room(path, source, module.docstring, tuple(names), tuple(within))


def _definition(path: str, name: str) -> str:
    """Where a module's name is defined, through all that import it."""
    module = _module(path)
    if name in module.defined:
        return f"{path}.{name}"
    if name in module.imported:
        source, original = module.imported[name]
        own = _module(source)
        # A package that imports from itself imports its modules.
        if source != path and (original in own.defined or original in own.imported):
            return _definition(source, original)
        return f"{source}.{original}"
    raise LookupError(f"{path}.__all__ names {name!r}, which {path} neither defines nor imports.")


def _file(path: str) -> pathlib.Path | None:
    """The source of a module; None where the path is no module's."""
    place = ROOT.joinpath(*path.split("."))
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


@functools.cache
def _module(path: str) -> _Module:
    file = _file(path)
    assert file is not None, path
    tree = ast.parse(file.read_text(encoding="utf-8"))
    public: tuple[str, ...] = ()
    imported, defined = {}, {}
    # What stands under `if TYPE_CHECKING` is imported when it is first named.
    guarded = [node for part in tree.body if isinstance(part, ast.If) for node in part.body]
    body = [*guarded, *tree.body]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if node.module.split(".")[0] == PACKAGE:
                    imported[alias.asname or alias.name] = (node.module, alias.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    defined[target.id] = _text(after)
                    if target.id == "__all__" and node.value is not None:
                        public = tuple(ast.literal_eval(node.value))
    return _Module(ast.get_docstring(tree) or "", public, imported, defined)


def _text(node: ast.stmt | None) -> str:
    """The string that stands under an assignment as its docstring."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return str(node.value.value).strip()
    return ""
