"""What outlives a killed study: stages and parts."""

import dataclasses

import numpy as np
import pytest

from experiments.tools import finished
from experiments.tools.finished import Kept, in_memory


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 3


class Counted:
    """A computation that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"curve": np.arange(6.0).reshape(2, 3) + self.calls, "pair": (np.bool_(True), None)}


@pytest.fixture
def compute():
    return Counted()


def kept(folder, config=Config()):
    return Kept(folder, config, say=lambda line: None)


def test_a_finished_stage_is_read_not_computed(tmp_path, compute):
    first = kept(tmp_path)("FedAvg", compute)
    again = kept(tmp_path)("FedAvg", compute)
    assert compute.calls == 1
    np.testing.assert_array_equal(first["curve"], again["curve"])
    assert again["pair"] == (np.array(True), None)
    assert again["curve"].dtype == first["curve"].dtype


def test_other_settings_names_and_programs_are_other_stages(tmp_path, compute, monkeypatch):
    kept(tmp_path)("FedAvg", compute)
    kept(tmp_path, Config(rounds=4))("FedAvg", compute)
    kept(tmp_path)("FedProx", compute)
    monkeypatch.setattr(finished, "_program", lambda: "edited")
    kept(tmp_path)("FedAvg", compute)
    assert compute.calls == 4


def test_a_torn_file_is_computed_again(tmp_path, compute):
    kept(tmp_path)("FedAvg", compute)
    (path,) = (tmp_path / "parts").glob("*.npz")
    path.write_bytes(path.read_bytes()[:40])
    assert kept(tmp_path)("FedAvg", compute)["curve"][0, 0] == 2.0
    assert compute.calls == 2


def test_an_ended_study_computes_anew(tmp_path, compute):
    own = kept(tmp_path)
    own("FedAvg", compute)
    own.forget()
    own("FedAvg", compute)
    assert compute.calls == 2


def test_a_stage_says_a_line_when_it_begins_and_when_it_ends(tmp_path, compute):
    lines = []

    def told_before():
        assert lines == ["  FedAvg: begins"]
        return compute()

    for _ in range(2):
        Kept(tmp_path, Config(), say=lines.append)("FedAvg", told_before)
    assert lines[1].startswith("  FedAvg: ")
    assert lines[1].endswith(" s")
    assert lines[2] == "  FedAvg: kept from before"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"accuracy": "high"}, "must find arrays"),
        (Config(), "must find arrays, got ndarray|must find arrays"),
        ({1: np.ones(2)}, "must name what it found by text"),
    ],
)
def test_what_a_stage_cannot_keep_is_refused(tmp_path, found, message):
    with pytest.raises(TypeError, match=message):
        finished._save_tree(found, tmp_path / "x.npz")


def test_a_part_alone_keeps_nothing(compute):
    assert in_memory("FedAvg", compute)["curve"][0, 0] == 1.0
    assert in_memory("FedAvg", compute)["curve"][0, 0] == 2.0
