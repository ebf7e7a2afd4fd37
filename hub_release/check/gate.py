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

from packaging.requirements import Requirement

from hub_release.check.agreement import MOST_DIFFERENCE, record_problems
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
from hub_release.package import ALL_FILES, LAYOUT, package_files, printable, read_record, scratch
from hub_release.shipped.requirements import BUNDLED_WHEEL, closure, modules_of, read_requirements
from modeling.infer import BUNDLED_BACKBONE, PackageError, backbone_on_meta, merged_file, read_config
from modeling.records import GRAPHS, INT8, MODEL_CONFIG, RECORDED, TORCH

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
            for name in _graph_names(copy):
                problems += golden_problems(copy, name)
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
    missing = {name for name in ALL_FILES if not (package / name).is_file()}
    return [problem for problem in found if problem.file not in missing]


def _graph_names(package: Path) -> list[str]:
    if not (package / LAYOUT.graph_record).is_file():
        return []
    return [name for name in read_record(package, GRAPHS)["graphs"] if name != TORCH]


def golden_problems(package: Path, name: str = TORCH) -> list[PackageError]:
    """Whether a stranger's process gives the trained model's probabilities; this runs the package's code.

    Args:
        package: its folder.
        name: what computes there: ``torch``, or a graph's name in ``graphs.json``.
    """
    by_torch = name == TORCH
    computed = LAYOUT.code if by_torch else LAYOUT.int8_graph if name == INT8 else LAYOUT.graph
    config = read_config(package)
    requirements = read_requirements(package / (LAYOUT.requirements if by_torch else LAYOUT.graph_requirements))
    if name == "openvino":
        requirements.append(Requirement(name))
    distributions = closure(requirements)
    if config.model_name == BUNDLED_BACKBONE and by_torch and not (package / merged_file(config)).is_file():
        distributions.add(BUNDLED_WHEEL)
    values = sum(parameter.numel() for parameter in backbone_on_meta(config).parameters())
    memory = GOLDEN_BYTES + 2 * 4 * values  # in float32, and once more while it is read
    seconds = GOLDEN_SECONDS + 2 * values / BYTES_PER_SECOND  # published in 16 bits
    arguments = [
        str(package.resolve()),
        " ".join(modules_of(distributions)),
        " ".join(distributions),
        str(memory),
        name,
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
    tolerance = TOLERANCE
    if name == INT8:  # kernels of other machines round otherwise
        recorded = read_record(package, GRAPHS)["graphs"][name]["golden_difference"]
        tolerance = min(max(2 * recorded, TOLERANCE), MOST_DIFFERENCE)
    if not difference <= tolerance:
        what = f"is not reproduced: the golden probabilities differ by {difference:.2g}, more than {tolerance:.2g}"
        remedy = "export again: the weights, the backbone or the encoder are not from the run"
        return [PackageError(LAYOUT.golden if by_torch else computed, what, remedy)]
    return []
