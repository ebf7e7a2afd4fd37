"""Labels that swapped places between two splits (a column order, an id map), found from embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MIN_ROWS = 30
"""Positive rows, and negative rows, that a label needs in both splits. With fewer, chance looks like a permutation."""
MIN_GAIN = 0.05
"""Lowest gain in correlation per label: in a large split even the smallest difference is beyond chance."""
MOST_ROWS = 50_000
"""Rows of a split that are looked at, at most, drawn at random; labels that are rare among these are not checked."""
FALSE_ALARMS = 1e-3
"""Probability, per cycle length, that labels in the right order are suspected."""


@dataclass(frozen=True)
class SuspectLabels:
    """Labels that seem to have swapped places.

    Attributes:
        meaning: for each label of the other split, the label that its rows would have in train.
        gain: mean gain in correlation per label if the names are corrected.
        sigmas: the gain in standard errors.
    """

    meaning: dict[str, str]
    gain: float
    sigmas: float

    def __str__(self) -> str:
        pairs = ", ".join(f"{name} looks like {other}" for name, other in self.meaning.items())
        return f"{pairs} (correlation +{self.gain:.2f} per label if corrected, {self.sigmas:.1f} standard errors)"


def suspect_labels(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    other_embeddings: np.ndarray,
    other_labels: np.ndarray,
    names: Sequence[str],
) -> list[SuspectLabels]:
    """Labels of another split whose rows look like a different label's rows in train.

    A ridge regression learns each label from the embeddings of train. Every label's scores on the other split
    are correlated with every label of that split, and the assignment with the largest sum is taken; where it departs
    from the names, it does so in cycles. A cycle of k of the L labels is reported if its gain over the names is at
    least :data:`MIN_GAIN` per label and at least z standard errors, z² = 2 (k ln L + ln(1 / :data:`FALSE_ALARMS`)): the
    normal tail exp(−z²/2) times the L^k cycles from which the assignment picked the best. Labels rarer than
    :data:`MIN_ROWS` are not checked.

    Args:
        train_embeddings: float [N, E].
        train_labels: multi-hot [N, L].
        other_embeddings: float [M, E].
        other_labels: multi-hot [M, L].
        names: the L label names.
    """
    train_embeddings, train_labels = _sample(train_embeddings, train_labels)
    other_embeddings, other_labels = _sample(other_embeddings, other_labels)
    common = np.flatnonzero(_is_common(train_labels) & _is_common(other_labels))
    if len(common) < 2:
        return []
    # On standardized embeddings, a penalty of E weighs as much as E rows, whatever the encoder's scale.
    model = make_pipeline(StandardScaler(), Ridge(alpha=train_embeddings.shape[1]))
    model.fit(train_embeddings, train_labels[:, common].astype(np.float32))
    scores = _standardize(model.predict(other_embeddings))
    truth = _standardize(other_labels[:, common])
    _, columns = linear_sum_assignment(scores.T @ truth, maximize=True)
    found = []
    for cycle in _cycles(columns):
        gains = (scores[:, cycle] * (truth[:, columns[cycle]] - truth[:, cycle])).sum(axis=1)
        gain = float(gains.mean()) / len(cycle)
        sigmas = float(gains.mean() / (gains.std() / np.sqrt(len(gains))))
        needed = np.sqrt(2 * (len(cycle) * np.log(len(common)) - np.log(FALSE_ALARMS)))
        if gain >= MIN_GAIN and sigmas >= needed:
            meaning = {names[common[columns[label]]]: names[common[label]] for label in cycle}
            found.append(SuspectLabels(meaning, gain, sigmas))
    return found


def _sample(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn at random, if there are more than :data:`MOST_ROWS`."""
    if len(labels) <= MOST_ROWS:
        return embeddings, labels
    chosen = np.sort(np.random.default_rng(0).choice(len(labels), MOST_ROWS, replace=False))
    return embeddings[chosen], labels[chosen]


def _is_common(labels: np.ndarray) -> np.ndarray:
    """Boolean [L]: labels with enough positive and negative rows."""
    positives = labels.sum(axis=0, dtype=np.int64)
    return np.asarray(np.minimum(positives, len(labels) - positives) >= MIN_ROWS)


def _standardize(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1, float64; a constant one becomes 0."""
    centered = values - values.mean(axis=0, dtype=np.float64)
    return np.asarray(centered / np.maximum(centered.std(axis=0), 1e-12))


def _cycles(assignment: np.ndarray) -> Iterator[list[int]]:
    """Cycles of two or more places of a permutation."""
    left = {place for place, target in enumerate(assignment) if place != target}
    while left:
        cycle = [min(left)]
        while (target := int(assignment[cycle[-1]])) != cycle[0]:
            cycle.append(target)
        left -= set(cycle)
        yield cycle
