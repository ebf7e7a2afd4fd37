"""Scores, thresholds and calibration: whether the recorded numbers follow from each other.

Training computes them from the same rows, so most of them determine others: F1 is that of precision and recall, a
macro average is the mean of its labels, recall times support is a whole number of rows. A number that was changed
contradicts the others.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from hub_release.check.earlier import is_earlier
from hub_release.package import LAYOUT, read_record
from modeling import records
from modeling.infer import EmotionConfig
from modeling.records import POLICIES, AdaptationRecord, Audit, scores_by_split

OTHER_LABELS = "and config.json list different labels, or in another order"
_RATIOS = ("precision", "recall", "f1")
_PER_LABEL = (*_RATIOS, "average_precision")
_BY_LABEL = 1e-4
"""Older tables were rounded to four digits."""
_DRAWN = "drawn toward"
"""In the source of thresholds of earlier versions: from the best one toward the common one, and not further."""
Table = dict[str, np.ndarray]
"""Columns of ``per_label.csv`` for one split and policy, each [L]."""


def table_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """``per_label.csv`` against itself, ``metrics.json``, ``thresholds.json`` and ``audit.json``."""
    by_split: Any = scores_by_split(read_record(package, records.METRICS))
    tables = _read_tables(package)
    if set(tables) != {(split, policy) for split in by_split for policy in POLICIES}:
        yield f"and {LAYOUT.metrics} have scores of different splits or thresholds"
        return
    if any(table["label"].tolist() != config.emotion_labels for table in tables.values()):
        yield OTHER_LABELS
        return
    common = read_record(package, records.THRESHOLDS)["global"]
    cutoffs = {"fixed": 0.5, "global": common, "per_label": [config.thresholds.get(x) for x in config.emotion_labels]}
    supports = _rows_and_supports(read_record(package, records.AUDIT), config)
    for (split, policy), table in tables.items():
        rows, support = supports[split]
        found = [*_range_problems(table, config), *_ratio_problems(table, rows, config)]
        yield from (f"{problem} ({split}, {policy})" for problem in found)
        if table["support"].tolist() != support:
            yield f"and {LAYOUT.audit} count different positive rows ({split}, {policy})"
        if not np.allclose(table["threshold"], np.array(cutoffs[policy], float), rtol=0, atol=_BY_LABEL):
            yield f"and config.json have different thresholds ({split}, {policy})"
        for name in _RATIOS:
            if not _near(table[name].mean(), by_split[split][policy].get(f"macro_{name}", table[name].mean())):
                yield f"and {LAYOUT.metrics} have different scores ({split}, {policy}: macro_{name})"


def _read_tables(package: Path) -> dict[tuple[str, str], Table]:
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (package / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault((row["split"], row["thresholds"]), []).append(row)
    numbers = ["support", "threshold", *(f"{name}{end}" for name in _PER_LABEL for end in ("", "_low", "_high"))]
    return {
        group: {"label": np.array([row["label"] for row in rows])}
        | {name: np.array([float(row[name]) for row in rows]) for name in numbers}
        for group, rows in groups.items()
    }


def _rows_and_supports(audit: Audit, config: EmotionConfig) -> dict[str, tuple[int, list[int]]]:
    """The number of rows, and of positive rows of each label, of every split that can have scores."""
    splits, copies = audit["splits"], audit["copies"]["test_in_train"]
    found = {
        split: (splits[split]["rows"], [splits[split]["positives"][label] for label in config.emotion_labels])
        for split in ("validation", "test")
    }
    rows, support = found["test"]
    copied = [copies["positives"][label] for label in config.emotion_labels]
    apart = [count - other for count, other in zip(support, copied, strict=True)]
    return found | {"test_without_copies": (rows - copies["rows"], apart)}


def _range_problems(table: Table, config: EmotionConfig) -> Iterator[str]:
    """Scores that are no shares, and intervals that do not hold their score."""
    for name in _PER_LABEL:
        value, low, high = (table[f"{name}{end}"] for end in ("", "_low", "_high"))
        for label in _where(~((value >= 0) & (value <= 1)), config):
            yield f"has a {name} of {label} that is not from 0 to 1"
        held = (low >= 0) & (low <= value + _BY_LABEL) & (value <= high + _BY_LABEL) & (high <= 1)
        for label in _where(~held, config):
            yield f"has an interval of {name} that does not hold the {name} of {label}"


def _ratio_problems(table: Table, rows: int, config: EmotionConfig) -> Iterator[str]:
    """Precision, recall and F1 that no number of rows has."""
    precision, recall, f1, support = (table[name] for name in (*_RATIOS, "support"))
    for label in _where(abs(f1 - _harmonic_mean(precision, recall)) > 5 * _BY_LABEL, config):
        yield f"has an f1 of {label} that is not that of its precision and recall"
    hits = recall * support
    predicted = np.divide(np.round(hits), precision, out=np.zeros_like(hits), where=precision > 0)
    for label in _where(abs(hits - np.round(hits)) > 0.01 + support * _BY_LABEL, config):
        yield f"has a recall of {label} that no number of its positive rows gives"
    spread = 0.01 + 2 * _BY_LABEL * predicted / np.maximum(precision, _BY_LABEL)
    odd = (abs(predicted - np.round(predicted)) > spread) | (predicted > rows + spread)
    for label in _where(odd | ((hits > 0.5) != (precision > 0)), config):
        yield f"has a precision of {label} that no number of predicted rows gives"


def _where(wrong: np.ndarray, config: EmotionConfig) -> list[str]:
    """The first label for which something is wrong; the others have the same cause."""
    return [config.emotion_labels[int(index)] for index in np.flatnonzero(wrong)[:1]]


def _harmonic_mean(first: Any, second: Any) -> Any:
    return np.where(first + second > 0, 2 * first * second / np.maximum(first + second, 1e-12), 0)


def _near(one: float, other: float, tolerance: float = _BY_LABEL) -> bool:
    return abs(one - other) <= tolerance  # false for nan


def metrics_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """``metrics.json`` against itself, ``per_label.csv`` and ``audit.json``."""
    by_split: Any = scores_by_split(read_record(package, records.METRICS))
    frequent_from = read_record(package, records.CONTEXT)["unreliable"]["positives_below"]
    supports = _rows_and_supports(read_record(package, records.AUDIT), config)
    tables = _read_tables(package)
    for policy, scores in cast(Any, read_record(package, records.METRICS)).get("bag_of_words", {}).items():
        shares = [share for name, ends in scores["intervals_95"].items() for share in (scores[name], *ends)]
        if not all(0 <= share <= 1 for share in shares):
            yield f"has a score of the bag of words that is not from 0 to 1 ({policy})"
    for split, policies in by_split.items():
        for policy, scores in policies.items():
            found = _overall_problems(scores, tables[split, policy], supports[split][0], frequent_from)
            yield from (f"{problem} ({split}, {policy})" for problem in found)


def _overall_problems(scores: Mapping[str, Any], table: Table, rows: int, frequent_from: float) -> Iterator[str]:
    intervals = scores["intervals_95"]
    plain: dict[str, float] = {name: value for name, value in scores.items() if name != "intervals_95"}
    if set(intervals) != set(plain):
        odd = sorted(set(intervals) ^ set(plain))
        yield f"has a score without its interval, or an interval without its score: {', '.join(odd)}"
        return
    hits, support = table["recall"] * table["support"], table["support"]
    for name, value in plain.items():
        low, high = intervals[name]
        # A sample of the rows may have none of a rare label's, which gives 0: macro averages of samples lean low.
        ratio = table.get(name.removeprefix("macro_").removesuffix("_frequent")) if "macro" in name else None
        lean = 0.0 if ratio is None else float((ratio * np.exp(-hits)).mean())
        if not (0 <= value <= 1 and 0 <= low <= value + _BY_LABEL and value <= high + lean + _BY_LABEL and high <= 1):
            yield f"has {name} {value!r:.20} with the interval [{low!r:.20}, {high!r:.20}], which does not hold it"
    if not _near(plain["exact_accuracy"] * rows, round(plain["exact_accuracy"] * rows), 0.01 + rows * 1e-6):
        yield f"has an exact_accuracy that no number of its {rows:,} rows gives"
    frequent = support >= frequent_from
    if "macro_f1_frequent" in plain and not _near(table["f1"][frequent].mean(), plain["macro_f1_frequent"]):
        yield "has a macro_f1_frequent that is not the mean of its labels"
    if "micro_precision" not in plain:
        return
    precision, recall, f1 = (plain[f"micro_{name}"] for name in _RATIOS)
    if not _near(f1, float(_harmonic_mean(precision, recall)), 5 * _BY_LABEL):
        yield "has a micro_f1 that is not that of its precision and recall"
    if not _near(recall, hits.sum() / max(support.sum(), 1), 10 * _BY_LABEL):
        yield f"and {LAYOUT.per_label} have different scores (micro_recall)"
    known = table["precision"] > 0  # a label without hits may have been predicted any number of times
    most = hits.sum() / max((hits[known] / table["precision"][known]).sum(), 1)
    if precision > most + 10 * _BY_LABEL:
        yield f"and {LAYOUT.per_label} have different scores (micro_precision)"


def threshold_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """``thresholds.json`` against itself and ``config.json``."""
    recorded = read_record(package, records.THRESHOLDS)
    if any(list(recorded[key]) != config.emotion_labels for key in ("per_label", "per_label_unshrunk")):
        yield OTHER_LABELS
        return
    if recorded["per_label"] != config.thresholds:
        yield "and config.json have different thresholds"
    if recorded["source"] != config.threshold_source:
        yield "and config.json say different sources of the thresholds"
    common, best, own = (
        np.array(values, float)
        for values in (
            recorded["global"],
            list(recorded["per_label_unshrunk"].values()),
            list(recorded["per_label"].values()),
        )
    )
    if not all(((values >= 0) & (values <= 1)).all() for values in (common, best, own)):
        yield "has a threshold that is not from 0 to 1"
    if _DRAWN not in recorded["source"]:
        return
    beyond = (own < np.minimum(best, common) - _BY_LABEL) | (own > np.maximum(best, common) + _BY_LABEL)
    for label in _where(beyond, config):
        yield f"has a threshold of {label} that is not between its best one and the common one"


def calibration_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """``calibration.json`` against itself and ``metrics.json``."""
    recorded = read_record(package, records.CALIBRATION)
    losses = recorded.get("cross_fitted_log_loss", {})
    if losses and recorded["method"] != min(losses, key=losses.__getitem__):
        yield f"has method {recorded['method']}, which does not have the lowest log loss"
    for key in ("scale", "bias"):
        values = np.array(cast(Any, recorded)[key], float)
        if values.shape != (len(config.emotion_labels),) or not np.isfinite(values).all():
            yield f"does not have a finite {key} for every label"
    by_split: Any = read_record(package, records.METRICS)
    for split in ("validation", "test"):
        for when, measured in cast(Any, recorded)[split].items():
            if not all(0 <= value <= 1 for value in measured.values()):
                yield f"has a measure that is not from 0 to 1 ({split}, {when})"
        after = cast(Any, recorded)[split]["after"]
        for key, policy in (("macro_f1_at_0.5", "fixed"), ("macro_f1_at_own_thresholds", "per_label")):
            if not _near(after[key], by_split[split][policy]["macro_f1"]):
                yield f"and {LAYOUT.metrics} have different scores ({split}, {key})"


def unreliable_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """The unreliable labels of ``config.json`` against ``per_label.csv``."""
    rule = read_record(package, records.CONTEXT)["unreliable"]
    table = _read_tables(package)["test", "per_label"]
    wide = table["f1_high"] - table["f1_low"] > rule["f1_interval_wider_than"]
    expected = table["label"][(table["support"] < rule["positives_below"]) | wide].tolist()
    if config.unreliable_labels != expected:
        yield f"has unreliable_labels that are not those of {LAYOUT.per_label} and {LAYOUT.context}"


def adapted_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """Adapted thresholds of ``config.json`` without a record of them, or with code that does not know them."""
    if not config.adapted_thresholds:
        return
    if not (package / LAYOUT.adaptation).is_file():
        yield f"has adapted thresholds, but the package has no {LAYOUT.adaptation}"
    if is_earlier(package):
        yield f"has adapted thresholds, which the package's {LAYOUT.code} does not know"


def adaptation_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """``adaptation.json`` against itself and ``config.json``."""
    if not (package / LAYOUT.adaptation).is_file():
        return
    found = read_record(package, records.ADAPTATION)
    texts, labeled, positives = found["texts"], found["labeled"], found["positives"]
    counts = [texts, labeled, *positives.values()]
    if set(found) != set(AdaptationRecord.__annotations__):
        yield "has other entries than those that adapt writes"
    if found["thresholds"] != config.adapted_thresholds or not found["thresholds"]:
        yield "and config.json have different thresholds"
    if not all(type(count) is int for count in counts) or not 0 <= labeled <= texts or texts < 1:
        yield "has numbers of texts that contradict each other"
    elif bool(positives) != bool(labeled) or not all(0 < count <= labeled for count in positives.values()):
        yield "has positive rows that its labeled texts cannot have"
    known = {*config.emotion_labels}
    if not known.issuperset(positives) or not known.issuperset(found["expected_f1"]):
        yield OTHER_LABELS
    if not all(0 <= f1 <= 1 for f1 in found["expected_f1"].values()):
        yield "has an expected F1 that is not from 0 to 1"
    if not re.fullmatch("[0-9a-f]{64}", found["file_sha256"]):
        yield "has a hash that is none"
