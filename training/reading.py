"""Rows as they stand in files and Hub datasets: text, labels as written, and the place to name in an error."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from training.taxonomy import GOEMOTIONS_28

SPLITS = ("train", "validation", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_FILE_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid", "val"), "test": ("test",)}


class CorpusError(ValueError):
    """Bad input data; the message names the place and the remedy."""


@dataclass(frozen=True)
class Row:
    """One row as it was read: where it stands, its id, its text and its labels as written."""

    place: str
    id: str
    text: Any
    labels: Sequence[str | int]


def label_text(label: Any) -> str:
    """A label as written; a whole number that a table turned into 3.0 is 3 again."""
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(label).strip())


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


# Sources


def goemotions_rows(folder: Path) -> dict[str, list[Row]]:
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


def file_rows(
    folder: Path, own: Sequence[str] | None, text_column: str, label_column: str, id_column: str | None
) -> dict[str, list[Row]]:
    """Rows of the train, validation and test files of a folder; of one file all rows as ``train``."""
    result = {}
    for split in ("train",) if folder.is_file() else SPLITS:
        path = folder if folder.is_file() else _find_file(folder, split, SUFFIXES)
        table, places = read_table(path)
        result[split] = table_rows(str(path), table, places, own, text_column, label_column, id_column)
    return result


def hub_rows(
    name: str,
    loaded: datasets.DatasetDict,
    own: Sequence[str] | None,
    text_column: str,
    label_column: str,
    id_column: str | None,
) -> dict[str, list[Row]]:
    """Rows of a dataset that ``datasets`` has loaded."""
    result = {}
    for split in SPLITS:
        found = next((alias for alias in _FILE_NAMES[split] if alias in loaded), None)
        if found is None:
            raise CorpusError(
                f"{name} has no {split} split, only {', '.join(loaded)}. Remedy: save three splits as files"
            )
        table = loaded[found].to_pandas()
        if declared_labels(loaded, label_column) is not None:
            table[label_column] = [np.atleast_1d(value).tolist() for value in table[label_column]]
        places = [f"{name}, {found}, row {index}" for index in range(len(table))]
        result[split] = table_rows(f"{name}, {found}", table, places, own, text_column, label_column, id_column)
    return result


def declared_labels(loaded: datasets.DatasetDict, label_column: str) -> list[str] | None:
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
