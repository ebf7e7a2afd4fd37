"""Plots show what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from training.scores.plots import plot_comparison, plot_evaluation, plot_per_label

SCORES = {"inside": (0.5, 0.4, 0.7), "above": (0.5, 0.6, 0.9), "below": (0.5, 0.1, 0.3)}
"""Score and interval; the interval is around the score, to its right, or to its left."""
DRAWN = {"inside": (0.4, 0.7), "above": (0.5, 0.9), "below": (0.1, 0.5)}


def per_label(path: Path) -> None:
    rows = [
        {"label": label, "support": 3, "f1": f1, "f1_low": low, "f1_high": high, "split": "test", "thresholds": policy}
        for policy in ("fixed", "per_label")
        for label, (f1, low, high) in SCORES.items()
    ]
    plot_per_label(path, pd.DataFrame(rows), [], "")


def comparison(path: Path) -> None:
    rows = [
        {"setting": name, "test": f1, "test_low": low, "test_high": high, "contaminated": False}
        | {"difference_low": np.nan, "difference_high": np.nan}
        for name, (f1, low, high) in SCORES.items()
    ]
    plot_comparison(path, pd.DataFrame(rows), {name: [f1] for name, (f1, _, _) in SCORES.items()})


def evaluation(path: Path) -> None:
    values = {name: {"support": 3, "f1": f1, "f1_95": [low, high]} for name, (f1, low, high) in SCORES.items()}
    plot_evaluation(path, values, values, "")


@pytest.mark.parametrize("plot", [per_label, comparison, evaluation])
def test_no_error_bar_goes_where_the_interval_does_not(
    plot: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    plot(tmp_path / "plot.png")
    (axes,) = figures[0].axes
    (bars,) = (found for found in axes.containers if isinstance(found, ErrorbarContainer))
    names = [tick.get_text().split(" ")[0] for tick in axes.get_yticklabels()]
    drawn = {}
    for segment in bars.lines[2][0].get_segments():
        (left, place), (right, _) = np.sort(segment, axis=0)
        drawn[names[round(place)]] = (left, right)
    assert drawn == {name: pytest.approx(ends) for name, ends in DRAWN.items()}
