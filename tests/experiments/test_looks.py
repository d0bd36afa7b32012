"""Curves and bars are told apart without colour, and figures say what they lack."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from experiments.tools import figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn_by(draw, **labels):
    with figures.figure() as (drawn, axes):
        draw(axes)
        axes.set(**({"xlabel": "round", "ylabel": "accuracy"} | labels))
        axes.legend()
    return drawn


def by_color_alone(axes):
    for name in "ab":
        axes.plot([0, 1], [0, 1], label=name)


def by_looks(axes):
    for name, look in figures.looks("abcdefghijklmn").items():
        figures.curve(axes, np.arange(4), np.ones((2, 4)), look, name)


def test_looks_differ_in_marks():
    looks = figures.looks(f"method {n}" for n in range(14))
    assert len({look.marker for look in looks.values()}) == 14
    assert len({str(look.line) for look in list(looks.values())[:7]}) == 7


def test_curves_by_looks_need_no_colour():
    assert figures.lacks(drawn_by(by_looks)) == []


def test_curves_that_differ_in_colour_alone_are_named():
    assert figures.lacks(drawn_by(by_color_alone)) == ["panel 1: a, b differ in their colour alone"]


def test_bars_that_differ_in_colour_alone_are_named():
    def bars(axes, hatched):
        for place, name in enumerate("ab"):
            look = figures.looks("ab")[name]._replace(**({} if hatched else {"hatch": ""}))
            figures.bars(axes, np.arange(3) + 0.4 * place, np.ones((2, 3)), look, 0.4, name)

    assert figures.lacks(drawn_by(lambda axes: bars(axes, True))) == []
    (said,) = figures.lacks(drawn_by(lambda axes: bars(axes, False)))
    assert "a, b" in said


def test_error_bars_are_told_by_their_marks():
    def marks(axes, fmt):
        for name, own in zip("ab", fmt, strict=True):
            axes.errorbar([0, 1], [0, 1], [0.1, 0.1], fmt=own, label=name)

    assert figures.lacks(drawn_by(lambda axes: marks(axes, "os"))) == []
    assert len(figures.lacks(drawn_by(lambda axes: marks(axes, "oo")))) == 1


@pytest.mark.parametrize("which", ["x", "y"])
def test_an_axis_without_a_label_is_named(which):
    found = figures.lacks(drawn_by(by_looks, **{f"{which}label": ""}))
    assert found == [f"panel 1: the {which} axis has no label"]


def test_words_for_ticks_and_a_shared_axis_are_labels():
    with figures.figure(ncols=2, sharey=True) as (drawn, axes):
        for panel in axes:
            panel.plot([0, 1], [0, 1])
            panel.set_xticks([0, 1], ["ring", "torus"])
        axes[0].set_ylabel("accuracy")
    assert figures.lacks(drawn) == []


def test_a_label_serves_a_row_of_panels_and_no_other():
    with figures.figure(nrows=2, ncols=2) as (drawn, axes):
        for panel in axes.flat:
            panel.plot([0, 1], [0, 1])
            panel.set_xlabel("round")
        axes[0, 0].set_ylabel("accuracy")
    assert figures.lacks(drawn) == [f"panel {n}: the y axis has no label" for n in (3, 4)]


def test_a_curve_is_the_mean_within_least_and_largest():
    values = np.array([[0.0, 1.0], [1.0, 4.0]])
    with figures.figure() as (_, axes):
        figures.curve(axes, np.arange(2), values, figures.looks("a")["a"], "a")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0.5, 2.5])
    edges = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in edges} == {(0, 0), (0, 1), (1, 1), (1, 4)}


def test_one_seed_has_no_band():
    with figures.figure() as (_, axes):
        figures.curve(axes, np.arange(2), np.ones((1, 2)), figures.looks("a")["a"], "a")
    assert not axes.collections


def test_a_head_is_written_where_there_is_none():
    with figures.figure() as (drawn, _):
        figures.head(drawn, "digits; bands: " + "least to largest " * 12)
        assert drawn.get_suptitle().count("\n") >= 1
        figures.head(drawn, "another")
    assert drawn.get_suptitle().startswith("digits")
