"""The study of DBP: its scenes are what they say, and its claims can fail."""

import numpy as np
import pytest

from experiments.studies.robust import dbp
from experiments.tasks.swarms import averaged, moving, observers, scene
from experiments.tools.report import Report


def test_scenes_are_connected_and_observers_cooperative():
    drawn = scene(20, 4, 1.0, seed=3)
    reach = np.linalg.matrix_power(drawn.links[:20, :20] + np.eye(20), drawn.diameter) > 0
    assert reach.all()
    nearer = np.linalg.matrix_power(drawn.links[:20, :20] + np.eye(20), drawn.diameter - 1)
    assert not (nearer > 0).all()
    assert drawn.links[20:, :20].any(1).all()
    few, more = (observers(20, 4, count, seed=3) for count in (5, 9))
    assert (few.sum(), more.sum()) == (5, 9)
    assert not np.any(few & ~more)
    assert not more[20:].any()
    with pytest.raises(ValueError, match="no connected scene"):
        scene(30, 4, 50.0, seed=0)


def test_averaging_keeps_observers_and_liars_where_they_are():
    """Everyone hears everyone: of 4 observers and 2 liars the mean, and without extremes the truth."""
    drawn = scene(8, 2, 0.2, seed=0)
    assert drawn.links.sum() == 90
    errors = averaged(drawn, observers(8, 2, 4, seed=0), 8, (0, 2, 9), 200)
    assert errors[0] == pytest.approx(0.5 * 20, rel=1e-3)
    # The 2 liars are the smallest, and 2 observers stay among the largest.
    assert errors[1] == pytest.approx(0, abs=1e-3)
    assert errors[2] == pytest.approx(5)


def test_sizes_of_the_applications():
    counts = {name: (len(t.members), t.members.sum()) for name, t in moving(1.0).items()}
    assert counts == {"tracking": (300, 100), "time": (195, 45), "localisation": (250, 50)}


def found(good):
    full = {"error": [0.0, 0.0], "valid": [1.0, 1.0], "agree": [True, True], "ticks": [5.0, 6.0]}
    counts = [8.0, 8.0 if good else 7.0]
    known = {k: np.array(v) for k, v in full.items()}
    known |= {"blocked_byzantine": np.array(counts), "blocked_cooperative": np.array([8.0, 8.0])}
    known["ticks"] = known["ticks"] if good else known["ticks"] + 9
    unknown = known | {"valid": np.full(2, 0.2 if good else 1.0)}
    captured = known | {
        "blocked_byzantine": np.full(2, 3.0),
        "error": np.array([55.5, 55.5 if good else 0.0]),
    }
    return {15: known, 9: known, 8: unknown, 3: captured}


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    report = Report()
    dbp._claims_of_blocking(report, found(good), [5, 5])
    errors = np.array([[14.0, 8.0, 6.25], [12.0, 5.0, 5.0]])
    wrong = np.array([[14.0, 0.5, 6.25], [9.0, 5.0, 6.25]])
    dbp._claims_of_averaging(report, errors if good else wrong, np.array([8, 9]))
    curve = np.full((2, 300), 0.1)
    done = (np.arange(300) > 150) * np.ones((2, 1))
    own = {"error": curve, "complete": done, "agree": done, "unjust": 0 * done}
    bad = {"error": 9 * curve, "complete": 0 * done, "agree": done, "unjust": done}
    rules = {"DBP": own if good else bad, "believing": {"error": 10 * curve}}
    dbp._claims_of_swarm(report, "tracking", rules)
    assert [claim.holds for claim in report.claims] == [good] * len(report.claims)
    assert len(report.claims) == 12
