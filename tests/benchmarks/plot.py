"""Draw the JSON lines of the speed benchmarks.

    python tests/benchmarks/plot.py PICTURE LINES …

LINES are files with the output of ``training_speed.py``, ``inference_speed.py`` and ``cost.py``. Figures that are not
in them are not drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Line = dict[str, Any]


def bars(axes: Axes, lines: list[Line], name: str, value: str, title: str) -> None:
    """A bar for each line, labeled with its value."""
    drawn = axes.barh([line[name] for line in lines], [line[value] for line in lines])
    axes.bar_label(drawn, fmt="%.0f", padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title)


def training(axes: Axes, lines: list[Line]) -> None:
    """Rows per second of each way to train, with its best number of threads."""
    best: dict[str, Line] = {}
    for line in sorted(lines, key=lambda line: float(line["rows_per_second"])):
        best[line["setting"]] = line
    ordered = [best[setting] for setting in dict.fromkeys(line["setting"] for line in lines)]
    bars(axes, ordered, "setting", "rows_per_second", "training, rows/s")


def whole(axes: Axes, lines: list[Line]) -> None:
    """Texts per second from text to labels, by batch size."""
    named = [line | {"name": f"{line['batch_size']}: {line['model']}"} for line in lines]
    bars(axes, named, "name", "texts_per_second", "text in, labels out: texts/s by batch size")


def cost(axes: Axes, lines: list[Line]) -> None:
    """Seconds against size, each relative to its smallest; the dotted line is linear."""
    for work, against in sorted({(line["work"], line["against"]) for line in lines}):
        own = [line for line in lines if (line["work"], line["against"]) == (work, against)]
        units = [line["seconds"] / line["seconds_a_unit"] for line in own]
        axes.plot([u / units[0] for u in units], [line["seconds"] / own[0]["seconds"] for line in own], "o-")
        axes.lines[-1].set_label(f"{work}, {against}")
    axes.loglog([1, 100], [1, 100], "k:")
    axes.legend(fontsize="small")
    axes.set_title("cost against size, relative to the smallest")


PANELS: dict[str, Callable[[Axes, list[Line]], None]] = {
    "training_rows_per_second": training,
    "whole": whole,
    "cost": cost,
}


def main() -> None:
    texts = [Path(path).read_text(encoding="utf-8") for path in sys.argv[2:]]
    lines: list[Line] = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
    found = {figure: [line for line in lines if line["figure"] == figure] for figure in PANELS}
    found = {figure: own for figure, own in found.items() if own}
    figure, axes = plt.subplots(len(found), figsize=(8, 3.5 * len(found)), squeeze=False, layout="constrained")
    for (name, own), panel in zip(found.items(), axes[:, 0], strict=True):
        PANELS[name](panel, own)
    figure.savefig(sys.argv[1], dpi=80)


if __name__ == "__main__":
    main()
