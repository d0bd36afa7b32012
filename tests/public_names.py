"""`__all__` of every package, made of what its `__init__` imports.

`python -m tests.public_names` lists the packages whose `__all__` is another; with `--write` they are
written. `tests/test_public_names.py` fails where one is another.
"""

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent / "dflax"
DIR = "\n\ndef __dir__() -> list[str]:\n    return __all__\n"


def packages() -> list[pathlib.Path]:
    """The `__init__` of dflax and of every package in it."""
    return sorted(ROOT.rglob("__init__.py"))


def in_order(name: str) -> tuple[int, list[int | str]]:
    """Constants, then classes, then the rest, numbers by their size: as ruff wants them."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    parts = re.split(r"(\d+)", name)
    return kind, [int(part) if part.isdigit() else part for part in parts]


def public_names(text: str) -> list[str]:
    """What an `__init__` imports from dflax, types' sake included, and the version where it says one."""
    names = set()
    body = ast.parse(text).body
    guarded = [node for part in body if isinstance(part, ast.If) for node in part.body]
    for node in body + guarded:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dflax":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {
                target.id
                for target in node.targets
                if isinstance(target, ast.Name) and target.id == "__version__"
            }
    return sorted((name for name in names if name[0] != "_" or name == "__version__"), key=in_order)


def written(text: str) -> str:
    """The same file with the `__all__` that its imports ask for."""
    names = public_names(text)
    if names:
        wanted = "__all__ = [\n" + "".join(f'    "{name}",\n' for name in names) + "]\n" + DIR
    else:
        wanted = "__all__: list[str] = []  # what users need of it, a package above imports\n"
    before, *_ = re.split(r"^__all__\b", text, maxsplit=1, flags=re.MULTILINE)
    return before.rstrip() + "\n\n" + wanted


def main() -> int:
    """Names packages whose `__all__` is another than their imports', or writes them."""
    parser = argparse.ArgumentParser(prog="python -m tests.public_names", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is another")
    arguments = parser.parse_args()
    others = [file for file in packages() if written(file.read_text()) != file.read_text()]
    for file in others:
        print(file.relative_to(ROOT.parent), "written" if arguments.write else "is another")
        if arguments.write:
            file.write_text(written(file.read_text()))
    return int(bool(others) and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
