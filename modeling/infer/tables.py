"""Files of rows: CSV, TSV, JSON lines, JSON, Parquet and plain text, compressed or not, read row by row."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from modeling.infer.decoding import describe_encoding
from modeling.infer.errors import TableError, import_optional
from modeling.infer.separated import quote_names, refuse_nul, separated_rows

ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of files whose rows have columns."""
TEXT_SUFFIX = ".txt"
"""Suffix of a file with one text per line."""
_COMPRESSIONS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_KNOWN = (
    f"{', '.join((*ROW_SUFFIXES, TEXT_SUFFIX))}. Remedy: save it as one of these; all but .parquet may also end in "
    f"{', '.join(filter(None, _COMPRESSIONS))}"
)
_OBJECT = 'write an object such as {"text": "…"}'


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        place: file and line (or row), for messages.
        values: column → value; a line of a text file and a string of a JSON file are the column ``text``.
        problem: why the row cannot be read, with a remedy; empty if it can.
    """

    place: str
    values: dict[str, Any]
    problem: str = ""


def split_suffix(path: Path) -> tuple[str, str]:
    """Suffix of a file's format and of its compression ("" if it has none), in lower case.

    Raises:
        TableError: no such file, or another suffix.
    """
    if not path.exists():
        raise TableError(f"{path}: no such file or folder. Remedy: correct the path")
    if path.is_dir():
        raise TableError(f"{path} is a folder, not {_KNOWN}")
    return split_name(path)


def split_name(path: Path) -> tuple[str, str]:
    """As :func:`split_suffix`, of a file that need not be on this machine.

    Raises:
        TableError: another suffix.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in (*ROW_SUFFIXES, TEXT_SUFFIX) or (compression and suffix == ".parquet"):
        raise TableError(f"{path} is none of {_KNOWN}")
    return suffix, compression


def read_rows(path: Path, text_column: str = "text", columns: Sequence[str] = (), suffix: str = "") -> Iterator[Row]:
    """The rows of a file, one at a time, in its order.

    The suffix decides the format, without regard to case. A CSV or TSV file has the separator that its header shows. A
    quoted cell may span several lines. In a TSV file a line with all its cells is a row, whatever its quotes: an
    unclosed quote there is an ordinary character and swallows no other row.

    Args:
        path: the file.
        text_column: a column that the header must have to be taken for one.
        columns: names of the columns of a CSV or TSV file whose first line does not have ``text_column``.
        suffix: the format, if the path does not say it: of the standard input.

    Raises:
        TableError: an unknown suffix, or a file that is empty, broken or not UTF-8.
    """
    suffix, compression = (suffix, "") if not path.suffix and suffix else split_suffix(path)
    rows = _parquet_rows(path) if suffix == ".parquet" else _text_rows(path, suffix, compression, text_column, columns)
    first = next(rows, None)
    if first is None:
        raise TableError(f"{path}, line 1: the file is empty. Remedy: add rows")
    yield first
    yield from rows


def read_texts(path: Path, text_column: str = "text") -> Iterator[tuple[str, dict[str, Any]]]:
    """The text of each row of a file, in its order, and all of the row's columns.

    Raises:
        TableError: the file or a row cannot be read, or a row has no text.
    """
    for row in read_rows(path, text_column):
        if row.problem:
            raise TableError(f"{row.place}: {row.problem}")
        name = find_column(row.values, text_column)
        text = row.values.get(name)
        if name not in row.values:
            raise TableError(
                f"{row.place} has no column {text_column!r}, only {quote_names(row.values)}. Remedy: name the column "
                "with the texts in --text_column"
            )
        if not isinstance(text, str):
            raise TableError(f"{row.place}, column {text_column!r} is not a text: {text!r:.80}. Remedy: write a string")
        yield text, row.values


