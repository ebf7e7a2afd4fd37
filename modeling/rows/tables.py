"""Files as tables, and the place of each row."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from modeling.infer import ROW_SUFFIXES, TableError, read_rows, split_suffix
from modeling.rows.errors import InputError

_SHOWN_PROBLEMS = 10


class CorpusError(InputError, ValueError):
    """Bad input data; the message names the place and the remedy."""


def refuse(problems: Iterable[str]) -> None:
    """Refuse what has problems; the message has the first ten, one a line.

    Raises:
        CorpusError: there is one.
    """
    found = list(problems)
    if found:
        more = len(found) - _SHOWN_PROBLEMS
        raise CorpusError(
            "\n".join([*found[:_SHOWN_PROBLEMS], *([f"and {more:,} more like these"] if more > 0 else [])])
        )


def refuse_file(path: Path) -> None:
    """Refuse a file that is missing or whose rows have no columns, before anything is done with it.

    Raises:
        CorpusError: no such file, or another suffix than those of tables.
    """
    try:
        suffix, _ = split_suffix(path)
    except TableError as error:
        raise CorpusError(str(error)) from None
    if suffix not in ROW_SUFFIXES:
        raise CorpusError(
            f"{path} is none of {', '.join(ROW_SUFFIXES)}: its rows have no columns. Remedy: save it as one of these"
        )


def read_table(path: Path, text_column: str = "text", columns: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """A file of rows with columns, and the place of each row; arguments as of :func:`modeling.infer.read_rows`.

    Raises:
        CorpusError: the file is missing, empty, broken or not UTF-8, or rows of it are broken.
    """
    refuse_file(path)
    try:
        rows = list(read_rows(path, text_column, columns))
    except TableError as error:
        raise CorpusError(str(error)) from None
    refuse(f"{row.place}: {row.problem}" for row in rows if row.problem)
    # No type inference: an id such as 007, or a text such as "NA", must not change.
    table = pd.DataFrame([row.values for row in rows], dtype=object)
    table = table.rename(columns=normal_name)
    refuse(
        f"{path}: column {name!r} appears twice, in two ways to write its accents. Remedy: rename one"
        for name in table.columns[table.columns.duplicated()]
    )
    return table, [row.place for row in rows]


def normal_name(name: str) -> str:
    """The name of a column or a label in Unicode's normal form C, in which names are compared."""
    return unicodedata.normalize("NFC", name)
