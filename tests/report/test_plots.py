"""The figure of several runs."""

import numpy as np
import pytest

from helpers.evaluation import BestOfN
from helpers.report import best_of_n_curves, plots
from helpers.widgets import dashboard as widgets


def test_the_figure_has_a_line_a_run_with_gaps():
    x, values = np.arange(30.0), np.where(np.arange(30) % 10 == 5, np.nan, 1.0)
    figure = plots.run_curves(
        {"a": {"_one": (x, values, values / 2), "$two": (x, values, values)}, "b": {}, "c": {}},
        "step",
    )
    first, *others = figure.axes
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "c"] and not others[
        -1
    ].axison
    raw, smooth, second = first.lines
    assert raw.get_alpha() < 0.5 and raw.get_color() == smooth.get_color() == "#0072b2"
    assert (
        second.get_color() != smooth.get_color()
        and second.get_linestyle() != smooth.get_linestyle()
    )
    assert np.isnan(smooth.get_ydata()).sum() == 3
    assert [text.get_text() for text in figure.legends[0].texts] == [" _one", "$two"]
    assert widgets.figure_png(figure).startswith(b"\x89PNG")


def test_lonely_points_are_dots():
    values = np.array([1.0, np.nan, 2, np.nan, 3, 4] + [5.0] * 20)
    figure = plots.run_curves({"a": {"r": (np.arange(26.0), values, values)}}, "step")
    assert np.flatnonzero(figure.axes[0].lines[0].get_markevery()).tolist() == [0, 2]


def test_best_of_n_is_drawn_over_n_with_what_is_true():
    """A line and a band for each ranker in both panels; the second only where somebody knows."""
    rng = np.random.default_rng(0)
    scores, right = rng.normal(size=(6, 8)), (rng.random((6, 8)) < 0.5).astype(float)
    photos = [str(k) for k in range(6)]
    known = BestOfN("reward model", scores, right, photos)
    other = BestOfN("longer", -scores, None, photos)
    figure = best_of_n_curves([known, other])
    first, second = figure.axes
    assert [line.get_label() for line in first.lines] == ["reward model", "longer"]
    assert [line.get_label() for line in second.lines] == ["reward model"]
    assert first.lines[0].get_xdata().tolist() == [1, 2, 4, 8]
    # in deviations of single samples
    expected = (known.score_of(8).value - scores.mean()) / scores.std()
    assert first.lines[0].get_ydata()[-1] == pytest.approx(expected)
    assert second.lines[0].get_ydata()[0] == pytest.approx(right.mean())
    assert len(first.collections) == 2 and len(best_of_n_curves([other]).axes) == 1
