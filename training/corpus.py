"""Load and validate labelled texts: the starter corpus, GoEmotions, your own files, or a Hub dataset.

Every problem ends with a :class:`CorpusError` that names the file, the row, the column, the value and the remedy.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from training.taxonomy import GOEMOTIONS_28, Taxonomy, build_taxonomy

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
GOEMOTIONS_HUB = "google-research-datasets/go_emotions"
GOEMOTIONS_REVISION = "add492243ff905527e67aeb8b80b082af02207c3"
STARTER_FOLDER = Path(__file__).parent / "starter"
_FILE_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid", "val"), "test": ("test",)}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class CorpusError(ValueError):
    """Bad input data; the message names the place and the remedy."""


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        ids: N row ids.
        texts: N texts.
        labels: int8 multi-hot [N, L].
        without_label: how many rows have no label of the run (counted before they were dropped, where they were).
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

    def require_splits(self) -> None:
        """Refuse a corpus of one file, which has no splits.

        Raises:
            CorpusError: a split is missing.
        """
        if set(self.splits) != set(SPLITS):
            raise CorpusError(f"{self.name}: one file holds no splits. Remedy: --split stratified, or three files")


@dataclass(frozen=True)
class Row:
    """One row as it was read: where it stands, its id, its text and its labels as written."""

    place: str
    id: str
    text: Any
    labels: Sequence[str | int]


def load_corpus(
    dataset: str,
    labels: Sequence[str],
    data_dir: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    text_column: str = "text",
    label_column: str = "labels",
    id_column: str | None = None,
    unlabelled: str = "keep",
) -> Corpus:
    """Load a corpus.

    Args:
        dataset: ``starter``, ``goemotions``, ``files`` (train, validation and test as CSV, TSV, JSONL or Parquet in
            the folder ``data_dir``, or one such file with all rows), or a dataset id on the Hub.
        labels: a label set's name or your own labels.
        data_dir: folder; for GoEmotions the environment variable ``GOEMOTIONS_DIR`` stands in for it, and without
            either the rows come from the Hub.
        revision: revision of a Hub dataset.
        config: configuration (subset) of a Hub dataset.
        text_column: column of the texts.
        label_column: column with names, ids or lists of them (in text: separated by commas); where it is absent, one
            0/1 column a label.
        id_column: column of the row ids, which must then be unique.
        unlabelled: ``keep`` rows without a label of the run as all-zero rows, or ``drop`` them.

    Raises:
        CorpusError: bad data.
    """
    columns = (text_column, label_column, id_column)
    own = None if len(labels) == 1 else tuple(labels)
    if dataset == "starter":
        return _build(
            dataset, "1", labels, GOEMOTIONS_28, _file_rows(STARTER_FOLDER, None, "text", "labels", "id"), unlabelled
        )
    if dataset == "files":
        if data_dir is None:
            raise CorpusError("dataset files needs --data_dir: the folder with train, validation and test files")
        return _build("files", "", labels, None, _file_rows(Path(data_dir), own, *columns), unlabelled)
    if dataset == "goemotions":
        folder = data_dir or os.environ.get("GOEMOTIONS_DIR")
        if folder is not None:
            rows = _goemotions_rows(Path(folder))
            return _build(GOEMOTIONS_HUB, "official simplified TSV", labels, GOEMOTIONS_28, rows, unlabelled)
        dataset, revision, config = GOEMOTIONS_HUB, GOEMOTIONS_REVISION, "simplified"
        columns = ("text", "labels", "id")
    try:
        loaded = datasets.load_dataset(dataset, config, revision=revision)
    except (OSError, ValueError) as error:
        remedy = "give the folder with --data_dir, or check the id and the network"
        raise CorpusError(f"dataset {dataset!r} cannot be loaded ({error}). Remedy: {remedy}") from error
    names = _declared_labels(loaded, label_column)
    return _build(dataset, revision or "", labels, names, _hub_rows(dataset, loaded, own, *columns), unlabelled)


# Rows of each source


def _goemotions_rows(folder: Path) -> dict[str, list[Row]]:
    """Rows of ``train.tsv``, ``dev.tsv``, ``test.tsv`` and ``labels.txt``."""
    return {split: read_goemotions(_find_file(folder, split, (".tsv",))) for split in SPLITS}


def read_goemotions(path: Path) -> list[Row]:
    """Rows of one official TSV file (text, ids, comment id; no header), with ``labels.txt`` beside it.

    Raises:
        CorpusError: bad data.
    """
    names_file = path.parent / "labels.txt"
    if not names_file.is_file():
        raise CorpusError(f"{names_file} is missing. Remedy: --data_dir must hold labels.txt, train, dev and test .tsv")
    names = names_file.read_text(encoding="utf-8").split()
    if tuple(names) != GOEMOTIONS_28:
        raise CorpusError(f"{names_file}: the 28 GoEmotions labels in id order are expected, got {names}")
    rows: list[Row] = []
    # A text may hold any line separator but the newline itself.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line:
            continue
        place = f"{path}, line {number}"
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 3:
            raise CorpusError(f"{place}: 3 columns (text, label ids, comment id) are expected, got {len(cells)}")
        rows.append(Row(place, cells[2], cells[0], _parse_ids(cells[1], names, place)))
    return rows


def _parse_ids(cell: str, names: Sequence[str], place: str) -> list[str]:
    try:
        ids = [int(part) for part in cell.split(",") if part.strip()]
    except ValueError:
        raise CorpusError(f"{place}: column labels: {cell!r} is not a list of ids such as 3,17") from None
    for label_id in ids:
        if not 0 <= label_id < len(names):
            raise CorpusError(f"{place}: column labels: id {label_id} is out of range, 0 to {len(names) - 1} are valid")
    return [names[label_id] for label_id in ids]


def _file_rows(
    folder: Path, own: Sequence[str] | None, text_column: str, label_column: str, id_column: str | None
) -> dict[str, list[Row]]:
    result = {}
    for split in ("train",) if folder.is_file() else SPLITS:
        path = folder if folder.is_file() else _find_file(folder, split, SUFFIXES)
        table, places = read_table(path)
        result[split] = table_rows(str(path), table, places, own, text_column, label_column, id_column)
    return result


def _hub_rows(
    name: str,
    loaded: datasets.DatasetDict,
    own: Sequence[str] | None,
    text_column: str,
    label_column: str,
    id_column: str | None,
) -> dict[str, list[Row]]:
    result = {}
    for split in SPLITS:
        found = next((alias for alias in _FILE_NAMES[split] if alias in loaded), None)
        if found is None:
            raise CorpusError(
                f"{name} has no {split} split, only {', '.join(loaded)}. Remedy: save three splits as files"
            )
        table = loaded[found].to_pandas()
        if _declared_labels(loaded, label_column) is not None:
            table[label_column] = [np.atleast_1d(value).tolist() for value in table[label_column]]
        places = [f"{name}, {found}, row {index}" for index in range(len(table))]
        result[split] = table_rows(f"{name}, {found}", table, places, own, text_column, label_column, id_column)
    return result


def _declared_labels(loaded: datasets.DatasetDict, label_column: str) -> list[str] | None:
    """Label names of a ``ClassLabel`` column, single or in a list."""
    feature: Any = next(iter(loaded.values())).features.get(label_column)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def table_rows(
    source: str,
    table: pd.DataFrame,
    places: list[str],
    own: Sequence[str] | None,
    text_column: str,
    label_column: str,
    id_column: str | None,
) -> list[Row]:
    """Rows of a table.

    Args:
        source: what the table was read from, for messages.
        table: the N rows.
        places: where each row stands.
        own: the 0/1 columns that stand in for ``label_column`` where the table has none.
        text_column: column of the texts.
        label_column: column with names, ids or lists of them.
        id_column: column of the row ids; None counts the rows.

    Raises:
        CorpusError: a column is missing, or a cell holds no labels.
    """
    columns = list(table.columns)
    for column in [text_column] + ([id_column] if id_column else []):
        if column not in columns:
            raise CorpusError(
                f"{source}: no column {column!r}, only {', '.join(map(str, columns))}. Remedy: set text_column or id_column"
            )
    if label_column in columns:
        labels = [split_labels(value, place) for value, place in zip(table[label_column], places, strict=True)]
    elif own is not None and set(own) <= set(columns):
        labels = [list(row) for row in _one_hot_rows(table, places, own)]
    else:
        raise CorpusError(
            f"{source}: no column {label_column!r}, only {', '.join(map(str, columns))}. Remedy: set label_column, or "
            "list the label columns as labels"
        )
    ids = [str(value) for value in table[id_column]] if id_column else [str(index) for index in range(len(table))]
    return [Row(*cells) for cells in zip(places, ids, table[text_column].tolist(), labels, strict=True)]


def _one_hot_rows(table: pd.DataFrame, places: list[str], own: Sequence[str]) -> Iterator[list[str]]:
    for place, values in zip(places, table[list(own)].itertuples(index=False), strict=True):
        names = []
        for name, value in zip(own, values, strict=True):
            if str(value) not in ("0", "1", "0.0", "1.0", "True", "False"):
                raise CorpusError(f"{place}: column {name!r}: {value!r} is not 0 or 1")
            if str(value) in ("1", "1.0", "True"):
                names.append(name)
        yield names


def split_labels(value: Any, place: str) -> list[Any]:
    """The labels of one cell: a list, or text such as ``joy, love`` or ``['joy']``.

    Raises:
        CorpusError: the cell is empty, or not a list; the message names ``place``.
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        raise CorpusError(f"{place}: no labels. Remedy: fill them in; an empty list or cell says that there are none")
    text = str(value).strip()
    if text.startswith("["):
        try:
            return list(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            raise CorpusError(f"{place}: labels {text!r} are not a list such as ['joy', 'love']") from None
    return [part.strip() for part in text.split(",") if part.strip()]


def _find_file(folder: Path, split: str, suffixes: Sequence[str]) -> Path:
    found = [folder / f"{name}{suffix}" for name in _FILE_NAMES[split] for suffix in suffixes]
    found = [path for path in found if path.is_file()]
    if len(found) != 1:
        names = [f"{name}{suffix}" for name in _FILE_NAMES[split] for suffix in suffixes]
        what = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise CorpusError(f"{folder}: exactly one {split} file is expected ({', '.join(names)}), {what}")
    return found[0]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: byte {error.start} is not UTF-8. Remedy: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed"
        ) from None


