"""Rows as they are in files and Hub datasets: text, labels as written, and the place to name in an error."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd

from training.data.tables import SUFFIXES, CorpusError, read_table, read_text
from training.data.taxonomy import GOEMOTIONS_28

SPLITS = ("train", "validation", "test")
_FILE_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid", "val"), "test": ("test",)}


class Columns(NamedTuple):
    """Column names of a table; ``id`` None numbers the rows."""

    text: str = "text"
    labels: str = "labels"
    id: str | None = None


GOEMOTIONS_COLUMNS = Columns(id="id")
"""Names for the columns of GoEmotions' files, which have no header, in messages."""


@dataclass(frozen=True)
class RawRow:
    """One row as read: its place, its id, its text, its labels as written, and their columns."""

    place: str
    id: str
    text: Any
    labels: Sequence[str | int]
    columns: Columns


def label_text(label: Any) -> str:
    """A label as written, but 3.0, which a table made of the whole number 3, becomes 3 again."""
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(label).strip())


def refuse_bad_texts(rows: Iterable[RawRow]) -> None:
    """Refuse texts that are empty, not text, or not UTF-8.

    Raises:
        CorpusError: the message names the place of the first.
    """
    for row in rows:
        place = f"{row.place}, column {row.columns.text!r}"
        if isinstance(row.text, str) and not row.text.isascii() and any("\ud800" <= c <= "\udfff" for c in row.text):
            raise CorpusError(
                f"{place}: {row.text!r:.80} has half a character (a lone surrogate). Remedy: write the whole one, or "
                "delete it"
            )
        if not isinstance(row.text, str) or not row.text.strip():
            raise CorpusError(f"{place}: the text is {row.text!r:.80}. Remedy: delete the row or fill it in")


# Sources


def goemotions_rows(folder: Path) -> dict[str, list[RawRow]]:
    """Rows of ``train.tsv``, ``dev.tsv``, ``test.tsv`` and ``labels.txt``."""
    return {split: read_goemotions(_find_file(folder, split, (".tsv",))) for split in SPLITS}


def read_goemotions(path: Path) -> list[RawRow]:
    """Rows of one official TSV file (text, ids, comment id; no header), with ``labels.txt`` next to it.

    Raises:
        CorpusError: bad data.
    """
    names_file = path.parent / "labels.txt"
    if not names_file.is_file():
        raise CorpusError(f"{names_file} is missing. Remedy: put it next to train.tsv, dev.tsv and test.tsv")
    names = names_file.read_text(encoding="utf-8").split()
    if tuple(names) != GOEMOTIONS_28:
        raise CorpusError(
            f"{names_file}: {' '.join(names)!r:.80} is not the 28 GoEmotions labels in id order. Remedy: use the file "
            "that comes with the TSV files, or --dataset files for other labels"
        )
    rows: list[RawRow] = []
    # A text may contain any line separator except the newline itself.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        place = f"{path}, line {number}"
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 3:
            raise CorpusError(
                f"{place}: {len(cells)} cells for the 3 columns text, labels, id: {line!r:.80}. Remedy: write text, "
                "label ids and comment id, separated by tabs; for a file with a header, use --dataset files"
            )
        labels = _parse_ids(cells[1], names, f"{place}, column {GOEMOTIONS_COLUMNS.labels!r}")
        rows.append(RawRow(place, cells[2], cells[0], labels, GOEMOTIONS_COLUMNS))
    return rows


def out_of_range(place: str, label_id: Any, labels: int) -> str:
    """The message for a label id at ``place`` that is not in 0 to ``labels`` - 1."""
    return f"{place}: label id {label_id} is out of range. Remedy: use an id from 0 to {labels - 1}"


def _parse_ids(cell: str, names: Sequence[str], place: str) -> list[str]:
    try:
        ids = [int(part) for part in cell.split(",") if part.strip()]
    except ValueError:
        raise CorpusError(f"{place}: {cell!r} is not a list of ids. Remedy: write ids such as 3,17") from None
    for label_id in ids:
        if not 0 <= label_id < len(names):
            raise CorpusError(out_of_range(place, label_id, len(names)))
    return [names[label_id] for label_id in ids]


