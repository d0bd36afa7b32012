"""The study of CPTO: its scenes are what they say, and its claims can fail."""

import numpy as np
import pytest

from experiments.studies.robots import cpto
from experiments.tasks.roads import Family, scenes, together
from experiments.tools.report import Report


def test_scenes_are_drawn_as_their_family_says():
    family = Family(moving=3.0, wary=0.5, lateral=(0.2, 0.9))
    road = scenes(family, 3, 200, 3)
    assert road.there[:, 1].sum() == 100
    assert road.there[:, [0, 2]].all()
    x = road.places[:, 0, 0]
    for values, (low, high) in (
        (x, family.truck),
        (road.places[:, 1, 0] - x, family.gap),
        (road.places[:, 1, 1], family.lateral),
    ):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
    np.testing.assert_allclose(road.phantoms[:, 1], np.stack([x + 6, 0 * x + 1.2], 1))
    np.testing.assert_array_equal(road.wary, 4.0)
    parked = scenes(Family(), 3, 4)
    assert not parked.speeds.any()
    assert parked.places.shape == (4, 2, 2)
    again = together([scenes(Family(), 3, 4), scenes(Family(), 4, 4)])
    np.testing.assert_array_equal(again.places[:4], parked.places)
    assert np.abs(again.places[4:] - parked.places).min() > 0


def outcome(clearance, offset, speed, change):
    hidden = np.tile([True, False], (2, 3))
    clear = np.where(hidden, np.resize(clearance, (2, 6)), np.inf)

    def every(value):
        return np.full((2, 6), value)

    return {
        "clearance": clear,
        "hidden": hidden,
        "offset": every(offset),
        "speed": every(speed),
        "change": every(change),
        "jump": every(10 * change),
    }


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    low = [[1.5, 0, 1.4, 0, 1.2, 0], [1.3, 0, 1.1, 0, 0.9, 0], [1.2, 0, 0.9, 0, 0.8, 0]]
    worst = [0.9, 0, 0.8, 0, 0.4, 0]
    values = [*low, worst] if good else [worst, *low]
    found = {
        name: outcome(own, *rest)
        for name, own, rest in zip(
            cpto.PLANNERS,
            values,
            [
                (0.3, 7.0, 0.005),
                (0.1 if good else 0.2, 7.5 if good else 6.9, 0.003),
                (0.0, 7.5, 0.004 if good else 0.002),
                (0.0, 7.5, 0.004),
            ],
            strict=True,
        )
    }
    report = Report()
    cpto._claims_of_drives(report, found)
    holds = [claim.holds for claim in report.claims]
    # Nobody collides in the drives without consensus, so that CPTO cannot collide less often.
    assert holds == ([True] * 3 + [False, True, True] if good else [False] * 6)


def test_kinds_differ_and_leads_have_their_signs():
    kinds = cpto.kinds()
    assert len(set(kinds)) == len(kinds) == 12
    assert len({cpto._named(kind) for kind in kinds}) == 12
    names = list(cpto.PLANNERS)
    found = {name: outcome([1.0] * 6, 0.1, 7.0, 0.003) for name in names}
    found["optimistic"] = outcome([0.3] * 6, 0.1, 7.0, 0.003)
    found["union"] = outcome([1.0] * 6, 0.1, 6.0, 0.003)
    leads = [lead(found).tolist() for lead in cpto.LEADS.values()]
    assert leads == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
