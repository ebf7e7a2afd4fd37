"""What training records of any rows passes the check of the records; a changed number does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hub_release.check.scores import metrics_problems, table_problems, threshold_problems, unreliable_problems
from hub_release.package import LAYOUT
from modeling.infer import EmotionConfig
from modeling.records import POLICIES
from modeling.thresholds import choose_thresholds
from training.scores.scoring import LOW_SUPPORT, WIDE_INTERVAL, Scored, score_policies, unreliable_labels


def rows_of(seed: int, rows: int, labels: int, share: float, skill: float) -> Scored:
    random = np.random.default_rng(seed)
    references = (random.random((rows, labels)) < share * random.random(labels)).astype(int)
    probabilities = 1 / (1 + np.exp(-random.normal(size=(rows, labels)) - skill * (2 * references - 1)))
    return Scored(probabilities, references)


def write_records(folder: Path, scored: dict[str, Scored], names: list[str]) -> EmotionConfig:
    """The records of a run with these rows, as training writes them."""
    import pandas as pd

    chosen = choose_thresholds(scored["validation"].probabilities, scored["validation"].references)
    constant = [np.full(len(names), value) for value in (0.5, chosen.common)]
    cutoffs: Any = dict(zip(POLICIES, (*constant, chosen.own), strict=True))
    metrics: dict[str, Any] = {"protocol": "official", "null_test": None}
    tables = []
    for split, rows in scored.items():
        metrics[split], table = score_policies(rows, cutoffs, names)
        tables.append(table.assign(split=split))
    per_label = pd.concat(tables, ignore_index=True)
    per_label.to_csv(folder / LAYOUT.per_label, index=False)
    none = {"rows": 0, "positives": dict.fromkeys(names, 0)}
    counts = {
        split: {
            "rows": len(rows.references),
            "positives": dict(zip(names, rows.references.sum(axis=0).tolist(), strict=True)),
        }
        for split, rows in scored.items()
    }
    own = dict(zip(names, chosen.own.tolist(), strict=True))
    contents = {
        LAYOUT.metrics: metrics,
        LAYOUT.thresholds: {
            "source": "tuned",
            "global": chosen.common,
            "per_label": own,
            "per_label_unshrunk": dict(zip(names, chosen.best.tolist(), strict=True)),
        },
        LAYOUT.context: {"unreliable": {"positives_below": LOW_SUPPORT, "f1_interval_wider_than": WIDE_INTERVAL}},
        LAYOUT.audit: {"splits": counts, "copies": {"test_in_train": none}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return EmotionConfig(
        emotion_labels=names,
        thresholds=own,
        threshold_source="tuned",
        unreliable_labels=unreliable_labels(per_label),
    )


def problems_of(folder: Path, config: EmotionConfig) -> list[str]:
    comparisons = (table_problems, metrics_problems, threshold_problems, unreliable_problems)
    return [problem for compare in comparisons for problem in compare(folder, config)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 300),
    labels=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    skill=st.sampled_from([-1.0, 0.0, 1.0, 5.0]),
)
def test_what_training_records_is_not_refused(
    seed: int, rows: int, labels: int, share: float, skill: float, tmp_path: Path
) -> None:
    scored = {split: rows_of(seed + i, rows, labels, share, skill) for i, split in enumerate(("validation", "test"))}
    config = write_records(tmp_path, scored, [f"label {i}" for i in range(labels)])
    assert problems_of(tmp_path, config) == []


@pytest.mark.parametrize("name", ["precision", "recall", "f1", "support", "threshold"])
def test_every_number_of_the_table_counts(name: str, tmp_path: Path) -> None:
    """A tenth more or less of any number contradicts another one."""
    scored = {split: rows_of(i + 2, 200, 4, 0.9, 1.0) for i, split in enumerate(("validation", "test"))}
    config = write_records(tmp_path, scored, ["joy", "anger", "fear", "pride"])
    lines = (tmp_path / LAYOUT.per_label).read_text().splitlines()
    column = lines[0].split(",").index(name)
    for number in range(1, len(lines)):
        cells = lines[number].split(",")
        assert float(cells[column]), "the rows must give numbers to change"
        cells[column] = str(float(cells[column]) * (0.9 if name != "support" else 1) - (name == "support"))
        changed = [*lines[:number], ",".join(cells), *lines[number + 1 :]]
        (tmp_path / LAYOUT.per_label).write_text("\n".join(changed) + "\n")
        assert problems_of(tmp_path, config), lines[number]