def file_rows(folder: Path, own: Sequence[str] | None, columns: Columns) -> dict[str, list[RawRow]]:
    """Rows of the train, validation and test files of a folder; all rows of a single file are ``train``."""
    result = {}
    for split in ("train",) if folder.is_file() else SPLITS:
        path = folder if folder.is_file() else _find_file(folder, split, SUFFIXES)
        table, places = read_table(path)
        result[split] = table_rows(str(path), table, places, own, columns)
    return result


def hub_rows(
    name: str, loaded: datasets.DatasetDict, own: Sequence[str] | None, columns: Columns
) -> dict[str, list[RawRow]]:
    """Rows of a dataset that ``datasets`` has loaded."""
    result = {}
    for split in SPLITS:
        found = next((alias for alias in _FILE_NAMES[split] if alias in loaded), None)
        if found is None:
            raise CorpusError(
                f"{name} has no {split} split, only {', '.join(loaded)}. Remedy: save three splits as files"
            )
        table = loaded[found].to_pandas()
        if declared_labels(loaded, columns.labels) is not None:
            table[columns.labels] = [np.atleast_1d(value).tolist() for value in table[columns.labels]]
        places = [f"{name}, {found}, row {index}" for index in range(len(table))]
        result[split] = table_rows(f"{name}, {found}", table, places, own, columns)
    return result


def declared_labels(loaded: datasets.DatasetDict, label_column: str) -> list[str] | None:
    """Label names of a ``ClassLabel`` column, single or in a list."""
    feature: Any = next(iter(loaded.values())).features.get(label_column)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def table_rows(
    source: str, table: pd.DataFrame, places: list[str], own: Sequence[str] | None, columns: Columns
) -> list[RawRow]:
    """Rows of a table.

    Args:
        source: what the table was read from, for messages.
        table: the N rows.
        places: where each row is.
        own: the 0/1 columns to use if the table has no column of labels.
        columns: names of the columns.

    Raises:
        CorpusError: a column is missing, or a cell has no labels.
    """
    there = list(table.columns)
    listed = ", ".join(map(str, there))
    for flag, column in (("--text_column", columns.text), ("--id_column", columns.id)):
        if column is not None and column not in there:
            raise CorpusError(f"{source}: no column {column!r}, only {listed}. Remedy: set {flag} to one of these")
    if columns.labels in there:
        at = f"column {columns.labels!r}"
        labels = [
            split_labels(value, f"{place}, {at}") for value, place in zip(table[columns.labels], places, strict=True)
        ]
    elif own is not None and set(own) <= set(there):
        labels = [list(row) for row in _one_hot_rows(table, places, own)]
    else:
        raise CorpusError(
            f"{source}: no column {columns.labels!r}, only {listed}. Remedy: set --label_column to one of these, or, "
            "in training, --labels to the names of 0/1 columns, one per label"
        )
    ids = [str(value) for value in table[columns.id]] if columns.id else [str(index) for index in range(len(table))]
    cells = zip(places, ids, table[columns.text].tolist(), labels, strict=True)
    return [RawRow(place, row_id, text, found, columns) for place, row_id, text, found in cells]


def _one_hot_rows(table: pd.DataFrame, places: list[str], own: Sequence[str]) -> Iterator[list[str]]:
    for place, values in zip(places, table[list(own)].itertuples(index=False), strict=True):
        names = []
        for name, value in zip(own, values, strict=True):
            if str(value) not in ("0", "1", "0.0", "1.0", "True", "False"):
                raise CorpusError(f"{place}, column {name!r}: {value!r} is not 0 or 1. Remedy: write 0 or 1")
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
        raise CorpusError(
            f"{place}: {value!r}, no labels. Remedy: fill them in; an empty list or cell means that there are none"
        )
    text = str(value).strip()
    if text.startswith("["):
        try:
            return list(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            raise CorpusError(
                f"{place}: {text!r:.80} is not a list. Remedy: write ['joy', 'love'] or joy, love"
            ) from None
    return [part.strip() for part in text.split(",") if part.strip()]


def _find_file(folder: Path, split: str, suffixes: Sequence[str]) -> Path:
    found = [folder / f"{name}{suffix}" for name in _FILE_NAMES[split] for suffix in suffixes]
    found = [path for path in found if path.is_file()]
    if len(found) != 1:
        names = [f"{name}{suffix}" for name in _FILE_NAMES[split] for suffix in suffixes]
        what = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise CorpusError(
            f"{folder}: expected exactly one {split} file, {what}. Remedy: give --data_dir a folder with one of "
            f"{', '.join(names)}"
        )
    return found[0]
