"""Multi-label scores: an offline ``evaluate.Metric`` for training, and full reports with intervals at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import expit
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from transformers import EvalPrediction

from training.thresholds import tune_global, tune_per_label

AVERAGES = ("macro", "micro", "samples")


def scores(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Exact accuracy, and precision, recall and F1 by macro, micro and samples average.

    Args:
        predictions: 0/1 [N, L].
        references: 0/1 [N, L].
    """
    result = {"exact_accuracy": float(accuracy_score(references, predictions))}
    for average in AVERAGES:
        values = precision_recall_fscore_support(references, predictions, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            result[f"{average}_{name}"] = float(value)
    return result


class MultiLabelScores(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """:func:`scores` as a metric of the ``evaluate`` library that needs no download."""

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.Sequence(datasets.Value("int32"))
        return evaluate.MetricInfo(
            description="Multi-label accuracy, precision, recall and F1",
            citation="Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011",
            inputs_description="predictions and references: 0/1 lists of equal length",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return scores(np.asarray(predictions), np.asarray(references))


def build_compute_metrics() -> Callable[[EvalPrediction], dict[str, float]]:
    """Scores of an evaluation during training: sigmoid ≥ 0.5, and macro F1 with thresholds tuned on the same rows."""
    metric = MultiLabelScores(keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        probabilities = expit(np.asarray(prediction.predictions, dtype=np.float64))
        references = np.asarray(prediction.label_ids).astype(np.int32)
        result = metric.compute(predictions=(probabilities >= 0.5).astype(np.int32), references=references)
        assert result is not None
        tuned = tune_per_label(probabilities, references, fallback=0.5)
        result["macro_f1_tuned"] = scores((probabilities >= tuned).astype(np.int32), references)["macro_f1"]
        return result

    return compute_metrics


def bootstrap_f1(
    predictions: np.ndarray, references: np.ndarray, draws: int = 1_000, seed: int = 0
) -> dict[str, list[float]]:
    """95 % percentile intervals of macro and micro F1, rows resampled with replacement.

    A draw is a vector of row weights, so that all draws are one matrix product of [draws, N] and [N, L].
    """
    weights = np.random.default_rng(seed).multinomial(
        len(references), np.full(len(references), 1 / len(references)), draws
    )
    weights = weights.astype(np.float32)
    hits = weights @ (predictions & references).astype(np.float32)
    both = weights @ (predictions.astype(np.float32) + references.astype(np.float32))
    macro = (2 * hits / np.maximum(both, 1)).mean(axis=1)
    micro = 2 * hits.sum(axis=1) / np.maximum(both.sum(axis=1), 1)
    return {
        name: [float(value) for value in np.percentile(draw, [2.5, 97.5])]
        for name, draw in (("macro_f1", macro), ("micro_f1", micro))
    }


def report(
    validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], labels: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], list[list[Any]]]:
    """Final scores: thresholds from validation, applied to validation and test.

    Args:
        validation: probabilities and labels, both [N, L].
        test: the same.
        labels: the L names.

    Returns:
        The content of ``metrics.json`` and of ``thresholds.json``, and the rows of ``per_label.csv``.
    """
    one = tune_global(*validation)
    each = tune_per_label(*validation, fallback=one)
    policies = {"fixed": np.full(len(labels), 0.5), "global": np.full(len(labels), one), "per_label": each}
    metrics: dict[str, Any] = {}
    for split, (probabilities, references) in (("validation", validation), ("test", test)):
        metrics[split] = {}
        for policy, cutoffs in policies.items():
            predictions = (probabilities >= cutoffs).astype(np.int8)
            intervals = bootstrap_f1(predictions, references.astype(np.int8))
            metrics[split][policy] = {**scores(predictions, references), "intervals_95": intervals}
    thresholds = {
        "source": "tuned on the validation split: per label by F1, global by macro F1",
        "global": one,
        "per_label": dict(zip(labels, (float(value) for value in each), strict=True)),
    }
    return metrics, thresholds, per_label_rows(*test, each, labels)


PER_LABEL_HEADER = ("label", "support", "threshold", "precision", "recall", "f1", "f1_at_0.5")


def per_label_rows(
    probabilities: np.ndarray, references: np.ndarray, cutoffs: np.ndarray, labels: Sequence[str]
) -> list[list[Any]]:
    """One row per label of :data:`PER_LABEL_HEADER`."""
    tuned = precision_recall_fscore_support(references, probabilities >= cutoffs, average=None, zero_division=0)
    fixed = precision_recall_fscore_support(references, probabilities >= 0.5, average=None, zero_division=0)
    return [
        [label, int(tuned[3][i]), *(round(float(v), 4) for v in (cutoffs[i], *(t[i] for t in tuned[:3]), fixed[2][i]))]
        for i, label in enumerate(labels)
    ]