def read_table(path: Path, columns: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """A CSV, TSV, JSONL or Parquet file, and where each of its rows stands.

    Args:
        path: the file.
        columns: names of the columns of a CSV or TSV file without a header.

    Raises:
        CorpusError: the file is empty, broken, not UTF-8 or has no rows.
    """
    if path.suffix == ".parquet":
        try:
            table = pd.read_parquet(path).reset_index(drop=True).rename(index=lambda row: row + 1)
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}: not a Parquet file ({error})") from None
        return table, [f"{path}, row {number}" for number in table.index]
    text = _read_text(path)
    if not text.strip():
        raise CorpusError(f"{path} is empty")
    rows = _json_rows(path, text) if path.suffix == ".jsonl" else _separated_rows(path, text, columns)
    numbered = dict(rows)
    if not numbered:
        raise CorpusError(f"{path}: the {path.stem} split has no rows, only a header")
    # No type inference: an id such as 007, or a text such as "NA", must not change.
    table = pd.DataFrame(list(numbered.values()), index=list(numbered), dtype=object)
    return table, [f"{path}, line {number}" for number in table.index]


def _separated_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a CSV or TSV file; no cell may be missing or left over."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header = list(columns)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise CorpusError(
                f"{path}, line {line}: {error}. Remedy: close the quotes; double a quote inside them"
            ) from None
        if cells is None:
            return
        if not header:
            header = cells
        elif cells:
            if len(cells) != len(header):
                raise CorpusError(
                    f"{path}, line {line}: {len(cells)} cells for the {len(header)} columns {', '.join(header)}. "
                    "Remedy: quote a cell that holds the separator or a line break"
                )
            yield line, dict(zip(header, cells, strict=True))


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: an object with the columns as keys is expected")
        yield number, row


