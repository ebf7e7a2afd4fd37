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
        folder: all of whose files are read; None if it was named alone.
    """

    path: Path
    name: str
    suffix: str
    folder: Path | None = None


@dataclass
class Part:
    """Some rows of a file that follow each other.

    Attributes:
        source: the file.
        number: of the part in its file, from 0.
        text_column: the column of the texts.
        rows: those that can be scored.
        bad: the others: each with its place and what is wrong with it.
        without_column: those of these that have no column of texts.
    """

    source: Source
    number: int
    text_column: str
    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    without_column: list[Row] = field(default_factory=list)

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
                found.append(Source(file, name.as_posix(), split_suffix(file)[0], path))
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

    A file whose content breaks in the middle does not end the run: the part in which it breaks says so. What is wrong
    with the first file from its beginning is wrong with the command.

    Raises:
        TableError: the first file cannot be read at all, or has no column of texts; or a disk fails, after which a run
            can go on.
    """
    for index, source in enumerate(sources):
        try:
            for part in _parts_of(source, text_column, rows_per_part):
                if part.number == 0 and not part.rows and "json" in source.suffix and index == 0:
                    _refuse_missing(part)
                yield part
        except TableError as error:
            if index == 0 or isinstance(error, BrokenDiskError):
                raise
            yield Part(source, 0, text_column, bad=[(source.name, str(error))])


class BrokenDiskError(TableError):
    """A file cannot be read now, and perhaps can later."""


def _parts_of(source: Source, text_column: str, rows_per_part: int) -> Iterator[Part]:
    rows = _rows(source, text_column)
    first = next(rows)
    column, is_json = find_column(first.values, text_column), "json" in source.suffix
    if not is_json and not first.problem and column not in first.values:
        raise _missing_column(first, text_column)
    rows, broken = itertools.chain([first], rows), False
    for number in itertools.count():
        part = Part(source, number, column)
        try:
            for row in itertools.islice(rows, rows_per_part):
                _add(part, row)
        except TableError as error:
            cause = error.__context__
            if isinstance(cause, OSError) and cause.errno is not None:
                raise BrokenDiskError(str(error)) from None
            part.bad.append((source.name, str(error)))
            broken = True
        if part.rows or part.bad:
            yield part
        if broken or not (part.rows or part.bad):
            return


def _missing_column(row: Row, text_column: str) -> TableError:
    return TableError(
        f"{row.place} has no column {text_column!r}, only {quote_names(row.values)}. Remedy: name the column with the "
        "texts in --text_column"
    )


def _refuse_missing(part: Part) -> None:
    """No object of the first part has the column: the command names a wrong one."""
    if part.without_column and len(part.without_column) == len(part.bad):
        raise _missing_column(part.without_column[0], part.text_column)


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
        if part.text_column not in row.values:
            part.without_column.append(row)
    else:
        part.rows.append(row)