def find_column(names: Collection[str], wanted: str) -> str:
    """The column ``wanted``, or one that differs from it only in how Unicode writes its accents, or ``wanted``."""
    if wanted in names:
        return wanted
    normal = unicodedata.normalize("NFC", wanted)
    return next((name for name in names if unicodedata.normalize("NFC", name) == normal), wanted)


def _text_rows(path: Path, suffix: str, compression: str, text_column: str, columns: Sequence[str]) -> Iterator[Row]:
    # Only the newline ends a line of a text or JSON file: a text may have any other line separator.
    newline = "" if suffix == ".csv" else "\n"
    try:
        with io.TextIOWrapper(_COMPRESSIONS[compression](path, "rb"), encoding="utf-8-sig", newline=newline) as file:
            if suffix in (".csv", ".tsv"):
                for number, values, problem in separated_rows(path, suffix, file, text_column, columns):
                    yield Row(f"{path}, line {number}", values, problem)
            elif suffix == TEXT_SUFFIX:
                for number, line in enumerate(file, start=1):
                    if number == 1:
                        refuse_nul(f"{path}, line 1", line)
                    yield Row(f"{path}, line {number}", {"text": line.rstrip("\r\n")})
            else:
                yield from _json_rows(path, suffix, file)
    except UnicodeDecodeError as error:
        if not path.is_file():  # a stream, which cannot be read again to find the place
            raise TableError(f"{path} is not UTF-8 ({error}). Remedy: convert it to UTF-8") from None
        with _COMPRESSIONS[compression](path, "rb") as file:
            raise TableError(f"{path}, {describe_encoding(path, file, error)}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise TableError(f"{path} cannot be read ({error}). Remedy: check the file, or make it again") from None


# JSON and Parquet


def _json_rows(path: Path, suffix: str, file: IO[str]) -> Iterator[Row]:
    """Rows of a file with one value per line; a .json file may also be one list."""
    lines = enumerate(file, start=1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if suffix == ".json" and first.lstrip().startswith("["):
        try:
            content = json.loads(first + file.read(), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path} is not JSON ({error}). Remedy: write a list of objects") from None
        yield from (_json_row(f"{path}, row {place}", value) for place, value in enumerate(content, start=1))
        return
    if first.strip() in ("{", "["):
        raise TableError(
            f"{path}, line {number}: {first.strip()!r}, so a value goes over several lines. Remedy: write one object per "
            "line, or one list of objects in a .json file"
        )
    for place_in_file, line in itertools.chain([(number, first)], lines):
        if not line.strip():
            continue
        place = f"{path}, line {place_in_file}"
        try:
            yield _json_row(place, json.loads(line, object_pairs_hook=unique_keys))
        except (ValueError, RecursionError) as error:
            yield Row(place, {}, f"{line.rstrip()!r:.80} is not JSON ({error}). Remedy: {_OBJECT}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for ``object_pairs_hook``.

    Raises:
        ValueError: a key appears twice, which readers resolve differently.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key appears twice")
    return content


def _json_row(place: str, value: Any) -> Row:
    if isinstance(value, str):
        return Row(place, {"text": value})
    if not isinstance(value, dict):
        return Row(place, {}, f"{json.dumps(value, ensure_ascii=False)!r:.80} is not an object. Remedy: {_OBJECT}")
    if value and all(isinstance(part, (list, dict)) for part in value.values()):
        remedy = 'write an object for each row, as to_json(orient="records", lines=True) of pandas does'
        return Row(place, {}, f"{quote_names(value)}: whole columns, not one row. Remedy: {remedy}")
    return Row(place, value)


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = import_optional("pyarrow.parquet", "pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise TableError(f"{path}: column {twice[0]!r} appears twice. Remedy: rename one")
            for batch in file.iter_batches(1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
            if not number:
                raise TableError(f"{path}, row 1: no rows, only the columns {quote_names(names)}. Remedy: add rows")
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, TableError):
            raise
        raise TableError(
            f"{path}: cannot be read as Parquet ({error}). Remedy: write it again, or give another format"
        ) from None
