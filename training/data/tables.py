"""Files as tables: CSV, TSV, JSONL and Parquet, and the place of each row."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from training.errors import TrainingError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_QUOTES = "close the quotes, and double any quote inside them"


class CorpusError(TrainingError, ValueError):
    """Bad input data; the message names the place and the remedy."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        CorpusError: it is not UTF-8; the message says how to convert it.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        start = content.rfind(b"\n", 0, error.start) + 1
        text = "a UTF-16 file" if wide else repr(content[start:].partition(b"\n")[0].decode("utf-8", "replace"))
        raise CorpusError(
            f"{path}, line {content.count(10, 0, start) + 1}: byte {error.start} is not UTF-8: {text:.80}. Remedy: run "
            f"iconv -f {'UTF-16' if wide else 'WINDOWS-1252'} -t UTF-8 {path.name} > fixed"
        ) from None


def read_table(path: Path, columns: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """A CSV, TSV, JSONL or Parquet file, and the place of each row.

    A quoted cell may span several lines. In a TSV file a line with all its cells is a row, whatever its quotes: an
    unclosed quote there is an ordinary character and swallows no other row.

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
            raise CorpusError(
                f"{path}: cannot be read as Parquet ({error}). Remedy: write it again, or give CSV, TSV or JSONL"
            ) from None
        content, unit = ", ".join(map(str, table.columns)), "row"
    else:
        content, unit = read_text(path).strip(), "line"
        rows = dict(_json_rows(path) if path.suffix == ".jsonl" else _separated_rows(path, columns))
        # No type inference: an id such as 007, or a text such as "NA", must not change.
        table = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)
    if table.empty:
        found = f"no rows, only the columns {content!r:.80}" if content else "the file is empty"
        raise CorpusError(f"{path}, {unit} 1: {found}. Remedy: add rows with a text and its labels")
    return table, [f"{path}, {unit} {number}" for number in table.index]


def _separated_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a CSV or TSV file; no cell may be missing or left over."""
    header = list(columns)
    for line, cells in _tsv_rows(path, len(columns)) if path.suffix == ".tsv" else _csv_rows(path):
        if not header:
            header = cells
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise CorpusError(f"{path}, line {line}: column {twice[0]!r} appears twice. Remedy: rename one")
        elif len(cells) != len(header):
            raise CorpusError(
                f"{path}, line {line}: {len(cells)} cells for the {len(header)} columns {', '.join(header)}: "
                f"{cells!r:.80}. Remedy: quote cells that contain the separator or a line break"
            )
        else:
            yield line, dict(zip(header, cells, strict=True))


_TSV_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|\Z)|([^\t]*)')


def tsv_cells(line: str) -> list[str]:
    """The cells of a TSV line; a quoted cell loses its quotes, and two quotes inside it become one."""
    cells, end = [], -1
    while end < len(line):
        match = _TSV_CELL.match(line, end + 1)
        assert match is not None  # it matches an empty cell too
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        end = match.end()
    return cells


def _tsv_rows(path: Path, width: int) -> Iterator[tuple[int, list[str]]]:
    lines = read_text(path).split("\n")
    done = 0
    for number, line in enumerate(lines, start=1):
        if number <= done or not line.rstrip("\r"):
            continue
        cells = tsv_cells(line.rstrip("\r"))
        width = width or len(cells)
        if len(cells) < width and any(cell.startswith('"') for cell in cells):
            reader = csv.reader((f"{rest}\n" for rest in lines[number - 1 :]), delimiter="\t", strict=True)
            try:
                cells = next(reader)
            except csv.Error as error:
                raise CorpusError(f"{path}, line {number}: {error}, from {line!r:.80} on. Remedy: {_QUOTES}") from None
            done = number - 1 + reader.line_num
        yield number, cells


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            line, column, value = _broken_cell(text)
            raise CorpusError(
                f"{path}, line {line}, column {column}: {error}, from {value!r:.80} on. Remedy: {_QUOTES}"
            ) from None
        if cells is None:
            return
        if cells:
            yield line, cells


_CSV_CELL = re.compile(r'(?:"[^"]*(?:""[^"]*)*"|[^",\r\n][^,\r\n]*|)(,|\r\n|\n|\r)')


def _broken_cell(text: str) -> tuple[int, int, str]:
    """Line and number of the first cell whose quotes do not close at its end, and the text from there on."""
    start, column = 0, 1
    while match := _CSV_CELL.match(text, start):
        start, column = match.end(), column + 1 if match[1] == "," else 1
    return text.count("\n", 0, start) + 1, column, text[start:]


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        what = 'write an object such as {"text": "…", "labels": ["…"]}'
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: {line!r:.80} is not JSON ({error}). Remedy: {what}") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: {line!r:.80} is not an object. Remedy: {what}")
        yield number, row
