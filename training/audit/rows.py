"""The audit of a run: copies across splits, label noise, labels without rows, and the origin of each training row."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modeling.recipe import AuditPolicy
from modeling.records import CorpusFindings, RowsAudit
from modeling.rows.errors import InputError
from training.data.balance import Rows
from training.data.copies import KINDS, Copy, find_copies, find_copies_both_ways, match_key, summarize
from training.data.corpus import Corpus, Split, label_counts
from training.data.reading import SPLITS

logger = logging.getLogger(__name__)

EXAMPLES = 5
_ROWS_AT_ONCE = 4_096
"""Embeddings that are compared at once: all of them would take several times their size."""


class LeakError(InputError, RuntimeError):
    """A training row comes from outside the training split, or is also in validation or test and must not be."""


@dataclass(frozen=True)
class CorpusAudit:
    """What :func:`audit_corpus` found.

    Attributes:
        copies: for each split, boolean [N]: the validation and test rows with a copy in train, and the training rows
            with one in validation or test.
        report: the counts, for ``audit.json``; its keys differ from those of :func:`audit_rows`.
    """

    copies: dict[str, np.ndarray]
    report: CorpusFindings


def audit_corpus(corpus: Corpus) -> CorpusAudit:
    """Look for copies across splits, for label noise between copies, and for labels without positive rows.

    Copies are those of :func:`training.data.copies.find_copies`. Each is compared only with its best match: if train
    has a text twice with different labels, with the first.
    """
    train, validation, test = (corpus[split] for split in SPLITS)
    evaluation = validation.texts + test.texts
    found, copied = find_copies_both_ways(evaluation, train.texts)
    start = len(validation)
    in_train = {
        "validation": [copy for copy in found if copy.row < start],
        "test": [replace(copy, row=copy.row - start) for copy in found if copy.row >= start],
    }
    copies = {split: _mask(in_train[split], len(corpus[split])) for split in in_train}
    # Not just the best matches of these: a training row may be a copy without being the best match of any row.
    copies["train"] = _mask(copied, len(train))
    for split, matches in in_train.items():
        if matches:
            logger.warning("%s: %s in train", split, summarize(matches, len(corpus[split])))
    report: CorpusFindings = {
        "copies": {
            "validation_in_train": _describe(in_train["validation"], validation, train, corpus.labels),
            "test_in_train": _describe(in_train["test"], test, train, corpus.labels),
            "validation_in_test": _describe(find_copies(validation.texts, test.texts), validation, test, corpus.labels),
            "train_rows_copied": int(copies["train"].sum()),
        },
        "repeated_in_train": _repeated(train, corpus.labels),
        "labels_without_positives": {
            split: [label for label, count in label_counts(corpus[split].labels, corpus.labels).items() if not count]
            for split in SPLITS
        },
    }
    return CorpusAudit(copies, report)


def audit_folds(corpus: Corpus, fold: np.ndarray) -> CorpusAudit:
    """The same for a corpus without splits: each fold's rows are looked for in the rows of the other folds.

    Args:
        corpus: every split has all N rows.
        fold: of each row, int [N].
    """
    rows, found = corpus["train"], []
    for number in np.unique(fold):
        held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        matches = find_copies(rows.take(held).texts, rows.take(rest).texts)
        found += [
            replace(copy, row=int(held[copy.row]), reference_row=int(rest[copy.reference_row])) for copy in matches
        ]
    if found:
        logger.warning("other folds: %s", summarize(found, len(rows)))
    shared = _describe(found, rows, rows, corpus.labels)
    mask = _mask(found, len(rows))
    without = [label for label, count in label_counts(rows.labels, corpus.labels).items() if not count]
    report: CorpusFindings = {
        "copies": {
            "validation_in_train": shared,
            "test_in_train": shared,
            "validation_in_test": _describe([], rows, rows, corpus.labels),
            "train_rows_copied": int(mask.sum()),
        },
        "repeated_in_train": _repeated(rows, corpus.labels),
        "labels_without_positives": dict.fromkeys(SPLITS, without),
    }
    return CorpusAudit(dict.fromkeys(SPLITS, mask), report)


def _mask(copies: Sequence[Copy], size: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[[copy.row for copy in copies]] = True
    return mask


def _describe(copies: Sequence[Copy], split: Split, reference: Split, names: Sequence[str]) -> dict[str, Any]:
    """Counts, labels and examples of the copies of one split in another."""
    rows, others = ([getattr(copy, side) for copy in copies] for side in ("row", "reference_row"))
    differ = int((split.labels[rows] != reference.labels[others]).any(axis=1).sum())
    counts = Counter(copy.kind for copy in copies)
    # Nobody writes a long text twice by chance.
    examples = sorted(copies, key=lambda copy: -len(split.texts[copy.row]))[:EXAMPLES]
    return {
        **{kind: counts[kind] for kind in KINDS},
        "rows": len(copies),
        "positives": label_counts(split.labels[rows], names),
        "labels_differ": differ,
        "labels_differ_share": differ / len(copies) if copies else None,
        "examples": [
            {
                "kind": copy.kind,
                "similarity": round(copy.similarity, 3),
                "text": split.texts[copy.row],
                "copy": reference.texts[copy.reference_row],
                "labels": _names(split.labels[copy.row], names),
                "labels_of_copy": _names(reference.labels[copy.reference_row], names),
            }
            for copy in examples
        ],
    }


def _repeated(split: Split, names: Sequence[str]) -> dict[str, Any]:
    """Texts that occur more than once in a split (ignoring case, spaces and punctuation), and whether labels agree."""
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(split.texts):
        groups.setdefault(match_key(text), []).append(row)
    repeated = [rows for rows in groups.values() if len(rows) > 1]
    noisy = [rows for rows in repeated if (split.labels[rows] != split.labels[rows[0]]).any()]
    return {
        "groups": len(repeated),
        "rows": sum(map(len, repeated)),
        "groups_with_different_labels": len(noisy),
        "examples": [
            {"text": split.texts[rows[0]], "labels": [_names(split.labels[row], names) for row in rows[:EXAMPLES]]}
            for rows in sorted(noisy, key=lambda rows: -len(split.texts[rows[0]]))[:EXAMPLES]
        ],
    }


def _names(row: np.ndarray, names: Sequence[str]) -> list[str]:
    return [name for name, value in zip(names, row, strict=True) if value]


def apply_policy(corpus: Corpus, audit: CorpusAudit, policy: AuditPolicy) -> Corpus:
    """The corpus to train on, after the policy for copies across splits.

    ``report`` changes nothing. ``drop-from-train`` removes the training rows with a copy in validation or test, which
    stay as they are; embeddings and parents must then belong to the new corpus.

    Raises:
        LeakError: the policy is ``fail`` and train shares copies with validation or test, or no training row is left.
    """
    dropped = int(audit.copies["train"].sum())
    if policy == "report" or not dropped:
        return corpus
    if policy == "fail":
        counts = audit.report["copies"]
        shared = "; ".join(
            f"{split}: " + ", ".join(f"{counts[f'{split}_in_train'][kind]} {shown}" for kind, shown in KINDS.items())
            for split in ("validation", "test")
        )
        raise LeakError(
            f"train has copies of evaluation rows ({shared}). Remedy: use audit_policy drop-from-train to remove the "
            f"{dropped} training rows, or report to only count them; or remove them from the files (training/run.py "
            "audit FILE FILE)"
        )
    train = corpus["train"].take(np.flatnonzero(~audit.copies["train"]))
    if not len(train):
        raise LeakError("every training row is a copy of a validation or test row. Remedy: split the corpus again")
    logger.info("train: %d of %d rows dropped: copies of validation or test rows", dropped, len(corpus["train"]))
    for label, count in label_counts(train.labels, corpus.labels).items():
        if not count and corpus["train"].labels[:, corpus.labels.index(label)].any():
            logger.warning("train: no positive row for %s is left after dropping copies", label)
    return replace(corpus, splits=corpus.splits | {"train": train})


def audit_rows(
    corpus: Corpus,
    embeddings: np.ndarray,
    rows: Rows,
    findings: CorpusFindings,
    mlsmote_labels: str | None = None,
    contaminated: bool = False,
) -> RowsAudit:
    """Check the balanced training rows against the corpus, and describe both.

    Args:
        corpus: the splits.
        embeddings: float32 [N, E] of all splits, one after the other.
        rows: the rows that will be trained on.
        findings: of the corpus.
        mlsmote_labels: the rule of ``mlsmote`` that gave rows between two parents their labels; None if every row
            has the labels of its first parent. See :func:`_refuse_foreign_labels` for what can be checked.
        contaminated: does the split protocol put children of evaluation rows into train? If so, they are counted.

    Raises:
        LeakError: a parent outside train, a row that is not what its parents and step give, or foreign labels.
    """
    lowest, highest = rows.parents.min(axis=1), rows.parents.max(axis=1)
    _refuse(rows, (lowest < 0) | (highest >= len(embeddings)), "has a parent that is not a row of the corpus")
    outside = highest >= len(corpus["train"])
    if not contaminated:
        _refuse(rows, outside, "has a parent outside the training split")
    _refuse(rows, ~_given_by_parents(rows, embeddings), "is not what its parents give")
    labels = np.concatenate([corpus[split].labels for split in SPLITS])
    _refuse_foreign_labels(rows, labels, mlsmote_labels)
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
                "texts_also_in_train": None if split == "train" else findings["copies"][f"{split}_in_train"]["exact"],
            }
            for split in SPLITS
        },
        "training_rows": {
            "real": int((~rows.synthetic).sum()),
            "synthetic": int(rows.synthetic.sum()),
            "positives": label_counts(rows.labels, corpus.labels),
            "synthetic_with_parent_outside_train": int(outside.sum()),
        },
    }


def _given_by_parents(rows: Rows, embeddings: np.ndarray) -> np.ndarray:
    """Is each row's embedding what its parents and its step give? Bool [N]."""
    found = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        first, second = (embeddings[rows.parents[part, parent]] for parent in (0, 1))
        given = first + rows.steps[part, None] * (second - first)
        found[part] = np.isclose(rows.embeddings[part], given, atol=1e-5).all(axis=1)
    return found


