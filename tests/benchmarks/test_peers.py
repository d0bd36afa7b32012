import sys

import pytest

from benchmarks import peers
from benchmarks.peers import environment

SCRIPT = """
import sys
from benchmarks.tasks import Task

def measure(task, rounds):
    print("what a package prints does no harm")
    return {"ms": Task(*task).clients / rounds}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A peer named "pip", whose environment is this Python, with its programs in a folder."""
    monkeypatch.setattr(environment, "VENVS", tmp_path / "venvs")
    monkeypatch.setattr(environment, "SCRIPTS", tmp_path)
    monkeypatch.setitem(environment.PEERS, "pip", environment.Peer("Pip", "pip", "own"))
    folder = tmp_path / "venvs" / "own" / "bin"
    folder.mkdir(parents=True)
    # A link would not do: since Python 3.13 it finds no packages outside of its environment.
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "python").chmod(0o755)
    return tmp_path


def test_a_peers_program_gets_its_options_and_returns_numbers(place):
    from benchmarks.tasks import LOGISTIC

    (place / "program.py").write_text(SCRIPT)
    found = peers.run("pip", "program", task=LOGISTIC, rounds=4)
    assert found["ms"] == 25.0
    assert found["peer"].startswith("Pip 2")


def test_a_missing_peer_is_named_and_skipped(place, capsys):
    assert peers.run("pfl", "program") is None
    told = capsys.readouterr().err
    assert "pfl-research is not installed" in told
    assert "python -m benchmarks.peers install pfl" in told


def test_a_failing_peer_is_named_with_its_error_and_skipped(place, capsys):
    (place / "program.py").write_text("def measure():\n    raise OSError('no such thing')\n")
    assert peers.run("pip", "program") is None
    told = capsys.readouterr().err
    assert "Pip failed in program.py" in told
    assert "no such thing" in told


def test_every_peer_has_an_environment():
    assert {peer.environment for peer in peers.PEERS.values()} == set(peers.ENVIRONMENTS)
