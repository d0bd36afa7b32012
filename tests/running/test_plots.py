"""What is drawn is what was measured: the points of the lines, the bands, the labels."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

import dflax as dx
from dflax import plots
from dflax.running.history import History
from dflax.running.sweep import Sweep

ROUNDS = np.arange(6) + 1
EVALUATED = np.array([2, 4, 6])
ACCURACY = np.array([0.25, 0.5, 0.75])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def history(**metrics):
    return History(
        ROUNDS,
        {"loss": 1.0 / ROUNDS, "each": np.ones((6, 3)), **metrics},
        EVALUATED,
        {"accuracy": ACCURACY, "loss": 1 - ACCURACY},
        1.0,
        0.0,
    )


def swept(seeds=3):
    """accuracy of (rate, seed, evaluation): rate + seed / 10 + evaluation."""
    rates, numbers = np.array([0.1, 0.3]), np.arange(seeds)
    values = rates[:, None, None] + numbers[None, :, None] / 10 + np.arange(3)
    sent = np.broadcast_to(1e6 * (1 + np.arange(2))[:, None, None], (2, seeds, 6))
    metrics = {"loss": np.ones((2, seeds, 6)), "bytes_sent": sent}
    axes = {"rate": rates, "seed": numbers}
    return Sweep(axes, metrics, EVALUATED, {"accuracy": values}, None, 1.0, 0.0)


def lines(ax):
    return [(line.get_label(), *map(np.asarray, line.get_data())) for line in ax.get_lines()]


def test_a_history_is_a_panel_for_each_evaluation():
    figure = history().plot()
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy", "loss"]
    ((_, x, y),) = lines(figure.axes[0])
    np.testing.assert_array_equal(x, EVALUATED)
    np.testing.assert_array_equal(y, ACCURACY)
    assert figure.axes[0].get_xlabel() == "round"
    assert figure.axes[0].get_legend() is None


def test_a_metric_is_drawn_of_every_round_and_nan_is_left_out():
    figure = history(gap=np.array([1, np.nan, 3, 4, 5, 6.0])).plot("metrics/loss", "gap")
    ((_, x, y),) = lines(figure.axes[0])
    np.testing.assert_array_equal(y, 1.0 / ROUNDS)
    ((_, x, _),) = lines(figure.axes[1])
    assert x.tolist() == [1, 3, 4, 5, 6]


def test_without_evaluations_the_metrics_are_drawn():
    one = history()._replace(evaluated=np.zeros(0, int), evaluations={})
    assert [ax.get_ylabel() for ax in one.plot().axes] == ["loss"]


def test_runs_are_told_apart_without_colour():
    runs = {f"method {number}": history() for number in range(16)}
    figure = plots.curves(runs, "accuracy")
    drawn = figure.axes[0].get_lines()
    looks = {(line.get_linestyle(), line.get_marker()) for line in drawn}
    assert len(looks) == len(drawn) == 16
    told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert told == list(runs)
    with pytest.raises(ValueError, match="runs must be at most 16 lines, got 17"):
        plots.curves({**runs, "one more": history()}, "accuracy")


def test_megabytes_add_up_over_rounds():
    runs = {"plain": history(), "half": history()}
    figure = plots.curves(
        runs, "accuracy", over="megabytes", megabytes={"plain": 2.0, "half": ROUNDS * 1.0}
    )
    (_, plain, _), (_, half, _) = lines(figure.axes[0])
    assert plain.tolist() == [4, 8, 12]
    assert half.tolist() == [3, 10, 21]
    measured = history(bytes_sent=np.full(6, 5e5))
    ((_, x, _),) = lines(measured.plot("accuracy", over="megabytes").axes[0])
    assert x.tolist() == [1, 2, 3]
    assert figure.axes[0].get_xlabel() == "megabytes sent"


def test_over_a_metric_evaluations_lie_where_it_was_then():
    ((_, x, _),) = lines(history(time=ROUNDS * 10.0).plot("accuracy", over="time").axes[0])
    assert x.tolist() == [20, 40, 60]


def test_points_of_a_sweep_are_means_with_bands_of_one_deviation():
    figure = swept().plot("accuracy")
    (ax,) = figure.axes
    assert [label for label, *_ in lines(ax)] == ["rate=0.1", "rate=0.3"]
    np.testing.assert_allclose(lines(ax)[1][2], 0.3 + 0.1 + np.arange(3))
    spread = np.std([0, 0.1, 0.2])
    edges = ax.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(edges[:, 1].min(), 0.4 - spread)
    np.testing.assert_allclose(edges[:, 1].max(), 2.4 + spread)
    assert ax.get_legend().get_title().get_text() == "mean ± deviation\nover 3 seeds"
    figure = swept().plot("accuracy", over="megabytes", only={"rate": 0.3})
    ((label, x, _),) = lines(figure.axes[0])
    assert (label, x.tolist()) == ("rate=0.3", [4, 8, 12])
    assert not swept(seeds=1).plot("accuracy").axes[0].collections


def test_they_are_drawn_into_axes_that_are_there(tmp_path):
    figure, (left, right) = plt.subplots(1, 2)
    assert plots.curves({"a": history(), "b": swept()}, "accuracy", ax=left) is figure
    assert [label for label, *_ in lines(left)] == ["a", "b, rate=0.1", "b, rate=0.3"]
    assert not right.get_lines()
    figure.savefig(tmp_path / "both.png")


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (
            ["acuracy"],
            {},
            r"names must be of what was measured, \['accuracy', 'each', 'loss'\], got",
        ),
        (["each"], {}, r"names must be of single numbers, got 'each' with the shape \[3\]"),
        (
            ["accuracy"],
            {"over": "tme"},
            r"over must be \"round\", \"megabytes\" or one of \['loss'\]",
        ),
        (["accuracy"], {"over": "megabytes"}, r'needs the metric "bytes_sent".*Say megabytes='),
        (["accuracy"], {"megabytes": 2.0}, "megabytes needs over="),
        (["accuracy"], {"over": "megabytes", "megabytes": [1.0, 2.0]}, "each of the 6 rounds"),
        ([], {"ax": 3}, "ax must be matplotlib axes, got int"),
        ([3], {}, r"names\[0\] must be a string"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(names, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        history().plot(*names, **options)


def test_runs_and_points_that_are_not_there_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"only must name axes of the sweep, \['rate'\], got 'rat'"
    ):
        swept().plot("accuracy", only={"rat": 0.1})
    with pytest.raises(ValueError, match=r"only must choose a point of \{'rate': \[0.1, 0.3\]\}"):
        swept().plot("accuracy", only={"rate": 0.2})
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        plots.curves({})
    with pytest.raises(TypeError, match=r"runs\['a'\] must be of type History or Sweep, not int"):
        plots.curves({"a": 3})
    with pytest.raises(ValueError, match=r"megabytes must name every one of \['a'\], got no 'a'"):
        plots.curves({"a": history()}, over="megabytes", megabytes={"b": 2.0})
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="names must be one where ax is given"):
        history().plot(ax=ax)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'dflax\[plots\]'"):
        dx.plots.curves({"a": history()})
