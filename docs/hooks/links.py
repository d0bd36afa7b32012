"""Links of the site: names in code become links, rows of the gallery get anchors, all are checked."""

import html as html_module
import pathlib
import posixpath
import re
import sys
import urllib.parse
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reference import ELSEWHERE
from rooms import spoken

# What stands between a fence's language and the end of its line is for the tests of the pages.
FENCE = re.compile(r"^(\s*```+\w+) [^\n{]*$", re.MULTILINE)
OUTSIDE = re.compile(r"\]\((\.\./[^)#\s]+)")
CODE = re.compile(r"<(a|h[1-6]|pre)\b.*?</\1>|<code>([^<]+)</code>|</table>|<tr>|<td>", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fences as every renderer knows them, links to documents that became pages, anchors of rows."""
    markdown = FENCE.sub(r"\1", markdown)
    markdown = OUTSIDE.sub(lambda link: f"]({_page_of(link[1], page.file.src_uri)}", markdown)
    if page.file.src_uri.startswith("gallery/"):
        markdown = with_anchors(markdown)
    if re.match("gallery/|benchmarks.md", page.file.src_uri):
        page.meta["hide"] = ["toc"]  # Wide tables take its place.
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Links each name in code that the reference has."""
    from mkdocs.utils import get_relative_url

    def address(place: tuple[str, str]) -> str:
        source, anchor = place
        url = get_relative_url(files.get_file_from_path(source).url, page.url)
        return url + (f"#{anchor}" if anchor else "")

    return with_links(html, page.file.src_uri, address)


def with_links(html: str, source: str, address: Callable[[tuple[str, str]], str]) -> str:
    """A page whose code is linked to the reference.

    On the page of a room names without a prefix are the room's, and types those of dflax. In the gallery
    they are those of the rooms that the text named since the last heading or table, in the first cells
    of its rows: studies in the others have names of their own.
    """
    names = spoken()
    gallery = source.startswith("gallery/")
    rooms = [room for room, place in names.items() if place == (source, "")]
    cell = 0

    def link(found: re.Match[str]) -> str:
        nonlocal cell
        if found[2] is None:
            if gallery and re.match("</table>|<h", found[0]):
                rooms.clear()
            cell = 0 if found[0] in ("</table>", "<tr>") else cell + (found[0] == "<td>")
            return found[0]
        own = rooms
        if gallery:
            own = [] if cell > 1 else [*rooms, "dx"]
        elif rooms and found[2][:1].isupper():
            own = [*rooms, "dx"]
        place = resolved(html_module.unescape(found[2]), own, names)
        if place is None:
            return found[0]
        if gallery and not place[1]:
            rooms.append(next(room for room, own in names.items() if own == place))
        return f'<a class="name" href="{address(place)}">{found[0]}</a>'

    return CODE.sub(link, html)


def resolved(
    code: str, rooms: list[str], names: dict[str, tuple[str, str]]
) -> tuple[str, str] | None:
    """The page and the anchor of what code names: `dx.run(...)`, `server.fedavg`, in a room `fedavg`."""
    bare = NAME.match(code)
    if bare is None or not re.fullmatch(r"(\(.*\))?", code[bare.end() :], re.DOTALL):
        return None
    name = re.sub(r"^dflax\b", "dx", bare[0])
    candidates = [name] if name.split(".")[0] == "dx" else [f"{room}.{name}" for room in rooms]
    if "." in name:
        candidates.append(f"dx.{name}")
    return next((names[own] for own in candidates if own in names), None)


def _page_of(link: str, source: str) -> str:
    """A link to a document outside docs/ as one to its page; any other link as it is."""
    folder = posixpath.dirname(f"docs/{source}")
    path = posixpath.normpath(posixpath.join(folder, link))
    page = next((page for page, outside in ELSEWHERE.items() if outside == path), None)
    return link if page is None else posixpath.relpath(f"docs/{page}", folder)


def with_anchors(markdown: str) -> str:
    """A page of the gallery whose rows can be linked to by the names in their first cells."""
    taken: set[str] = set()
    lines = []
    for line in markdown.split("\n"):
        row = re.match(r"\| (?=`)", line)
        if row:
            cell = line[row.end() :].split(" | ")[0]
            own = re.findall(r"`([A-Za-z_.]+)[`(]", cell)
            new = [name for name in (o.split(".")[-1] for o in own) if name not in taken]
            taken |= set(new)
            anchors = "".join(f'<a id="{name}"></a>' for name in dict.fromkeys(new))
            line = "| " + anchors + line[row.end() :]
        lines.append(line)
    return "\n".join(lines)


class Page(HTMLParser):
    """What a page of the built site links to, loads, and can be linked at."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the tag's places."""
        given = dict(attrs)
        self.anchors |= {str(given[key]) for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag in ("img", "script", "source") and given.get("src"):
            self.loaded.append(str(given["src"]))
        elif tag == "link" and given.get("href") and given.get("rel") != "canonical":
            self.loaded.append(str(given["href"]))


def on_post_build(config: Any) -> None:
    """Refuses a site that links to what is not there, or that loads anything from elsewhere."""
    from mkdocs.exceptions import PluginError

    faults = broken(pathlib.Path(config.site_dir))
    if faults:
        raise PluginError("the built site is broken:\n" + "\n".join(faults))


def broken(site: pathlib.Path) -> list[str]:
    """What is broken in a built site, a line for each fault."""
    pages: dict[pathlib.Path, Page] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    faults = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        here = path.relative_to(site)
        for url in page.loaded:
            if urllib.parse.urlsplit(url).netloc:
                faults.append(f"{here} loads {url} from elsewhere")
        for url in dict.fromkeys(page.links + page.loaded):
            if fault := _fault(url, path, pages):
                faults.append(f"{here} has {url}: {fault}")
    return faults


def _fault(url: str, path: pathlib.Path, pages: dict[pathlib.Path, Page]) -> str | None:
    split = urllib.parse.urlsplit(url)
    if split.scheme or split.netloc:
        return None
    target = path
    if split.path:
        target = (path.parent / urllib.parse.unquote(split.path)).resolve()
        if target.is_dir():
            target /= "index.html"
    if not target.is_file():
        return "no such file"
    fragment = urllib.parse.unquote(split.fragment)
    if fragment and target in pages and fragment not in pages[target].anchors:
        return "no such anchor"
    return None
