"""The columns of the rows: those of each file, which all its rows must have, and those of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hub_release.package import ReleaseError
from hub_release.serving.offline.read import Part
from hub_release.serving.offline.write import has_new_keys, header, infer_schema, misfit, same_types
from modeling.infer import quote_names


@dataclass(frozen=True)
class Columns:
    """The columns of a file's rows: their names, and for Parquet their types."""

    names: list[str]
    schema: pa.Schema | None


class ColumnsOfFiles:
    """The columns of each file, found in its first part.

    Args:
        form: the format of the output.
        added: the columns of the scores.
        one_file: all files must have the columns of the first.
    """

    def __init__(self, form: str, added: Sequence[str], one_file: bool) -> None:
        self.form, self.added, self.one_file = form, added, one_file
        self._columns: dict[str, Columns | None] = {}

    def of(self, part: Part) -> Columns:
        """Those of a part that has rows that fit."""
        found = self._columns[part.source.name]
        assert found is not None
        return found

    def heading(self) -> bytes:
        """The line of the names of the first file's columns, if the format has one."""
        first = next(filter(None, self._columns.values()))
        return header(first.names, self.added, self.form)

    def fit(self, part: Part) -> None:
        """Move rows that do not fit into the columns of their file to the bad ones.

        Raises:
            ReleaseError: the columns of the first file cannot be written.
        """
        name = part.source.name
        if name not in self._columns and part.rows:
            self._columns[name] = self._find(part)
        columns = self._columns.get(name)
        if columns is None:
            part.rows = []
        elif part.source.suffix != ".parquet" and not self._all_fit(part, columns):
            rows, part.rows = part.rows, []
            for row in rows:
                if problem := self._misfit(row.values, columns):
                    part.bad.append((row.place, problem))
                else:
                    part.rows.append(row)

    def _misfit(self, row: dict[str, Any], columns: Columns) -> str:
        if taken := sorted(row.keys() & set(self.added)):
            return f"has the column {taken[0]!r}, as the scores do. Remedy: rename it"
        return "" if self.form == "jsonl" else misfit(row, columns.names, columns.schema)

    def _all_fit(self, part: Part, columns: Columns) -> bool:
        """Do all rows of a part fit? It is faster than to ask each."""
        added, names, rows = set(self.added), set(columns.names), [row.values for row in part.rows]
        if any(row.keys() & added or (self.form != "jsonl" and row.keys() - names) for row in rows):
            return False
        if columns.schema is None:
            return True
        try:
            pa.Table.from_pylist(rows, schema=columns.schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return False
        return not any(has_new_keys(row.get(field.name), field.type) for field in columns.schema for row in rows)

    def _find(self, part: Part) -> Columns | None:
        first = next(filter(None, self._columns.values()), None)
        if first and self.one_file and "json" in part.source.suffix:
            return first  # each row is compared with it
        try:
            found = self._columns_of(part)
            if first and self.one_file and self.form != "jsonl":
                if sorted(found.names) == sorted(first.names) and same_types(found.schema, first.schema):
                    return first
                raise ReleaseError(
                    f"{part.source.name} has other columns, {quote_names(found.names)}, than the files before, "
                    f"{quote_names(first.names)}. Remedy: name a folder as OUTPUT, or write jsonl"
                )
        except ReleaseError as error:
            if not self._columns:
                raise
            part.bad.append((part.source.name, str(error)))
            return None
        return found

    def _columns_of(self, part: Part) -> Columns:
        values, source = [row.values for row in part.rows], part.source
        names, schema = list(dict.fromkeys(name for row in values for name in row)), None
        try:
            if part.schema is not None:
                schema, names = part.schema, part.schema.names
            elif self.form == "parquet":
                schema = infer_schema(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ReleaseError(
                f"{source.name} has a column with values of several kinds, or empty objects, which Parquet has no type "
                f"for ({error!s:.200}). Remedy: write jsonl"
            ) from None
        if taken := [name for name in names if name in self.added]:
            raise ReleaseError(f"{source.name} has the column {taken[0]!r}, as the scores do. Remedy: rename it there")
        return Columns(names, schema if self.form == "parquet" else None)
