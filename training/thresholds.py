"""Decision thresholds, tuned on validation rows only."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score


def tune_global(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The one threshold in 0.01, 0.02, … 0.99 with the best macro F1.

    Args:
        probabilities: float [N, L].
        labels: multi-hot [N, L].
    """
    grid = np.round(np.arange(0.01, 1.0, 0.01), 2)
    scores = [f1_score(labels, probabilities >= cut, average="macro", zero_division=0) for cut in grid]
    return float(grid[int(np.argmax(scores))])


def tune_per_label(probabilities: np.ndarray, labels: np.ndarray, fallback: float) -> np.ndarray:
    """The threshold of each label with the best F1, [L]; ``fallback`` where a label has no positive row.

    Every cut between two neighbouring probabilities is tried: with the rows in falling order, cutting after row i
    predicts i + 1 rows, so F1 = 2·tp_i / (i + 1 + positives). The threshold lies midway to the next row.
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
