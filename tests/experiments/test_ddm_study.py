"""The study of DDM: its distance is Frechet's, and its claims can fail."""

import numpy as np
import pytest
import scipy.linalg

from dflax.experts import ExpertLoad
from experiments.studies.experts import _ddm_fashion, ddm
from experiments.studies.experts._ddm_samplers import STEPS, on_the_way, spread_entropy
from experiments.studies.experts._ddm_settings import Config
from experiments.tasks import generation
from experiments.tools.report import Report


def test_the_distance_is_frechets():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(500, 3)) @ np.diag([1.0, 2.0, 0.5]) + 1
    second = rng.normal(size=(400, 3)) @ np.array([[1, 0.3, 0], [0, 1, 0.2], [0, 0, 1]])
    c, d = np.cov(first.T), np.cov(second.T)
    root = scipy.linalg.sqrtm(c @ d).real
    wanted = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(c + d - 2 * root)
    assert generation.frechet(first, second) == pytest.approx(wanted, rel=1e-6)
    assert generation.frechet(first, first) == pytest.approx(0, abs=1e-6)


def test_digits_are_in_range_and_pictures_undo_it():
    task = generation.digits()
    x = np.asarray(task.data.inputs)
    assert x.shape == (1797, 64)
    assert (x.min(), x.max()) == (-1, 1)
    assert task.features.shape == (1797, 16)
    assert task.picture(x.max(0)).max() == 1
    assert generation.distance(task, x) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    bad = 0.0 if good else 5.0
    found = {
        "monolith": np.array([0.4, 0.5]),
        "k-means, full": np.array([0.5, 0.6 + bad]),
        "k-means, top-1": np.array([0.5, 0.6 + bad]),
        "random, full": np.array([0.45, 0.55]),
        "k-means, one expert alone": np.array([7.0, 7.0 if good else 0.6]),
        "k-means, distilled": np.array([0.5, 0.6 - bad]),
    }
    report = Report()
    ddm._claims_on_digits(report, found, {"monolith": 1.0, "k-means, top-1": 1.2 if good else 1.4})
    full = {
        "central": np.array([0.4, 0.4]),
        "FedAvg": np.array([0.4, 0.45 + bad]),
        ddm.DRIFTING: np.array([1.4, 1.6 if good else 0.5]),
    }
    ddm._claims_of_routers(report, full)
    assert [claim.holds for claim in report.claims] == [good] * 8


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_of_small_networks_and_of_loads_follow_from_the_numbers(good):
    report = Report()
    full = np.array([1.1, 1.0 if good else 2.0])
    found = {"k-means, full": full, "random, full": full * 0 + 1.3, "monolith": full * 0 + 1.5}
    ddm.claims_on_small(Config(), report, found)
    load = {"entropy_first": 1.3 if good else 0.9, "entropy_last": 0.02}
    ddm._claims_of_load(report, [{"loads": {"full": load}, "ideal": 1.35}] * 2)
    assert [claim.holds for claim in report.claims] == [good] * 3


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_on_fashion_follow_from_the_numbers(good):
    config, columns, apart, report = Config(), {}, {}, Report()
    for width, ahead in ((16, 1.3), (32, 2.5), (96, 1.1)):
        ahead = ahead if good or width == 96 else 0.9
        columns[width, "full"] = np.ones(2)
        columns[width, "monolith"] = np.full(2, ahead)
        columns[width, "top-1"] = np.full(2, 4.0 if good else 0.9)
        apart[width, "top-1"] = np.full(2, 0.3)
        apart[width, "full"] = np.full(2, 0.05 if good else 0.2)
    _ddm_fashion.claims(config, report, columns, apart)
    assert [claim.holds for claim in report.claims] == [good] * 5
    assert [claim.claim for claim in report.claims] == _ddm_fashion.fashion_statements(config)


def test_a_load_is_told_against_the_clusters_sizes():
    share = np.tile([0.75, 0.25], (STEPS, 1))
    share[0] = [1.0, 0.0]
    load = ExpertLoad(np.linspace(0.6, 0.0, STEPS), share, share)
    found = on_the_way(load, np.array([0, 1]))
    assert found["apart"] == 0.25
    assert (found["busiest_first"], found["busiest_last"]) == (1.0, 0.75)
    assert (found["entropy_first"], found["entropy_last"]) == (0.6, 0.0)
    assert spread_entropy(np.array([0, 1])) == pytest.approx(np.log(2))
