"""One run of ``hub_release score``: parts that are whole or absent, and what an interrupted run goes on with."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from hub_release.package import LAYOUT, ReleaseError
from hub_release.serving.offline.columns import ColumnsOfFiles
from hub_release.serving.offline.folder import BAD_ROWS, Folder
from hub_release.serving.offline.places import UNFINISHED, Place, find_place
from hub_release.serving.offline.read import STANDARD, Part, Source, read_parts
from hub_release.serving.offline.work import BadRows, Piece, Run, Settings, Work, encode_part, run_here
from hub_release.serving.offline.write import FORMATS, join, score_columns
from hub_release.shipped.requirements import project_version
from modeling.infer.storage import publish

_EXAMPLES = 3


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

    def add(self, piece: Piece) -> None:
        """Count a part."""
        self.scored_before += piece.before * piece.rows
        self.scored += (not piece.before) * piece.rows
        self.bad += len(piece.bad)
        for place, problem in piece.bad[: _EXAMPLES - len(self.examples)]:
            self.examples.append(problem if place in problem else f"{place}: {problem}")


def is_file_name(output: str) -> bool:
    """Is the output one file? A folder may have a dot in its name if it is there, or if the name ends with a slash."""
    if output == STANDARD or output.endswith("/"):
        return False
    place = find_place(output)  # elsewhere than on this machine, parts cannot be joined
    return not place.uri and bool(place.path.suffix) and not place.is_folder()


def find_format(asked: str, output: str, sources: Sequence[Source]) -> str:
    """The format to write: as asked, as the output's name says, or as the input has it.

    Raises:
        ReleaseError: it is unknown, or not that of the output's name.
    """
    place = find_place(output)
    if place.uri and place.path.suffix[1:].lower() in (*FORMATS, "gz") and not output.endswith("/"):
        raise ReleaseError(
            f"{place} cannot be one file: elsewhere than on this machine parts are not joined. Remedy: name a folder, "
            "and give --format"
        )
    named = Path(output.removesuffix(".gz")).suffix.removeprefix(".").lower() if is_file_name(output) else ""
    own = sources[0].suffix.removeprefix(".")
    form = asked or named or (own if own in FORMATS and output != STANDARD else "jsonl")
    if (
        form not in FORMATS
        or (named and named != form)
        or (form == "parquet" and (output == STANDARD or output.endswith(".gz")))
    ):
        raise ReleaseError(
            f"{place} cannot be written as {form}. Remedy: use one of {', '.join(FORMATS)} for --format or for the end "
            "of OUTPUT, or name a folder; neither the standard output nor a .gz file can be parquet"
        )
    return form


def score(
    package: Path,
    sources: Sequence[Source],
    output: str,
    settings: Settings,
    classifier: Any,
    resume: bool,
    bad_rows: Path | None,
    on_part: Callable[[int, bool], None],
    run: Run | None = None,
    computed: str = "",
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
        run: what reads and scores; by default this process.
        computed: how, if not as ``classifier`` says.

    Raises:
        ReleaseError: input, output or settings do not fit; the message has the remedy.
        TableError: the first file of the input cannot be read.
    """
    target, one_file = find_place(output), is_file_name(output)
    place = Place(target.path.with_name(f"{target.path.name}.parts")) if one_file else target
    record = _record(package, sources, settings, computed or classifier.computed)
    _refuse_overlap(target, sources)
    if one_file and target.exists():
        if not (resume and place.exists()):
            raise ReleaseError(f"{target} already exists. Remedy: delete it, or name another OUTPUT")
        with Folder(place, record, resume):  # it was stopped after the last step but one
            pass
        shutil.rmtree(place.path, ignore_errors=True)
        return Summary()
    columns = ColumnsOfFiles(settings.form, score_columns(classifier.labels, settings.probabilities), one_file)
    parts = read_parts(sources, settings.text_column, settings.rows_per_part)
    first, summary = _begin(parts, columns), Summary()
    with Folder(place, record, resume) as folder, BadRows() as bad:
        work = Work(package, place, settings, columns, folder.parts())
        found: dict[tuple[int, int], str] = {}
        if run:
            parts.close()
        for piece in run(work) if run else run_here(work, chain(first, parts), classifier):
            summary.add(piece)
            bad.add(piece)
            found |= {piece.position: piece.name} if piece.rows else {}
            on_part(piece.rows, piece.before)
        if not found:
            raise ReleaseError(f"no row can be scored: {'; '.join(summary.examples)}")
        _require_all(folder, found.values())
        if summary.bad:
            own = (
                place / BAD_ROWS if not one_file else Place(target.path.with_name(f"{target.path.name}.bad_rows.jsonl"))
            )
            (Place(bad_rows) if bad_rows else own).write(bad.lines())
        if one_file:
            joined = place.path / f"joined{UNFINISHED}"
            in_order = [place.path / found[position] for position in sorted(found)]
            join(in_order, joined, settings.form, columns.heading(), compressed=target.path.suffix == ".gz")
            publish(joined, target.path)
    if one_file:
        shutil.rmtree(place.path)
    return summary


