"""Every page under docs/: its programs run as they stand there, and it links to what is there.

The ```python blocks of a page run in order, in one namespace and in a temporary folder. A block marked
```python no-run is for machines that are not here: it is only compiled. A page that needs a package
which is not installed is skipped, and the message names the extra.

What a page shows is checked by the page itself, with `assert`; what it should not say aloud is in
`AFTERWARDS`.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import pathlib
import re
import textwrap
import tomllib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import dflax as dx

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# A fence may be indented, in a list or a tab.
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
MADE_FOR = {"haiku": "dm-haiku", "sklearn": "scikit-learn"}


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
      line: of the fence, from 1.
      info: what follows the fence: "python", "python no-run", ...
      code: what is in it.
    """

    line: int
    info: str
    code: str

    def compiled(self, page: str) -> types.CodeType:
        """With the line numbers of the page, so that a traceback points into it."""
        return compile("\n" * self.line + self.code, f"docs/{page}", "exec")


def read(page: str) -> tuple[str, list[Block]]:
    """A page's text without its fenced blocks, and the blocks."""
    text, blocks = [], []
    lines = enumerate((DOCS / page).read_text().splitlines(), start=1)
    for number, line in lines:
        opened = FENCE.match(line)
        if opened is None:
            text.append(line)
            continue
        inside = []
        for _, line in lines:
            if line.strip() == opened[2]:
                break
            inside.append(line)
        else:
            raise ValueError(f"docs/{page}, line {number}: this block does not end.")
        text.append("")
        blocks.append(Block(number, opened[3].strip(), textwrap.dedent("\n".join(inside)) + "\n"))
    return "\n".join(text), blocks


def programs(page: str) -> list[Block]:
    """The blocks in Python, those that do not run here among them."""
    return [block for block in read(page)[1] if block.info.split()[:1] == ["python"]]


WITH_PROGRAMS = [page for page in PAGES if programs(page)]


def models(names: dict[str, Any], warned: list) -> None:
    accuracies = [
        float(names[f"{library}_accuracy"]) for library in ("linen", "nnx", "equinox", "haiku")
    ]
    assert min(accuracies) > 0.93
    assert max(accuracies) - min(accuracies) < 0.03
    assert isinstance(names["module"], names["Nnx"])
    assert names["haiku_state"]["batch_norm/~/mean_ema"]["counter"] == 12 * 15
    assert names["tree_state"].get(names["tree"].norm.batch_counter) == 12 * 15


def asynchronous(names: dict[str, Any], warned: list) -> None:
    history = names["history"]
    np.testing.assert_allclose(history.at("time"), np.arange(5, 41, 5))
    assert history.evaluations["accuracy"][-1] > 0.9


def privacy(names: dict[str, Any], warned: list) -> None:
    assert any(issubclass(one.category, dx.interrupt.LimitReached) for one in warned)
    assert 190 <= len(names["history"].rounds) <= 210
    assert 3.9 < names["spent"][-1] <= 4.0


# Of a page: what must hold of its names, and of what was warned, once it has run.
AFTERWARDS: dict[str, Callable[[dict[str, Any], list], None]] = {
    "asynchronous.md": asynchronous,
    "models.md": models,
    "privacy.md": privacy,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PROGRAMS)
def test_a_pages_programs_run(page, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "__main__"}
    with warnings.catch_warnings(record=True) as warned, contextlib.chdir(tmp_path):
        warnings.simplefilter("always")
        for block in programs(page):
            if "no-run" in block.info.split():
                continue
            try:
                exec(block.compiled(page), names)
            except ImportError as error:
                pytest.skip(named(error))
    if page in AFTERWARDS:
        AFTERWARDS[page](names, warned)


def named(error: ImportError) -> str:
    """The extra that is missing; an import that no extra repairs is an error of the page."""
    if "dflax[" in str(error):
        return str(error)
    asked = (error.name or "").partition(".")[0]
    wanted = MADE_FOR.get(asked, asked).replace("_", "-").lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, requirements in project["optional-dependencies"].items():
        if any(re.split(r"[^\w.-]", one)[0].lower() == wanted for one in requirements):
            return f"{asked} is not installed: pip install 'dflax[{extra}]'."
    raise error


