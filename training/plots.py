"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def plot_label_frequencies(before: np.ndarray, after: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Positive training rows per label before and after balancing, with the counts, as a PNG file."""
    order = np.argsort(before)
    figure = Figure(figsize=(9, 0.34 * len(labels) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(labels))
    for offset, counts, name in ((-0.2, before, "before"), (0.2, after, "after")):
        bars = axes.barh(places + offset, counts[order], height=0.38, label=f"{name} balancing")
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
    axes.set_yticks(places, [labels[i] for i in order])
    axes.set_xlabel("training rows with the label")
    axes.margins(y=0.01)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


def plot_per_label(rows: Sequence[Sequence[Any]], path: Path) -> None:
    """Test F1 per label, at 0.5 and with thresholds from validation, as a PNG file."""
    ordered = sorted(rows, key=lambda row: row[5])
    figure = Figure(figsize=(8, 0.3 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    names = [f"{row[0]} ({row[1]})" for row in ordered]
    axes.barh(names, [row[5] for row in ordered], color="tab:blue", label="threshold from validation")
    axes.plot([row[6] for row in ordered], names, "k|", markersize=9, label="threshold 0.5")
    axes.set_xlim(0, 1)
    axes.set_xlabel("test F1 (support in brackets)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
