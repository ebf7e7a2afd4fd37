"""Proof that no evaluation row, nor a child of one, is trained on; and how many copies the splits share."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.balance import Rows
from training.corpus import SPLITS, Corpus, label_counts


class LeakError(RuntimeError):
    """A training row stems from outside the training split."""


def audit_rows(corpus: Corpus, embeddings: np.ndarray, rows: Rows) -> dict[str, Any]:
    """Check the balanced training rows against the corpus, and describe both.

    Args:
        corpus: the splits.
        embeddings: embeddings of the training split, float32 [N, E].
        rows: the rows that will be trained on.

    Raises:
        LeakError: a parent outside train, a row that is not what its parents and step give, or foreign labels.
    """
    train = corpus["train"]
    if rows.parents.min() < 0 or rows.parents.max() >= len(train):
        raise LeakError("a training row has a parent outside the training split")
    first, second = embeddings[rows.parents[:, 0]], embeddings[rows.parents[:, 1]]
    if not np.allclose(rows.embeddings, first + rows.steps[:, None] * (second - first), atol=1e-5):
        raise LeakError("a training row is not what its parents give")
    if not np.array_equal(rows.labels, train.labels[rows.parents[:, 0]]):
        raise LeakError("a training row has other labels than its first parent")
    known = set(train.texts)
    return {
        "corpus": corpus.name,
        "revision": corpus.revision,
        "labels": list(corpus.labels),
        "splits": {
            split: {
                "rows": len(corpus[split]),
                "sha256": corpus[split].fingerprint(),
                "rows_without_label": corpus[split].without_label,
                "positives": label_counts(corpus[split].labels, corpus.labels),
                "texts_also_in_train": None if split == "train" else sum(text in known for text in corpus[split].texts),
            }
            for split in SPLITS
        },
        "training_rows": {
            "real": int((~rows.synthetic).sum()),
            "synthetic": int(rows.synthetic.sum()),
            "positives": label_counts(rows.labels, corpus.labels),
            "synthetic_with_parent_outside_train": 0,
        },
    }
