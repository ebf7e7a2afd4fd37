"""Published figures on GoEmotions, each with the protocol of its measurement (``published.yaml``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from modeling.records import Metrics
from training.data.taxonomy import TAXONOMIES


@dataclass(frozen=True)
class Published:
    """Test F1 of another system."""

    system: str
    protocol: str
    labels: str
    macro_f1: float
    micro_f1: float | None = None
    per_label: dict[str, float] = field(default_factory=dict)


def read_published(labels: Sequence[str]) -> list[Published]:
    """The systems with figures for the same label set as ``labels``."""
    rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    systems = [Published(**row) for row in rows]
    return [system for system in systems if set(TAXONOMIES[system.labels].labels) == set(labels)]


def to_markdown(table: pd.DataFrame, metrics: Metrics, published: Sequence[Published]) -> str:
    """A run's test scores per label and overall, next to published ones, each column with its protocol.

    Args:
        table: the rows of ``per_label.csv``.
        metrics: the content of ``metrics.json``.
        published: systems with figures for the same labels.
    """
    test = table[(table["split"] == "test") & (table["thresholds"] == "per_label")]
    own = metrics["test"]["per_label"]
    low, high = own["intervals_95"]["macro_f1"]
    detailed = [system for system in published if system.per_label]
    header = ["label", "test rows", f"this run: {metrics['protocol']} split, thresholds from validation [95 %]"]
    rows = [[*header, *(f"{system.system}: {system.protocol}" for system in detailed)], ["---"] * (3 + len(detailed))]
    for row in test.sort_values("f1", ascending=False).to_dict("records"):
        figures = [
            f"{system.per_label[row['label']]:.3f}" if row["label"] in system.per_label else "" for system in detailed
        ]
        score = f"{row['f1']:.3f} [{row['f1_low']:.3f}, {row['f1_high']:.3f}]"
        rows.append([row["label"], str(row["support"]), score, *figures])
    whole = f"**{own['macro_f1']:.3f} [{low:.3f}, {high:.3f}]**"
    rows.append(["**macro F1**", "", whole, *(f"**{system.macro_f1:.3f}**" for system in detailed)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    others = [f"- {s.system}, {s.protocol}: macro F1 {s.macro_f1:g}" for s in published if not s.per_label]
    return "\n".join([*lines, "", *others]).rstrip() + "\n"
