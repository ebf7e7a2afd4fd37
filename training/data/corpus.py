"""Load and validate labeled texts: the starter corpus, GoEmotions, your own files, or a Hub dataset.

Every problem raises a :class:`CorpusError` that names the file, the row, the column, the value and the remedy.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np

from modeling.recipe import LabelFormat
from modeling.rows.label_cells import LabelReading, LabelSet
from modeling.rows.reading import Columns, RawRow, declared_labels
from modeling.rows.tables import CorpusError, normal_name
from training.data.reading import SPLITS, file_rows, goemotions_rows, hub_rows
from training.data.taxonomy import GOEMOTIONS_28, Taxonomy, build_taxonomy

logger = logging.getLogger(__name__)

GOEMOTIONS_HUB = "google-research-datasets/go_emotions"
GOEMOTIONS_REVISION = "add492243ff905527e67aeb8b80b082af02207c3"
STARTER_FOLDER = Path(__file__).parent / "starter"


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        ids: N row ids.
        texts: N texts.
        labels: int8 multi-hot [N, L].
        without_label: how many rows have no label of the run (counted before any are dropped).
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    without_label: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> Split:
        """The rows at ``indices``, int64 [M]."""
        labels = self.labels[indices]
        gone = int((~self.labels.any(axis=1)).sum() - (~labels.any(axis=1)).sum())
        texts, ids = [self.texts[i] for i in indices], [self.ids[i] for i in indices]
        return Split(ids, texts, labels, self.without_label - gone)

    def fingerprint(self) -> str:
        """SHA-256 of the texts and labels, in order."""
        digest = hashlib.sha256()
        for text, row in zip(self.texts, self.labels, strict=True):
            digest.update(text.encode() + b"\x00" + row.tobytes() + b"\x01")
        return digest.hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Three splits that share one label order."""

    name: str
    revision: str
    labels: tuple[str, ...]
    splits: dict[str, Split] = field(repr=False)

    def __getitem__(self, split: str) -> Split:
        return self.splits[split]

    @property
    def texts(self) -> list[str]:
        """The texts of all splits, one after the other."""
        return [text for split in SPLITS for text in self.splits[split].texts]

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each split."""
        return {name: split.fingerprint() for name, split in self.splits.items()}

    def require_splits(self) -> None:
        """Refuse a corpus of one file, which has no splits.

        Raises:
            CorpusError: a split is missing.
        """
        if set(self.splits) != set(SPLITS):
            raise CorpusError(
                f"{self.name}: one file has no splits. Remedy: use --split stratified, or give three files"
            )


def load_corpus(
    dataset: str,
    labels: Sequence[str],
    data_dir: str | None = None,
    dataset_revision: str | None = None,
    dataset_config: str | None = None,
    text_column: str = "text",
    label_column: str = "labels",
    id_column: str | None = None,
    unlabelled: str = "keep",
    label_format: LabelFormat = "auto",
    label_separator: str | None = None,
) -> Corpus:
    """Load a corpus.

    Args:
        dataset: ``starter``, ``goemotions``, ``files`` (train, validation and test files in the folder ``data_dir``, or
            one file with all rows), or a dataset id on the Hub.
        labels: a label set's name or your own labels.
        data_dir: folder; for GoEmotions it defaults to the environment variable ``GOEMOTIONS_DIR``, and without
            either the rows come from the Hub.
        dataset_revision: revision of a Hub dataset.
        dataset_config: configuration (subset) of a Hub dataset.
        text_column: column of the texts.
        label_column: column with the labels; without it, one 0/1 column per label.
        id_column: column of the row ids, which must then be unique over all splits.
        unlabelled: ``keep`` rows without a label of the run as all-zero rows, or ``drop`` them.
        label_format: what the cells of ``label_column`` are, see :mod:`modeling.rows.label_cells`.
        label_separator: what separates the labels of a cell; None finds out.

    Raises:
        CorpusError: bad data.
    """
    columns = Columns(normal_name(text_column), normal_name(label_column), id_column and normal_name(id_column))
    reading = LabelReading(label_format, label_separator)
    if dataset == "starter":
        taxonomy = _taxonomy(labels, GOEMOTIONS_28)
        rows = file_rows(STARTER_FOLDER, _label_set(taxonomy), Columns(id="id"), LabelReading("names", ","))
        return _build(dataset, "1", taxonomy, rows, unlabelled)
    if dataset == "files":
        if data_dir is None:
            raise CorpusError(
                "dataset files has no rows. Remedy: give --data_dir with train, validation and test files"
            )
        taxonomy = _taxonomy(labels)
        return _build(
            "files", "", taxonomy, file_rows(Path(data_dir), _label_set(taxonomy), columns, reading), unlabelled
        )
    if dataset == "goemotions":
        folder = data_dir or os.environ.get("GOEMOTIONS_DIR")
        if folder:
            taxonomy, rows = _taxonomy(labels, GOEMOTIONS_28), goemotions_rows(Path(folder))
            return _build(GOEMOTIONS_HUB, "official simplified TSV", taxonomy, rows, unlabelled)
        dataset, dataset_revision, dataset_config = GOEMOTIONS_HUB, GOEMOTIONS_REVISION, "simplified"
        columns = Columns(id="id")
    try:
        loaded = datasets.load_dataset(dataset, dataset_config, revision=dataset_revision)
    except (OSError, ValueError) as error:
        remedy = "give the folder with --data_dir, or check the id and the network"
        raise CorpusError(f"dataset {dataset!r} cannot be loaded ({error}). Remedy: {remedy}") from error
    taxonomy = _taxonomy(labels, declared_labels(next(iter(loaded.values())).features, columns.labels))
    rows = hub_rows(dataset, loaded, _label_set(taxonomy), columns, reading)
    return _build(dataset, dataset_revision or "", taxonomy, rows, unlabelled)


def _taxonomy(labels: Sequence[str], corpus_labels: Sequence[str] | None = None) -> Taxonomy:
    try:
        return build_taxonomy(labels, corpus_labels)
    except ValueError as error:
        raise CorpusError(str(error)) from None


def _label_set(taxonomy: Taxonomy) -> LabelSet:
    return LabelSet(taxonomy.ids, frozenset({*taxonomy.sources, *taxonomy.labels, *taxonomy.ignored}))


# Rows → splits


def _build(
    name: str,
    revision: str,
    taxonomy: Taxonomy,
    rows: dict[str, list[RawRow]],
    unlabelled: str,
) -> Corpus:
    _refuse_duplicate_ids(itertools.chain.from_iterable(rows.values()))
    splits = {split: _build_split(f"{name}, {split}", rows[split], taxonomy, unlabelled) for split in rows}
    for split, content in splits.items():
        for label in np.array(taxonomy.labels)[content.labels.sum(axis=0) == 0]:
            logger.warning("%s, %s: no positive row for %s; its scores there are meaningless", name, split, label)
    return Corpus(name, revision, taxonomy.labels, splits)


def _build_split(split: str, rows: list[RawRow], taxonomy: Taxonomy, unlabelled: str) -> Split:
    if not rows:
        raise CorpusError(f"{split}: no rows. Remedy: add some, or use --split stratified to split one file")
    vectors = np.array([taxonomy.vector(row.labels) for row in rows], dtype=np.int8)
    has_label = vectors.any(axis=1)
    without = int((~has_label).sum())
    kept = np.flatnonzero(has_label) if unlabelled == "drop" else np.arange(len(rows))
    if without:
        logger.info("%s: %d of %d rows have no label of this run: %s", split, without, len(rows), unlabelled)
    if not len(kept):
        raise CorpusError(
            f"{split}: none of {len(rows)} rows has a label of this run ({', '.join(taxonomy.labels)}). Remedy: give "
            "other --labels, or use --unlabelled keep"
        )
    return Split([rows[i].id for i in kept], [rows[i].text for i in kept], vectors[kept], without)


def _refuse_duplicate_ids(rows: Iterable[RawRow]) -> None:
    """An id names one row of the whole corpus: splits that share one share a row, or mix up two numberings."""
    places: dict[str, str] = {}
    for row in rows:
        if row.columns.id is None:  # rows are numbered from 0 in each split
            continue
        if row.id in places:
            raise CorpusError(
                f"{row.place}, column {row.columns.id!r}: id {row.id!r} is already at {places[row.id]}. Remedy: make "
                "ids unique across all splits, or leave out --id_column"
            )
        places[row.id] = row.place


def label_counts(labels: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """Positive rows per label."""
    return Counter(dict(zip(names, (int(count) for count in labels.sum(axis=0)), strict=True)))
