"""Parts of a study that outlive a kill."""

import dataclasses

import numpy as np
import pytest

from experiments import finished, study


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 3


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A computation that counts its calls, with results in a folder of the test's own."""
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    made = []

    def compute():
        made.append(len(made))
        return np.arange(6.0).reshape(2, 3) + len(made)

    return made, compute


def test_finished_part_is_read_not_computed(calls):
    made, compute = calls
    first = finished.part("some", Config(), "FedAvg", compute)
    again = finished.part("some", Config(), "FedAvg", compute)
    np.testing.assert_array_equal(first, again)
    assert len(made) == 1


def test_other_settings_names_and_sources_are_other_parts(calls, monkeypatch):
    made, compute = calls
    finished.part("some", Config(), "FedAvg", compute)
    finished.part("some", Config(rounds=4), "FedAvg", compute)
    finished.part("some", Config(), "FedProx", compute)
    monkeypatch.setattr(finished, "_source", lambda: "edited")
    finished.part("some", Config(), "FedAvg", compute)
    assert len(made) == 4


def test_torn_file_is_computed_again(calls, tmp_path):
    made, compute = calls
    finished.part("some", Config(), "FedAvg", compute)
    (path,) = (tmp_path / "some" / "parts").glob("*.npy")
    path.write_bytes(path.read_bytes()[:40])
    assert finished.part("some", Config(), "FedAvg", compute)[0, 0] == 2.0
    assert len(made) == 2


def test_ended_study_computes_anew(calls):
    made, compute = calls
    finished.part("some", Config(), "FedAvg", compute)
    finished.forget("some")
    finished.part("some", Config(), "FedAvg", compute)
    assert len(made) == 2
