"""A labeled file, read for a model: rows with named labels."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from training.data.label_mapping import LabelMapping
from training.data.reading import (
    Columns,
    RawRow,
    label_text,
    out_of_range,
    read_goemotions,
    refuse_bad_texts,
    table_rows,
)
from training.data.tables import CorpusError, read_table, tsv_cells

logger = logging.getLogger(__name__)

_ZERO_OR_ONE = {"0", "1", "0.0", "1.0", "True", "False"}


@dataclass(frozen=True, order=True)
class LabeledRow:
    """A text and its labels: names, sorted, each once."""

    text: str
    labels: tuple[str, ...]


def read_rows(
    path: Path,
    mapping: LabelMapping | None,
    model_labels: Sequence[str],
    text_column: str,
    label_column: str,
    dataset: str = "files",
) -> list[LabeledRow]:
    """The rows of a file, sorted, so that their order in the file does not change any digit of a score or an interval.

    Raises:
        CorpusError: bad data.
    """
    if dataset == "goemotions":
        goemotions = read_goemotions(path)
        return sorted(LabeledRow(row.text, tuple(sorted(map(str, row.labels)))) for row in goemotions)
    columns: tuple[str, ...] = ()
    if mapping is not None and mapping.columns and not _has_header(path, text_column):
        columns = mapping.columns
        logger.info("%s has no header with %r: its columns are %s", path, text_column, ", ".join(columns))
    table, places = read_table(path, columns)
    own = None if label_column in table.columns else _label_columns(path, table, mapping, model_labels, text_column)
    raw = table_rows(str(path), table, places, own or None, Columns(text_column, label_column))
    refuse_bad_texts(raw)
    long = [row for row in raw if "\n" in row.text]
    if long:
        longest = max(long, key=lambda row: row.text.count("\n"))
        logger.warning(
            "%d texts span several lines; the longest, %s, spans %d: an unclosed quote swallows rows",
            *(len(long), longest.place, longest.text.count("\n") + 1),
        )
    return sorted(LabeledRow(row.text, _names(row, mapping, model_labels, ids_only=bool(columns))) for row in raw)


def _label_columns(
    path: Path, table: pd.DataFrame, mapping: LabelMapping | None, model_labels: Sequence[str], text_column: str
) -> list[str]:
    """Columns of known labels and, if there are any, all other columns of 0 and 1: an unknown label is a label too.

    A column of other values is not a label; the log names it.
    """
    known = {*model_labels, *(mapping.names() if mapping else ())} & set(table.columns)
    if not known:
        return []
    taken: list[str] = []
    left: list[str] = []
    for column in table.columns.drop(text_column, errors="ignore"):
        values = {str(value) for value in table[column]} - {"", "nan", "None"}
        (taken if column in known or (values and values <= _ZERO_OR_ONE) else left).append(column)
    if left:
        logger.info("%s: not a label, because its values are not 0 and 1: column %s", path, ", ".join(map(str, left)))
    return taken


def _has_header(path: Path, text_column: str) -> bool:
    if path.suffix not in (".csv", ".tsv"):
        return True
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().rstrip("\r\n")
    return text_column in (tsv_cells(first) if path.suffix == ".tsv" else next(csv.reader([first]), []))


def _model_label(name: str, model_labels: Sequence[str], row: RawRow) -> str:
    """A label as is; an id becomes the model's label at that index, as in training."""
    if name in model_labels or not name.lstrip("-").isdigit():
        return name
    if not 0 <= int(name) < len(model_labels):
        raise CorpusError(out_of_range(f"{row.place}, column {row.columns.labels!r}", name, len(model_labels)))
    return model_labels[int(name)]


def _names(row: RawRow, mapping: LabelMapping | None, model_labels: Sequence[str], ids_only: bool) -> tuple[str, ...]:
    names = {label_text(label) for label in row.labels}
    if mapping is None:
        return tuple(sorted({_model_label(name, model_labels, row) for name in names}))
    if not mapping.ids:
        return tuple(sorted(names))
    for name in names - set(mapping.ids):
        if ids_only or (name.lstrip("-").isdigit() and name not in mapping.names()):
            raise CorpusError(
                f"{row.place}: label {name!r} is not one of the ids {', '.join(mapping.ids)}. Remedy: correct it, or "
                f"add it to ids in {mapping.source}"
            )
    return tuple(sorted({mapping.ids.get(name, name) for name in names}))
