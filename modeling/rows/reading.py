"""Tables as labeled rows: text, names of labels, and the place to name in an error."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet

from modeling.infer import quote_names
from modeling.rows.label_cells import LabelReading, LabelSet, one_hot_labels, read_label_cells
from modeling.rows.tables import read_table, refuse

logger = logging.getLogger(__name__)


class Columns(NamedTuple):
    """Column names of a table; ``id`` None numbers the rows."""

    text: str = "text"
    labels: str = "labels"
    id: str | None = None


class Table(NamedTuple):
    """A table as read: its name for messages, its N rows, and the place of each."""

    source: str
    rows: pd.DataFrame
    places: list[str]


@dataclass(frozen=True)
class RawRow:
    """One row as read: its place, its id, its text, the names of its labels, and their columns."""

    place: str
    id: str
    text: str
    labels: Sequence[str]
    columns: Columns


def bad_texts(rows: Iterable[RawRow]) -> Iterator[str]:
    """What is wrong with texts that are empty, not text, or not UTF-8."""
    for row in rows:
        place = f"{row.place}, column {row.columns.text!r}"
        if isinstance(row.text, str) and not row.text.isascii() and any("\ud800" <= c <= "\udfff" for c in row.text):
            yield (
                f"{place}: {row.text!r:.80} has half a character (a lone surrogate). Remedy: write the whole one, or "
                "delete it"
            )
        if not isinstance(row.text, str) or not row.text.strip():
            yield f"{place}: the text is {row.text!r:.80}. Remedy: delete the row or fill it in"


def read_file(path: Path, columns: Columns, names: Sequence[str] = ()) -> Table:
    """A file of rows, with names in place of the ids that a Parquet file of ``datasets`` declares.

    Args:
        path: the file.
        columns: names of its columns.
        names: columns of a CSV or TSV file without a header.

    Raises:
        CorpusError: the file cannot be read.
    """
    rows, places = read_table(path, columns.text, names)
    if path.suffix.lower() == ".parquet" and columns.labels in rows:
        features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
        name_ids(rows, columns.labels, declared_labels(features, columns.labels))
    return Table(str(path), rows, places)


def declared_labels(features: datasets.Features, label_column: str) -> list[str] | None:
    """Label names of a ``ClassLabel`` column, single or in a list."""
    feature: Any = features.get(label_column)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def name_ids(rows: pd.DataFrame, column: str, names: Sequence[str] | None) -> None:
    """Put names in place of the ids that a dataset declares."""
    if names is not None:
        rows[column] = [
            # Datasets write -1 for an unknown label; it must not become the last one.
            None if cell is None else [names[i] if 0 <= i < len(names) else str(i) for i in np.atleast_1d(cell)]
            for cell in rows[column]
        ]


def table_rows(
    tables: Mapping[str, Table], labels: LabelSet, columns: Columns, reading: LabelReading
) -> dict[str, list[RawRow]]:
    """Rows of tables whose labels are written in the same way; all their errors come at once.

    A table without a column of labels must have a 0/1 column for each label.

    Raises:
        CorpusError: a column is missing, a cell cannot be read, or a text is not one.
    """
    refuse(problem for table in tables.values() for problem in _missing_columns(table, labels, columns))
    problems: list[str] = []
    listed = [table for table in tables.values() if columns.labels in table.rows]
    cells = [cell for table in listed for cell in table.rows[columns.labels]]
    places = [f"{place}, column {columns.labels!r}" for table in listed for place in table.places]
    found = iter(read_label_cells(cells, places, labels, reading, problems) if listed else [])
    result = {}
    for split, (_, rows, row_places) in tables.items():
        ids = [str(value) for value in (rows[columns.id] if columns.id else range(len(rows)))]
        if columns.id:
            problems += _missing_ids(rows[columns.id], row_places, columns.id)
        if columns.labels in rows:
            named = [next(found) for _ in row_places]
            problems += _contradictions(tables[split], named, labels, columns)
        else:
            values = rows[list(labels.names)].itertuples(index=False)
            named = [
                one_hot_labels(row, labels.names, place, problems)
                for row, place in zip(values, row_places, strict=True)
            ]
        parts = zip(row_places, ids, rows[columns.text].tolist(), named, strict=True)
        result[split] = [RawRow(*part, columns) for part in parts]
    refuse([*problems, *(problem for rows in result.values() for problem in bad_texts(rows))])
    for split, rows in result.items():
        for row in rows:
            if _has_swallowed_rows(row.text, len(tables[split].rows.columns), labels):
                logger.warning("%s: %r: an unclosed quote swallows rows", row.place, row.text[:80])
    return result


def _missing_ids(ids: Sequence[Any], places: Sequence[str], column: str) -> Iterator[str]:
    for value, place in zip(ids, places, strict=True):
        if value is None or value != value or not str(value).strip():
            yield f"{place}, column {column!r}: the id is {value!r}. Remedy: fill it in, or leave out --id_column"


def _missing_columns(table: Table, labels: LabelSet, columns: Columns) -> Iterator[str]:
    there = [str(name) for name in table.rows.columns]
    wanted = {"--text_column": columns.text, "--id_column": columns.id, "--label_column": columns.labels}
    missing = {flag: name for flag, name in wanted.items() if name is not None and name not in there}
    own = [name for name in labels.names if name not in there]
    if not own and labels.names:
        missing.pop("--label_column", None)
    label = next((name for name in there if _has_labels(table.rows[name], name, labels)), None)
    if label is not None and missing.keys() >= {"--text_column", "--label_column"}:
        yield (
            f"{table.source}: the first line is a row with the label {label!r}, not the names of columns, which are "
            f"missing. Remedy: write a first line with {columns.text} and {columns.labels}"
        )
        return
    for flag, name in missing.items():
        close = difflib.get_close_matches(name, there, n=1)
        hint = f" Did you mean {quote_names(close)}?" if close else ""
        remedy = f"set {flag} to one of these"
        if flag == "--label_column":
            some = f"; {quote_names(own)} would be missing" if len(own) < len(labels.names) else ""
            remedy += f", or, in training, --labels to the names of 0/1 columns, one per label{some}"
        yield f"{table.source}: no column {quote_names([name])}, only {quote_names(there)}.{hint} Remedy: {remedy}"


def _has_labels(cells: Iterable[Any], name: str, labels: LabelSet) -> bool:
    """Is the name of a column a label, as its cells are? Then it is the first of them."""
    return labels.find(name) is not None and any(labels.find(cell) is not None for cell in cells)


def _contradictions(table: Table, found: Sequence[Sequence[str]], labels: LabelSet, columns: Columns) -> Iterator[str]:
    """Rows whose labels differ from their 0/1 columns, if there is one for each label: either may be meant."""
    names = [name for name in labels.names if name in table.rows and name not in columns]
    if not names or len(names) < len(labels.names):
        return
    values = table.rows[names].itertuples(index=False)
    for place, row, listed in zip(table.places, values, found, strict=True):
        problems: list[str] = []
        marked = one_hot_labels(row, names, place, problems)
        if problems:
            return  # these columns are something else
        if set(marked) != set(listed) & set(names):
            yield (
                f"{place}: the labels are {quote_names(listed) or 'none'} in column {columns.labels!r}, and "
                f"{quote_names(marked) or 'none'} in the 0/1 columns. Remedy: delete what is wrong"
            )


def _has_swallowed_rows(text: str, width: int, labels: LabelSet) -> bool:
    """Does a text of several lines look like rows, each with a label? Then a quote before it was not closed."""
    lines = text.split("\n")[:-1]
    rows = [row for separator in ",;\t|" for row in [[line.strip().split(separator) for line in lines]]]
    return bool(lines) and any(
        all(len(cells) == width and any(labels.find(c) or c.strip() in labels.ids for c in cells) for cells in row)
        for row in rows
    )