def test_no_page_is_forgotten():
    assert {"models.md", "how-to/models.md", "notebooks/quickstart.md"} <= set(WITH_PROGRAMS)
    assert set(AFTERWARDS) <= set(WITH_PROGRAMS)


@pytest.mark.parametrize("page", WITH_PROGRAMS)
def test_a_pages_programs_compile_and_name_what_exists(page):
    """Every `dx.room.name` is there, and takes the keywords that it is given."""
    known: dict[str, Any] = {}
    for block in programs(page):
        block.compiled(page)
        for node in ast.walk(ast.parse(block.code)):
            known |= dict(imported(node))
        for node in ast.walk(ast.parse(block.code)):
            where = f"docs/{page}, line {block.line + getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute):
                found(node, known, where)
            elif isinstance(node, ast.Call):
                fits(node, found(node.func, known, where), where)


def imported(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names that an import of dflax binds."""
    if isinstance(node, ast.Import):
        for name in node.names:
            if name.name == "dflax":
                yield name.asname or name.name, dx
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dflax":
        module = importlib.import_module(node.module)
        for name in node.names:
            yield name.asname or name.name, getattr(module, name.name)


def found(node: ast.AST, known: dict[str, Any], where: str) -> Any:
    """What `dx.room.name` is; None of anything else, such as a method of an object."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = found(node.value, known, where)
    if not isinstance(owner, types.ModuleType):
        return None
    assert hasattr(owner, node.attr), f"{where}: {owner.__name__} has no {node.attr}."
    return getattr(owner, node.attr)


def fits(call: ast.Call, function: Any, where: str) -> None:
    """Refuse keywords that a function of dflax does not take."""
    if function is None or not callable(function):
        return
    takes = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        return
    for keyword in call.keywords:
        assert keyword.arg is None or keyword.arg in takes, (
            f"{where}: {function.__name__} takes no {keyword.arg}."
        )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_title_and_its_links_lead_somewhere(page):
    text, _ = read(page)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    titles = re.findall(r"^# .+", text, re.MULTILINE)
    assert len(titles) == 1, f"docs/{page} must have one title, got {titles}."
    assert re.match(r"\s*(<!--.*?-->\s*)*# ", text, re.DOTALL), (
        f"docs/{page} begins with its title."
    )
    text = re.sub(r"`[^`\n]*`", "code", text)
    for target in targets(text):
        path = target.partition("#")[0]
        place = (DOCS / page).parent / path
        assert not path or place.exists(), f"docs/{page} links to {target}, which is not there."


def targets(text: str) -> list[str]:
    """Where links and images lead: relative ones alone, which are files of this repository."""
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    defined = re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
    tags = re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [one for one in inline + defined + tags if not re.match(r"[a-z]+:|//", one)]


@pytest.fixture(scope="module")
def hook():
    found = importlib.util.spec_from_file_location("notebooks", DOCS / "hooks" / "notebooks.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_site_shows_what_a_notebook_prints_and_draws(hook):
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "0.5 < 1\n"},
        {"output_type": "stream", "name": "stderr", "text": "a bar"},
        {
            "output_type": "display_data",
            "data": {"image/png": "iVBO\nRw0=", "text/plain": "<Figure>"},
        },
        {"output_type": "execute_result", "data": {"text/plain": "7"}},
    ]
    page = hook.rendered(
        [
            {"cell_type": "markdown", "source": "# A title"},
            {"cell_type": "code", "source": "print(0.5)", "outputs": outputs},
        ]
    )
    assert page.startswith("# A title\n\n```python\nprint(0.5)\n```\n\n<pre")
    assert "0.5 &lt; 1</code>" in page
    assert 'src="data:image/png;base64,iVBORw0="' in page
    assert ">7</code>" in page
    assert "a bar" not in page
    assert "Figure" not in page
