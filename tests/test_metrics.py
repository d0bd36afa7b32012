import pytest

import dflax as dx


def test_disjoint_metrics_become_one_dictionary_in_order():
    joined = dx.disjoint(step={"loss": 1.0}, channel={"bytes_sent": 2.0}, nothing={})
    assert list(joined.items()) == [("loss", 1.0), ("bytes_sent", 2.0)]


def test_a_name_that_two_have_is_refused():
    with pytest.raises(ValueError, match=r"got .loss. from both step and channel\. Rename one"):
        dx.disjoint(step={"loss": 1.0}, channel={"loss": 2.0})
