"""Split protocols: the corpus's own, stratified for your own rows, and the reference's, which leaks.

``official`` keeps the corpus's splits. ``stratified`` makes new ones. ``cross-fit`` makes none: every row is trained on,
and is scored by a model that was not trained on its fold. ``pooled-r2`` repeats the reference's order: it
oversamples before it splits, so that rows made from test rows are trained on. Its scores are contaminated; it exists to
show by how much.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

from modeling.recipe import CONTAMINATED
from modeling.rows.tables import CorpusError
from training.data.balance import Rows
from training.data.copies import group_copies, match_key
from training.data.corpus import Corpus, Split
from training.data.reading import SPLITS

logger = logging.getLogger(__name__)

_FOLDS = 10
"""A stratified split gives eight tenths to train, one to validation, one to test."""
_POOLED_SHARES = (0.6, 0.8)
"""Where the reference cuts its shuffled rows: 60 % train, 20 % validation, 20 % test."""


def pool(corpus: Corpus) -> Split:
    """All rows of a corpus in one split; the split's name makes each id unique."""
    return Split(
        [f"{name}:{row_id}" for name, split in corpus.splits.items() for row_id in split.ids],
        [text for split in corpus.splits.values() for text in split.texts],
        np.concatenate([split.labels for split in corpus.splits.values()]),
        sum(split.without_label for split in corpus.splits.values()),
    )


def stratified(corpus: Corpus, seed: int) -> Corpus:
    """Split all rows again, 80:10:10, with similar shares of each label in every split.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) over groups of rows with the same normalized text, so
    that copies stay together.

    Raises:
        CorpusError: fewer different texts than folds.
    """
    rows = pool(corpus)
    fold = _stratify(_equal_texts(rows.texts), rows.labels, _FOLDS, seed)
    return _resplit(corpus, rows, {"train": fold >= 2, "validation": fold == 1, "test": fold == 0})


def without_splits(corpus: Corpus) -> Corpus:
    """All rows in each split, for ``cross-fit``: they are trained on, and scored out of fold.

    Raises:
        CorpusError: the corpus has splits; its test rows must not be trained on unasked.
    """
    if len(corpus.splits) > 1:
        raise CorpusError(
            f"{corpus.name}: split cross-fit trains on every row, but the corpus has {', '.join(corpus.splits)}. Remedy: give one "
            "file, or use --split official"
        )
    rows = pool(corpus)
    return _resplit(corpus, rows, dict.fromkeys(SPLITS, np.arange(len(rows))))


def draw_folds(rows: Split, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, int [N], from 0, with similar shares of each label in every fold.

    Iterative stratification over groups of copies, near ones too: none is in another fold than its text. Where near
    copies of near copies make a group too large for a fold, only copies that are equal, but for case, spaces and
    punctuation, stay together there.

    Raises:
        CorpusError: fewer different texts than folds.
    """
    groups, equal = group_copies(rows.texts), _equal_texts(rows.texts)
    sizes = np.bincount(groups)
    too_large = sizes[groups] > len(groups) / folds
    if too_large.any():
        logger.warning(
            "%d rows are copies of one another, too many for one of %d folds: equal ones stay together, and the audit counts "
            "near ones in other folds",
            too_large.sum(),
            folds,
        )
        groups = np.unique(np.where(too_large, len(sizes) + equal, groups), return_inverse=True)[1]
    return _stratify(groups, rows.labels, folds, seed)


def _equal_texts(texts: Sequence[str]) -> np.ndarray:
    """A number for each text, int [N]: equal for texts that are, but for case, spaces and punctuation."""
    return np.asarray(np.unique([match_key(text) for text in texts], return_inverse=True)[1])


def _stratify(groups: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, int [N]; the rows of a group share it.

    Args:
        groups: number of each row's group, int [N].
        labels: multi-hot [N, L].
        folds: how many.
        seed: of the draw.
    """
    together = np.zeros((groups.max() + 1, labels.shape[1]), dtype=np.int8)
    np.maximum.at(together, groups, labels)
    if together.shape[1] == 1:  # the stratifier takes one column for classes
        together = np.concatenate([together, 1 - together], axis=1)
    if len(together) < folds:
        raise CorpusError(
            f"{len(together)} different texts cannot be split. Remedy: give at least {folds}, or fewer --folds"
        )
    fold_of = np.empty(len(together), dtype=np.int64)
    drawn = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed).split(together, together)
    for number, (_, members) in enumerate(drawn):
        fold_of[members] = number
    return np.asarray(fold_of[groups])


def pooled_r2(
    corpus: Corpus, embeddings: np.ndarray, balance: Callable[[np.ndarray, np.ndarray], Rows], seed: int
) -> tuple[Corpus, np.ndarray, Rows]:
    """The reference's order: pool, balance, and only then split the real rows; every synthetic row goes to train.

    Args:
        corpus: any splits; they are pooled.
        embeddings: embeddings of all rows in the order of :data:`SPLITS`, float32 [N, E].
        balance: embeddings and labels → balanced rows whose parents index them.
        seed: seed of the split.

    Returns:
        The new corpus, the embeddings of its rows in the order of its splits, and the training rows, whose parents
        index those embeddings: one at or beyond ``len(corpus["train"])`` is outside the training split.
    """
    rows = pool(corpus)
    balanced = balance(embeddings, rows.labels)
    real = np.flatnonzero(~balanced.synthetic)
    order = np.random.default_rng(seed).permutation(balanced.parents[real, 0])
    parts = dict(zip(SPLITS, np.split(order, [int(len(order) * share) for share in _POOLED_SHARES]), strict=True))
    place = np.full(len(rows), -1)
    place[order] = np.arange(len(order))
    in_train = np.isin(balanced.parents[:, 0], parts["train"])
    kept = balanced.take(np.flatnonzero(in_train | balanced.synthetic))
    moved = Rows(kept.embeddings, kept.labels, place[kept.parents], kept.steps, kept.synthetic)
    logger.warning("protocol %s: rows made from test rows are trained on; its scores are contaminated", CONTAMINATED)
    return _resplit(corpus, rows, parts), embeddings[order], moved


def _resplit(corpus: Corpus, rows: Split, parts: dict[str, np.ndarray]) -> Corpus:
    counted = dataclasses.replace(rows, without_label=int((~rows.labels.any(axis=1)).sum()))

    def take(chosen: np.ndarray) -> Split:
        return counted.take(np.flatnonzero(chosen) if chosen.dtype == bool else chosen)

    return Corpus(corpus.name, corpus.revision, corpus.labels, {split: take(chosen) for split, chosen in parts.items()})
