"""CSV and TSV files: which separator they have, and their cells row by row."""

import csv
import itertools
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from modeling.infer.errors import TableError

logger = logging.getLogger(__name__)

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def separated_rows(
    path: Path, suffix: str, file: IO[str], text_column: str, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str], str]]:
    """Line, cells by column, and problem (empty if there is none) of each row; see :func:`read_rows` of ``tables``."""
    # The limit holds for the whole process; a text may be long.
    csv.field_size_limit(sys.maxsize)
    before, first = _first_line(path, suffix, file)
    if match := re.fullmatch(r"sep=([,;\t|])\s*", first):  # Excel's own mark
        before, delimiter, first = before + 1, match[1], file.readline()
    else:
        delimiter = _find_delimiter(path, suffix, first, text_column)
    if not first:
        return
    lines = itertools.chain([first], file)
    tabs = suffix == ".tsv" and delimiter == "\t"
    rows = _tsv_rows(path, lines, before, len(columns)) if tabs else _csv_rows(path, lines, before, delimiter)
    number, header = next(rows, (1, []))
    if columns and text_column not in header:
        logger.info("%s: no header with %r, so its columns are %s", path, text_column, ", ".join(columns))
        rows, header = itertools.chain([(number, header)] if header else [], rows), list(columns)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TableError(f"{path}, line {number}: column {twice[0]!r} appears twice. Remedy: rename one")
    empty = True
    for number, cells in rows:
        empty, problem = False, ""
        if len(cells) != len(header):
            problem = (
                f"{len(cells)} cells for the {len(header)} columns {quote_names(header)}: {cells!r:.80}. Remedy: "
                f"{_complete(cells, header, _DELIMITERS[delimiter])}"
            )
        yield number, dict(zip(header, cells, strict=False)), problem
    if header and empty:
        raise TableError(f"{path}, line 1: no rows, only the columns {quote_names(header)}. Remedy: add rows")


def _complete(cells: list[str], header: list[str], separator: str) -> str:
    """What to do about a row of another width than the header."""
    if len(cells) > len(header):
        return f"quote cells that contain the separator ({separator})"
    if len(cells) == len(header) - 1 and not header[-1].strip():
        return f"delete the separator at the end of the columns' line ({separator})"
    return f"write all cells of the row ({separator} separate them), and quote a cell that contains a line break"


def _first_line(path: Path, suffix: str, file: IO[str]) -> tuple[int, str]:
    """How many blank lines come first, and the line after them ("" if there is none).

    Raises:
        TableError: what separates its characters or its lines is not what this reader takes for one.
    """
    before, first = next(((n, line) for n, line in enumerate(file) if line.strip("\r\n")), (0, ""))
    place = f"{path}, line {before + 1}"
    refuse_nul(place, first)
    if suffix == ".tsv" and "\r" in first.rstrip("\r\n"):
        raise TableError(
            f"{place}: {first!r:.80} has carriage returns, but only newlines end the lines of a TSV file. Remedy: save "
            "it with newlines"
        )
    return before, first


def refuse_nul(place: str, first: str) -> None:
    """Refuse a first line that UTF-16 without its mark seems to have; plain English in it is UTF-8 too.

    Raises:
        TableError: it has NUL characters.
    """
    if "\0" in first:
        raise TableError(
            f"{place}: {first!r:.80} has NUL characters, as UTF-16 without its mark has. Remedy: save it as UTF-8"
        )


def _find_delimiter(path: Path, suffix: str, first: str, text_column: str) -> str:
    """The separator that the first line shows.

    It is the usual one of the suffix if that gives the column of texts; then another one that gives it; then, if the
    line has no usual one, the most frequent other one.
    """
    usual = "\t" if suffix == ".tsv" else ","
    found = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in [usual, *_DELIMITERS]}
    chosen = next((delimiter for delimiter, names in found.items() if text_column in names), usual)
    if chosen == usual and text_column not in found[usual] and len(found[usual]) == 1:
        chosen = max(found, key=lambda delimiter: len(found[delimiter]))
    if chosen != usual:
        logger.info("%s: the first line is separated by %s", path, _DELIMITERS[chosen])
    return chosen


_TSV_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|\Z)|([^\t]*)')


def _tsv_cells(line: str) -> list[str]:
    """The cells of a TSV line; a quoted cell loses its quotes, and two quotes inside it become one."""
    cells, end = [], -1
    while end < len(line):
        match = _TSV_CELL.match(line, end + 1)
        assert match is not None  # it matches an empty cell too
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        end = match.end()
    return cells


def _tsv_rows(path: Path, lines: Iterator[str], number: int, width: int) -> Iterator[tuple[int, list[str]]]:
    """Number of its first line and cells of each row, after ``number`` other lines."""
    warned = False
    for line in lines:
        number += 1
        if not line.rstrip("\r\n"):
            continue
        start, cells = number, _tsv_cells(line.rstrip("\r\n"))
        width = width or len(cells)
        if len(cells) < width and any(cell.startswith('"') for cell in cells):
            reader = csv.reader(itertools.chain([line], lines), delimiter="\t", strict=True)
            try:
                cells = next(reader)
            except csv.Error as error:
                raise _quotes_error(f"{path}, line {number}", error, line.rstrip("\r\n")) from None
            number += reader.line_num - 1
        elif not warned and any(cell.startswith('"') for cell in cells):
            warned = True
            logger.warning(
                "%s, line %d: an open quote is read as a sign of the text, not as a cell of lines", path, start
            )
        yield start, cells


def _csv_rows(path: Path, lines: Iterator[str], before: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number of its first line and cells of each row, after ``before`` other lines."""
    kept: list[str] = []

    def record() -> Iterator[str]:
        for line in lines:
            kept.append(line)
            yield line

    reader = csv.reader(record(), delimiter=delimiter, strict=True)
    while True:
        start = before + reader.line_num + 1
        kept.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            text = "".join(kept)
            column, place = _broken_cell(text, delimiter)
            line = start + text.count("\n", 0, place)
            raise _quotes_error(f"{path}, line {line}, column {column}", error, text[place:]) from None
        if cells is None:
            return
        if cells:
            yield start, cells


def _quotes_error(place: str, error: Exception, text: str) -> TableError:
    return TableError(
        f"{place}: {error}, from {text!r:.80} on. Remedy: close the quotes, and double any quote inside them"
    )


def _broken_cell(text: str, delimiter: str) -> tuple[int, int]:
    """Number and start of the first cell of a row whose quotes do not close at its end."""
    cell = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|[^"{re.escape(delimiter)}\r\n][^{re.escape(delimiter)}\r\n]*|)')
    start, column = 0, 1
    while (match := cell.match(text, start)) and text[match.end() : match.end() + 1] == delimiter:
        start, column = match.end() + 1, column + 1
    return column, start


def quote_names(names: Iterable[Any]) -> str:
    """Names in quotes; signs that cannot be seen are written as escapes."""
    return ", ".join(map(repr, names))