# Rows → splits


def _build(
    name: str,
    revision: str,
    labels: Sequence[str],
    corpus_labels: Sequence[str] | None,
    rows: dict[str, list[Row]],
    unlabelled: str,
) -> Corpus:
    try:
        taxonomy = build_taxonomy(labels, corpus_labels)
    except ValueError as error:
        raise CorpusError(str(error)) from None
    splits = {split: _build_split(split, rows[split], taxonomy, unlabelled) for split in rows}
    for split, content in splits.items():
        for label in np.array(taxonomy.labels)[content.labels.sum(axis=0) == 0]:
            logger.warning("%s, %s: no positive row for %s; its scores there mean nothing", name, split, label)
    return Corpus(name, revision, taxonomy.labels, splits)


def _build_split(split: str, rows: list[Row], taxonomy: Taxonomy, unlabelled: str) -> Split:
    if not rows:
        raise CorpusError(f"the {split} split has no rows")
    _refuse_duplicate_ids(rows)
    vectors = np.array([_vector(row, taxonomy) for row in rows], dtype=np.int8)
    refuse_bad_texts(rows)
    has_label = vectors.any(axis=1)
    without = int((~has_label).sum())
    kept = np.flatnonzero(has_label) if unlabelled == "drop" else np.arange(len(rows))
    if without:
        logger.info("%s: %d of %d rows have no label of this run: %s", split, without, len(rows), unlabelled)
    if not len(kept):
        raise CorpusError(f"the {split} split has no row with a label of this run")
    return Split([rows[i].id for i in kept], [rows[i].text for i in kept], vectors[kept], without)


