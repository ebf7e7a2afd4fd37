"""Plots of a run. Each function writes one PNG file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve

from training.scores.calibration import calibration_error, reliability
from training.scores.figure import figure, shown
from training.scores.published import Published
from training.scores.scoring import Scored

Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_LONGEST_PANEL_NAME = 14
_MOST_CELLS = 60
"""Labels on a side. With more, writing the numbers takes minutes."""


def _error_bars(score: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Lengths to the left and right of each score, [2, N].

    With few positives, a percentile interval may not contain the score; an error bar must, so it ends at the score.
    """
    middle = np.asarray(score)
    return np.maximum([middle - np.asarray(low), np.asarray(high) - middle], 0)


def plot_label_frequencies(path: Path, before: np.ndarray, after: np.ndarray, labels: Sequence[str], note: str) -> None:
    """Positive training rows per label before and after balancing, with the counts."""
    order = np.argsort(before)
    places = np.arange(len(labels))
    names = shown(labels)
    title = "Training rows of each label, before and after balancing"
    with figure(path, (9, 0.34 * len(labels) + 2), title, labels, note) as drawn:
        axes = drawn.subplots()
        for offset, counts, name in ((-0.2, before, "before"), (0.2, after, "after")):
            bars = axes.barh(places + offset, counts[order], height=0.38, label=f"{name} balancing")
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
        axes.set_yticks(places, [names[i] for i in order])
        axes.set_xlabel("training rows with the label")
        axes.margins(x=0.08, y=0.01)
        drawn.legend(loc="outside lower center", ncols=2, fontsize=8)


def plot_per_label(path: Path, table: pd.DataFrame, published: Sequence[Published], note: str) -> None:
    """Test F1 per label with 95 % intervals, at 0.5 and with thresholds from validation, next to published figures."""
    test = table[table["split"] == "test"]
    own = test[test["thresholds"] == "per_label"]
    names = dict(zip(own["label"], shown(own["label"].tolist()), strict=True))
    own = own.sort_values("f1")
    fixed = test[test["thresholds"] == "fixed"].set_index("label")["f1"].loc[own["label"]]
    labels = own["label"].tolist()
    with figure(path, (8.5, 0.3 * len(own) + 2.2), "F1 of each label on the test split", list(names), note) as drawn:
        axes = drawn.subplots()
        width = _error_bars(own["f1"], own["f1_low"], own["f1_high"])
        places = _label_rows(axes, [names[label] for label in labels], own["support"].tolist())
        axes.barh(
            places, own["f1"], xerr=width, color="tab:blue", ecolor="0.1", label="threshold from validation, 95 %"
        )
        axes.plot(fixed, places, "k|", markersize=9, label="threshold 0.5")
        styles = (("d", "tab:red"), ("x", "tab:orange"))
        for system, (marker, color) in zip((s for s in published if s.per_label), styles, strict=False):
            values = [system.per_label.get(label, np.nan) for label in labels]
            axes.plot(values, places, marker, color=color, markersize=5, label=f"{system.system}: {system.protocol}")
        axes.set_xlabel("test F1")
        drawn.legend(loc="outside lower center", fontsize=8)


def _label_rows(axes: Axes, names: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """One row for each label, named with its number of test rows; returns the rows' places."""
    places = np.arange(len(names))
    axes.set_yticks(places, [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)])
    axes.set(xlim=(0, 1), ylabel="label (test rows)")
    axes.margins(y=0.01)
    return places


