"""Plots show what was measured, with a title, readable names, and nothing cut off or covered."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from hub_release.check.integrity import _MAX_PIXELS
from training.data.taxonomy import GOEMOTIONS_28
from training.scores import figure as figure_module, plots
from training.scores.plots import plot_comparison, plot_evaluation, plot_per_label
from training.scores.published import Published
from training.scores.scoring import Scored, score_policies

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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written."""
    found: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k)))
    return found


@pytest.mark.parametrize("plot", [per_label, comparison, evaluation])
def test_no_error_bar_goes_where_the_interval_does_not(
    plot: Callable[[Path], None], tmp_path: Path, figures: list[Figure]
) -> None:
    plot(tmp_path / "plot.png")
    (axes,) = figures[0].axes
    (bars,) = (found for found in axes.containers if isinstance(found, ErrorbarContainer))
    names = [tick.get_text().split(" ")[0] for tick in axes.get_yticklabels()]
    drawn = {}
    for segment in bars.lines[2][0].get_segments():
        (left, place), (right, _) = np.sort(segment, axis=0)
        drawn[names[round(place)]] = (left, right)
    assert drawn == {name: pytest.approx(ends) for name, ends in DRAWN.items()}


LONG = "the parcel that was ordered last Christmas never came and nobody ever answers the phone"
SETS: dict[str, Sequence[str]] = {
    "28": GOEMOTIONS_28,
    "3": ("joy", "anger", "fear"),
    "1": ("toxic",),
    "odd": ("a$b$c", "x_{2}^", "<b>bold</b>", "حزن", LONG, f"{LONG}!", "W" * 200, "two\nlines"),
}


def draw_all(folder: Path, labels: Sequence[str], note: str = "") -> Scored:
    """Every plot of a run and of an evaluation, from random scores."""
    rng = np.random.default_rng(0)
    references = (rng.random((120, len(labels))) < 0.3).astype(int)
    scored = Scored(np.clip(references * 0.3 + rng.random(references.shape) * 0.7, 0, 1), references)
    own = np.linspace(0.4, 0.6, len(labels))
    cutoffs = {"fixed": np.full(len(labels), 0.5), "global": np.full(len(labels), 0.4), "per_label": own}
    _, table = score_policies(scored, cutoffs, labels)
    systems = [Published("Another system of others", "own split, 0.5", "any", 0.5, 0.5, dict.fromkeys(labels, 0.5))]
    plots.plot_label_frequencies(folder / "frequencies.png", references.sum(0), references.sum(0) * 9, labels, note)
    plots.plot_per_label(folder / "per_label.png", table.assign(split="test"), systems, note)
    plots.plot_precision_recall(folder / "precision_recall.png", scored, own, labels, note)
    plots.plot_threshold_curves(folder / "thresholds.png", scored, labels, dict(zip(labels, own, strict=True)), note)
    plots.plot_confusions(folder / "confusions.png", scored, own, labels, note)
    plots.plot_reliability(folder / "reliability.png", scored, scored, note)
    values = {label: {"support": 1_234, "f1": 0.5, "f1_95": [0.4, 0.6]} for label in labels}
    plot_evaluation(folder / "evaluation.png", values, values, "a-model-with-a-long-name on next_month_of_tickets.csv")
    return scored


