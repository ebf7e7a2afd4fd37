"""Published figures on GoEmotions, each with the protocol that it was measured by (``published.yaml``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from training.taxonomy import TAXONOMIES


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