def plot_precision_recall(path: Path, test: Scored, cutoffs: np.ndarray, labels: Sequence[str], note: str) -> None:
    """Precision against recall for each label, test split, with the point at the label's own threshold."""

    def curve(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(references, probabilities)
        return recall, precision

    given, actual = test.probabilities >= cutoffs, test.references > 0
    hits = (given & actual).sum(axis=0)
    recall, precision = hits / np.maximum(actual.sum(axis=0), 1), hits / np.maximum(given.sum(axis=0), 1)
    title = "Precision and recall of each label on the test split (rows with the label)"
    mark = Line2D([], [], color="tab:red", marker="o", markersize=4, linestyle="", label="at the label's own threshold")
    with _grid(path, test, labels, curve, ("recall", "precision"), title, note, mark) as panels:
        for i, panel in enumerate(panels):
            if given[:, i].any():  # else there is no precision
                panel.plot(recall[i], precision[i], "o", color="tab:red", markersize=4, clip_on=False)


def plot_threshold_curves(
    path: Path, validation: Scored, labels: Sequence[str], chosen: dict[str, float], note: str
) -> None:
    """F1 against the threshold for each label on validation, with the chosen threshold."""
    cuts = np.linspace(0.005, 0.995, 199)

    def curve(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reached = probabilities[:, None] >= cuts
        hits = (reached & (references[:, None] > 0)).sum(axis=0)
        return cuts, 2 * hits / np.maximum(reached.sum(axis=0) + references.sum(), 1)

    title = "F1 of each label on validation, against its threshold (rows with the label)"
    mark = Line2D([], [], color="tab:red", linewidth=0.8, label="the label's own threshold")
    with _grid(path, validation, labels, curve, ("threshold", "F1"), title, note, mark) as panels:
        for panel, label in zip(panels, labels, strict=True):
            panel.axvline(chosen[label], color="tab:red", linewidth=0.8)


@contextmanager
def _grid(
    path: Path,
    scored: Scored,
    labels: Sequence[str],
    curve: Curve,
    axes_names: tuple[str, str],
    title: str,
    note: str,
    mark: Line2D,
) -> Iterator[list[Axes]]:
    """A panel with a curve for each label; yields the panels, to add a mark to each, which a legend below explains."""
    columns = min(7, len(labels))
    rows = -(-len(labels) // columns)
    with figure(path, (1.9 * columns, 1.7 * rows + 1), title, labels, note) as drawn:
        panels: list[Axes] = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
        for panel in panels[len(labels) :]:
            panel.set_visible(False)
        for i, (panel, name) in enumerate(zip(panels, shown(labels, _LONGEST_PANEL_NAME), strict=False)):
            panel.set_title(f"{name} ({int(scored.references[:, i].sum()):,})", fontsize=8)
            if scored.references[:, i].any():
                panel.plot(*curve(scored.probabilities[:, i], scored.references[:, i]), linewidth=1)
            panel.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            panel.tick_params(labelsize=6)
            if i + columns >= len(labels):  # the lowest of its column
                panel.set_xlabel(axes_names[0], fontsize=8)
                panel.tick_params(labelbottom=True)
        drawn.supylabel(axes_names[1], fontsize=9)
        drawn.legend(handles=[mark], loc="outside lower center", fontsize=8)
        yield panels[: len(labels)]


def plot_confusions(path: Path, test: Scored, cutoffs: np.ndarray, labels: Sequence[str], note: str) -> None:
    """For each label, the test rows that miss it: in how many, and in what share, another label is wrongly given."""
    predicted, actual = test.probabilities >= cutoffs, test.references > 0
    missed, wrong = (actual & ~predicted).astype(int), (predicted & ~actual).astype(int)
    counts, rows = missed.T @ wrong, missed.sum(axis=0)
    share = counts / np.maximum(rows, 1)[:, None]
    names = shown(labels)
    side = 0.3 * len(labels) + 0.11 * max(map(len, names))
    with figure(path, (side + 2.7, side + 2), "Labels taken for one another on the test split", labels, note) as drawn:
        axes = drawn.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=max(share.max(), 0.01))
        for row, column in zip(*np.nonzero(counts), strict=True) if len(labels) <= _MOST_CELLS else ():
            color = "white" if share[row, column] > 0.6 * share.max() else "black"
            number = counts[row, column]
            axes.text(column, row, f"{number:,}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), [f"{n} ({k:,})" for n, k in zip(names, rows, strict=True)], fontsize=8)
        axes.set_xlabel("wrongly given instead (numbers: test rows)")
        axes.set_ylabel("missed (test rows)")
        drawn.colorbar(image, label="share of the rows that miss the label", shrink=0.8)


def plot_reliability(path: Path, before: Scored, after: Scored, note: str) -> None:
    """Share of positives against probability, all labels of the test split, before and after calibration."""
    with figure(path, (6, 7), "Share of positives against probability, test split", [], note) as drawn:
        axes, below = drawn.subplots(2, height_ratios=(3, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color="0.7")
        for name, scored, shift in (("before", before, -0.02), ("after", after, 0.02)):
            predicted, observed, _ = reliability(scored.probabilities, scored.references)
            error = calibration_error(scored.probabilities, scored.references)
            axes.plot(
                predicted, observed, "o-", markersize=4, linewidth=1, label=f"{name} calibration, ECE {error:.4f}"
            )
            counts, edges = np.histogram(scored.probabilities, bins=10, range=(0, 1))
            bars = below.bar(edges[:-1] + 0.05 + shift, counts, width=0.04)
            below.bar_label(bars, fmt="{:,.0f}", fontsize=6, rotation=90, padding=2)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of positives")
        below.set(xlim=(-0.02, 1.02), yscale="symlog", xlabel="probability", ylabel="decisions", yticks=[])
        below.tick_params(left=False, which="both")
        below.margins(y=0.3)
        drawn.legend(loc="outside lower center", ncols=2, fontsize=8)


def plot_comparison(path: Path, table: pd.DataFrame, scores: dict[str, list[float]]) -> None:
    """Test macro F1 of each setting with its 95 % interval and each seed; a star marks a difference from the first."""
    rows = table.iloc[::-1]
    differs = (rows["difference_low"] > 0) | (rows["difference_high"] < 0)
    settings = rows["setting"].tolist()
    names = [f"{name} *" if star else name for name, star in zip(_last_parts(settings), differs, strict=True)]
    title = "Test macro F1 of each setting, thresholds from validation"
    with figure(path, (8.5, 0.32 * len(names) + 2), title, settings) as drawn:
        axes = drawn.subplots()
        places = np.arange(len(names))
        width = _error_bars(rows["test"], rows["test_low"], rows["test_high"])
        colors = ["tab:red" if contaminated else "tab:blue" for contaminated in rows["contaminated"]]
        axes.errorbar(rows["test"], places, xerr=width, fmt="none", ecolor="0.6", label="95 %, rows resampled")
        axes.scatter(rows["test"], places, color=colors, zorder=3, label="mean over seeds (red: contaminated)")
        seeds = [(score, place) for place, setting in zip(places, settings, strict=True) for score in scores[setting]]
        axes.plot(*zip(*seeds, strict=True), "k|", markersize=7, label="each seed")
        axes.set_yticks(places, names)
        axes.margins(y=0.5 / len(names))
        axes.set_xlabel("test macro F1\n*: the paired 95 % interval of the difference from the first excludes 0")
        drawn.legend(loc="outside lower center", ncols=3, fontsize=8)


def _last_parts(settings: Sequence[str]) -> list[str]:
    """Finished runs are compared by their folders: their names say enough, if they differ."""
    last = [Path(setting).name for setting in settings]
    are_folders = all(Path(setting).is_dir() for setting in settings)
    return shown(last if are_folders and len(set(last)) == len(last) else settings, longest=60)


def plot_evaluation(
    path: Path, tuned: Mapping[str, Mapping[str, Any]], fixed: Mapping[str, Mapping[str, Any]], title: str
) -> None:
    """F1 per label with 95 % intervals, with the model's own thresholds and at 0.5.

    Args:
        path: the file.
        tuned: label → ``support``, ``f1`` and ``f1_95``, with the model's own thresholds.
        fixed: the same at 0.5.
        title: the model and the file it was scored on.
    """
    names = dict(zip(tuned, shown(list(tuned)), strict=True))
    labels = sorted(tuned, key=lambda label: tuned[label]["f1"])
    f1 = np.array([tuned[label]["f1"] for label in labels])
    ends = np.array([tuned[label]["f1_95"] for label in labels])
    with figure(path, (8, 0.34 * len(labels) + 2), f"F1 of each label: {title}", list(names)) as drawn:
        axes = drawn.subplots()
        places = _label_rows(axes, [names[label] for label in labels], [tuned[label]["support"] for label in labels])
        axes.barh(
            places,
            f1,
            xerr=_error_bars(f1, ends[:, 0], ends[:, 1]),
            capsize=2,
            color="tab:blue",
            label="the model's thresholds, 95 % interval",
        )
        axes.plot([fixed[label]["f1"] for label in labels], places, "o", color="tab:orange", label="threshold 0.5")
        axes.set_xlabel("F1")
        drawn.legend(loc="outside lower center", ncols=2, fontsize=8)
