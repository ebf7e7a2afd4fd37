"""Copies between two files: ``training/run.py audit FILE_A FILE_B``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling.infer import quote_names
from modeling.rows.label_cells import LabelReading, LabelSet, read_label_cells
from modeling.rows.tables import CorpusError, read_table, refuse
from training.data.copies import KINDS, Copy, find_copies, summarize
from training.data.reading import read_goemotions


@dataclass(frozen=True)
class _File:
    """Rows of one file: their places, texts, and labels if the file has any."""

    path: Path
    places: list[str]
    texts: list[str]
    labels: list[set[str]] | None


def audit_files(paths: Sequence[str], text_column: str, label_column: str | None, dataset: str, examples: int) -> int:
    """Compare two files and print the report. Returns the exit code: 0 no copies, 1 copies.

    Args:
        paths: rows to look for, and rows to look in.
        text_column: column of the texts.
        label_column: column of the labels; None takes ``labels`` if a file has it.
        dataset: ``files``, or ``goemotions`` for its own TSV files.
        examples: how many copies to show.

    Raises:
        CorpusError: bad data.
    """
    first, second = (_read_file(Path(path), text_column, label_column, dataset) for path in paths)
    copies = find_copies(first.texts, second.texts)
    sys.stdout.write("\n".join(_lines(first, second, copies, examples)) + "\n")
    return 1 if copies else 0


def _read_file(path: Path, text_column: str, label_column: str | None, dataset: str) -> _File:
    if dataset == "goemotions":
        rows = read_goemotions(path)
        return _File(path, [r.place for r in rows], [r.text for r in rows], [set(map(str, r.labels)) for r in rows])
    table, places = read_table(path, text_column)
    for column in (text_column, label_column):
        if column is not None and column not in table.columns:
            raise CorpusError(
                f"{path}: no column {column!r}, only {quote_names(table.columns)}. Remedy: set --text_column "
                "or --label_column; for the TSV files of GoEmotions, use --dataset goemotions"
            )
    texts, problems = table[text_column].tolist(), []
    for place, text in zip(places, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            problems.append(
                f"{place}, column {text_column!r}: the text is {text!r}. Remedy: delete the row or fill it in"
            )
    column = label_column or "labels"
    labels = None
    if column in table.columns:
        cells = [f"{place}, column {column!r}" for place in places]
        any_label = LabelSet((), is_closed=False)
        labels = read_label_cells(table[column].tolist(), cells, any_label, LabelReading(), problems)
    refuse(problems)
    return _File(path, places, texts, None if labels is None else [set(names) for names in labels])


def _lines(first: _File, second: _File, copies: Sequence[Copy], examples: int) -> list[str]:
    """The report on two files."""
    lines = [f"{first.path}: {summarize(copies, len(first.texts))} in {second.path}"]
    labels, others = first.labels, second.labels
    if labels is None or others is None:
        lines.append("labels: not compared, because a file has no column of labels (--label_column)")
    else:
        differ = sum(labels[copy.row] != others[copy.reference_row] for copy in copies)
        lines.append(f"labels: {differ:,} of {len(copies):,} copies have different labels in {second.path}")
        counts = Counter(label for copy in copies for label in labels[copy.row])
        if counts:
            lines.append(
                "  labels of the copies: " + ", ".join(f"{name} {count}" for name, count in counts.most_common())
            )
        names, other_names = set[str]().union(*labels), set[str]().union(*others)
        for alone, path in ((names - other_names, second.path), (other_names - names, first.path)):
            if alone:
                lines.append(f"  no row of {path} has: {', '.join(sorted(alone))}")
    for copy in sorted(copies, key=lambda copy: -len(first.texts[copy.row]))[: max(examples, 0)]:
        lines.append(f"\n{KINDS[copy.kind]}, similarity {copy.similarity:.2f}")
        for file, row in ((first, copy.row), (second, copy.reference_row)):
            named = f" [{', '.join(sorted(file.labels[row]))}]" if file.labels else ""
            lines.append(f"  {file.places[row]}{named}\n    {file.texts[row]!r}")
    return lines
