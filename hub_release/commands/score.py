"""``hub_release score``: the emotions of many rows."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from hub_release.commands.console import Backend, Json, Package, Quantization, Threads, errors, finish

_AT_ONCE = 1_024
"""Rows of a part of the standard output: results come while the input does."""


Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="File of rows (CSV, TSV, JSON lines, JSON, Parquet, or text with one text per line; all but Parquet may be "
        "compressed by gzip, bzip2 or xz), a folder of such files, or - for the standard input.",
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="File to write (its end is the format: .csv, .tsv, .jsonl or .parquet; all but Parquet may end in .gz), a "
        "folder for one file per part, or - for the standard output.",
    ),
]
TextColumn = Annotated[str, typer.Option("--text_column", help="Column of the texts.")]
Format = Annotated[
    str, typer.Option("--format", help="csv, tsv, jsonl or parquet; default: as OUTPUT ends, or as INPUT.")
]
InputFormat = Annotated[
    str, typer.Option("--input_format", help="Format of the standard input: csv, tsv, jsonl or txt.")
]
Probabilities = Annotated[bool, typer.Option(help="Write the probability of each label, in columns such as p_joy.")]
BadRows = Annotated[
    Path | None,
    typer.Option(
        "--bad_rows",
        help="File for rows that cannot be scored, with the place and the reason of each; default: beside OUTPUT, or the "
        "standard error for the standard output.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
RowsPerPart = Annotated[
    int, typer.Option("--rows_per_part", min=1, help="Rows that are written at once: a stop loses no more.")
]
BatchSize = Annotated[int, typer.Option("--batch_size", min=1, help="Texts that are read at once.")]


def score(
    package: Package,
    input: Input,
    output: Output,
    text_column: TextColumn = "text",
    form: Format = "",
    input_format: InputFormat = "jsonl",
    probabilities: Probabilities = True,
    bad_rows: BadRows = None,
    resume: Resume = False,
    rows_per_part: RowsPerPart = 10_000,
    backend: Backend = "torch",
    quantization: Quantization = None,
    batch_size: BatchSize = 64,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a file or folder of any size: all columns are kept, and columns for the emotions are added.

    `emotions` has the labels that reach the package's thresholds, and `p_joy` and so on the probability of each label.
    Rows are read, scored and written part by part, so memory does not grow with them. A part is whole or absent: after
    a stop, `--resume` goes on and gives what an uninterrupted run gives, byte for byte. A row that cannot be scored is
    named with its place and its reason, and does not end the run.

    Example: `hub_release score goemotions-small comments.parquet scored.parquet`
    """
    with errors(as_json, again="--resume" if output != "-" else ""):
        from tqdm.auto import tqdm

        from hub_release.package import ReleaseError, require_folder
        from hub_release.serving.job import Settings, find_format, refuse_bad_rows, score as score_files, stream
        from hub_release.serving.read import STANDARD, find_sources
        from modeling.infer import EmotionClassifier, check_threads

        require_folder(package)
        sources = find_sources(input, input_format)
        wanted = find_format(form, output, sources)
        if resume and STANDARD in (input, output):
            raise ReleaseError("the standard input and output cannot be gone on with. Remedy: name files")
        if as_json and output == STANDARD:
            raise ReleaseError("the standard output has the rows. Remedy: leave out --json, or name a file as OUTPUT")
        refuse_bad_rows(bad_rows, sources, Path(output))
        own_threads = check_threads(threads)
        at_once = _AT_ONCE if output == STANDARD else rows_per_part
        settings = Settings(text_column, wanted, probabilities, at_once, backend, quantization, batch_size, own_threads)

        named: dict[str, Any] = {"backend": backend, "quantization": quantization}
        classifier = EmotionClassifier(package, batch_size=batch_size, threads=own_threads, **named)
        if output == STANDARD:
            with bad_rows.open("w", encoding="utf-8") if bad_rows else nullcontext(sys.stderr) as bad_file:
                try:
                    stream(sources, sys.stdout.buffer, settings, classifier, bad_file)
                except BrokenPipeError:  # the reader of the results has enough
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        with tqdm(unit="row", desc="scoring") as bar:

            def show(rows: int, before: bool) -> None:
                if before and not bar.disable:
                    bar.initial += rows  # the rate is that of this run
                bar.update(rows)

            done = score_files(package, sources, output, settings, classifier, resume, bad_rows, show)
        finish(as_json, _describe(done, output), **vars(done))


def _describe(done: Any, output: str) -> str:
    """What a run did."""
    if not done.scored + done.scored_before:
        return f"{output} is complete"
    text = f"{done.scored + done.scored_before:,} rows are scored in {output}"
    text += f" ({done.scored_before:,} of them before this run)" * bool(done.scored_before)
    if done.bad:
        text += f"; {done.bad:,} cannot be scored:\n" + "\n".join(f"  {example}" for example in done.examples)
    return text
