"""Plots of a run. Each function writes one PNG file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve

from training.scores.calibration import calibration_error, reliability
from training.scores.published import Published
from training.scores.scoring import Scored

Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@contextmanager
def _figure(path: Path, width: float, height: float, note: str = "") -> Iterator[Figure]:
    figure = Figure(figsize=(width, height), layout="constrained")
    if note:
        figure.suptitle(note, color="tab:red", fontsize=10)
    yield figure
    figure.savefig(path, dpi=110, format="png")


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
    with _figure(path, 9, 0.34 * len(labels) + 1.6, note) as figure:
        axes = figure.subplots()
        for offset, counts, name in ((-0.2, before, "before"), (0.2, after, "after")):
            bars = axes.barh(places + offset, counts[order], height=0.38, label=f"{name} balancing")
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
        axes.set_yticks(places, [labels[i] for i in order])
        axes.set_xlabel("training rows with the label")
        axes.margins(y=0.01)
        axes.legend(loc="lower right")


def plot_per_label(path: Path, table: pd.DataFrame, published: Sequence[Published], note: str) -> None:
    """Test F1 per label with 95 % intervals, at 0.5 and with thresholds from validation, next to published figures."""
    test = table[table["split"] == "test"]
    own = test[test["thresholds"] == "per_label"].sort_values("f1")
    fixed = test[test["thresholds"] == "fixed"].set_index("label")["f1"].loc[own["label"]]
    names = [f"{label} ({support})" for label, support in zip(own["label"], own["support"], strict=True)]
    with _figure(path, 8.5, 0.3 * len(own) + 1.8, note) as figure:
        axes = figure.subplots()
        width = _error_bars(own["f1"], own["f1_low"], own["f1_high"])
        axes.barh(names, own["f1"], xerr=width, color="tab:blue", ecolor="0.4", label="threshold from validation, 95 %")
        axes.plot(fixed, names, "k|", markersize=9, label="threshold 0.5")
        styles = (("d", "tab:red"), ("x", "tab:orange"))
        for system, (marker, color) in zip((s for s in published if s.per_label), styles, strict=False):
            values = [system.per_label.get(label, np.nan) for label in own["label"]]
            axes.plot(values, names, marker, color=color, markersize=5, label=f"{system.system}: {system.protocol}")
        axes.set_xlim(0, 1)
        axes.margins(y=0.01)
        axes.set_xlabel("test F1 (support in parentheses)")
        figure.legend(loc="outside lower center", fontsize=8)


def plot_precision_recall(path: Path, test: Scored, labels: Sequence[str], note: str) -> None:
    """Precision against recall for each label, test split."""

    def curve(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(references, probabilities)
        return recall, precision

    _grid(path, test, labels, curve, "recall, precision", note)


def plot_threshold_curves(
    path: Path, validation: Scored, labels: Sequence[str], chosen: dict[str, float], note: str
) -> None:
    """F1 against the threshold for each label on validation, with the chosen threshold."""
    cuts = np.linspace(0.005, 0.995, 199)

    def curve(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reached = probabilities[:, None] >= cuts
        hits = (reached & (references[:, None] > 0)).sum(axis=0)
        return cuts, 2 * hits / np.maximum(reached.sum(axis=0) + references.sum(), 1)

    _grid(path, validation, labels, curve, "threshold, F1", note, chosen)


def _grid(
    path: Path,
    scored: Scored,
    labels: Sequence[str],
    curve: Curve,
    axes_names: str,
    note: str,
    marks: dict[str, float] | None = None,
) -> None:
    columns = min(7, len(labels))
    rows = -(-len(labels) // columns)
    with _figure(path, 1.9 * columns, 1.7 * rows + 0.4, note) as figure:
        panels: np.ndarray = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel in panels[len(labels) :]:
            panel.set_visible(False)
        for i, (panel, label) in enumerate(zip(panels, labels, strict=False)):
            panel.set_title(f"{label} ({int(scored.references[:, i].sum())})", fontsize=8)
            if scored.references[:, i].any():
                panel.plot(*curve(scored.probabilities[:, i], scored.references[:, i]), linewidth=1)
            if marks:
                panel.axvline(marks[label], color="tab:red", linewidth=0.8)
            panel.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            panel.tick_params(labelsize=6)
        figure.supxlabel(axes_names.split(", ")[0], fontsize=9)
        figure.supylabel(axes_names.split(", ")[1], fontsize=9)


def plot_confusions(path: Path, test: Scored, cutoffs: np.ndarray, labels: Sequence[str], note: str) -> None:
    """For each label, the share of the test rows that miss it in which another label is wrongly given."""
    predicted, actual = test.probabilities >= cutoffs, test.references > 0
    missed, wrong = (actual & ~predicted).astype(float), (predicted & ~actual).astype(float)
    share = missed.T @ wrong / np.maximum(missed.sum(axis=0), 1)[:, None]
    with _figure(path, 0.3 * len(labels) + 2.5, 0.3 * len(labels) + 2, note) as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_xlabel("wrongly given")
        axes.set_ylabel("missed")
        figure.colorbar(image, label="share of the rows in which the label is missed")


def plot_reliability(path: Path, before: Scored, after: Scored, note: str) -> None:
    """Share of positives against probability, all labels of the test split, before and after calibration."""
    with _figure(path, 5, 5, note) as figure:
        axes: Axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="0.7")
        for name, scored in (("before", before), ("after", after)):
            predicted, observed, number = reliability(scored.probabilities, scored.references)
            error = calibration_error(scored.probabilities, scored.references)
            axes.plot(predicted, observed, linewidth=1, label=f"{name} calibration, ECE {error:.4f}")
            axes.scatter(predicted, observed, s=4 + 12 * np.log10(number))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share of positives (size: decisions)")
        axes.legend()


def plot_comparison(path: Path, table: pd.DataFrame, scores: dict[str, list[float]]) -> None:
    """Test macro F1 of each setting with its 95 % interval and each seed; a star marks a difference from the first."""
    rows = table.iloc[::-1]
    differs = (rows["difference_low"] > 0) | (rows["difference_high"] < 0)
    names = [f"{name} *" if star else name for name, star in zip(rows["setting"], differs, strict=True)]
    with _figure(path, 8.5, 0.32 * len(names) + 1.4) as figure:
        axes = figure.subplots()
        width = _error_bars(rows["test"], rows["test_low"], rows["test_high"])
        colors = ["tab:red" if contaminated else "tab:blue" for contaminated in rows["contaminated"]]
        axes.errorbar(rows["test"], names, xerr=width, fmt="none", ecolor="0.6", label="95 %, rows resampled")
        axes.scatter(rows["test"], names, color=colors, zorder=3, label="mean over seeds (red: contaminated)")
        for name, setting in zip(names, rows["setting"], strict=True):
            axes.plot(scores[setting], [name] * len(scores[setting]), "k|", markersize=7)
        axes.set_xlabel(
            "test macro F1, thresholds from validation\n"
            "*: the paired 95 % interval of the difference from the first excludes 0"
        )
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)


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
    labels = sorted(tuned, key=lambda label: tuned[label]["f1"])
    f1 = np.array([tuned[label]["f1"] for label in labels])
    ends = np.array([tuned[label]["f1_95"] for label in labels])
    with _figure(path, 8, 0.34 * len(labels) + 1.8) as figure:
        axes = figure.subplots()
        names = [f"{label} ({tuned[label]['support']:,})" for label in labels]
        axes.barh(
            names,
            f1,
            xerr=_error_bars(f1, ends[:, 0], ends[:, 1]),
            capsize=2,
            color="tab:blue",
            label="the model's thresholds, 95 % interval",
        )
        axes.plot([fixed[label]["f1"] for label in labels], names, "o", color="tab:orange", label="threshold 0.5")
        axes.set_xlim(0, 1)
        axes.set_xlabel("F1 (support in parentheses)")
        axes.set_title(title, fontsize=9)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
