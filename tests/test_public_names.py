"""What `dir` shows of dflax is what users may use, and `__all__` is what packages import for them."""

import ast
import importlib
import inspect
import types

import public_names
import pytest

import dflax


def reachable():
    """All modules that a user reaches from `dflax` by its public names."""
    found = [dflax]
    for module in found:
        values = (getattr(module, name) for name in module.__all__)
        found += [v for v in values if isinstance(v, types.ModuleType) and v not in found]
    return found


MODULES = reachable()


def defined(module):
    """The public names that an `__init__` imports, or that a module defines."""
    for node in ast.parse(inspect.getsource(module)).body:
        if hasattr(module, "__path__") and isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name


def test_the_rooms_are_reached():
    names = {module.__name__ for module in MODULES}
    assert {"dflax.server", "dflax.gossip", "dflax.losses", "dflax.recipes"} <= names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_dir_shows_what_users_may_use_and_nothing_else(module):
    assert dir(module) == sorted(module.__all__)
    missing = set(defined(module)) - set(module.__all__)
    assert not missing, f"{sorted(missing)}: list in __all__ what the module offers."
    assert all(hasattr(module, name) for name in module.__all__)


PACKAGES = {
    ".".join(file.relative_to(public_names.ROOT.parent).parent.parts): file
    for file in public_names.packages()
}


def test_all_lists_what_a_package_imports():
    others = [
        str(file.relative_to(public_names.ROOT.parent))
        for file in PACKAGES.values()
        if public_names.written(file.read_text()) != file.read_text()
    ]
    assert not others, f"{others}: write them by `python -m tests.public_names --write`."


def test_all_is_what_a_package_holds():
    assert len(PACKAGES) > 80
    for name in PACKAGES:
        module = importlib.import_module(name)
        held = {
            key
            for key, value in vars(module).items()
            if key[0] != "_" and not isinstance(value, types.ModuleType)
        }
        listed = {
            key
            for key in module.__all__
            if key != "__version__" and not isinstance(getattr(module, key), types.ModuleType)
        }
        assert held == listed, name


def test_names_are_written_in_ruffs_order_and_what_is_private_is_left_out():
    text = (
        '"""A room."""\n\nfrom dflax.room import _hidden, a10, a9, Class, CONSTANT, long as short\n'
        'from typing import Any\n\n__all__ = ["stale"]\n'
    )
    names = public_names.public_names(text)
    assert names == ["CONSTANT", "Class", "a9", "a10", "short"]
    assert '"stale"' not in public_names.written(text)
    assert public_names.public_names(public_names.written(text)) == names
    assert "__all__: list[str] = []" in public_names.written('"""A room."""\n')