def _require_all(folder: Folder, names: Iterable[str]) -> None:
    """Refuse to end without parts that were written, but not here."""
    if missing := sorted(set(names) - folder.parts()):
        raise ReleaseError(
            f"{folder.place} has no {missing[0]}, which another machine has written to its own disk. Remedy: name an "
            "OUTPUT that all machines share"
        )


def _begin(parts: Iterator[Part], columns: ColumnsOfFiles) -> list[Part]:
    """The first parts, until columns are found: a wrong command is refused before anything is written."""
    first = []
    for part in parts:
        columns.fit(part)
        first.append(part)
        if part.rows:
            break
    return first


def stream(
    sources: Sequence[Source], file: IO[bytes], settings: Settings, classifier: Any, bad_file: IO[str]
) -> Summary:
    """Score rows into an open file, part by part as they come; nothing is kept to go on with."""
    summary, begun = Summary(), False
    columns = ColumnsOfFiles(settings.form, score_columns(classifier.labels, settings.probabilities), one_file=True)
    for part in read_parts(sources, settings.text_column, settings.rows_per_part):
        columns.fit(part)
        piece = Piece((0, part.number), "", len(part.rows), part.bad)
        summary.add(piece)
        bad_file.writelines(piece.lines())
        if part.rows:
            content = encode_part(part, columns.of(part), settings, classifier)
            file.write(content if begun else columns.heading() + content)
            file.flush()
            begun = True
    return summary


def _record(package: Path, sources: Sequence[Source], settings: Settings, computed: str) -> dict[str, Any]:
    """What an interrupted run goes on with, and only with."""
    sums = package / LAYOUT.sums
    digest = hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else str(package)
    return {
        "package": digest,
        "version": project_version(),
        "computed": computed,
        "input": [[source.name, *source.place.state()] for source in sources],
        **asdict(settings),
    }


def _refuse_overlap(target: Place, sources: Sequence[Source]) -> None:
    """Refuse an output in a folder that is read."""
    for given in {source.folder for source in sources if source.folder}:
        if target.is_in(given):
            raise ReleaseError(f"{target} is in the folder {given}, which is read. Remedy: name an OUTPUT elsewhere")


def refuse_bad_rows(path: Path | None, sources: Sequence[Source], target: Path) -> None:
    """Refuse a file for bad rows that is one of the others, or cannot be written.

    Raises:
        ReleaseError: the message has the remedy.
    """
    if path is None:
        return
    if "://" in str(path) or ":/" in str(path):
        raise ReleaseError("--bad_rows is a URI. Remedy: name a file of this machine")
    others = (source.place.path for source in sources if not source.place.uri)
    if path.resolve() in {target.resolve(), *(other.resolve() for other in others)}:
        raise ReleaseError(f"--bad_rows {path} is a file of INPUT or OUTPUT. Remedy: name another")
    if path.is_dir() or not path.parent.is_dir():
        raise ReleaseError(f"--bad_rows {path} cannot be written. Remedy: name a file in a folder that exists")
