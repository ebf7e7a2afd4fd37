"""Multi-label scores: an offline ``evaluate.Metric`` for training, and full reports with intervals at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import evaluate
import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from transformers import EvalPrediction

from modeling.records import Policy, SplitScores
from modeling.thresholds import tune_per_label

AVERAGES = ("macro", "micro", "samples")
LOW_SUPPORT = 100
"""With fewer positives than this, a label's scores rest on too few rows, as in the reference."""
WIDE_INTERVAL = 0.2
DRAWS = 1_000
_COUNTS_AT_ONCE = 2**23
"""Counts of the bootstrap that are held at once: 96 MiB, and some times that while they are used."""


def scores(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Exact accuracy, and precision, recall and F1 by macro, micro and samples average.

    Args:
        predictions: 0/1 [N, L].
        references: 0/1 [N, L].
    """
    if references.shape[1] == 1:  # scikit-learn takes one column for classes
        whole, _ = weighted_scores(predictions, references)(np.ones((1, len(references))))
        return {name: float(values[0]) for name, values in whole.items()}
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


# Intervals


def bootstrap(rows: int, measure: Callable[[np.ndarray], Any], draws: int = DRAWS, seed: int = 0) -> Any:
    """What is measured of bootstrap samples of so many rows; of many rows, some samples at a time.

    Args:
        rows: N.
        measure: how often each row is drawn, float32 [D, N] → arrays [D, …], alone or in dicts and tuples.
        draws: number of samples.
        seed: seed of the samples.

    Returns:
        What ``measure`` gives, of all samples, [draws, …].
    """
    generator, size = np.random.default_rng(seed), max(_COUNTS_AT_ONCE // max(rows, 1), 1)
    blocks = []
    for start in range(0, draws, size):
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), min(size, draws - start))
        blocks.append(measure(counts.astype(np.float32)))
    return _join(blocks)


def _join(blocks: Sequence[Any]) -> Any:
    if isinstance(blocks[0], dict):
        return {name: _join([block[name] for block in blocks]) for name in blocks[0]}
    if isinstance(blocks[0], tuple):
        return tuple(map(_join, zip(*blocks, strict=True)))
    return np.concatenate(blocks)


def weighted_scores(
    predictions: np.ndarray, references: np.ndarray
) -> Callable[[np.ndarray], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """The scores of :func:`scores` for many weightings of the rows at once, as matrix products.

    Args:
        predictions: 0/1 [N, L].
        references: 0/1 [N, L].

    Returns:
        A function: weights [D, N], of which a row of ones gives the plain scores → overall scores, each [D], and
        precision, recall and f1 per label, each [D, L].
    """
    predicted, actual = predictions.astype(np.float32), references.astype(np.float32)
    hits = predicted * actual
    samples = _ratios(*(values.sum(axis=1) for values in (hits, predicted, actual)))
    exact = (predicted == actual).all(axis=1).astype(np.float32)

    def measure(weights: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        counts = [weights @ values for values in (hits, predicted, actual)]
        labels = dict(zip(("precision", "recall", "f1"), _ratios(*counts), strict=True))
        whole = {f"macro_{name}": values.mean(axis=1) for name, values in labels.items()}
        micro = _ratios(*(count.sum(axis=1) for count in counts))
        size = weights.sum(axis=1)
        for name, one, each in zip(("precision", "recall", "f1"), micro, samples, strict=True):
            whole[f"micro_{name}"], whole[f"samples_{name}"] = one, weights @ each / size
        whole["exact_accuracy"] = weights @ exact / size
        return whole, labels

    return measure


def _ratios(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, 0 where they are undefined; hits are 0 there."""
    return (
        hits / np.maximum(predicted, 1e-9),
        hits / np.maximum(actual, 1e-9),
        2 * hits / np.maximum(predicted + actual, 1e-9),
    )


def weighted_average_precision(probabilities: np.ndarray, references: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Average precision per label for many weightings of the rows; rows of equal probability count together.

    Args:
        probabilities: float [N, L].
        references: 0/1 [N, L].

    Returns:
        A function: weights [D, N] → [D, L].
    """
    ranked = [
        _Ranked.of(probabilities[:, label], references[:, label]) if references[:, label].any() else None
        for label in range(references.shape[1])
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        by_row = np.ascontiguousarray(weights.T)
        nothing = np.zeros(len(weights), dtype=np.float32)
        return np.stack([nothing if label is None else label.average_precision(by_row) for label in ranked], axis=1)

    return measure


@dataclass(frozen=True)
class _Ranked:
    """A label's rows in falling order of probability, cut into pieces: precision is needed only at the positives.

    Attributes:
        order: the rows, int [N].
        hits: places of the positives in that order, [P].
        ends: the last place of each piece.
        place: the piece with which the rows up to each positive end, [P].
        above: the last positive among these rows, [P].
    """

    order: np.ndarray
    hits: np.ndarray
    ends: np.ndarray
    place: np.ndarray
    above: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, references: np.ndarray) -> _Ranked:
        """Rank N probabilities, with labels 0/1 [N]."""
        order = np.argsort(-probabilities, kind="stable")
        falling, hits = -probabilities[order], np.flatnonzero(references[order])
        last_equal = np.searchsorted(falling, falling[hits], side="right") - 1
        ends, place = np.unique(last_equal, return_inverse=True)
        return cls(order, hits, ends, place, np.searchsorted(hits, last_equal, side="right") - 1)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Of weights by row, [N, D] → [D]."""
        drawn = weights[self.order[: self.ends[-1] + 1]]
        pieces = np.add.reduceat(drawn, np.append(0, self.ends[:-1] + 1), axis=0)
        positives = drawn[self.hits]
        precision = np.cumsum(positives, axis=0)[self.above] / np.maximum(np.cumsum(pieces, axis=0)[self.place], 1e-9)
        return np.asarray((positives * precision).sum(axis=0) / np.maximum(positives.sum(axis=0), 1e-9))


def _interval(draws: np.ndarray, value: Any) -> list[Any]:
    """95 % percentile interval over the first axis; it holds the value itself, which may be the highest there can be."""
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return [np.minimum(low, value).astype(float).tolist(), np.maximum(high, value).astype(float).tolist()]


# Reports


Cutoffs = dict[Policy, np.ndarray]
"""Thresholds of each policy: [L], or [N, L] where they differ between rows."""


@dataclass(frozen=True)
class Scored:
    """Probabilities of one split, float [N, L], and its labels, 0/1 [N, L]."""

    probabilities: np.ndarray
    references: np.ndarray

    def take(self, rows: np.ndarray) -> Scored:
        """The rows of a mask or an index."""
        return Scored(self.probabilities[rows], self.references[rows])


def score_policies(
    scored: Scored, cutoffs: Cutoffs, labels: Sequence[str], shown: Cutoffs | None = None
) -> tuple[SplitScores, pd.DataFrame]:
    """Scores of one split under each threshold policy, with 95 % bootstrap intervals.

    Args:
        scored: the split.
        cutoffs: policy → thresholds [L], or [N, L] where they differ between rows.
        labels: the L names.
        shown: policy → thresholds [L] for the table, if they are not the same for all rows.

    Returns:
        Scores by policy, each with ``intervals_95``; and one row for each policy and label. Where some labels have at
        least :data:`LOW_SUPPORT` positives and others do not, ``macro_f1_frequent`` is the mean over the former.
    """
    decided = {policy: scored.probabilities >= thresholds for policy, thresholds in cutoffs.items()}

    score = {policy: weighted_scores(said, scored.references) for policy, said in decided.items()}
    ranked = weighted_average_precision(scored.probabilities, scored.references)

    def measure(weights: np.ndarray) -> tuple[dict[Policy, Any], np.ndarray]:
        return {policy: of_policy(weights) for policy, of_policy in score.items()}, ranked(weights)

    number = len(scored.references)
    of_rows, precision = measure(np.ones((1, number), dtype=np.float32))
    of_draws, precision_draws = bootstrap(number, measure)
    support = scored.references.sum(axis=0).astype(int)
    frequent = support >= LOW_SUPPORT
    result: dict[Policy, Any] = {}
    tables = []
    for policy in cutoffs:
        (whole, each), (draws, each_draws) = of_rows[policy], of_draws[policy]
        if frequent.any() and not frequent.all():
            whole["macro_f1_frequent"] = each["f1"][:, frequent].mean(axis=1)
            draws["macro_f1_frequent"] = each_draws["f1"][:, frequent].mean(axis=1)
        result[policy] = {name: float(value[0]) for name, value in whole.items()}
        result[policy]["intervals_95"] = {name: _interval(value, whole[name][0]) for name, value in draws.items()}
        table = pd.DataFrame(
            {"thresholds": policy, "label": labels, "support": support, "threshold": (shown or cutoffs)[policy]}
        )
        columns = {name: (value, each_draws[name]) for name, value in each.items()}
        columns["average_precision"] = precision, precision_draws
        for name, (value, value_draws) in columns.items():
            table[name] = value[0]
            table[f"{name}_low"], table[f"{name}_high"] = _interval(value_draws, value[0])
        tables.append(table)
    return cast(SplitScores, result), pd.concat(tables, ignore_index=True)


def scores_with_intervals(predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Macro and micro F1, and precision, recall and F1 of each label, with 95 % bootstrap intervals.

    Args:
        predictions: 0/1 [N, L].
        references: 0/1 [N, L].
        labels: the L names.

    Returns:
        ``macro_f1``, ``micro_f1``, their ``intervals_95``, and ``per_label``: label → ``support`` (rows) and
        ``precision``, ``recall``, ``f1``, each with its ``…_95``.
    """
    measure = weighted_scores(predictions, references)
    whole, each = measure(np.ones((1, len(references)), dtype=np.float32))
    draws, each_draws = bootstrap(len(references), measure)
    per_label: dict[str, dict[str, Any]] = {}
    for i, label in enumerate(labels):
        per_label[label] = {"support": int(references[:, i].sum())}
        for name, values in each.items():
            per_label[label] |= {
                name: float(values[0, i]),
                f"{name}_95": _interval(each_draws[name][:, i], values[0, i]),
            }
    names = ("macro_f1", "micro_f1")
    intervals = {name: _interval(draws[name], whole[name][0]) for name in names}
    return {**{name: float(whole[name][0]) for name in names}, "intervals_95": intervals, "per_label": per_label}


def unreliable_labels(table: pd.DataFrame) -> list[str]:
    """Labels whose test scores say little: few positives, or a wide F1 interval with their own thresholds."""
    own = table[(table["split"] == "test") & (table["thresholds"] == "per_label")]
    wide = own["f1_high"] - own["f1_low"] > WIDE_INTERVAL
    return own.loc[(own["support"] < LOW_SUPPORT) | wide, "label"].tolist()
