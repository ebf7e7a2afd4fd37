"""Scored rows as a file: the columns of the input, then those of the scores."""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import gzip
import io
import itertools
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet

FORMATS = ("csv", "tsv", "jsonl", "parquet")
EMOTIONS, PROBABILITY = "emotions", "p_"
"""The column with the labels of a text, and what the name of a label's column of probabilities begins with."""
_DECIMALS = 6
_SEPARATORS = {"csv": ",", "tsv": "\t"}


def score_columns(labels: Sequence[str], probabilities: bool) -> list[str]:
    """Names of the columns that are added."""
    return [EMOTIONS, *(f"{PROBABILITY}{label}" for label in labels if probabilities)]


def encode(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    emotions: Sequence[Sequence[str]],
    scores: dict[str, np.ndarray],
    form: str,
    schema: pa.Schema | None,
) -> bytes:
    """N scored rows in a format, without a heading; the same rows give the same bytes.

    Args:
        rows: the columns of each row.
        columns: their names, in order.
        emotions: the labels of each row.
        scores: column → float32 [N].
        form: one of :data:`FORMATS`. In CSV and TSV labels are joined by commas, and lists and objects are JSON.
        schema: of the columns, for Parquet.
    """
    if form == "parquet":
        return _parquet(rows, cast(pa.Schema, schema), emotions, scores)
    rounded = {name: np.round(values.astype(np.float64), _DECIMALS).tolist() for name, values in scores.items()}
    if form == "jsonl":
        objects = (
            _json({**row, EMOTIONS: list(found)} | {name: values[index] for name, values in rounded.items()})
            for index, (row, found) in enumerate(zip(rows, emotions, strict=True))
        )
        return "".join(f"{line}\n" for line in objects).encode()
    numbers = zip(*rounded.values(), strict=True) if rounded else itertools.repeat((), len(rows))
    return _separated(
        [
            [*(_cell(row.get(name)) for name in columns), ",".join(found), *values]
            for row, found, values in zip(rows, emotions, numbers, strict=True)
        ],
        form,
    )


def _separated(rows: Sequence[Sequence[Any]], form: str) -> bytes:
    file = io.StringIO()
    plain, quoted = (
        csv.writer(file, delimiter=_SEPARATORS[form], lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:  # readers take a carriage return for the end of a line, and Python's writer does not quote it
        (quoted if any("\r" in cell for cell in row if isinstance(cell, str)) else plain).writerow(row)
    return file.getvalue().encode()


def infer_schema(rows: Sequence[dict[str, Any]]) -> pa.Schema:
    """The types of columns that a text format does not tell.

    Raises:
        pyarrow.ArrowException: a column has values of several kinds.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    arrays = {name: pa.array([row.get(name) for row in rows]) for name in names}
    # A column that is empty so far may get texts later.
    schema = pa.schema([(name, pa.string() if pa.types.is_null(a.type) else a.type) for name, a in arrays.items()])
    pyarrow.parquet.write_table(schema.empty_table(), io.BytesIO())
    return schema


def has_new_keys(value: Any, kind: pa.DataType) -> bool:
    """Has an object, at any depth, a key that its type has not? Arrow leaves such keys out without a word."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        known = {field.name: field.type for field in kind}
        return any(name not in known or has_new_keys(part, known[name]) for name, part in value.items())
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(has_new_keys(part, kind.value_type) for part in value)
    return False


def same_types(one: pa.Schema | None, other: pa.Schema | None) -> bool:
    """Have columns of the same names the same types, whatever their order?"""
    if one is None or other is None:
        return one is other
    return {field.name: field.type for field in one} == {field.name: field.type for field in other}


def misfit(row: dict[str, Any], columns: Iterable[str], schema: pa.Schema | None) -> str:
    """Why a row does not fit into the columns of the first part; empty if it does."""
    if new := row.keys() - set(columns):
        return f"column {min(new)!r} is new. Remedy: give every row the same columns, or write jsonl"
    for field in schema or ():
        fits = not has_new_keys(row.get(field.name), field.type)
        try:
            pa.array([row.get(field.name)], type=field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            return (
                f"column {field.name!r} is {row[field.name]!r:.80}, not {field.type} as in the rows before. Remedy: give "
                "a column values of one kind, or write jsonl"
            )
    return ""


def header(columns: Sequence[str], added: Sequence[str], form: str) -> bytes:
    """The line of the columns' names, if the format has one."""
    return _separated([[*columns, *added]], form) if form in _SEPARATORS else b""


def join(parts: Sequence[Path], target: Path, form: str, heading: bytes, compressed: bool) -> None:
    """All parts as one file, below a heading."""
    if form == "parquet":
        schema = pyarrow.parquet.read_schema(parts[0])
        with pyarrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(pyarrow.parquet.read_table(part))
        return
    with target.open("wb") as raw:
        # Without the time, the same rows give the same bytes.
        zipped = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if compressed else nullcontext(raw)
        _copy(parts, zipped, heading)


def _copy(parts: Sequence[Path], target: AbstractContextManager[Any], heading: bytes) -> None:
    with target as file:
        file.write(heading)
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file)


def _parquet(
    rows: Sequence[dict[str, Any]],
    schema: pa.Schema,
    emotions: Sequence[Sequence[str]],
    scores: dict[str, np.ndarray],
) -> bytes:
    table = pa.Table.from_pylist(list(rows), schema=schema)
    table = table.append_column(EMOTIONS, pa.array([list(found) for found in emotions], pa.list_(pa.string())))
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values, pa.float32()))
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return _json(value) if isinstance(value, (list, dict, bool)) else str(_plain(value))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON and CSV have no type for."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (int, float)):
        return value
    return str(value) if isinstance(value, (decimal.Decimal, datetime.timedelta)) else repr(value)


def _without_nan(value: Any) -> Any:
    """JSON has no such numbers; readers take null for them."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
