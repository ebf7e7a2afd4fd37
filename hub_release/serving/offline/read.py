"""The rows to score: files in the order of their names, cut into parts; rows that cannot be scored, with the reason."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from hub_release.package import ReleaseError
from hub_release.serving.offline.places import Place, find_place
from modeling.infer import ROW_SUFFIXES, TEXT_SUFFIX, Row, TableError, find_column, quote_names, read_rows, split_name
from modeling.infer.stops import describe_stop

STANDARD, STANDARD_INPUT = "-", "standard input"
"""The standard input or output; and how messages call the first."""


@dataclass(frozen=True)
class Source:
    """A file of rows.

    Attributes:
        place: the file.
        number: its position among the files, from 0.
        name: how parts and messages call it.
        suffix: its format, such as ``.csv``.
        folder: all of whose files are read; None if it was named alone.
    """

    place: Place
    number: int
    name: str
    suffix: str
    folder: Place | None = None


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
        schema: of a Parquet file.
    """

    source: Source
    number: int
    text_column: str
    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    without_column: list[Row] = field(default_factory=list)
    schema: pa.Schema | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of the rows."""
        return [row.values[self.text_column] for row in self.rows]


def find_sources(given: str, input_format: str = "") -> list[Source]:
    """The files of rows that are named: one, or all in a folder; hidden ones and those that begin with ``_`` are left out.

    Args:
        given: a file or a folder, as a path or a URI, or ``-`` for the standard input.
        input_format: the standard input's, such as ``csv``.

    Raises:
        ReleaseError: there are none, or the standard input's format is missing or cannot be read from there.
        TableError: a file that is not there, or has an unknown suffix.
    """
    if given == STANDARD:
        suffix = f".{input_format or 'jsonl'}"
        if suffix == ".parquet" or suffix not in (*ROW_SUFFIXES, TEXT_SUFFIX):
            raise ReleaseError(
                f"the standard input cannot be read as {suffix}. Remedy: give --input_format csv, tsv, jsonl or txt, or "
                "a file"
            )
        return [Source(Place(Path("/dev/stdin")), 0, STANDARD_INPUT, suffix)]
    place = find_place(given)
    if not place.exists():
        raise TableError(f"{place}: no such file or folder. Remedy: correct the path")
    if not place.is_folder():
        return [Source(place, 0, place.path.name, split_name(place.path)[0])]
    found: list[Source] = []
    for file in place.files():
        name = file.path.relative_to(place.path)
        if not any(part.startswith((".", "_")) for part in name.parts):
            with contextlib.suppress(TableError):  # another kind of file
                found.append(Source(file, len(found), name.as_posix(), split_name(file.path)[0], place))
    if not found:
        raise ReleaseError(
            f"{place} has no file of rows ({', '.join((*ROW_SUFFIXES, TEXT_SUFFIX))}). Remedy: name another folder, or a "
            "file"
        )
    return found


def read_parts(sources: Sequence[Source], text_column: str, rows_per_part: int) -> Generator[Part, None, None]:
    """The rows of all files, in parts.

    A file whose content breaks in the middle does not end the run: the part in which it breaks says so. What is wrong
    with the first file from its beginning is wrong with the command.

    Raises:
        TableError: the first file cannot be read at all, or has no column of texts; or a disk fails, after which a run
            can go on.
    """
    for source in sources:
        try:
            for part in _parts_of(source, text_column, rows_per_part):
                if part.number == 0 and not part.rows and "json" in source.suffix and source.number == 0:
                    _refuse_missing(part)
                yield part
        except TableError as error:
            if source.number and _is_of_the_disk(error):
                raise BrokenDiskError(str(error)) from None
            if source.number == 0 or isinstance(error, BrokenDiskError):
                raise
            yield Part(source, 0, text_column, bad=[(source.name, str(error))])


class BrokenDiskError(TableError):
    """A file cannot be read now, and perhaps can later."""


def _parts_of(source: Source, text_column: str, rows_per_part: int) -> Iterator[Part]:
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(source.place.copy())
            if source.name != STANDARD_INPUT:
                path.open("rb").close()
        except (pa.ArrowException, OSError) as error:
            if describe_stop(error):  # a full disk
                raise
            raise BrokenDiskError(
                f"{source.name} cannot be read ({error!s:.200}). Remedy: check the file and its file system; all "
                "machines of a cluster must see it"
            ) from None
        try:
            schema = pyarrow.parquet.read_schema(path) if source.suffix == ".parquet" else None
        except (pa.ArrowException, OSError):
            schema = None  # the reader says what is wrong
        try:
            for part in _cut(source, _rows(source, path, text_column), text_column, rows_per_part):
                part.schema = schema
                part.bad = [(_named(place, path, source), _named(problem, path, source)) for place, problem in part.bad]
                yield part
        except TableError as error:
            raise type(error)(_named(str(error), path, source)) from error


def _named(message: str, path: Path, source: Source) -> str:
    """A message that calls a file as the input does, wherever it or its copy lies."""
    return message.replace(str(path), source.name)


def _cut(source: Source, rows: Iterator[Row], text_column: str, rows_per_part: int) -> Iterator[Part]:
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
            if _is_of_the_disk(error):
                raise BrokenDiskError(str(error)) from None
            part.bad.append((source.name, str(error)))
            broken = True
        if part.rows or part.bad:
            yield part
        if broken or not (part.rows or part.bad):
            return


def _is_of_the_disk(error: BaseException) -> bool:
    """Is it, or was its cause, an error of the file system?"""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _missing_column(row: Row, text_column: str) -> TableError:
    return TableError(
        f"{row.place} has no column {text_column!r}, only {quote_names(row.values)}. Remedy: name the column with the "
        "texts in --text_column"
    )


def _refuse_missing(part: Part) -> None:
    """No object of the first part has the column: the command names a wrong one."""
    if part.without_column and len(part.without_column) == len(part.bad):
        raise _missing_column(part.without_column[0], part.text_column)


def _rows(source: Source, path: Path, text_column: str) -> Iterator[Row]:
    rows = read_rows(path, text_column, suffix=source.suffix)
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
