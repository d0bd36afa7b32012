"""A user's program is clean under mypy --strict and under pyright, with the types that dflax says."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "user_script.py"
# Three lines that no reader of types may let pass.
WRONG = "\nwrong: int = dx.data.digits()\ndx.gossip.ring('many')\ndx.no_such_room\n"


def of_dflax(tmp_path, text):
    """A folder with the program alone, so that nothing beside it is read."""
    file = tmp_path / "user.py"
    file.write_text(text)
    return file


def mypy(file, folder):
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--follow-imports=silent",
    ]
    return subprocess.run(
        [*command, f"--cache-dir={folder / 'cache'}", str(file)],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def pyright(file, folder):
    """What it found: a list of messages; skips where it is not installed."""
    name = next(
        (name for name in ("pyright", "basedpyright") if importlib.util.find_spec(name)), None
    )
    if name is None:
        pytest.skip("neither pyright nor basedpyright is installed: pip install 'dflax[dev]'")
    settings = {
        "include": [file.name],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", name, "--outputjson", "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1, found
    return [message["message"] for message in found["generalDiagnostics"]]


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "dflax" / "py.typed").exists()


@pytest.mark.slow
def test_a_users_program_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["(2,) True"], done.stderr


@pytest.mark.slow
def test_mypy_strict_finds_nothing_in_it_and_finds_what_is_wrong(tmp_path):
    file = of_dflax(tmp_path, SCRIPT.read_text())
    done = mypy(file, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(SCRIPT.read_text() + WRONG)
    assert mypy(file, tmp_path).stdout.count("error:") == 3


@pytest.mark.slow
def test_pyright_finds_nothing_in_it_and_finds_what_is_wrong(tmp_path):
    file = of_dflax(tmp_path, SCRIPT.read_text())
    assert pyright(file, tmp_path) == []
    file.write_text(SCRIPT.read_text() + WRONG)
    assert len(pyright(file, tmp_path)) == 3