@pytest.mark.parametrize("labels", SETS)
def test_nothing_is_cut_off_or_covered(tmp_path: Path, figures: list[Figure], labels: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of signs without a glyph, and of a layout that has no room
        draw_all(tmp_path, SETS[labels], note="CONTAMINATED: these scores do not measure the model" * (labels == "odd"))
    assert len(figures) == 7
    for found in figures:
        assert found.get_suptitle()
        found.set_dpi(figure_module._DOTS_PER_INCH)  # letters have other widths at another size
        whole = found.get_tightbbox(FigureCanvasAgg(found).get_renderer()).get_points()
        width, height = found.get_size_inches()
        assert (whole >= -0.05).all() and (whole <= np.array([width, height]) + 0.05).all(), found.get_suptitle()
        for legend in found.legends:
            box = legend.get_window_extent()
            covered = [axes for axes in found.axes if axes.get_visible() and axes.get_tightbbox().overlaps(box)]
            assert not covered, found.get_suptitle()
        assert all(axes.get_legend() is None for axes in found.axes)
        assert all(axes.get_window_extent().width > 40 for axes in found.axes if axes.get_label() != "<colorbar>")


def test_a_picture_of_many_labels_passes_the_check_of_pictures(tmp_path: Path) -> None:
    with figure_module.figure(tmp_path / "large.png", (90, 60), "Many labels", []):
        pass
    with Image.open(tmp_path / "large.png") as picture:
        assert _MAX_PIXELS / 3 < picture.width * picture.height < _MAX_PIXELS


def test_names_are_shown_as_they_are(tmp_path: Path, figures: list[Figure]) -> None:
    draw_all(tmp_path, SETS["odd"])
    shown = [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()]
    assert {"a$b$c", "x_{2}^", "<b>bold</b>", "two lines"} <= set(shown)
    assert all(len(name) <= 32 for name in shown) and len(set(shown)) == len(SETS["odd"])


def test_the_operating_point_is_on_the_curve(tmp_path: Path, figures: list[Figure]) -> None:
    labels = SETS["3"]
    scored = draw_all(tmp_path, labels)
    for i, panel in enumerate(figures[2].axes):
        curve, point = panel.lines
        given = scored.probabilities[:, i] >= np.linspace(0.4, 0.6, 3)[i]
        hits = (given & (scored.references[:, i] > 0)).sum()
        wanted = hits / scored.references[:, i].sum(), hits / given.sum()
        assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx(wanted)
        assert np.isclose(curve.get_xydata(), wanted).all(axis=1).any()
    [legend] = figures[2].legends
    assert [text.get_text() for text in legend.get_texts()] == ["at the label's own threshold"]


def test_counts_beside_shares(tmp_path: Path, figures: list[Figure]) -> None:
    labels = SETS["3"]
    scored = draw_all(tmp_path, labels)
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in figures[4].axes[0].texts}
    given, actual = scored.probabilities >= np.linspace(0.4, 0.6, 3), scored.references > 0
    for row in range(3):
        for column in range(3):
            count = int((actual[:, row] & ~given[:, row] & given[:, column] & ~actual[:, column]).sum())
            assert cells.get((row, column), "0") == str(count)
    assert sum(map(int, cells.values())) > 0
    missed = [int((actual[:, i] & ~given[:, i]).sum()) for i in range(3)]
    rows = [tick.get_text() for tick in figures[4].axes[0].get_yticklabels()]
    assert rows == [f"{label} ({count})" for label, count in zip(labels, missed, strict=True)]
    decisions = [text.get_text() for text in figures[5].axes[1].texts]
    assert sum(int(text.replace(",", "")) for text in decisions) == 2 * scored.probabilities.size


def test_signs_that_no_font_has_become_numbers(
    tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = figure_module.font_manager.findfont("DejaVu Sans")
    monkeypatch.setattr(figure_module.font_manager.fontManager, "ttflist", [])
    labels = ("joy", "喜び", "\N{CUNEIFORM SIGN A}", "fear")
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all(tmp_path, labels)
    assert {t.get_text() for t in figures[0].axes[0].get_yticklabels()} == {"joy", "label 2", "label 3", "fear"}
    assert any(t.get_text().startswith("label 2 (") for t in figures[1].axes[0].get_yticklabels()), (
        "not by its place there"
    )
    for found in (*figures[:5], figures[6]):
        assert "no font on this machine has its signs" in " ".join(found.get_suptitle().split())
    said = [record.getMessage() for record in caplog.records if "no installed font" in record.getMessage()]
    assert said == [
        "no installed font has the signs of 喜び (label 2), \N{CUNEIFORM SIGN A} (label 3): pictures show numbers "
        "instead. Remedy: install one, such as fonts-noto-cjk"
    ]
    assert own.endswith("DejaVuSans.ttf")


def test_another_font_draws_what_matplotlib_s_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: an installed font that has the signs, whatever this machine has."""
    fonts = figure_module.font_manager.fontManager.ttflist
    entry = next(font for font in fonts if font.name == "STIXNonUnicode" and font.style == "normal")
    sign = chr(
        min(
            figure_module._signs(entry.fname) - figure_module._signs(figure_module.font_manager.findfont("DejaVu Sans"))
        )
    )
    monkeypatch.setattr(figure_module.font_manager.fontManager, "ttflist", [entry])
    families, numbered = figure_module._find_fonts((f"{sign} drawn", "喜び"))
    assert families == ("STIXNonUnicode",) and numbered == {"喜び"}
    assert figure_module.shown((f"{sign} drawn", "喜び")) == [f"{sign} drawn", "label 2"]
