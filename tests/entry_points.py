"""The ways into a package that a stranger made, each tried in a process of its own with little memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoModelForSequenceClassification

import hub_release.check.gate
from hub_release.check.gate import check
from hub_release.demo.page import app
from hub_release.demo.serve import serve
from hub_release.package import ReleaseError
from modeling.infer import EmotionClassifier, PackageError
from tests.forks import CONTEXT, start

MOST_BYTES = 2**32
MOST_SECONDS = 30


class Outcome(NamedTuple):
    """What came of one way into a package."""

    refused_by: str
    """Class of the error; "" if nothing was refused."""
    said: str
    seconds: float
    peak: int
    """Largest memory of the process so far, in bytes."""
    ran: bool
    """Would code of the package have been run?"""


def _check(package: Path) -> None:
    problems = check(package)
    assert all("Remedy: " in problem and problem.isprintable() for problem in problems), problems
    if problems:
        raise PackageError("", "\n".join(problems))


def _page(package: Path) -> None:
    try:
        serve(package, "127.0.0.1", None, share=False)
    except ReleaseError as error:
        raise error.__cause__ or error from None


def _auto(package: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(str(package), trust_remote_code=True)


ENTRY_POINTS: dict[str, Callable[[Path], Any]] = {
    "classifier": EmotionClassifier,
    "page": _page,
    "auto": _auto,
    "check": _check,
}


def attempt(connection: Connection, package: Path, names: tuple[str, ...]) -> None:
    """Go in by each of these ways, and send what came of it."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    os.chdir(package.parent)
    ran: list[Path] = []
    hub_release.check.gate.golden_problems = lambda package: ran.append(package) or []  # type: ignore[func-returns-value,assignment]
    app.launch = lambda page, **options: None  # type: ignore[assignment]
    for name in names:
        started, refused_by, said = time.monotonic(), "", ""
        try:
            ENTRY_POINTS[name](package)
        except BaseException as error:  # a panic is no Exception
            refused_by, said = type(error).__name__, str(error)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send(Outcome(refused_by, said, time.monotonic() - started, peak, bool(ran)))


def enter(package: Path, names: tuple[str, ...]) -> dict[str, Outcome]:
    """Try a package by several ways in, one after the other in the same process."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = start(attempt, sender, package, names)
    sender.close()
    found: dict[str, Outcome] = {}
    try:
        for name in names:
            assert receiver.poll(2 * MOST_SECONDS), f"{name} does not end"
            found[name] = receiver.recv()  # EOFError: the process was killed
    finally:
        process.kill()
        process.join()
    return found
