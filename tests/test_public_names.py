"""What `dir` shows of dflax is what users may use."""

import ast
import inspect
import types

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
