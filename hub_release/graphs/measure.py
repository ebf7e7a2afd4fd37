"""The gate of graphs: each is scored on validation and test before it is published."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hub_release.package import ReleaseError, read_record
from modeling import records
from modeling.infer import EmotionClassifier, usable_cores
from modeling.machine import cpu_name
from modeling.recipe import CROSS_FIT
from modeling.records import TORCH, BackendRecord, BackendScores, GraphRecord, RowScores
from modeling.thresholds import choose_thresholds, macro_f1

GRAPHS: dict[str, dict[str, Any]] = {
    "onnx": {"backend": "onnx", "quantization": "none"},
    "onnx-int8": {"backend": "onnx", "quantization": "int8"},
    "openvino": {"backend": "openvino"},
}
"""Name of each graph in ``graphs.json`` → what :class:`modeling.infer.EmotionClassifier` needs to compute with it."""
MAX_LOSS = 0.005
"""The most macro F1 on validation that a graph may lose."""
_TIMED_TEXTS, _TIMES = 256, 3
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Rows:
    """The N rows of a split: texts, 0/1 labels [N, L], and what PyTorch gives for them, float [N, L]."""

    texts: list[str]
    references: np.ndarray
    probabilities: np.ndarray


def read_rows(run: Path) -> dict[str, Rows]:
    """The rows of validation and test that a run was scored on.

    Raises:
        ReleaseError: the run does not have their texts, or not those of its predictions.
    """
    if not (run / records.SCORED_TEXTS).is_file():
        raise ReleaseError(
            f"{run} has no {records.SCORED_TEXTS}, so a graph cannot be scored: an earlier version trained it. Remedy: "
            "train again, or export without a graph"
        )
    texts: dict[str, list[str]] = {"validation": [], "test": []}
    for line in (run / records.SCORED_TEXTS).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["split"]].append(row["text"])
    with np.load(run / records.PREDICTIONS, allow_pickle=False) as arrays:
        rows = {
            split: Rows(found, arrays[f"{split}_references"], arrays[f"{split}_probabilities"])
            for split, found in texts.items()
        }
    for split, found in rows.items():
        if not len(found.texts) == len(found.references) == len(found.probabilities):
            raise ReleaseError(
                f"{run} has {len(found.texts):,} texts of {split} and {len(found.references):,} predictions. Remedy: train "
                "again"
            )
    return rows


def measure_graphs(run: Path, package: Path, names: Sequence[str], max_loss: float) -> GraphRecord:
    """Score each graph of a package on the run's rows, with thresholds tuned for it on validation.

    Args:
        run: the run that the package is from.
        package: its folder, complete except for the record of its graphs.
        names: of the graphs, see :data:`GRAPHS`.
        max_loss: the most macro F1 on validation that a graph may lose.

    Raises:
        ReleaseError: a graph loses more.
    """
    rows, golden = read_rows(run), read_record(package, records.GOLDEN)
    # Out of fold, other models gave the probabilities, and rows that were trained on can tune no thresholds.
    cross_fitted = read_record(package, records.METRICS)["protocol"] == CROSS_FIT
    wanted = np.array([row["probabilities"] for row in golden["rows"]])
    classifiers: dict[str, EmotionClassifier] = {}
    scores: dict[str, BackendScores] = {}
    for name in (TORCH, *names):
        classifier = classifiers[name] = EmotionClassifier(package, batch_size=_BATCH_SIZE, **GRAPHS.get(name, {}))
        found = {
            split: own.probabilities if name == TORCH and not cross_fitted else classifier.predict_proba(own.texts)
            for split, own in rows.items()
        }
        difference = np.abs(classifier.predict_proba([row["text"] for row in golden["rows"]]) - wanted).max()
        cutoffs = np.array([classifier.config.thresholds[label] for label in classifier.labels])
        if not cross_fitted:
            cutoffs = choose_thresholds(found["validation"].astype(float), rows["validation"].references).own
        scores[name] = _score(classifier.labels, rows, found, cutoffs, float(difference))
        if name != TORCH:
            _refuse_loss(name, scores[TORCH]["validation"], scores[name]["validation"], max_loss)
    rates = _texts_per_second(classifiers, rows["validation"].texts[:_TIMED_TEXTS])
    measured = {name: BackendRecord(**found, texts_per_second=rates[name]) for name, found in scores.items()}
    return {"cpu": cpu_name(), "threads": usable_cores(), "batch_size": _BATCH_SIZE, "graphs": measured}


def _score(
    labels: list[str], rows: dict[str, Rows], probabilities: dict[str, np.ndarray], own: np.ndarray, difference: float
) -> BackendScores:
    validation, test = (
        RowScores(
            macro_f1=macro_f1(probabilities[split] >= own, rows[split].references),
            log_loss=log_loss(probabilities[split], rows[split].references),
        )
        for split in ("validation", "test")
    )
    thresholds = dict(zip(labels, own.tolist(), strict=True))
    return {"thresholds": thresholds, "golden_difference": difference, "validation": validation, "test": test}


def log_loss(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Mean binary cross-entropy over all label decisions of [N, L]."""
    of_the_truth = np.where(references > 0, probabilities, 1 - probabilities.astype(float))
    return float(-np.log(np.maximum(of_the_truth, np.finfo(np.float32).tiny)).mean())


def _refuse_loss(name: str, torch: RowScores, graph: RowScores, max_loss: float) -> None:
    loss = torch["macro_f1"] - graph["macro_f1"]
    if loss > max_loss:
        raise ReleaseError(
            f"the graph {name} has {graph['macro_f1']:.4f} macro F1 on validation, and PyTorch {torch['macro_f1']:.4f}: it "
            f"loses {loss:.4f}, more than {max_loss:g}. Remedy: export without it, or accept the loss with --max-loss"
        )


def _texts_per_second(classifiers: dict[str, EmotionClassifier], texts: list[str]) -> dict[str, float]:
    """From text to probabilities: the median of alternating rounds, after a first one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(_TIMES + 1):
        for name, classifier in classifiers.items():
            started = time.perf_counter()
            classifier.predict_proba(texts)
            seconds[name].append(time.perf_counter() - started)
    return {name: round(len(texts) / median(taken[1:]), 1) for name, taken in seconds.items()}
