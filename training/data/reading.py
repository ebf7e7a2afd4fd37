"""Rows of a corpus: its files, GoEmotions' own files, or a Hub dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets

from modeling.infer import ROW_SUFFIXES, describe_encoding
from modeling.rows.label_cells import LabelReading, LabelSet
from modeling.rows.reading import Columns, RawRow, Table, bad_texts, declared_labels, name_ids, read_file, table_rows
from modeling.rows.tables import CorpusError, refuse, refuse_file
from training.data.taxonomy import GOEMOTIONS_28

SPLITS = ("train", "validation", "test")
_FILE_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid", "val"), "test": ("test",)}


GOEMOTIONS_COLUMNS = Columns(id="id")
"""Names for the columns of GoEmotions' files, which have no header, in messages."""


# Sources


def goemotions_rows(folder: Path) -> dict[str, list[RawRow]]:
    """Rows of ``train.tsv``, ``dev.tsv``, ``test.tsv`` and ``labels.txt``."""
    return {split: read_goemotions(_find_file(folder, split, (".tsv",))) for split in SPLITS}


def read_goemotions(path: Path) -> list[RawRow]:
    """Rows of one official TSV file (text, ids, comment id; no header), with ``labels.txt`` next to it.

    Raises:
        CorpusError: bad data.
    """
    refuse_file(path)
    names_file = path.parent / "labels.txt"
    if not names_file.is_file():
        raise CorpusError(f"{names_file} is missing. Remedy: put it next to train.tsv, dev.tsv and test.tsv")
    names = names_file.read_text(encoding="utf-8").split()
    if tuple(names) != GOEMOTIONS_28:
        raise CorpusError(
            f"{names_file}: {' '.join(names)!r:.80} is not the 28 GoEmotions labels in id order. Remedy: use the file "
            "that comes with the TSV files, or --dataset files for other labels"
        )
    rows: list[RawRow] = []
    problems: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        cells, place = line.split("\t"), f"{path}, line {number}"
        if len(cells) == 3:
            labels = _parse_ids(cells[1], names, f"{place}, column {GOEMOTIONS_COLUMNS.labels!r}", problems)
            rows.append(RawRow(place, cells[2], cells[0], labels, GOEMOTIONS_COLUMNS))
        elif line:
            problems.append(
                f"{place}: {len(cells)} cells for the 3 columns text, labels, id: {line!r:.80}. Remedy: write text, "
                "label ids and comment id, separated by tabs; for a file with a header, use --dataset files"
            )
    refuse([*problems, *bad_texts(rows)])
    return rows


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file; a text may contain any line separator except the newline itself."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        with path.open("rb") as content:
            raise CorpusError(f"{path}, {describe_encoding(path, content, error)}") from None


def _parse_ids(cell: str, names: Sequence[str], place: str, problems: list[str]) -> list[str]:
    found = []
    for part in filter(None, map(str.strip, cell.split(","))):
        if not part.lstrip("-").isdigit():
            problems.append(f"{place}: {cell!r} is not a list of ids. Remedy: write ids such as 3,17")
        elif not 0 <= int(part) < len(names):
            problems.append(f"{place}: label id {part} is out of range. Remedy: use an id from 0 to {len(names) - 1}")
        else:
            found.append(names[int(part)])
    return found


def file_rows(folder: Path, labels: LabelSet, columns: Columns, reading: LabelReading) -> dict[str, list[RawRow]]:
    """Rows of the train, validation and test files of a folder; all rows of a single file are ``train``.

    Raises:
        CorpusError: bad data.
    """
    if not folder.is_dir():
        refuse_file(folder)
    tables = {}
    for split in SPLITS if folder.is_dir() else ("train",):
        path = _find_file(folder, split, ROW_SUFFIXES) if folder.is_dir() else folder
        tables[split] = read_file(path, columns)
    return table_rows(tables, labels, columns, reading)


def hub_rows(
    name: str, loaded: datasets.DatasetDict, labels: LabelSet, columns: Columns, reading: LabelReading
) -> dict[str, list[RawRow]]:
    """Rows of a dataset that ``datasets`` has loaded.

    Raises:
        CorpusError: bad data.
    """
    tables = {}
    for split in SPLITS:
        found = next((alias for alias in _FILE_NAMES[split] if alias in loaded), None)
        if found is None:
            raise CorpusError(
                f"{name} has no {split} split, only {', '.join(loaded)}. Remedy: save three splits as files"
            )
        rows = loaded[found].to_pandas()
        name_ids(rows, columns.labels, declared_labels(loaded[found].features, columns.labels))
        places = [f"{name}, {found}, row {index}" for index in range(len(rows))]
        tables[split] = Table(f"{name}, {found}", rows, places)
    return table_rows(tables, labels, columns, reading)


def _find_file(folder: Path, split: str, suffixes: Sequence[str]) -> Path:
    names = [f"{name}{suffix}" for name in _FILE_NAMES[split] for suffix in suffixes]
    found = [path for path in sorted(folder.iterdir()) if _without_compression(path.name.lower()) in names]
    if len(found) != 1:
        what = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise CorpusError(
            f"{folder}: expected exactly one {split} file, {what}. Remedy: give --data_dir a folder with one of "
            f"{', '.join(names)}"
        )
    return found[0]


def _without_compression(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
