"""Balance the training rows: thin neutral, oversample rare labels. Every row carries its parents.

Only training rows are ever passed to these functions (except under the protocol ``pooled-r2``, which exists to show
what that costs); :mod:`training.audit.rows` checks it for each run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from modeling.rows.errors import InputError


class BalanceError(InputError, ValueError):
    """The rows cannot be balanced as asked; the message names the label and the remedy."""


@dataclass(frozen=True)
class Rows:
    """Training rows.

    Attributes:
        embeddings: float32 [N, E].
        labels: int8 multi-hot [N, L].
        parents: int64 [N, 2], the indices of the real rows that a row comes from; a real row or a copy has one
            parent, given twice.
        steps: float32 [N], the signed step from the first parent toward the second; 0 for a real row or a copy.
        synthetic: bool [N], which rows were made.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    parents: np.ndarray
    steps: np.ndarray
    synthetic: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at ``indices``."""
        return Rows(*(values[indices] for values in self._columns()))

    def extended(self, others: Sequence[Rows]) -> Rows:
        """These rows, followed by others."""
        parts = [self, *others]
        return Rows(*(np.concatenate(columns) for columns in zip(*(part._columns() for part in parts), strict=True)))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.embeddings, self.labels, self.parents, self.steps, self.synthetic


def real_rows(embeddings: np.ndarray, labels: np.ndarray) -> Rows:
    """Rows as they are, each its own parent."""
    index = np.arange(len(labels), dtype=np.int64)
    zeros = np.zeros(len(labels))
    return Rows(embeddings, labels, np.stack([index, index], axis=1), zeros.astype(np.float32), zeros.astype(bool))


def thin_label(rows: Rows, label: int, keep: float, seed: int, alone: bool = True) -> Rows:
    """Keep some of the rows with ``label``, drawn at random.

    Args:
        rows: the rows.
        label: index of the label.
        keep: up to 1, the fraction to keep; above 1, the number of rows.
        seed: seed of the draw.
        alone: draw only from rows with no other label and keep all the rest; the reference draws from both.
    """
    having = rows.labels[:, label] == 1
    drawn = np.flatnonzero(having & (rows.labels.sum(axis=1) == 1) if alone else having)
    number = round(len(drawn) * keep) if keep <= 1 else int(keep)
    kept = np.random.default_rng(seed).permutation(drawn)[:number]
    others = np.setdiff1d(np.arange(len(rows)), drawn, assume_unique=True)
    return rows.take(np.sort(np.concatenate([others, kept])))


def imbalance_ratios(counts: np.ndarray) -> np.ndarray:
    """IRLbl of every label, [L]: positives of the most frequent label over this label's; NaN without positives.

    Charte et al., "Addressing imbalance in multilabel classification", Neurocomputing 163 (2015).
    """
    return np.divide(counts.max(), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def imbalance(labels: np.ndarray) -> dict[str, float | list[float | None]]:
    """IRLbl per label, their mean MeanIR, and SCUMBLE, the concurrence of rare and frequent labels in one row.

    SCUMBLE of a row is 1 − geometric / arithmetic mean of the IRLbl of its labels (Charte et al., HAIS 2014), 0 without
    labels; SCUMBLE of the data is the mean over its rows.

    Args:
        labels: multi-hot [N, L].
    """
    ratios = imbalance_ratios(labels.sum(axis=0))
    active = np.nan_to_num(ratios, nan=1.0)
    size = np.maximum(labels.sum(axis=1), 1)
    arithmetic = np.maximum(labels @ active, 1.0) / size
    geometric = np.exp(labels @ np.log(active) / size)
    scumble = np.where(labels.any(axis=1), 1 - geometric / arithmetic, 0.0)
    return {
        "IRLbl": [None if math.isnan(value) else float(value) for value in ratios],
        "MeanIR": float(np.nanmean(ratios)),
        "SCUMBLE": float(scumble.mean()),
    }


def labels_to_oversample(
    labels: np.ndarray, label_names: Sequence[str], method: str, only: Sequence[str] = ()
) -> set[str]:
    """Names of the labels that :func:`oversample` may add rows for; its arguments, with the rows' labels [N, L].

    Raises:
        BalanceError: a label without positives, or an unknown name in ``only``.
    """
    unknown = sorted(set(only) - set(label_names))
    if unknown:
        raise BalanceError(
            f"balance_labels: {', '.join(unknown)} is not a label of this run. Remedy: use {', '.join(label_names)}"
        )
    targets = set(only or set(label_names) - {"neutral"}) if method != "none" else set()
    for name, count in zip(label_names, labels.sum(axis=0), strict=True):
        if name in targets and not count:
            raise BalanceError(
                f"oversampling: no training row has the label {name!r}. Remedy: add rows, or remove the label from "
                "labels"
            )
    return targets


def oversample(
    rows: Rows,
    label_names: Sequence[str],
    method: str,
    seed: int,
    target: int = 0,
    ratio: float = 0.0,
    neighbors: int = 5,
    only: Sequence[str] = (),
    mlsmote_labels: str = "ranking",
) -> Rows:
    """Add rows until each label has its target of positives.

    Labels are taken from the rarest to the most frequent, and what a new row adds to its other labels counts toward
    their targets. New rows come from real rows only.

    Methods, for a positive row x_q, one of its nearest positives x_j and a, b ~ U(0, 1); a new row is
    x_q + t·(x_j − x_q) with the labels of x_q, unless noted:

    - ``duplicate``: t = 0, a copy. With neither target nor ratio this is ML-ROS (Charte et al. 2015).
    - ``smote``: t = a, between the two (Chawla et al., JAIR 16, 2002).
    - ``ismote``: t = a − b where a ≥ 0.5, else a + b: around both, up to half their distance past each ("An improved
      SMOTE … by expanding sample generation space", Scientific Reports 15:23521, 2025).
    - ``ismote-r2``: the same with the sign of the reference's published code, which moves away from x_j. As in that
      code, what new rows add to other labels does not count. Only to reproduce the reference.
    - ``mlsmote``: t = a; the labels are those of more than half of x_q and its neighbors (``ranking``), of any of them
      (``union``) or of all (``intersection``) (Charte et al., Knowledge-Based Systems 89, 2015). The paper draws a step
      per dimension; here one step serves all, so that the row has two parents and a step.

    Args:
        rows: real rows.
        label_names: the L names.
        method: one of ``Recipe.balance``.
        seed: seed of every draw.
        target: positives that each label should reach; 0 leaves it to ``ratio``.
        ratio: the highest imbalance ratio allowed: the target is the most frequent label's positives over it; 0 means
            MeanIR, the rule of ML-ROS.
        neighbors: k; a label with fewer than k + 1 positives uses what it has; a single positive is copied.
        only: the labels to oversample; empty for all but ``neutral``.
        mlsmote_labels: one of ``Recipe.mlsmote_labels``.

    Raises:
        BalanceError: a label without positives, or an unknown name in ``only``.
    """
    targets = labels_to_oversample(rows.labels, label_names, method, only)
    if method == "none":
        return rows
    generator = np.random.default_rng(seed)
    counts = rows.labels.sum(axis=0, dtype=np.int64)
    goal = target or math.ceil(counts.max() / (ratio or float(np.nanmean(imbalance_ratios(counts)))))
    made: list[Rows] = []
    for label in np.argsort(counts, kind="stable"):
        if label_names[label] not in targets or counts[label] >= goal:
            continue
        positives = rows.take(np.flatnonzero(rows.labels[:, label]))
        new = _make(positives, int(goal - counts[label]), method, neighbors, mlsmote_labels, generator)
        if method != "ismote-r2":
            counts = counts + new.labels.sum(axis=0, dtype=np.int64)
        made.append(new)
    return rows.extended(made) if made else rows  # many embeddings lie in a file, and a copy would not


_STEPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "smote": lambda a, b: a,
    "mlsmote": lambda a, b: a,
    "ismote": lambda a, b: np.where(a >= 0.5, a - b, a + b),
    "ismote-r2": lambda a, b: -np.where(a >= 0.5, a - b, a + b),
}


def _make(
    positives: Rows, number: int, method: str, neighbors: int, mlsmote_labels: str, generator: np.random.Generator
) -> Rows:
    """``number`` new rows from the positives of one label."""
    seeds = generator.integers(len(positives), size=number)
    first = positives.take(seeds)
    made = np.ones(number, dtype=bool)
    k = min(neighbors, len(positives) - 1)
    if method == "duplicate" or k == 0:
        return Rows(first.embeddings, first.labels, first.parents, first.steps, made)
    nearest = _nearest(positives.embeddings, seeds, k)
    second = positives.take(nearest[np.arange(number), generator.integers(k, size=number)])
    steps = _STEPS[method](generator.random(number), generator.random(number)).astype(np.float32)
    embeddings = first.embeddings + steps[:, None] * (second.embeddings - first.embeddings)
    labels = first.labels
    if method == "mlsmote":
        having = positives.labels[np.column_stack([seeds, nearest])].sum(axis=1)
        enough = {"ranking": (k + 1) // 2 + 1, "union": 1, "intersection": k + 1}[mlsmote_labels]
        labels = (having >= enough).astype(np.int8)
    return Rows(embeddings, labels, np.column_stack([first.parents[:, 0], second.parents[:, 0]]), steps, made)


def _nearest(points: np.ndarray, seeds: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k nearest other points of each seed, [len(seeds), k]; a repeated seed is looked up once."""
    asked, place = np.unique(seeds, return_inverse=True)
    found = (
        NearestNeighbors(n_neighbors=k + 1, algorithm="brute")
        .fit(points)
        .kneighbors(points[asked], return_distance=False)
    )
    # A copy of a row may come before the row itself.
    others = np.array([[j for j in near if j != i][:k] for i, near in zip(asked, found, strict=True)])
    return others[place]
