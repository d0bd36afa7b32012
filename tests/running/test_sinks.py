"""What sinks make of numbers that are not finite, and of paths."""

import json

import numpy as np
import pytest

from dflax import sinks

ROUNDS = np.array([3, 4, 5])
METRICS = {
    "loss": np.array([1.5, np.nan, np.inf]),
    "reporting": np.array([2, 0, 3]),
    "evaluation": {"accuracy": np.array([np.nan, np.nan, 0.5])},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another one to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert list((tmp_path / "work").iterdir()) == []


def curves(monkeypatch):
    """The points that TensorBoard gets, in place of its writer."""
    points = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, number):
            points.append((name, value, number))

        def flush(self):
            pass

    monkeypatch.setattr("tensorboardX.SummaryWriter", Writer)
    return points


def test_tensorboard_gets_only_what_was_measured(tmp_path, monkeypatch):
    points = curves(monkeypatch)
    sinks.tensorboard(tmp_path)(ROUNDS, METRICS)
    assert points == [
        ("evaluation/accuracy", 0.5, 5),
        ("loss", 1.5, 3),
        ("reporting", 2.0, 3),
        ("reporting", 0.0, 4),
        ("reporting", 3.0, 5),
    ]


def test_json_lines_keep_every_round(tmp_path):
    sinks.jsonl(tmp_path / "m.jsonl")(ROUNDS, METRICS)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [1.5, None, None]
    assert [row["evaluation/accuracy"] for row in rows] == [None, None, 0.5]


def test_the_home_folder_is_understood(home):
    sinks.jsonl("~/runs/m.jsonl")(ROUNDS, METRICS)
    assert len((home / "runs" / "m.jsonl").read_text().splitlines()) == 3
    sinks.tensorboard("~/board")(ROUNDS, METRICS)
    assert any((home / "board").iterdir())
    with pytest.raises(ValueError, match="path must be a file's, got the folder"):
        sinks.jsonl("~/runs")
