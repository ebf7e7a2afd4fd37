"""``hub_release score``: the emotions of many rows."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from functools import partial
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
        "compressed by gzip, bzip2 or xz), a folder of such files, or - for the standard input. A URI such as "
        "s3://bucket/folder works, too.",
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="File to write (its end is the format: .csv, .tsv, .jsonl or .parquet; all but Parquet may end in .gz), a "
        "folder for one file per part, or - for the standard output. A URI is a folder.",
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
Ray = Annotated[
    str,
    typer.Option(
        metavar="local|ADDRESS",
        help="Score on a Ray cluster: on one of this machine's own, or at ADDRESS, such as auto or 10.0.0.1:6379.",
    ),
]
CpusPerActor = Annotated[
    int | None,
    typer.Option(
        "--cpus_per_actor", min=1, help="CPU threads of each actor on Ray; each has a classifier. Default: 1."
    ),
]
GpusPerActor = Annotated[
    float | None, typer.Option("--gpus_per_actor", help="GPUs of each actor on Ray, for the backend torch; default: 0.")
]
Actors = Annotated[
    int | None, typer.Option(min=1, help="Actors on Ray; default: as many as the cluster has room for at the start.")
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
    ray: Ray = "",
    cpus_per_actor: CpusPerActor = None,
    gpus_per_actor: GpusPerActor = None,
    actors: Actors = None,
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
        from hub_release.package import ReleaseError, require_folder
        from hub_release.serving.load import load_classifier
        from hub_release.serving.offline.job import find_format, refuse_bad_rows, stream
        from hub_release.serving.offline.places import find_place
        from hub_release.serving.offline.read import STANDARD, find_sources
        from hub_release.serving.offline.work import Settings
        from modeling.infer import check_threads

        require_folder(package)
        sources = find_sources(input, input_format)
        wanted = find_format(form, output, sources)
        if resume and STANDARD in (input, output):
            raise ReleaseError("the standard input and output cannot be gone on with. Remedy: name files")
        if as_json and output == STANDARD:
            raise ReleaseError("the standard output has the rows. Remedy: leave out --json, or name a file as OUTPUT")
        refuse_bad_rows(bad_rows, sources, Path(output))
        cluster = _find_cluster(ray, cpus_per_actor, gpus_per_actor, actors)
        if cluster:
            _refuse_on_ray(threads is not None, STANDARD in (input, output), bool(cluster.gpus) and backend != "torch")
        own_threads = cluster.cpus if cluster else check_threads(threads)
        at_once = _AT_ONCE if output == STANDARD else rows_per_part
        settings = Settings(text_column, wanted, probabilities, at_once, backend, quantization, batch_size, own_threads)

        options = {"quantization": quantization, "batch_size": batch_size, "threads": own_threads}
        options |= {"device": "cpu"} if cluster else {}  # the actors compute
        classifier = load_classifier(package, backend, **options)
        if output == STANDARD:
            with bad_rows.open("w", encoding="utf-8") if bad_rows else nullcontext(sys.stderr) as bad_file:
                try:
                    stream(sources, sys.stdout.buffer, settings, classifier, bad_file)
                except BrokenPipeError:  # the reader of the results has enough
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        done = _score_files(package, sources, output, settings, classifier, resume, bad_rows, cluster)
        finish(as_json, _describe(done, find_place(output)), **vars(done))


def _find_cluster(address: str, cpus: int | None, gpus: float | None, actors: int | None) -> Any:
    """The cluster that the options describe; None without ``--ray``."""
    from hub_release.package import ReleaseError

    if not address:
        if (cpus, gpus, actors) != (None, None, None):
            raise ReleaseError("there are options of actors, and no cluster. Remedy: add --ray local")
        return None
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus % 1)):
        raise ReleaseError(f"--gpus_per_actor {gpus:g} cannot be. Remedy: give a part of one GPU, or whole ones")
    from hub_release.serving.offline.on_ray import Cluster

    return Cluster(address, cpus or 1, gpus or 0, actors)


def _refuse_on_ray(threads: bool, standard: bool, graph_on_gpu: bool) -> None:
    """Refuse options that do not go with a cluster."""
    from hub_release.package import ReleaseError

    if threads:
        raise ReleaseError("--threads is for one process. Remedy: give --cpus_per_actor")
    if standard:
        raise ReleaseError("the standard input and output cannot be shared with actors. Remedy: name files")
    if graph_on_gpu:
        raise ReleaseError("graphs are computed on CPUs. Remedy: leave out --backend, or --gpus_per_actor")


def _score_files(
    package: Path,
    sources: list[Any],
    output: str,
    settings: Any,
    classifier: Any,
    resume: bool,
    bad_rows: Path | None,
    cluster: Any,
) -> Any:
    """Score, and show how far it is."""
    from tqdm.auto import tqdm

    from hub_release.serving.offline.job import score as score_files

    run, computed = None, classifier.computed
    if cluster:
        from hub_release.serving.offline.on_ray import run_on_ray

        run = partial(run_on_ray, sources=sources, cluster=cluster, computed=computed)
        computed = "by PyTorch on GPUs of a cluster" if cluster.gpus else computed
    with tqdm(unit="row", desc="scoring") as bar:

        def show(rows: int, before: bool) -> None:
            if before and not bar.disable:
                bar.initial += rows  # the rate is that of this run
            bar.update(rows)

        return score_files(package, sources, output, settings, classifier, resume, bad_rows, show, run, computed)


def _describe(done: Any, place: Any) -> str:
    """What a run did."""
    if not done.scored + done.scored_before:
        return f"{place} is complete"
    text = f"{done.scored + done.scored_before:,} rows are scored in {place}"
    text += f" ({done.scored_before:,} of them before this run)" * bool(done.scored_before)
    if done.bad:
        text += f"; {done.bad:,} cannot be scored:\n" + "\n".join(f"  {example}" for example in done.examples)
    return text
