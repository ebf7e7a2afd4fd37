"""The check that a package does what it claims, for a stranger who has only the package."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub_release.check.agreement import record_problems
from hub_release.check.consistency import (
    Findings,
    code_problems,
    origin_problems,
    protocol_problems,
    weight_problems,
)
from hub_release.check.integrity import (
    copy_files,
    hash_problems,
    layout_problems,
    picture_problems,
    text_problems,
    unreadable_problems,
)
from hub_release.package import LAYOUT, package_files, printable, scratch
from hub_release.shipped.requirements import BUNDLED_WHEEL, closure, modules_of, read_requirements
from modeling.infer import BUNDLED_BACKBONE, PackageError, backbone_on_meta, merged_file, read_config
from modeling.records import MODEL_CONFIG, RECORDED

TOLERANCE = 1e-4
GOLDEN_SECONDS = 300
BYTES_PER_SECOND = 15_000_000
"""Of a backbone that has to be downloaded first; one of 48 GB gets another hour."""
GOLDEN_BYTES = 2**33
"""Memory of the golden process, besides the backbone."""
PROBE = Path(__file__).with_name("probe.py")
_NOT_LOADED = {LAYOUT.card, *RECORDED} - {LAYOUT.golden}
"""Files that no step of loading reads."""


def check(package: Path, allow_contaminated: bool = False) -> list[str]:
    """Everything that is wrong with a package, each problem with its remedy; an empty list if nothing is wrong.

    Contaminated scores (trained on rows made from test rows, see the card) are wrong unless ``allow_contaminated`` is
    given.

    Code of the package runs only after everything that is loaded has been read as data, and is what
    :func:`hub_release.export.export` writes. Then a fresh ``python -I`` process in another directory reproduces the
    golden probabilities. It can import only what ``requirements.txt`` brings along.
    """
    if not package.is_dir():
        return [str(PackageError(str(package), "is not a folder", "name a package that hub_release export wrote"))]
    if not any((package / name).exists() for name in (LAYOUT.config, LAYOUT.code, LAYOUT.sums)):
        is_run = (package / MODEL_CONFIG).is_file() or (package / LAYOUT.recipe).is_file()
        what = "is a run folder, not a package" if is_run else "is not a package"
        remedy = (
            f"run hub_release export {shlex.quote(str(package))} PACKAGE first"
            if is_run
            else "name a package that hub_release export wrote"
        )
        return [str(PackageError(str(package), what, remedy))]
    with _private_copy(package) as (copy, problems):
        unreadable = bool(problems)
        problems += _readable_problems(package, copy, problems, allow_contaminated)
        if not unreadable and all(problem.file in _NOT_LOADED for problem in problems):
            problems += golden_problems(copy)
            if (copy / LAYOUT.graph).is_file():
                problems += golden_problems(copy, "onnx")
    return [printable(problem) for problem in problems]


def inspect(package: Path, allow_contaminated: bool = False) -> list[PackageError]:
    """What :func:`check` finds by reading only; nothing of the package is run.

    Entries that must not be opened (a link out of the package, a pipe) are listed and skipped.
    """
    with _private_copy(package) as (copy, problems):
        return problems + _readable_problems(package, copy, problems, allow_contaminated)


@contextmanager
def _private_copy(package: Path) -> Iterator[tuple[Path, list[PackageError]]]:
    """A copy of the files that may be opened, so that what is read is what is run; and the problems of the others."""
    with scratch() as temporary:
        problems = unreadable_problems(package)
        copy = temporary / "package"
        names = package_files(package).keys() - {problem.file for problem in problems}
        yield copy, [*problems, *copy_files(package, copy, names)]


def _readable_problems(
    package: Path, copy: Path, unreadable: list[PackageError], allow_contaminated: bool
) -> list[PackageError]:
    refused = {problem.file for problem in unreadable}
    layout = [problem for problem in layout_problems(package, refused) if problem.file not in refused]
    return layout + _content_problems(copy, allow_contaminated)


def _content_problems(package: Path, allow_contaminated: bool) -> list[PackageError]:
    """What is wrong with the files that exist; the layout's check reports missing ones."""
    found = Findings([*hash_problems(package), *text_problems(package), *picture_problems(package)])
    found += [*code_problems(package), *protocol_problems(package, allow_contaminated)]
    config = found.attempt(read_config, package)
    if config is not None:
        found += weight_problems(package, config)
        found += origin_problems(package, config)
        found += record_problems(package, config)
    missing = {name for name in LAYOUT.every_file() if not (package / name).is_file()}
    return [problem for problem in found if problem.file not in missing]


def golden_problems(package: Path, backend: str = "torch") -> list[PackageError]:
    """Whether a stranger's process gives the trained model's probabilities; this runs the package's code.

    Args:
        package: its folder.
        backend: what computes there, see :class:`modeling.infer.EmotionClassifier`.
    """
    computed = LAYOUT.graph if backend == "onnx" else LAYOUT.code
    config = read_config(package)
    names = {"torch": LAYOUT.requirements, "onnx": LAYOUT.graph_requirements}
    distributions = closure(read_requirements(package / names[backend]))
    if config.model_name == BUNDLED_BACKBONE and backend == "torch" and not (package / merged_file(config)).is_file():
        distributions.add(BUNDLED_WHEEL)
    values = sum(parameter.numel() for parameter in backbone_on_meta(config).parameters())
    memory = GOLDEN_BYTES + 2 * 4 * values  # in float32, and once more while it is read
    seconds = GOLDEN_SECONDS + 2 * values / BYTES_PER_SECOND  # published in 16 bits
    arguments = [
        str(package.resolve()),
        " ".join(modules_of(distributions)),
        " ".join(distributions),
        str(memory),
        backend,
    ]
    with scratch() as elsewhere:
        command = [sys.executable, "-I", str(PROBE), *arguments]
        try:
            result = subprocess.run(
                command, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            what = f"has no probabilities after {seconds:,.1f} seconds in a fresh process"
            return [
                PackageError(
                    computed, what, "check on a machine that has the backbone in its Hub cache, or export again"
                )
            ]
    if result.returncode:
        said = re.findall(r"^[\w.]+(?:Error|Exception): .*", result.stderr, re.MULTILINE)  # the first is the cause
        what = f"fails in a fresh process: {said[0] if said else f'exit {result.returncode}'}"
        return [PackageError(computed, what, "fix what it names and export again")]
    difference = json.loads(result.stdout.strip().splitlines()[-1])["difference"]
    if not difference <= TOLERANCE:
        what = f"is not reproduced: the golden probabilities differ by {difference:.2g}, more than {TOLERANCE:g}"
        remedy = "export again: the weights, the backbone or the encoder are not from the run"
        return [PackageError(computed if backend == "onnx" else LAYOUT.golden, what, remedy)]
    return []