def refuse_bad_texts(rows: Iterable[Row]) -> None:
    """Refuse texts that are empty, not text, or not UTF-8.

    Raises:
        CorpusError: names the place of the first.
    """
    for row in rows:
        if isinstance(row.text, str) and not row.text.isascii() and any("\ud800" <= c <= "\udfff" for c in row.text):
            raise CorpusError(f"{row.place}: the text holds half a character (a lone surrogate): {row.text!r:.80}")
        if not isinstance(row.text, str) or not row.text.strip():
            raise CorpusError(f"{row.place}: the text is {row.text!r}. Remedy: delete the row or fill it in")


def _vector(row: Row, taxonomy: Taxonomy) -> list[int]:
    names: list[str] = []
    for label in row.labels:
        name = label_text(label)
        if name not in taxonomy.sources and name.lstrip("-").isdigit():
            if not 0 <= int(name) < len(taxonomy.ids):
                raise CorpusError(
                    f"{row.place}: label id {name} is out of range, 0 to {len(taxonomy.ids) - 1} are valid"
                )
            name = taxonomy.ids[int(name)]
        names.append(name)
    try:
        return taxonomy.vector(names)
    except KeyError as error:
        known = ", ".join([*taxonomy.sources, *sorted(taxonomy.ignored)])
        raise CorpusError(
            f"{row.place}: unknown label {error}. Remedy: correct it, or add it to labels ({known})"
        ) from None


def label_text(label: Any) -> str:
    """A label as written; a whole number that a table turned into 3.0 is 3 again."""
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(label).strip())


def _refuse_duplicate_ids(rows: Iterable[Row]) -> None:
    places: dict[str, str] = {}
    for row in rows:
        if row.id in places:
            raise CorpusError(f"{row.place}: id {row.id!r} stands already at {places[row.id]}. Remedy: make ids unique")
        places[row.id] = row.place


def label_counts(labels: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """Positive rows per label."""
    return Counter(dict(zip(names, (int(count) for count in labels.sum(axis=0)), strict=True)))
