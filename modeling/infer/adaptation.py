"""Thresholds for other texts than those a package was trained on.

With labels of some of these texts, the package's probabilities are recalibrated and each label's threshold is the one
with the highest expected F1. Without labels, the probabilities are taken as they are and a threshold is only lowered:
on texts of another kind a model is less sure of what it finds, which hides labels far more often than it invents them.
"""

import logging
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_SHARED_VARIANCE = np.array([0.25, 4.0])
"""Of the scale and bias that all labels have in common, around 1 and 0."""
_LABEL_VARIANCE = np.array([0.03, 1.0])
"""Of a label's own scale and bias, around the common ones."""
_LEAST_SCALE = 0.05
_SMALLEST_STEP, _STEPS = 1e-9, 200
_CERTAIN = 1e-6
_FEW_LABELED = 20
_LEAST_UNLABELED = 100
"""Of fewer texts without labels, the probabilities say too little."""
_LEAST_EXPECTED_F1 = 0.1
"""A label that promises less on texts without labels is too rare in them: any threshold would mostly be wrong."""


@dataclass(frozen=True)
class Adaptation:
    """Thresholds for other texts.

    Attributes:
        texts: how many texts there were.
        labeled: how many of them had labels.
        positives: label → rows that have it.
        thresholds: label → its threshold now; only labels whose threshold changed.
        before: label → its threshold before.
        expected_f1: label → the F1 to expect of a threshold that changed, if the recalibrated probabilities are right.
        shares: label → its mean probability, the share of the texts that the model expects to have it.
    """

    texts: int
    labeled: int
    positives: dict[str, int]
    thresholds: dict[str, float]
    before: dict[str, float]
    expected_f1: dict[str, float]
    shares: dict[str, float]

    def __str__(self) -> str:
        about = f"{self.texts:,} texts, {self.labeled:,} of them with labels"
        lines = [f"{label}: {self.before[label]:.3g} → {value:.3g}" for label, value in self.thresholds.items()]
        return "\n".join([f"{len(lines)} thresholds changed ({about})", *lines])


