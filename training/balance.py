"""Balance the training rows: thin neutral, oversample rare labels with ISMOTE. Every row carries its parents.

Only training rows are ever given to these functions; :mod:`training.audit` proves it for each run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

logger = logging.getLogger(__name__)


class BalanceError(ValueError):
    """The rows cannot be balanced as asked; the message names the label and the remedy."""


@dataclass(frozen=True)
class Rows:
    """Training rows.

    Attributes:
        embeddings: float32 [N, E].
        labels: int8 multi-hot [N, L].
        parents: int64 [N, 2], the indices in the training split of the rows that a row comes from; a real row is its
            own parent twice.
        steps: float32 [N], the signed step from the first parent towards the second; 0 for a real row.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    parents: np.ndarray
    steps: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def synthetic(self) -> np.ndarray:
        """Boolean [N]: which rows were made."""
        return np.asarray(self.steps != 0) | (self.parents[:, 0] != self.parents[:, 1])

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at ``indices``."""
        return Rows(self.embeddings[indices], self.labels[indices], self.parents[indices], self.steps[indices])


def real_rows(embeddings: np.ndarray, labels: np.ndarray) -> Rows:
    """Rows of the training split as they are."""
    index = np.arange(len(labels), dtype=np.int64)
    return Rows(embeddings, labels, np.stack([index, index], axis=1), np.zeros(len(labels), dtype=np.float32))


def thin_label(rows: Rows, label: int, keep: float, seed: int) -> Rows:
    """Keep the fraction ``keep`` of the rows whose only label is ``label``, drawn at random."""
    alone = np.flatnonzero((rows.labels[:, label] == 1) & (rows.labels.sum(axis=1) == 1))
    kept = np.random.default_rng(seed).permutation(alone)[: round(len(alone) * keep)]
    others = np.setdiff1d(np.arange(len(rows)), alone, assume_unique=True)
    return rows.take(np.sort(np.concatenate([others, kept])))


def ismote(
    rows: Rows, label_names: Sequence[str], target: int, seed: int, neighbours: int = 5, skip: Sequence[str] = ()
) -> Rows:
    """Oversample each label up to ``target`` positive rows with ISMOTE.

    "An improved SMOTE … by expanding sample generation space", Scientific Reports 15:23521 (2025). For a positive row
    x_q and one of its nearest positives x_j: d = x_j − x_q; a, b ~ U(0, 1); base = x_q + a·d; the new row is
    base − b·d where the base is nearer to x_j (a ≥ 0.5), else base + b·d: x_q + t·d with t in (−0.5, 1.5), around
    both originals, where SMOTE stays between them. The new row has the labels of x_q.

    Labels are taken from the rarest to the most frequent, and what a new row adds to its other labels counts towards
    their targets. A label with fewer positives than ``neighbours`` + 1 uses what it has; a single positive is copied.

    Raises:
        BalanceError: a label without positives.
    """
    generator = np.random.default_rng(seed)
    counts = rows.labels.sum(axis=0, dtype=np.int64)
    made: list[Rows] = []
    for label in np.argsort(counts, kind="stable"):
        if label_names[label] in skip or counts[label] >= target:
            continue
        positives = np.flatnonzero(rows.labels[:, label])
        if not len(positives):
            raise BalanceError(
                f"oversampling: no training row has the label {label_names[label]!r}. Remedy: add rows, or leave the "
                "label out of labels"
            )
        new = _ismote_label(rows, positives, int(target - counts[label]), neighbours, generator)
        counts = counts + new.labels.sum(axis=0, dtype=np.int64)
        made.append(new)
    parts = [rows, *made]
    return Rows(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.parents for part in parts]),
        np.concatenate([part.steps for part in parts]),
    )


def _ismote_label(
    rows: Rows, positives: np.ndarray, number: int, neighbours: int, generator: np.random.Generator
) -> Rows:
    points = rows.embeddings[positives]
    k = min(neighbours, len(positives) - 1)
    seeds = generator.integers(len(positives), size=number)
    if k == 0:
        partners, steps = seeds, np.zeros(number, dtype=np.float32)
    else:
        nearest = NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points, return_distance=False)
        # A copy of a row may come before the row itself.
        others = np.array([[j for j in near if j != i][:k] for i, near in enumerate(nearest)])
        partners = others[seeds, generator.integers(k, size=number)]
        a, b = generator.random(number), generator.random(number)
        steps = np.where(a >= 0.5, a - b, a + b).astype(np.float32)
    made = points[seeds] + steps[:, None] * (points[partners] - points[seeds])
    chosen = rows.take(positives[seeds])
    parents = np.stack([chosen.parents[:, 0], rows.parents[positives[partners], 0]], axis=1)
    return Rows(made.astype(np.float32), chosen.labels, parents, steps)
