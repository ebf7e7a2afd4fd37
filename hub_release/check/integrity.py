"""A package's files: whether they are complete and intact, and whether they reveal what must stay private."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from PIL import Image

from hub_release.package import ALL_FILES, LAYOUT, OPTIONAL, package_files, sha256
from hub_release.shipped.merged import merged_files
from modeling.infer import (
    MAX_ADAPTER_BYTES,
    MAX_GRAPH_BYTES,
    MAX_MERGED_BYTES,
    MAX_TOKENIZER_BYTES,
    PackageError,
    read_json,
    read_settings,
    unsafe_entries,
)

_WEIGHTS = (".safetensors", ".pt", ".onnx")
_BINARY = (*_WEIGHTS, ".png")
_MAX_BYTES = 2**24
_LIMITS = {
    **dict.fromkeys((LAYOUT.tokenizer, LAYOUT.served_tokenizer), MAX_TOKENIZER_BYTES),
    **dict.fromkeys((LAYOUT.merged, LAYOUT.served), MAX_MERGED_BYTES),
    **dict.fromkeys((LAYOUT.graph, LAYOUT.int8_graph), MAX_GRAPH_BYTES),
}
_SEARCHED_BYTES = 2**22
"""Names and notes are in the first and last bytes of a file of weights; the numbers between are not searched."""
_MAX_PIXELS = 2**25
_LAST_CHUNK = b"IEND\xaeB`\x82"


def _apart(start: bytes, rest: bytes) -> bytes:
    """A pattern for what starts so, but not within a word; a search is fast if a pattern begins with plain letters."""
    return start + rb"(?<![A-Za-z0-9]" + start + rb")" + rest


_SECRETS = {
    "a Hugging Face token": _apart(rb"hf_", rb"(?:[A-Za-z0-9]{30,}|(?:oauth|jwt)_[\w.-]{20,})")
    + rb"|"
    + _apart(rb"api_org_", rb"[A-Za-z0-9]{30,}"),
    "a GitHub token": _apart(rb"gh[pousr]_", rb"[A-Za-z0-9]{36}") + rb"|" + _apart(rb"github_pat_", rb"\w{22}"),
    "a GitLab token": _apart(rb"gl", rb"(?:pat|ptt|dt|rt|cbt)-[\w-]{20}"),
    "an npm token": _apart(rb"npm_", rb"[A-Za-z0-9]{36}"),
    "a PyPI token": _apart(rb"pypi-AgE", rb"[\w-]{20,}"),
    "an OpenAI or Anthropic key": _apart(rb"sk-", rb"[A-Za-z0-9_-]{20,}"),
    "an AWS key": _apart(rb"A(?:KIA|SIA|BIA|CCA)", rb"[0-9A-Z]{16}(?![A-Za-z0-9])"),
    "a Google key": _apart(rb"AIza", rb"[\w-]{35}"),
    "a Slack token": _apart(rb"xox[abeoprs]-", rb"[A-Za-z0-9-]{10,}"),
    "a signed web token": rb"eyJ(?<![\w-]eyJ)[\w-]{15,}\.eyJ[\w-]{15,}\.",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
}
_ASSIGNED_SECRET = (
    rb"(?i)(?:secret|passw(?:or)?d|api[_-]?key|access[_-]?key|private[_-]?key|(?:auth|access|api|hf|bearer)[_-]?token)"
    rb"[\w-]{0,20}[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?=[^\s\"']{0,60}\d)[\w+/.~-]{16,}|://[^\s/:@\"']+:[^\s/:@\"']+@"
)
"""Something named like a secret with a value that looks random, or a password in an address."""
_HOME = rb"(?<![\w./])(?:-[A-Za-z])?(?:/(?:home|Users|root|private|mnt|tmp)/\w|[A-Z]:(?:\\{1,2}|/)Users[\\/])"
_ABSOLUTE_PATH = (
    rb"(?<![\w.~/:<-])/(?:[\w.@+-]+/)+[\w.@+-]|\bfile:/|(?<!\w)~/\w|(?<![A-Za-z])[A-Za-z]:\\{1,2}[\w.-]+\\|" + _HOME
)
_PLACEHOLDER = rb"\{\{|\[More Information Needed\]|\b(?:TODO|FIXME|TBD)\b"


def unreadable_problems(package: Path) -> list[PackageError]:
    """Entries that must not be opened: links that leave the package, devices, pipes, and huge files."""
    problems = list(unsafe_entries(package))
    unsafe = {problem.file for problem in problems}
    for name, path in package_files(package).items():
        limit = MAX_ADAPTER_BYTES if name.endswith((".safetensors", ".pt")) else _MAX_BYTES
        limit = _LIMITS.get(name, limit)
        if name not in unsafe and (size := path.stat().st_size) > limit:
            problems.append(
                PackageError(name, f"has {size:,} bytes, more than {limit:,}", "delete it, or export again")
            )
    return problems


def copy_files(package: Path, target: Path, names: Iterable[str]) -> list[PackageError]:
    """Copy those files of a package that exist, as they are now, into a folder that nobody else knows.

    Args:
        package: the package's folder.
        target: folder to make.
        names: files that may be opened, see :func:`unreadable_problems`.

    Returns:
        Problems with files that could not be copied.
    """
    problems: list[PackageError] = []
    target.mkdir()
    for name in names:
        if not (package / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(package / name, target / name)
        except OSError as error:
            problems.append(PackageError(name, f"cannot be read: {error.strerror}", "check its permissions"))
    return problems


def layout_problems(package: Path, unreadable: Collection[str] = ()) -> list[PackageError]:
    """Files that are missing, empty, or not part of a package; those in ``unreadable`` are not opened."""
    present = set(package_files(package))
    graphs = present & {LAYOUT.graph, LAYOUT.int8_graph}
    if not graphs and not present.isdisjoint(LAYOUT.of_the_graphs()):
        graphs = {LAYOUT.graph}
    merged = _merged_files(package, present) if LAYOUT.config not in unreadable else ()
    expected = LAYOUT.files(LAYOUT.config not in unreadable and _reads_words(package), graphs, merged)
    known = {*expected, LAYOUT.adaptation}
    lost = [
        PackageError(name, "is missing", "run hub_release export again")
        for name in expected
        if name not in present | OPTIONAL
    ]
    foreign = [PackageError(name, "is not part of a package", "delete it") for name in sorted(present - known)]
    empty = [
        name for name in sorted(present & known) if (package / name).is_file() and not (package / name).stat().st_size
    ]
    return [*lost, *foreign, *(PackageError(name, "is empty", "run hub_release export again") for name in empty)]


def _reads_words(package: Path) -> bool:
    try:
        return read_json(package, LAYOUT.config).get("input") in ("tokens", "hybrid")
    except PackageError:  # reported with the weights
        return False


def _merged_files(package: Path, present: set[str]) -> tuple[str, ...]:
    """The files of the merged model that a package must have, because it has one of them."""
    if present.isdisjoint(LAYOUT.of_the_merged()):
        return ()
    try:
        return merged_files(read_settings(package))
    except PackageError:  # reported with the weights
        return LAYOUT.of_the_merged()


def hash_problems(package: Path) -> list[PackageError]:
    """Files that do not match ``SHA256SUMS``; the layout's check reports missing files."""
    if not (package / LAYOUT.sums).is_file():
        return []
    remedy = "run hub_release export again, or download the package again"
    try:
        lines = (package / LAYOUT.sums).read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        return [PackageError(LAYOUT.sums, f"cannot be read: {error}", remedy)]
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not match or match[2] in sums:
            return [PackageError(LAYOUT.sums, f"has no sum, or a repeated sum, in line {number}", remedy)]
        sums[match[2]] = match[1]
    expected = set(package_files(package)) - {LAYOUT.sums}
    problems = [PackageError(LAYOUT.sums, f"does not name {name}", remedy) for name in sorted(expected - set(sums))]
    problems += [
        PackageError(LAYOUT.sums, f"names {name!r}, which the package does not have", remedy)
        for name in sorted(set(sums) - expected - ALL_FILES)
    ]
    changed = [name for name in sorted(expected & set(sums)) if sha256(package / name) != sums[name]]
    remedies = {LAYOUT.card: "run hub_release card, which keeps the section for own words"}
    return problems + [
        PackageError(name, f"does not match {LAYOUT.sums}", remedies.get(name, remedy)) for name in changed
    ]


