"""Executes the notebooks while the site is built: a hook of mkdocs, `hooks: [docs/hooks/notebooks.py]`.

A page under docs/notebooks/ is jupytext Markdown. Its blocks run in order in a kernel of this
environment, in a temporary folder, and what they print and draw is put behind them. An error in a block
fails the build. What was executed is kept in .cache/notebooks until the page or dflax changes.
"""

import hashlib
import html
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "notebooks"
FOLDER = "notebooks/"
SECONDS = 900
# Sharp figures, of the size that they are given.
BEFORE = '%config InlineBackend.figure_format = "retina"'


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with the outputs of its blocks, where it is a notebook."""
    return executed(markdown) if page.file.src_uri.startswith(FOLDER) else markdown


def executed(markdown: str) -> str:
    """The page with what its blocks print and draw."""
    kept = CACHE / f"{_digest(markdown)}.md"
    if not kept.exists():
        page = rendered(_run(markdown))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(page)
    return kept.read_text()


def rendered(cells: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of executed cells: text, code, and outputs behind it."""
    parts: list[str] = []
    for cell in cells:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
            continue
        parts.append(f"```python\n{cell['source']}\n```")
        for output in cell["outputs"]:
            parts.extend(_shown(output))
    return "\n\n".join(parts) + "\n"


def _shown(output: Mapping[str, Any]) -> Iterator[str]:
    """An output as Markdown; progress and warnings, which go to stderr, are left out."""
    if output["output_type"] == "stream":
        if output["name"] == "stdout":
            yield _as_text(output["text"])
        return
    data = output.get("data", {})
    if "image/png" in data:
        size = output.get("metadata", {}).get("image/png", {})
        width = f' width="{size["width"]}"' if "width" in size else ""
        picture = data["image/png"].replace("\n", "")
        yield f'<img alt="what this block draws"{width} src="data:image/png;base64,{picture}">'
    elif "text/plain" in data:
        yield _as_text(data["text/plain"])


def _as_text(text: str) -> str:
    return f'<pre class="output"><code>{html.escape(text.rstrip())}</code></pre>'


def _run(markdown: str) -> Sequence[Any]:
    import jupytext
    import nbclient
    import nbformat
    from traitlets.config import Config

    notebook = jupytext.reads(markdown, fmt="md")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            # Sockets of this user alone, no ports.
            config=Config({"KernelManager": {"transport": "ipc"}}),
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | {"JAX_PLATFORMS": "cpu"})
    return notebook.cells[1:]


def _digest(markdown: str) -> str:
    """Of the page, of this file and of dflax."""
    found = hashlib.sha256(markdown.encode())
    for path in (pathlib.Path(__file__), *sorted((ROOT / "dflax").rglob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:32]
