"""A part of the rows, from reading to its file: the same steps on this machine and on the actors of a cluster."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_release.serving.offline.columns import Columns, ColumnsOfFiles
from hub_release.serving.offline.places import Place
from hub_release.serving.offline.read import Part
from hub_release.serving.offline.write import encode, header, score_columns


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the output, but for the package and the input.

    Attributes:
        text_column: the column of the texts.
        form: a format that :mod:`hub_release.serving.offline.write` knows.
        probabilities: write a column of probabilities for each label.
        rows_per_part: the most rows of a part.
        backend, quantization, batch_size, threads: as for ``EmotionClassifier``.
    """

    text_column: str
    form: str
    probabilities: bool
    rows_per_part: int
    backend: str
    quantization: str | None
    batch_size: int
    threads: int


@dataclass
class Piece:
    """What is done, or to be done, about a part.

    Attributes:
        position: number of the file of rows, and of the part in it.
        name: of its file.
        rows: those that can be scored.
        bad: the others: each with its place and what is wrong with it.
        before: an interrupted run has written it.
        part: the rows to score; None if there are none, or they are scored.
        columns: of the rows.
    """

    position: tuple[int, int]
    name: str
    rows: int
    bad: list[tuple[str, str]]
    before: bool = False
    part: Part | None = None
    columns: Columns | None = None

    def lines(self) -> Iterator[str]:
        """The bad rows, one JSON object each."""
        # A file's name may not be UTF-8, so what is not ASCII is escaped.
        return (json.dumps({"place": place, "problem": problem}) + "\n" for place, problem in self.bad)


@dataclass(frozen=True)
class Work:
    """What a run does.

    Attributes:
        package: its folder.
        place: the folder of the parts.
        settings: what decides their bytes.
        columns: those of the first file at least.
        finished: names of the parts that an interrupted run has written.
    """

    package: Path
    place: Place
    settings: Settings
    columns: ColumnsOfFiles
    finished: set[str]

    def pieces(self, parts: Iterator[Part]) -> Iterator[Piece]:
        """What is to be done about each part."""
        for part in parts:
            self.columns.fit(part)
            name = f"part-{part.source.number:05}-{part.number:06}.{self.settings.form}"
            before = name in self.finished
            todo = bool(part.rows) and not before
            yield Piece(
                (part.source.number, part.number),
                name,
                len(part.rows),
                part.bad,
                before,
                part if todo else None,
                self.columns.of(part) if todo else None,
            )

    def score(self, piece: Piece, classifier: Any) -> None:
        """Write the file of a part, if it is to be written."""
        part, columns = piece.part, piece.columns
        if part and columns:
            content = encode_part(part, columns, self.settings, classifier)
            # The parts of one file are joined below one heading.
            heading = b"" if self.columns.one_file else header(columns.names, self.columns.added, self.settings.form)
            (self.place / piece.name).write([heading, content])
        piece.part = None


Run = Callable[[Work], Iterator[Piece]]
"""Work → pieces whose files are written, in any order."""


def run_here(work: Work, parts: Iterator[Part], classifier: Any) -> Iterator[Piece]:
    """Score the parts in this process."""
    for piece in work.pieces(parts):
        work.score(piece, classifier)
        yield piece


def encode_part(part: Part, columns: Columns, settings: Settings, classifier: Any) -> bytes:
    """A part that fits its columns, with its scores."""
    found = classifier({"text": part.texts})
    names = score_columns(classifier.labels, settings.probabilities)[1:]
    scores = {name: found["probabilities"][:, index] for index, name in enumerate(names)}
    rows = [row.values for row in part.rows]
    return encode(rows, columns.names, found["emotions"], scores, settings.form, columns.schema)


class BadRows:
    """The bad rows of pieces that come in any order, in a file without a name, for within ``with``."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], tuple[int, int]] = {}

    def __enter__(self) -> BadRows:
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, piece: Piece) -> None:
        """Keep those of a piece."""
        if piece.bad:
            content = "".join(piece.lines()).encode()
            self._places[piece.position] = (self._file.tell(), len(content))
            self._file.write(content)

    def lines(self) -> Iterator[bytes]:
        """All, in the order of the rows, piece by piece."""
        for _, (start, size) in sorted(self._places.items()):
            self._file.seek(start)
            yield self._file.read(size)