def _refuse(rows: Rows, wrong: np.ndarray, what: str) -> None:
    """Refuse rows that the balancing code must not make; the message names the first one and its parents."""
    if wrong.any():
        row = int(wrong.argmax())
        raise LeakError(
            f"training row {row}, made from rows {' and '.join(map(str, rows.parents[row]))}, {what} (so in "
            f"{wrong.sum():,} of {len(rows):,} rows). Remedy: report a bug of the balancing code, training/data/balance.py"
        )


def _refuse_foreign_labels(rows: Rows, labels: np.ndarray, mlsmote_labels: str | None) -> None:
    """Refuse labels that cannot come from the parents.

    ``mlsmote`` lets all k neighbors of the first parent vote, but only one is recorded. So a row of ``union`` must have
    at least the labels of its two parents, and a row of ``intersection`` at most the labels that both have. Under every
    rule, a row must have a label that both have: the one that was oversampled. The votes of the other neighbors are
    unknown. So labels that ``union`` and ``ranking`` add, and labels that ``ranking`` and ``intersection`` leave out,
    are not checked.

    Args:
        rows: the rows.
        labels: 0/1 [N, L] of the whole corpus, which parents index.
        mlsmote_labels: the rule; None if every row has the labels of its first parent.

    Raises:
        LeakError: a row has foreign labels.
    """
    first, second = labels[rows.parents[:, 0]], labels[rows.parents[:, 1]]
    own = (rows.labels == first).all(axis=1)
    if mlsmote_labels is None:
        _refuse(rows, ~own, "has other labels than its first parent")
        return
    both = first & second
    voted = (rows.labels & both).any(axis=1)
    if mlsmote_labels == "union":
        voted &= (rows.labels >= (first | second)).all(axis=1)
    elif mlsmote_labels == "intersection":
        voted &= (rows.labels <= both).all(axis=1)
    # Real rows and copies have one parent, so there was no vote.
    fitting = np.where(rows.parents[:, 0] == rows.parents[:, 1], own, voted)
    _refuse(rows, ~fitting, f"has labels that mlsmote with {mlsmote_labels} cannot give it")
