import sys

import numpy as np
import pytest

from benchmarks import load, logistic, peers, rounds
from benchmarks.peers import environment, watched
from benchmarks.tasks import LOGISTIC

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


def test_how_a_peer_ran_stands_behind_its_version(place):
    (place / "program.py").write_text('def measure():\n    return {"ms": 1.0, "mode": "threads"}\n')
    assert peers.run("pip", "program")["peer"].endswith(", threads")


@pytest.mark.parametrize(
    ("peer", "title"),
    [
        ("pfl", "pfl-research"),
        ("drjax", "DrJAX"),
        ("blazefl", "BlazeFL"),
        ("flower", "Flower's simulation"),
    ],
)
def test_a_missing_peer_is_named_and_skipped(place, capsys, peer, title):
    assert peers.run(peer, "program") is None
    told = capsys.readouterr().err
    assert f"{title} is not installed" in told
    assert f"python -m benchmarks.peers install {peer}" in told


def test_a_failing_peer_is_named_with_its_error_and_skipped(place, capsys):
    (place / "program.py").write_text("def measure():\n    raise OSError('no such thing')\n")
    assert peers.run("pip", "program") is None
    told = capsys.readouterr().err
    assert "Pip failed in program.py" in told
    assert "no such thing" in told


def test_every_peer_has_an_environment():
    assert {peer.environment for peer in peers.PEERS.values()} == set(peers.ENVIRONMENTS)


def test_a_peer_that_needs_a_newer_python_is_named_and_the_others_go_on(place, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(environment.subprocess, "run", lambda call, **_: calls.append(call))
    monkeypatch.setattr(environment, "_python", lambda least: None if least else sys.executable)
    assert peers.install("blazefl", "drjax") == ["blazefl"]
    told = capsys.readouterr().err
    assert "blazefl is not installed, it needs Python >= 3.14" in told
    assert "put a python3.14 on the path" in told
    assert [call[-1] for call in calls] == [str(place / "venvs" / "drjax"), "jax==0.10.2"]


def test_a_newer_python_is_looked_for_on_the_path(tmp_path, monkeypatch):
    minor = sys.version_info.minor
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert environment._python(minor) == sys.executable
    assert environment._python(minor + 1) is None
    newer = tmp_path / f"python3.{minor + 2}"
    newer.write_text("#!/bin/sh\nexit 1\n")
    newer.chmod(0o755)
    assert environment._python(minor + 1) is None
    newer.write_text("#!/bin/sh\nexit 0\n")
    assert environment._python(minor + 1) == str(newer)


CARELESS = """
import os, signal, time

def measure():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if os.fork() == 0:
        while time.process_time() < 0.5:
            pass
        time.sleep(1.0)
        os._exit(0)
    time.sleep(2.0)
    return {"ms": 1.0}
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells who takes a processor's time")
def test_what_processes_take_that_a_peer_does_not_wait_for_is_not_other_load(place, monkeypatch):
    (place / "program.py").write_text(CARELESS)
    monkeypatch.setattr(watched, "lost", 0.0)
    monkeypatch.setattr(watched, "PAUSE", 0.2)
    before = load._times()
    assert peers.run("pip", "program")["ms"] == 1.0
    # Less what the program itself took before it was first seen, which is told when it ends.
    assert watched.lost > 0.2
    assert load._times()[2] - before[2] > 0.5


def test_rounds_that_lead_elsewhere_are_refused():
    ours = [2.0, 1.5]
    alike = {"peer": "A", "losses": [2.0, 1.5001]}
    assert rounds.agreeing(ours, None, alike) == [None, alike]
    with pytest.raises(
        AssertionError, match="B: rounds without chance must lead to the same losses"
    ):
        rounds.agreeing(ours, alike, {"peer": "B", "losses": [2.0, 1.51]})


def test_losses_without_chance_are_those_of_descent_by_hand():
    work = LOGISTIC.whole()
    inputs, labels = work.examples()
    ((weight, bias),) = work.layers()
    hot = np.eye(work.classes)[labels]

    def chances(weight, bias, x):
        scores = x @ weight + bias
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    found = []
    for _ in range(3):
        models = []
        for rows in work.dealt():
            local, shift = weight, bias
            for _ in range(work.steps):
                error = (chances(local, shift, inputs[rows]) - hot[rows]) / len(rows)
                local = local - work.rate * inputs[rows].T @ error
                shift = shift - work.rate * error.sum(0)
            models.append((local, shift))
        weight, bias = (np.mean(parts, axis=0) for parts in zip(*models, strict=True))
        found.append(-np.log((chances(weight, bias, inputs) * hot).sum(1)).mean())
    np.testing.assert_allclose(logistic.losses(LOGISTIC), found, rtol=1e-5)
