"""The baseline of own rows: TF-IDF of words and pairs of words, and a logistic regression for each label.

It takes seconds, and on rows whose topic is in single words it is hard to beat.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from training.data.corpus import Corpus
from training.scores.held_out import HeldOut, hold_out, hold_out_folds

logger = logging.getLogger(__name__)

_MOST_ROWS = 50_000
"""With more, it would take minutes, and few need it."""
_INVERSE_REGULARIZATION = 10.0


def score_bag_of_words(corpus: Corpus, fold: np.ndarray | None, seed: int) -> HeldOut | None:
    """What the baseline says of the rows that a model is scored on; None if the corpus is too large, or has no words.

    Args:
        corpus: its training rows as they are, before balancing.
        fold: of each row, int [N], if every split has all rows.
        seed: as for :func:`training.scores.held_out.hold_out`.
    """
    train = corpus["train"]
    if len(train) > _MOST_ROWS:
        return None
    try:
        if fold is None:
            logits = {
                split: _logits(train.texts, train.labels, corpus[split].texts) for split in ("validation", "test")
            }
            return hold_out(logits, {split: corpus[split].labels for split in logits}, seed)
        found = np.zeros(train.labels.shape)
        for number in np.unique(fold):
            held, rest = (train.take(np.flatnonzero(rows)) for rows in (fold == number, fold != number))
            found[fold == number] = _logits(rest.texts, rest.labels, held.texts)
    except ValueError as error:  # texts of stop words or single letters alone
        logger.info("no bag of words to compare with: %s", error)
        return None
    return hold_out_folds(found, train.labels, fold, seed)


def _logits(texts: Sequence[str], labels: np.ndarray, others: Sequence[str]) -> np.ndarray:
    """Logits of other texts, float [M, L], after fitting on texts and their labels, multi-hot [N, L]."""
    varied = labels.any(axis=0) & ~labels.all(axis=0)
    logits = np.tile(np.where(labels.any(axis=0), 10.0, -10.0), (len(others), 1))
    if varied.any():
        regression = OneVsRestClassifier(LogisticRegression(C=_INVERSE_REGULARIZATION, max_iter=1_000))
        pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), regression)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(texts, labels[:, varied])
        logits[:, varied] = pipeline.decision_function(others).reshape(len(others), -1)
    return logits
