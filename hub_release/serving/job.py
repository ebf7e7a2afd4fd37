"""One run of ``hub_release score``: parts that are whole or absent, and what an interrupted run goes on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from hub_release.package import LAYOUT, ReleaseError
from hub_release.serving.columns import ColumnsOfFiles
from hub_release.serving.read import STANDARD, Part, Source, read_parts
from hub_release.serving.write import FORMATS, encode, header, join, score_columns
from hub_release.shipped.requirements import project_version
from modeling.infer.storage import publish

RECORD, BAD_ROWS, _LOCK = "_score.json", "_bad_rows.jsonl", "_lock"
"""Files beside the parts; readers of folders leave out names that begin with ``_``."""
_UNFINISHED = ".unfinished"
_EXAMPLES = 3


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the output, but for the package and the input.

    Attributes:
        text_column: the column of the texts.
        form: one of :data:`FORMATS`.
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
class Summary:
    """What became of the rows.

    Attributes:
        scored: those that were scored now.
        scored_before: those that an interrupted run had scored.
        bad: those that cannot be scored.
        examples: what is wrong with the first of these.
    """

    scored: int = 0
    scored_before: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)

    def note_bad(self, part: Part, file: IO[str]) -> None:
        """Name the bad rows of a part."""
        for place, problem in part.bad:
            file.write(json.dumps({"place": place, "problem": problem}) + "\n")  # a file's name may not be UTF-8
            if len(self.examples) < _EXAMPLES:
                self.examples.append(problem if place in problem else f"{place}: {problem}")
        self.bad += len(part.bad)


def is_file_name(output: str) -> bool:
    """Is the output one file? A folder may have a dot in its name if it is there, or if the name ends with a slash."""
    return output != STANDARD and bool(Path(output).suffix) and not output.endswith("/") and not Path(output).is_dir()


def find_format(asked: str, output: str, sources: Sequence[Source]) -> str:
    """The format to write: as asked, as the output's name says, or as the input has it.

    Raises:
        ReleaseError: it is unknown, or not that of the output's name.
    """
    named = Path(output.removesuffix(".gz")).suffix.removeprefix(".").lower() if is_file_name(output) else ""
    own = sources[0].suffix.removeprefix(".")
    form = asked or named or (own if own in FORMATS and output != STANDARD else "jsonl")
    if (
        form not in FORMATS
        or (named and named != form)
        or (form == "parquet" and (output == STANDARD or output.endswith(".gz")))
    ):
        raise ReleaseError(
            f"{output} cannot be written as {form}. Remedy: use one of {', '.join(FORMATS)} for --format or for the end "
            "of OUTPUT, or name a folder; neither the standard output nor a .gz file can be parquet"
        )
    return form


class Folder:
    """The parts of a run, and the record of what decides their bytes; within ``with`` no other process writes there.

    Args:
        path: the folder.
        record: of this run.
        resume: go on with parts that are there.

    Raises:
        ReleaseError: the folder is there and is not to be resumed, is another run's, or is in use.
    """

    def __init__(self, path: Path, record: dict[str, Any], resume: bool) -> None:
        self.path, self.record = path, record
        if path.exists() and (not path.is_dir() or any(map(_is_kept, path.iterdir()))):
            self._compare(record, resume)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / _LOCK)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ReleaseError(f"{path} is being written by another process. Remedy: wait for it") from None

    def _compare(self, record: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise ReleaseError(
                f"{self.path} already exists. Remedy: add --resume to go on with it, delete it, or name another OUTPUT"
            )
        try:
            found = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise ReleaseError(
                f"{self.path} has no {RECORD} of a run to go on with. Remedy: delete it, or name another OUTPUT"
            )
        for name, value in record.items():
            if found.get(name) != value:
                raise ReleaseError(
                    f"{self.path} was begun with {name} {found.get(name)!r:.120}, not {value!r:.120}. Remedy: use the "
                    "same, or name another OUTPUT"
                )

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        unfinished = self.path / f"{name}{_UNFINISHED}"
        unfinished.write_bytes(content)
        publish(unfinished, self.path / name)

    def __enter__(self) -> Folder:
        try:
            if not (self.path / RECORD).exists():
                self.write(RECORD, (json.dumps(self.record, indent=2) + "\n").encode())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for left in self.path.iterdir():
            if not _is_kept(left):
                left.unlink()
        self._lock.release()
        if {path.name for path in self.path.iterdir()} == {RECORD}:  # nothing to go on with
            shutil.rmtree(self.path)


def _is_kept(path: Path) -> bool:
    """Is a file more than what a killed process left behind?"""
    ours = path.suffix == _UNFINISHED and path.name.startswith((RECORD, BAD_ROWS, "part-", "joined"))
    return path.name != _LOCK and not ours


def encode_part(part: Part, columns: ColumnsOfFiles, settings: Settings, classifier: Any) -> bytes:
    """A part that fits its columns, with its scores."""
    found, own = classifier({"text": part.texts}), columns.of(part)
    names = score_columns(classifier.labels, settings.probabilities)[1:]
    scores = {name: found["probabilities"][:, index] for index, name in enumerate(names)}
    return encode([row.values for row in part.rows], own.names, found["emotions"], scores, settings.form, own.schema)


def score(
    package: Path,
    sources: Sequence[Source],
    output: str,
    settings: Settings,
    classifier: Any,
    resume: bool,
    bad_rows: Path | None,
    on_part: Callable[[int, bool], None],
) -> Summary:
    """Score a file or folder into a file or folder.

    Args:
        package: its folder.
        sources: the files to read.
        output: a folder for parts; or a file, whose parts are in ``OUTPUT.parts`` until it is complete.
        settings: what decides the output.
        classifier: an ``EmotionClassifier`` with these settings.
        resume: go on with an interrupted run.
        bad_rows: where to name rows that cannot be scored; None for a file beside the output.
        on_part: called with the number of rows of each part, and whether they were scored before.

    Raises:
        ReleaseError: input, output or settings do not fit; the message has the remedy.
        TableError: the first file of the input cannot be read.
    """
    target = Path(output)
    one_file = is_file_name(output)
    work = target.with_name(f"{target.name}.parts") if one_file else target
    record = _record(package, sources, settings, classifier)
    for given in {source.folder for source in sources if source.folder}:
        if work.resolve().is_relative_to(given.resolve()):
            raise ReleaseError(f"{output} is in the folder {given}, which is read. Remedy: name an OUTPUT elsewhere")
    if one_file and target.exists():
        if not (resume and work.exists()):
            raise ReleaseError(f"{target} already exists. Remedy: delete it, or name another OUTPUT")
        with Folder(work, record, resume):  # it was stopped after the last step but one
            pass
        shutil.rmtree(work, ignore_errors=True)
        return Summary()
    columns = ColumnsOfFiles(settings.form, score_columns(classifier.labels, settings.probabilities), one_file)
    parts = _fitted(read_parts(sources, settings.text_column, settings.rows_per_part), columns)
    first = next(parts)  # a wrong command is refused before anything is written
    summary = Summary()
    with Folder(work, record, resume) as folder:
        named, numbers = work / f"{BAD_ROWS}{_UNFINISHED}", {source: number for number, source in enumerate(sources)}
        found: list[Path] = []
        with named.open("w", encoding="utf-8") as bad_file:
            for part in chain([first], parts):
                summary.note_bad(part, bad_file)
                path = work / f"part-{numbers[part.source]:05}-{part.number:06}.{settings.form}"
                before = path.exists()
                if part.rows and not before:
                    heading = b"" if one_file else header(columns.of(part).names, columns.added, settings.form)
                    folder.write(path.name, heading + encode_part(part, columns, settings, classifier))
                found += [path] if part.rows else []
                summary.scored_before += before * len(part.rows)
                summary.scored += (not before) * len(part.rows)
                on_part(len(part.rows), before)
        if not found:
            raise ReleaseError(f"no row can be scored: {'; '.join(summary.examples)}")
        if summary.bad:
            beside = target.with_name(f"{target.name}.bad_rows.jsonl") if one_file else work / BAD_ROWS
            shutil.copyfile(named, bad_rows or beside)
        if one_file:
            joined = work / f"joined{_UNFINISHED}"
            join(found, joined, settings.form, columns.heading(), compressed=target.suffix == ".gz")
            publish(joined, target)
    if one_file:
        shutil.rmtree(work)
    return summary


def stream(
    sources: Sequence[Source], file: IO[bytes], settings: Settings, classifier: Any, bad_file: IO[str]
) -> Summary:
    """Score rows into an open file, part by part as they come; nothing is kept to go on with."""
    summary, begun = Summary(), False
    columns = ColumnsOfFiles(settings.form, score_columns(classifier.labels, settings.probabilities), one_file=True)
    parts = read_parts(sources, settings.text_column, settings.rows_per_part)
    for part in _fitted(parts, columns):
        summary.note_bad(part, bad_file)
        if part.rows:
            content = encode_part(part, columns, settings, classifier)
            file.write(content if begun else columns.heading() + content)
            file.flush()
            begun = True
            summary.scored += len(part.rows)
    return summary


def _fitted(parts: Iterator[Part], columns: ColumnsOfFiles) -> Iterator[Part]:
    for part in parts:
        columns.fit(part)
        yield part


def _record(package: Path, sources: Sequence[Source], settings: Settings, classifier: Any) -> dict[str, Any]:
    """What an interrupted run goes on with, and only with."""
    sums = package / LAYOUT.sums
    files = [[source.name, source.path.stat().st_size, source.path.stat().st_mtime_ns] for source in sources]
    digest = hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else str(package)
    return {
        "package": digest,
        "version": project_version(),
        "computed": classifier.computed,
        "input": files,
        **asdict(settings),
    }


def refuse_bad_rows(path: Path | None, sources: Sequence[Source], target: Path) -> None:
    """Refuse a file for bad rows that is one of the others, or cannot be written.

    Raises:
        ReleaseError: the message has the remedy.
    """
    if path is None:
        return
    if path.resolve() in {target.resolve(), *(source.path.resolve() for source in sources)}:
        raise ReleaseError(f"--bad_rows {path} is a file of INPUT or OUTPUT. Remedy: name another")
    if path.is_dir() or not path.parent.is_dir():
        raise ReleaseError(f"--bad_rows {path} cannot be written. Remedy: name a file in a folder that exists")
