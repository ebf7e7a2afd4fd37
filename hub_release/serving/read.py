"""The rows to score: files in the order of their names, cut into parts; rows that cannot be scored, with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_release.package import ReleaseError
from modeling.infer import ROW_SUFFIXES, TEXT_SUFFIX, Row, TableError, find_column, quote_names, read_rows, split_suffix

STANDARD = "-"
"""The standard input or output."""


@dataclass(frozen=True)
class Source:
    """A file of rows.

    Attributes:
        path: the file.
        name: how parts and messages call it.
        suffix: its format, such as ``.csv``.
    """

    path: Path
    name: str
    suffix: str


@dataclass
class Part:
    """Some rows of a file that follow each other.

    Attributes:
        source: the file.
        number: of the part in its file, from 0.
        text_column: the column of the texts.
        rows: those that can be scored.
        bad: the others: each with its place and what is wrong with it.
    """

    source: Source
    number: int
    text_column: str
    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The texts of the rows."""
        return [row.values[self.text_column] for row in self.rows]


def find_sources(given: str, input_format: str = "") -> list[Source]:
    """The files of rows that a path names: itself, or all in a folder; hidden ones and those that begin with ``_`` are left out.

    Args:
        given: a file, a folder, or ``-`` for the standard input.
        input_format: the standard input's, such as ``csv``.

    Raises:
        ReleaseError: there are none, or the standard input's format is missing or cannot be read from there.
    """
    if given == STANDARD:
        suffix = f".{input_format or 'jsonl'}"
        if suffix == ".parquet" or suffix not in (*ROW_SUFFIXES, TEXT_SUFFIX):
            raise ReleaseError(
                f"the standard input cannot be read as {suffix}. Remedy: give --input_format csv, tsv, jsonl or txt, or "
                "a file"
            )
        return [Source(Path("/dev/stdin"), "standard input", suffix)]
    path = Path(given)
    if not path.is_dir():
        return [Source(path, path.name, split_suffix(path)[0])]
    found = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith((".", "_")) for part in name.parts):
            try:
                found.append(Source(file, name.as_posix(), split_suffix(file)[0]))
            except TableError:
                continue  # another kind of file
    if not found:
        raise ReleaseError(
            f"{path} has no file of rows ({', '.join((*ROW_SUFFIXES, TEXT_SUFFIX))}). Remedy: name another folder, or a "
            "file"
        )
    return found


def read_parts(sources: Sequence[Source], text_column: str, rows_per_part: int) -> Iterator[Part]:
    """The rows of all files, in parts.

    A file that cannot be read to its end does not end the run: the part in which it breaks says so. What is wrong with
    the very first row is wrong with the command.

    Raises:
        TableError: the first file cannot be read at all, or has no column of texts.
    """
    for index, source in enumerate(sources):
        rows = _rows(source, text_column)
        try:
            first = next(rows)
            if not first.problem and find_column(first.values, text_column) not in first.values:
                raise TableError(
                    f"{first.place} has no column {text_column!r}, only {quote_names(first.values)}. Remedy: name the "
                    "column with the texts in --text_column"
                )
        except TableError as error:
            if index == 0:
                raise
            yield Part(source, 0, text_column, bad=[(source.name, str(error))])
            continue
        column, rows = find_column(first.values, text_column), itertools.chain([first], rows)
        for number in itertools.count():
            part = Part(source, number, column)
            try:
                for row in itertools.islice(rows, rows_per_part):
                    _add(part, row)
            except TableError as error:
                part.bad.append((source.name, str(error)))
            if not part.rows and not part.bad:
                break
            yield part


def _rows(source: Source, text_column: str) -> Iterator[Row]:
    rows = read_rows(source.path, text_column, suffix=source.suffix)
    return (Row(row.place, _whole(row.values), row.problem) for row in rows) if "json" in source.suffix else rows


def _whole(value: Any) -> Any:
    """Half an emoji, legal in JSON alone, becomes a question mark, as the classifier reads it."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_whole(name): _whole(part) for name, part in value.items()}
    return [_whole(part) for part in value] if isinstance(value, list) else value


def _add(part: Part, row: Row) -> None:
    text: Any = row.values.get(part.text_column)
    if row.problem:
        part.bad.append((row.place, row.problem))
    elif not isinstance(text, str):
        found = f"is {text!r:.80}, not a text" if part.text_column in row.values else "is missing"
        part.bad.append((row.place, f"column {part.text_column!r} {found}. Remedy: write a string"))
    else:
        part.rows.append(row)
