"""The wheel and the source distribution, and what is said of the project around the code."""

import email
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest
import yaml

import dflax as dx

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAM = """
import dflax as dx, jax, pathlib
assert pathlib.Path(dx.__file__).is_relative_to({folder!r}), dx.__file__
print(dx.__version__, int(dx.data.iid(10, clients=3).sizes.sum()))
"""


def rooms():
    """The packages and modules directly under dflax."""
    found = (ROOT / "dflax").iterdir()
    return {
        path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    newest = re.findall(r"^## \[(.+?)\]", changelog(), re.MULTILINE)[0]
    assert newest == dx.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", dx.__version__)


def changelog():
    return (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_names_the_project():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert told["cff-version"] == "1.2.0"
    assert told["title"].startswith("dflax")
    assert told["license"] == PROJECT["license"]
    assert told["repository-code"] == PROJECT["urls"]["Homepage"]
    assert told["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]
    assert "version" not in told


def test_every_room_says_how_long_its_names_stay():
    table = re.findall(
        r"^\| `(\w+)` \| .+ \| (stable|provisional|experimental|internal) \|$",
        (ROOT / "docs" / "stability.md").read_text(),
        re.MULTILINE,
    )
    assert [room for room, _ in table] == sorted(rooms())
    internal = {room for room, level in table if level == "internal"}
    assert not internal & set(dx.__all__)


def test_no_link_between_the_pages_of_the_project_is_broken():
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / link).exists(), f"{name}: {link}"


def build(folder):
    """The wheel and the source distribution, without anything from the network."""
    for name in ("build", "hatchling", "hatch_fancy_pypi_readme"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'dflax[dev]'")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_no_more(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        metadata = email.message_from_bytes(wheel.read(next(n for n in names if "METADATA" in n)))
    assert {name.split("/")[0] for name in names} == {
        "dflax",
        f"dflax-{dx.__version__}.dist-info",
    }
    assert "dflax/py.typed" in names
    assert "dflax/imaging/denoiser.npz" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dflax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("dflax/")} == tracked
    assert metadata["Version"] == dx.__version__
    assert metadata["Author"] == "dflax developers"
    assert {url.split(", ")[0] for url in metadata.get_all("Project-URL")} == {
        "Homepage",
        "Documentation",
        "Changelog",
        "Issues",
    }
    assert "Typing :: Typed" in metadata.get_all("Classifier")


@pytest.mark.slow
def test_what_an_index_shows_has_no_link_into_the_checkout(built):
    with zipfile.ZipFile(built[0]) as wheel:
        file = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        shown = email.message_from_bytes(wheel.read(file)).get_payload()
    links = re.findall(r"\]\(([^)\s]+)", shown) + re.findall(r'(?:src|href)="([^"]+)"', shown)
    assert links
    inside = [link for link in links if not link.startswith(("https://", "#"))]
    assert not inside, f"{inside[:5]}: {len(inside)} links that an index cannot follow."


@pytest.mark.slow
def test_the_source_distribution_holds_what_the_library_is_made_and_judged_by(built):
    with tarfile.open(built[1]) as source:
        members = {member.name.split("/", 1)[1]: member.size for member in source.getmembers()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= set(members)
    assert {"dflax/py.typed", "tests/test_distribution.py", "docs/stability.md"} <= set(members)
    assert not [name for name in members if name.endswith((".png", ".gif"))]
    assert max(members.values()) < 400_000


@pytest.mark.slow
def test_the_wheel_installs_and_runs_outside_of_the_checkout(built, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = next(environment.glob("lib/python*/site-packages"))
    # What dflax needs is taken from this environment; its own editable dflax is not, since paths in
    # a .pth file are not looked through for further .pth files.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", built[0]]
    subprocess.run(install, check=True)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [python, "-c", PROGRAM.format(folder=str(environment))],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == [dx.__version__, "10"], ran.stderr
    script = tmp_path / "user.py"
    script.write_text((ROOT / "tests" / "user_script.py").read_text())
    strict = ["--strict", "--config-file=", "--python-executable", python]
    typed = subprocess.run(
        [sys.executable, "-m", "mypy", *strict, f"--cache-dir={tmp_path / 'cache'}", script],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert typed.returncode == 0, typed.stdout
