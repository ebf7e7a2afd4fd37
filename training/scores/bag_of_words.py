"""The baseline of own rows: TF-IDF of words and pairs of words, and a logistic regression for each label.

It takes seconds, and on rows whose topic is in single words it is hard to beat.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from training.data.corpus import Corpus, Split
from training.scores.held_out import HeldOut, hold_out, hold_out_folds

logger = logging.getLogger(__name__)

_MOST_ROWS = 50_000
"""With more, it would take minutes, and few need it."""
_INVERSE_REGULARIZATION = 10.0


def score_bag_of_words(
    corpus: Corpus, fold: np.ndarray | None, left_out: np.ndarray | None, seed: int
) -> HeldOut | None:
    """What the baseline says of the rows that a model is scored on; None if the corpus is too large, or has no words.

    Args:
        corpus: its training rows as they are, before balancing.
        fold: of each row, int [N], if every split has all rows.
        left_out: bool [N], training rows that are not trained on.
        seed: as for :func:`training.scores.held_out.hold_out`.
    """
    train = corpus["train"]
    used = np.ones(len(train), bool) if left_out is None else ~left_out
    if len(train) > _MOST_ROWS:
        logger.info("no bag of words to compare with: more than %d training rows", _MOST_ROWS)
        return None
    try:
        if fold is None:
            said = _fit(train, used)
            logits = {split: said(corpus[split].texts) for split in ("validation", "test")}
            return hold_out(logits, {split: corpus[split].labels for split in logits}, seed)
        evaluated = corpus["test"]
        found = np.zeros(evaluated.labels.shape)
        for number in np.unique(fold):
            held = np.flatnonzero(fold == number)
            found[held] = _fit(train, used & (fold != number))(evaluated.take(held).texts)
    except ValueError as error:  # texts of single letters or signs alone
        logger.info("no bag of words to compare with: %s", error)
        return None
    return hold_out_folds(found, evaluated.labels, fold, seed)


def _fit(train: Split, used: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
    rows = train.take(np.flatnonzero(used))
    return fit_bag_of_words(rows.texts, rows.labels)


def fit_bag_of_words(texts: Sequence[str], labels: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
    """What gives the logits of other texts, float [M, L], from texts and their labels, multi-hot [N, L]."""
    varied = labels.any(axis=0) & ~labels.all(axis=0)
    constant = np.where(labels.any(axis=0), 10.0, -10.0)
    regression = OneVsRestClassifier(LogisticRegression(C=_INVERSE_REGULARIZATION, max_iter=1_000))
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), regression)
    if varied.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(texts, labels[:, varied])

    def logits(others: Sequence[str]) -> np.ndarray:
        found = np.tile(constant, (len(others), 1))
        if varied.any():
            found[:, varied] = pipeline.decision_function(others).reshape(len(others), -1)
        return found

    return logits
