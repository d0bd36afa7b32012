import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from dflax import data

LABELS = np.random.default_rng(0).integers(0, 7, 4_000)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def shown(figure):
    """The counts in the heat map, clients by classes."""
    return np.ma.filled(figure.axes[0].images[0].get_array(), 0).T


def test_unsorted_picture_holds_the_counts():
    partition = data.dirichlet(LABELS, 12, 0.3)
    figure = data.partition_figure(partition, LABELS, sort=False)
    counts = data.class_counts(partition, LABELS)
    np.testing.assert_array_equal(shown(figure), counts)
    bars = figure.axes[0].child_axes[0].patches
    assert [bar.get_height() for bar in bars] == partition.sizes.tolist()
    assert sorted(t.get_text() for t in figure.axes[0].texts) == sorted(
        str(c) for c in counts[counts > 0]
    )


def test_a_part_of_a_figure_gives_the_whole_and_the_same_room():
    partition = data.dirichlet(LABELS, 12, 0.3)
    alone = plt.figure(figsize=(10, 4))
    whole = plt.figure(figsize=(20, 4))
    part, _ = whole.subfigures(1, 2)
    place = (0.1, 0.1, 0.6, 0.6)
    assert data.partition_figure(partition, LABELS, ax=alone.add_axes(place)) is alone
    assert data.partition_figure(partition, LABELS, ax=part.add_axes(place)) is whole
    widths = []
    for figure, axes in ((alone, alone.axes[0]), (whole, part.axes[0])):
        figure.canvas.draw()
        widths.append([child.get_window_extent().width for child in axes.child_axes])
    np.testing.assert_allclose(*widths)


def test_sorted_picture_is_a_staircase():
    figure = data.partition_figure(data.dirichlet(LABELS, 30, 0.2), LABELS)
    largest = shown(figure).argmax(1)
    assert len(largest) == 30
    np.testing.assert_array_equal(largest, np.sort(largest))


def test_many_clients_are_sampled_and_all_counted(tmp_path):
    partition = data.dirichlet(LABELS, 2_000, 0.3)
    figure = data.partition_figure(partition, LABELS, classes=9, max_clients=50)
    assert shown(figure).shape == (50, 9)
    assert "50 of 2,000" in figure.axes[0].get_xlabel()
    histogram = figure.axes[0].child_axes[2].patches
    assert sum(bar.get_width() for bar in histogram) == 2_000
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1_000


def test_draws_into_given_axes():
    figure, axes = plt.subplots(1, 2, layout="constrained")
    assert data.partition_figure(data.iid(LABELS, 1), LABELS, ax=axes[1]) is figure
    assert len(axes[1].images) == 1
    assert len(axes[0].images) == 0


def test_refusals():
    with pytest.raises(ValueError, match="max_clients"):
        data.partition_figure(data.iid(LABELS, 5), LABELS, max_clients=0)
    with pytest.raises(ValueError, match="labels"):
        data.partition_figure(data.iid(LABELS, 5), LABELS[:9])
