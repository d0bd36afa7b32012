"""The site's navigation: patterns in mkdocs.yml's `nav` stand for the pages that are there."""

import fnmatch
import itertools
import pathlib
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reference import ELSEWHERE
from rooms import ROOT, rooms


def on_config(config: Any) -> Any:
    """Replaces each pattern by its pages; a section without pages is left out."""
    config.nav = expanded(config.nav, pages(pathlib.Path(config.docs_dir)))
    return config


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Refuses a page without a title of its own."""
    from mkdocs.exceptions import PluginError

    if not re.search(r"<h1\b[^>]*>.*?\S.*?</h1>", html, re.DOTALL):
        raise PluginError(f"{page.file.src_uri} has no title. Begin it with a line '# Title'.")
    return html


def pages(docs: pathlib.Path) -> list[str]:
    """The sources of all pages: those in docs/, those of the rooms, those that lie elsewhere."""
    written = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    elsewhere = [page for page, path in ELSEWHERE.items() if (ROOT / path).is_file()]
    return written + [room.page for room in rooms()] + elsewhere


def expanded(nav: list[Any], known: list[str]) -> list[Any]:
    """The navigation without patterns.

    `how-to/*.md` stands for all pages of the folder, `how-to/{data,models}.md` for those of the two
    that are there, in this order. Any other entry stays as it is.
    """
    entries: list[Any] = []
    for entry in nav:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(value, list):
            inner: Any = expanded(value, known)
        elif re.search(r"[*{]", value):
            inner = [
                page for pattern in _alternatives(value) for page in fnmatch.filter(known, pattern)
            ]
            inner = list(dict.fromkeys(inner))
        else:
            entries.append(entry)
            continue
        if title is None:
            entries += inner
        elif inner:
            entries.append({title: inner})
    return entries


def _alternatives(pattern: str) -> list[str]:
    """`a/{b,c}.md` as `a/b.md` and `a/c.md`."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]
