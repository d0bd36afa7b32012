"""The pages of the documentation: what they name is there, and what the site's hooks do to them."""

import importlib.util
import pathlib
import re
import sys
import tomllib

import pytest
from test_public_names import reachable

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])


def hook(name):
    """A module of docs/hooks/, loaded as the site's builder loads it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


rooms, reference, links = hook("rooms"), hook("reference"), hook("links")
navigation, house = hook("navigation"), hook("house")


def test_the_rooms_read_from_the_sources_are_those_that_users_reach():
    found = {room.source: room for room in rooms.rooms()}
    modules = {module.__name__: module for module in reachable()}
    assert set(found) == set(modules)
    for source, room in found.items():
        module = modules[source]
        names = {name.name for name in room.names} | {path.split(".")[-1] for path, _ in room.rooms}
        assert names == set(module.__all__) - {"__version__"}, source
        for name in room.names:
            value = getattr(module, name.name)
            if hasattr(value, "__qualname__") and value.__module__.startswith("dflax"):
                assert name.path == f"{value.__module__}.{value.__qualname__}"


def test_every_public_name_says_what_it_is():
    bare = {name.path for room in rooms.rooms() for name in room.names if not name.docstring}
    assert not bare, f"{sorted(bare)}: a name that the reference lists needs a docstring."
    assert all(room.docstring for room in rooms.rooms())


def test_every_name_has_one_home_and_all_its_names_lead_there():
    addresses = rooms.spoken()
    assert addresses["dx.server.fedavg"] == ("reference/server.md", "dflax.server.fedavg")
    assert addresses["dx.mesh.client_mesh"] == addresses["dx.client_mesh"]
    assert addresses["dx.profile"] == ("reference/profile.md", "")
    assert addresses["dx.profile.round"] == ("reference/profile.md", "dflax.profile.round")
    page = reference.page_of(next(r for r in rooms.rooms() if r.path == "dflax.profile"))
    assert "[](){#dflax.profile.round}\n\n::: dflax.running.profile.round" in page


def code(text):
    """The code in a page's sentences and tables, without its programs."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page):
    names = rooms.spoken()
    spoken = [word for word in code(page.read_text()) if re.match(r"dx\.\w", word)]
    bare = {re.match(r"dx(?:\.\w+)+", word)[0] for word in spoken}
    # Attributes and methods are behind a name.
    gone = {w for w in bare if w not in names and w.rpartition(".")[0] not in names}
    gone |= {w for w in bare if w not in names and names.get(w.rpartition(".")[0], "..")[1] == ""}
    assert not gone, f"{sorted(gone)} are no public names of dflax."


def test_what_the_readme_links_to_is_there():
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    gone = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert len(targets) > 20
    assert not gone


def test_the_first_page_lists_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (DOCS / "index.md").read_text().partition("| extra | for |")[2]
    listed = {
        extra
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for extra in re.findall(r"`([\w-]+)`", row)
    }
    assert listed == set(project["optional-dependencies"])


def test_every_first_name_of_a_row_of_the_gallery_is_in_the_reference():
    names = rooms.spoken()
    for page in sorted((DOCS / "gallery").glob("*.md")):
        within, table = [], False
        for line in page.read_text().split("\n"):
            if not line.startswith("|"):
                within, table = ([], False) if table or line.startswith("#") else (within, False)
                within += [word for word in code(line) if names.get(word, "..")[1] == ""]
                continue
            table = True
            first = re.match(r"\| `([\w.]+)`", line)
            if first:
                assert links.resolved(first[1], [*within, "dx"], names), f"{page.name}: {first[1]}"


def test_patterns_in_the_navigation_stand_for_pages_in_order():
    known = ["how-to/data.md", "how-to/robust.md", "notebooks/b.md", "index.md"]
    nav = [
        "index.md",
        {"How to": ["how-to/{robust,absent,data}.md"]},
        {"Notebooks": ["notebooks/*.md"]},
        {"Empty": ["absent/*.md"]},
    ]
    assert navigation.expanded(nav, known) == [
        "index.md",
        {"How to": ["how-to/robust.md", "how-to/data.md"]},
        {"Notebooks": ["notebooks/b.md"]},
    ]


