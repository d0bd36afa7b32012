"""The study of FedCompass: its claims on images follow from the numbers, and can fail."""

import numpy as np
import pytest

from experiments.studies.asynchronous import fedcompass
from experiments.tools.report import Report

CONFIG = fedcompass.Config()


def found(level, seconds):
    """Curves of three seeds that stay where they are."""
    return {
        name: {"accuracy": np.full((3, 101), value), "seconds": np.full(3, seconds[name])}
        for name, value in level.items()
    }


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_on_images_follow_from_the_numbers(good):
    level = {"FedAvg": 0.6, "FedAsync": 0.4, "FedBuff 3": 0.5, "FedCompass": 0.7 if good else 0.45}
    seconds = dict.fromkeys(level, 50.0) | {"FedCompass": 20.0 if good else 60.0}
    report = Report()
    equal = {"FedAvg": level["FedAvg"], "FedCompass": 0.62 if good else 0.5}
    both = {False: found(level, seconds), True: found(equal, seconds)}
    fedcompass.image_claims(CONFIG, report, both)
    assert [claim.holds for claim in report.claims] == [good] * len(report.claims)
    assert [claim.claim for claim in report.claims] == fedcompass.statements(CONFIG)
