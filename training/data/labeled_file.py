"""A labeled file, read for a model: rows with named labels."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling.rows.label_cells import LabelReading, LabelSet, is_zero_or_one
from modeling.rows.reading import Columns, Table, read_file, table_rows
from modeling.rows.tables import normal_name
from training.data.label_mapping import LabelMapping
from training.data.reading import read_goemotions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class LabeledRow:
    """A text and its labels: names, sorted, each once."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class FileOptions:
    """How a labeled file is read.

    Attributes:
        text_column: column of the texts.
        label_column: column with the labels; without it, one 0/1 column per label.
        ignored_columns: columns that are not labels, although they have zeros and ones.
        reading: how the cells of ``label_column`` are read.
        dataset: ``files``, or ``goemotions`` for its own TSV files.
    """

    text_column: str = "text"
    label_column: str = "labels"
    ignored_columns: Sequence[str] = ()
    reading: LabelReading = LabelReading()
    dataset: str = "files"


def read_labeled_file(
    path: Path, mapping: LabelMapping | None, model_labels: Sequence[str], options: FileOptions
) -> list[LabeledRow]:
    """The rows of a file, sorted, so that their order in the file does not change any digit of a score or an interval.

    Raises:
        CorpusError: bad data.
    """
    if options.dataset == "goemotions":
        rows = read_goemotions(path)
    else:
        names = mapping.columns if mapping else ()
        columns = Columns(normal_name(options.text_column), normal_name(options.label_column))
        table = read_file(path, columns, names)
        if columns.labels in table.rows:
            labels = _label_set(mapping, model_labels)
            table = table._replace(rows=table.rows.drop(columns=list(options.ignored_columns), errors="ignore"))
        else:
            labels = LabelSet(tuple(_label_columns(table, mapping, model_labels, options)))
        rows = table_rows({"file": table}, labels, columns, options.reading)["file"]
    return sorted(LabeledRow(row.text, tuple(sorted(set(row.labels)))) for row in rows)


def _label_set(mapping: LabelMapping | None, model_labels: Sequence[str]) -> LabelSet:
    """The labels that a file may have; others are counted as not mapped, except in a file of declared ids."""
    if mapping is None:
        return LabelSet(tuple(model_labels), is_closed=False)
    return LabelSet(tuple(model_labels), frozenset(mapping.names()), mapping.ids, is_closed=False)


def _label_columns(
    table: Table, mapping: LabelMapping | None, model_labels: Sequence[str], options: FileOptions
) -> list[str]:
    """Columns of known labels and, if there are any, all other columns of 0 and 1: an unknown label is a label too.

    A column of other values is not a label. The log names the columns of both kinds.
    """
    known = {*model_labels, *(mapping.names() if mapping else ())}
    not_labels = {normal_name(name) for name in (options.text_column, *options.ignored_columns)}
    candidates = [name for name in table.rows if name not in not_labels]
    if not known & set(candidates):
        return []
    taken = [name for name in candidates if name in known or _has_zeros_and_ones(table.rows[name])]
    left = [name for name in table.rows if name not in taken and name != normal_name(options.text_column)]
    logger.info("%s: columns taken as labels: %s", table.source, ", ".join(taken))
    if left:
        logger.info("%s: columns not taken as labels: %s", table.source, ", ".join(left))
    return taken


def _has_zeros_and_ones(values: Collection[object]) -> bool:
    present = [value for value in values if str(value) not in ("", "nan", "None")]
    return bool(present) and all(map(is_zero_or_one, present))