def test_code_becomes_links_but_in_headings_programs_and_links():
    page = (
        "<h1><code>dx.run</code></h1><p><code>dx.run(a, mesh=m)</code> <code>gossip.ring</code>"
        "<code>dx.nothing</code> <code>ring</code></p><pre><code>dx.run</code></pre>"
        '<a href="x"><code>dx.run</code></a>'
    )
    linked = links.with_links(page, "index.md", lambda place: "#".join(place))
    assert linked.count('<a class="name"') == 2
    assert 'href="reference/dflax.md#dflax.run"><code>dx.run(a, mesh=m)</code>' in linked
    assert 'href="reference/gossip.md#dflax.gossip.ring"><code>gossip.ring</code>' in linked
    own = links.with_links("<p><code>ring</code></p>", "reference/gossip.md", "#".join)
    assert 'href="reference/gossip.md#dflax.gossip.ring"' in own
    own = links.with_links(
        "<code>Algorithm</code><code>run</code>", "reference/gossip.md", "#".join
    )
    assert own.endswith('#dflax.Algorithm"><code>Algorithm</code></a><code>run</code>')


def test_names_of_the_gallery_are_those_of_the_rooms_that_its_text_names():
    row = "<tr><td><code>fal</code></td><td><code>fal</code></td></tr>"
    page = f"<p><code>dx.server</code></p><table>{row}{row}</table><p><code>fal</code></p>"
    linked = links.with_links(page, "gallery/server.md", "#".join)
    assert linked.count('#dflax.server.fal"><code>fal</code>') == 2
    assert linked.count("<td><code>fal</code></td>") == 2
    assert linked.endswith("<p><code>fal</code></p>")


def test_rows_of_the_gallery_get_an_anchor_for_each_name_once():
    page = "| `a`, `x.b(c=)` with | idea |\n| `a` | other |\n| part | `d` |"
    first, second, third = links.with_anchors(page).split("\n")
    assert first == '| <a id="a"></a><a id="b"></a>`a`, `x.b(c=)` with | idea |'
    assert (second, third) == ("| `a` | other |", "| part | `d` |")


def test_documents_outside_docs_are_linked_as_their_pages():
    def rewritten(source, text):
        page = type("Page", (), {"file": type("File", (), {"src_uri": source}), "meta": {}})
        return links.on_page_markdown(text, page, None, None)

    text = "[b](../benchmarks/README.md#x) [c](../dflax/run.py)\n```python no-run\n"
    assert rewritten("studies.md", text) == (
        "[b](benchmarks.md#x) [c](../dflax/run.py)\n```python\n"
    )
    assert rewritten("a/b.md", "[b](../../CHANGELOG.md)") == "[b](../changelog.md)"


def test_documents_outside_docs_link_to_pages():
    text = "[a](docs/faq.md#x) [b](CHANGELOG.md) [c](https://example.org) [d](#here)"
    assert reference.from_here(text, "CONTRIBUTING.md") == (
        "[a](faq.md#x) [b](changelog.md) [c](https://example.org) [d](#here)"
    )
    up = reference.from_here(
        "[a](../docs/pods.md) ![p](../docs/figures/x.png)", "benchmarks/README.md"
    )
    assert up == "[a](pods.md) ![p](figures/x.png)"


def test_a_broken_site_is_told_fault_by_fault(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="here">A</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="a/#here">1</a><a href="a/#gone">2</a><a href="b/">3</a><img src="c.png">'
        '<script src="https://cdn.example/x.js"></script><a href="https://example.org">4</a>'
    )
    assert links.broken(tmp_path) == [
        "index.html loads https://cdn.example/x.js from elsewhere",
        "index.html has a/#gone: no such anchor",
        "index.html has b/: no such file",
        "index.html has c.png: no such file",
    ]


def test_the_house_is_drawn_as_it_stands():
    rows = house.rows_of_rooms((DOCS / "architecture.md").read_text())
    assert len(rows) >= 15
    assert ("families", ["asynchronous", "evaluation", "gossip", "server"]) in rows
    assert house.DRAWING.read_text() == house.drawn(rows), "run python docs/hooks/house.py"