def expected_f1_cut(probabilities: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest expected F1 of one label, and that F1.

    With the N probabilities in descending order and their sum S, predicting the first k has the expected F1
    2 · (p₁ + … + pₖ) / (k + S), if the probabilities are calibrated (Lipton, Elkan and Naryanaswamy, 2014).

    Args:
        probabilities: float [N], N at least 1.
    """
    falling = -np.sort(-probabilities.astype(np.float64))
    scores = 2 * np.cumsum(falling) / (np.arange(1, len(falling) + 1) + falling.sum())
    following = np.append(falling[1:], 0.0)
    scores[following == falling] = -1  # rows of equal probability cannot be told apart
    best = int(np.argmax(scores))
    return float((falling[best] + following[best]) / 2), float(max(scores[best], 0.0))


def fit_scale_and_bias(logits: np.ndarray, targets: np.ndarray, start: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The scale and bias with the highest posterior probability: logistic regression with normal priors.

    Args:
        logits: float, any shape.
        targets: 0/1, of the same shape.
        start: the priors' means, [2].
        variance: the priors' variances, [2].

    Returns:
        Scale and bias, float64 [2].
    """
    inputs, wanted = np.stack([logits.ravel(), np.ones(logits.size)]), targets.ravel()
    found, free = start.astype(np.float64), np.array([True, True])

    def loss(values: np.ndarray) -> float:
        said = values @ inputs
        return float((np.logaddexp(0, said) - wanted * said).sum() + ((values - start) ** 2 / variance).sum() / 2)

    for _ in range(_STEPS):
        said = 1 / (1 + np.exp(-np.clip(found @ inputs, -50, 50)))
        gradient = inputs @ (said - wanted) + (found - start) / variance
        curvature = (inputs * (said * (1 - said))) @ inputs.T + np.diag(1 / variance)
        step = np.zeros(2)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        while np.abs(step).max() >= _SMALLEST_STEP and loss(found - step) > loss(found):
            step /= 2
        if np.abs(step).max() >= _SMALLEST_STEP:
            found = found - step
        elif found[0] < _LEAST_SCALE:  # what is more probable stays so; the bias is fitted again
            found[0], free = _LEAST_SCALE, np.array([False, True])
        else:
            break
    return found


def choose_cuts(probabilities: np.ndarray, labels: np.ndarray, is_labeled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The threshold of each label for the probabilities as they are, and the F1 to expect, each [L].

    The recalibration is increasing, so a threshold of recalibrated probabilities is one of the package's own. Its few
    numbers are drawn toward one scale and bias for all labels, and these toward the package's.

    Args:
        probabilities: of all texts, float [N, L].
        labels: 0/1 [N, L]; rows without labels are not read.
        is_labeled: bool [N].
    """
    inside = np.clip(probabilities.astype(np.float64), _CERTAIN, 1 - _CERTAIN)
    logits = np.log(inside) - np.log1p(-inside)
    known, truth = logits[is_labeled], labels[is_labeled]
    shared = fit_scale_and_bias(known, truth, np.array([1.0, 0.0]), _SHARED_VARIANCE)
    cuts, expected = np.zeros(logits.shape[1]), np.zeros(logits.shape[1])
    for label in range(logits.shape[1]):
        scale, bias = fit_scale_and_bias(known[:, label], truth[:, label], shared, _LABEL_VARIANCE)
        cut, expected[label] = expected_f1_cut(1 / (1 + np.exp(-(scale * logits[:, label] + bias))))
        cut = min(max(cut, _CERTAIN), 1 - _CERTAIN)
        cuts[label] = 1 / (1 + math.exp(-(math.log(cut / (1 - cut)) - bias) / scale))
    return cuts, expected


@dataclass(frozen=True)
class KnownLabels:
    """The labels of N texts, as far as they are known.

    Attributes:
        labels: 0/1 [N, L]; a row says nothing if its labels are not known.
        is_labeled: bool [N], whether they are.
    """

    labels: np.ndarray
    is_labeled: np.ndarray


def read_known_labels(names: Sequence[str], number: int, rows: Iterable[Iterable[str] | None] | None) -> KnownLabels:
    """The labels of texts.

    Args:
        names: of the L labels of the package.
        number: of the texts, N.
        rows: the labels of each text, None for a text whose labels are not known; None if none are.

    Raises:
        ValueError: there are no texts, another number of rows, a label that is not of the package, or no label at all.
        TypeError: the labels of a text are not names.
    """
    if not number:
        raise ValueError("there are no texts. Remedy: give at least one; 50 with labels go a long way")
    table = [None] * number if rows is None else [_names(row, index) for index, row in enumerate(rows)]
    if len(table) != number:
        raise ValueError(f"{number:,} texts have {len(table):,} rows of labels. Remedy: give one for each text")
    known = [unicodedata.normalize("NFC", name) for name in names]
    if unknown := sorted({name for row in table for name in row or ()} - set(known)):
        raise ValueError(
            f"the package does not have the label {unknown[0]!r:.80}. Remedy: use its labels: {', '.join(names)}; other "
            "labels need training, see start_from"
        )
    labels = np.array([[name in (row or ()) for name in known] for row in table], dtype=np.int8)
    is_labeled = np.array([row is not None for row in table])
    _refuse_too_few(labels, is_labeled)
    return KnownLabels(labels, is_labeled)


def _names(row: Any, index: int) -> set[str] | None:
    if row is None:
        return None
    names: list[Any] = [None] if isinstance(row, str | Mapping) else _listed(row)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"the labels of text {index} are {row!r:.80}. Remedy: give a list of names, such as ['joy'], [] for none, or "
            "None if they are not known"
        )
    return {unicodedata.normalize("NFC", name) for name in names}


def _listed(row: Any) -> list[Any]:
    try:
        return list(row)
    except TypeError:  # it holds nothing
        return [None]


def _refuse_too_few(labels: np.ndarray, is_labeled: np.ndarray) -> None:
    number = int(is_labeled.sum())
    if not number and len(labels) < _LEAST_UNLABELED:
        raise ValueError(
            f"{len(labels):,} texts without labels say too little. Remedy: give labels, or at least {_LEAST_UNLABELED} texts"
        )
    if number and not labels.any():
        raise ValueError("no text has a label. Remedy: give texts that have some, or leave labels out")
    if 0 < number < _FEW_LABELED:
        logger.warning(
            "only %d texts have labels: the thresholds are mostly the package's own. Remedy: give 20 or more", number
        )


def adapt_thresholds(
    names: Sequence[str], probabilities: np.ndarray, before: np.ndarray, known: KnownLabels
) -> Adaptation:
    """Thresholds for texts like these.

    A label that no row has keeps its threshold: it may not be one of those that were looked for.

    Args:
        names: of the L labels.
        probabilities: of the texts, float [N, L].
        before: the thresholds until now, [L].
        known: labels of the texts.
    """
    found, counts = before.astype(np.float64).copy(), known.labels.sum(axis=0)
    chosen = [i for i in range(len(names)) if counts[i] or not known.is_labeled.any()]
    parts = probabilities[:, chosen]
    if known.is_labeled.any():
        found[chosen], expected = choose_cuts(parts, known.labels[:, chosen], known.is_labeled)
    else:
        cuts, expected = (np.array(values) for values in zip(*map(expected_f1_cut, parts.T), strict=True))
        lower = np.maximum(cuts, _CERTAIN)
        found = np.where((lower < before) & (expected >= _LEAST_EXPECTED_F1), lower, before)
    changed = {names[i]: float(found[i]) for i in chosen if found[i] != before[i]}
    return Adaptation(
        texts=len(probabilities),
        labeled=int(known.is_labeled.sum()),
        positives={names[i]: int(counts[i]) for i in chosen if counts[i]},
        thresholds=changed,
        before={name: float(value) for name, value in zip(names, before, strict=True)},
        expected_f1={names[i]: float(value) for i, value in zip(chosen, expected, strict=True) if names[i] in changed},
        shares=dict(zip(names, probabilities.mean(axis=0).tolist(), strict=True)),
    )
