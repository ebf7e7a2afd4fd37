"""Decision thresholds, tuned on validation rows only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modeling.infer.adaptation import expected_f1_cut

_GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)


def macro_f1(predicted: np.ndarray, references: np.ndarray) -> float:
    """The mean of the labels' F1; 0 for a label that is neither predicted nor there. Both are 0/1 [N, L]."""
    hits = (predicted & (references > 0)).sum(axis=0)
    return float((2 * hits / np.maximum(predicted.sum(axis=0) + references.sum(axis=0), 1)).mean())


def tune_global(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The one threshold in 0.01, 0.02, … 0.99 with the best macro F1.

    Args:
        probabilities: float [N, L].
        labels: multi-hot [N, L].
    """
    return float(_GRID[int(np.argmax([macro_f1(probabilities >= cut, labels) for cut in _GRID]))])


def tune_per_label(probabilities: np.ndarray, labels: np.ndarray, fallback: float) -> np.ndarray:
    """The threshold of each label with the best F1, [L]; ``fallback`` where a label has no positive row.

    Every cut between two neighboring probabilities is tried: with the rows in descending order, cutting after row i
    predicts i + 1 rows, so F1 = 2·tp_i / (i + 1 + positives). The threshold is midway to the next row.
    """
    result = np.full(labels.shape[1], fallback)
    for label in range(labels.shape[1]):
        positives = int(labels[:, label].sum())
        if not positives:
            continue
        order = np.argsort(-probabilities[:, label], kind="stable")
        falling = probabilities[order, label].astype(np.float64)
        hits = np.cumsum(labels[order, label])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + positives)
        following = np.append(falling[1:], 0.0)
        f1[following == falling] = -1  # rows of equal probability cannot be told apart
        best = int(np.argmax(f1))
        result[label] = (falling[best] + following[best]) / 2
    return result


def expected_f1_cuts(probabilities: np.ndarray) -> np.ndarray:
    """The threshold of each label with the highest expected F1, [L]: no label is looked at.

    The best cut on the rows themselves is partly their chance. This one rests on the probabilities alone, so they must be
    calibrated.

    Args:
        probabilities: calibrated, float [N, L].
    """
    return np.array([expected_f1_cut(column)[0] for column in probabilities.T])


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one validation split.

    Attributes:
        common: one for all labels.
        best: the one with the best F1 of each label on these rows, [L].
        own: the one with the highest expected F1 of each label, [L]; a package uses these.
    """

    common: float
    best: np.ndarray
    own: np.ndarray


def choose_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> Thresholds:
    """Tune on validation rows. A label that none of them has gets the common threshold.

    Args:
        probabilities: calibrated, float [N, L].
        labels: multi-hot [N, L].
    """
    common = tune_global(probabilities, labels)
    best = tune_per_label(probabilities, labels, fallback=common)
    own = np.where(labels.any(axis=0), expected_f1_cuts(probabilities), common)
    return Thresholds(common, best, own)
