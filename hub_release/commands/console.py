"""What the verbs share: arguments, the end of a verb, and a terminal that may not be UTF-8."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from hub_release.hub.client import HubError
from hub_release.package import RefusedError, ReleaseError
from modeling.infer.quiet import silence_libraries
from modeling.infer.stops import catch_sigterm, describe_local_error, describe_stop

REFUSED, WRONG_USE, HUB_FAILED = 1, 2, 3

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def find_package(given: Path) -> Path:
    """The folder of a package that is installed with the project, if that is what is named; else what is given."""
    if given.exists():
        return given
    from modeling.infer.files import installed_package  # a verb on a folder does not wait for the Hub's client

    return installed_package(str(given)) or given


Package = Annotated[
    Path,
    typer.Argument(
        metavar="PACKAGE",
        callback=find_package,
        help="Package folder, such as packages/goemotions, or the name of one that is installed with the project, such as "
        "goemotions-small.",
    ),
]
Backend = Annotated[str, typer.Option(help="What computes: torch, or onnx or openvino for a graph of the package.")]
Quantization = Annotated[
    str | None, typer.Option(help="none or int8: which of the package's graphs; none, nf4 or 8bit for torch.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="The most CPU threads; default: all usable cores.")]
AllowContaminated = Annotated[
    bool,
    typer.Option(
        "--allow-contaminated",
        help="Accept scores of split protocol pooled-r2, which trains on rows made from test rows. The card says so.",
    ),
]


def escape_unencodable() -> None:
    """Write what the terminal's encoding lacks, such as ✓ in cp1252, as an escape: the work is done by then."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a notebook and a test have others
            stream.reconfigure(errors="backslashreplace")


def command(*words: object) -> str:
    """A command to copy, quoted for a shell."""
    return shlex.join(map(str, words))


@contextmanager
def errors(as_json: bool, again: str = "") -> Iterator[None]:
    """End a verb with the exit code and the message of its error; after a stop, it goes on with the flag ``again``."""
    silence_libraries()
    escape_unencodable()
    try:
        with catch_sigterm():
            yield
    except (Exception, KeyboardInterrupt) as error:
        _end(as_json, error, again)


def _end(as_json: bool, error: BaseException, flag: str) -> NoReturn:
    if (stop := describe_stop(error)) is not None:
        words = [re.sub("//[^/@ ]*@", "//…@", word) for word in sys.argv[1:]]  # a URI may hold a key
        again = command("hub_release", *words, *([flag] if flag and flag not in sys.argv else []))
        fail(as_json, stop[0], f"{stop[1]}; nothing is left half done. Remedy: to go on, run {again}")
    if isinstance(error, ReleaseError):
        problems = error.problems if isinstance(error, RefusedError) else []
        codes = {HubError: HUB_FAILED, RefusedError: REFUSED}
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), WRONG_USE)
        fail(as_json, code, str(error), problems)
    if isinstance(error, (ValueError, ImportError)) and "Remedy: " in str(error):
        fail(as_json, WRONG_USE, str(error))
    if isinstance(error, OSError):  # from the file system: the Hub client's errors are ReleaseErrors by now
        fail(as_json, WRONG_USE, describe_local_error(error))
    raise error


def fail(as_json: bool, code: int, error: str, problems: Sequence[str] = (), **result: Any) -> NoReturn:
    """End a verb with an error."""
    if as_json:
        print_json({"ok": False, "error": error, "problems": [*problems], **result})
    else:
        for line in (f"error: {error}", *(f"✗ {problem}" for problem in problems)):
            typer.echo(line, err=True)
    raise typer.Exit(code) from None


def print_json(result: dict[str, Any]) -> None:
    """The one object of a verb's output."""
    typer.echo(json.dumps(result, ensure_ascii=False))


def finish(as_json: bool, text: str, **result: Any) -> None:
    """End a verb with its result."""
    if as_json:
        print_json({"ok": True, **result})
    else:
        typer.echo(text)