def picture_problems(package: Path) -> list[PackageError]:
    """Pictures that are not a PNG, are larger than a plot, or have data after the picture."""
    problems = []
    for name in (name for name in LAYOUT.files() if name.endswith(".png") and (package / name).is_file()):
        try:
            with Image.open(package / name, formats=["PNG"]) as picture:
                if math.prod(picture.size) > _MAX_PIXELS:
                    raise ValueError(f"{math.prod(picture.size):,} pixels, more than {_MAX_PIXELS:,}")
                picture.load()
            if not (package / name).read_bytes().endswith(_LAST_CHUNK):
                raise ValueError("data follows the picture")
        except Exception as error:  # a hostile file can make its parser raise anything
            problems.append(PackageError(name, f"is not a PNG of a plot: {error}", "run hub_release export again"))
    return problems


def text_problems(package: Path) -> list[PackageError]:
    """Secrets, absolute paths and unfilled placeholders, in all files.

    The code that ships is left out: it is compared with this version's own, and has such patterns in it.
    """
    problems = []
    for name, path in package_files(package).items():
        if name in (LAYOUT.code, LAYOUT.graph_code, LAYOUT.handler):
            continue
        content = _searched(path)
        patterns = [
            (kind, pattern, "delete it, and revoke it where it was issued") for kind, pattern in _SECRETS.items()
        ]
        if name in (LAYOUT.tokenizer, LAYOUT.served_tokenizer):
            pass  # a vocabulary has parts of paths and code among its words
        elif name.endswith(_BINARY):
            patterns.append(("an absolute path", _HOME, "write it without the path"))
        else:
            patterns.append(("a password or key", _ASSIGNED_SECRET, "delete it, and change it where it is used"))
            patterns.append(("an absolute path", _ABSOLUTE_PATH, "name files relative to the run, models by Hub id"))
            patterns.append(("an unfilled placeholder", _PLACEHOLDER, "fill it in"))
        for kind, pattern, remedy in patterns:
            if match := re.search(pattern, content):
                line = content.count(b"\n", 0, match.start()) + 1
                where = "" if name.endswith(_BINARY) else f" in line {line}"
                problems.append(PackageError(name, f"contains {kind}{where}", remedy))
    return problems


def _searched(path: Path) -> bytes:
    """The bytes of a file in which a text can be."""
    if path.suffix not in _WEIGHTS or path.stat().st_size <= 2 * _SEARCHED_BYTES:
        return path.read_bytes()
    with path.open("rb") as file:
        start = file.read(_SEARCHED_BYTES)
        file.seek(-_SEARCHED_BYTES, os.SEEK_END)
        return start + file.read()
