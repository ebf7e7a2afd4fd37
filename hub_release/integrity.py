"""A package as files: which there are, whether they are whole, and whether they say what must stay at home."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

from hub_release.package import LAYOUT, package_files, sha256
from modeling.infer import PackageError, refuse_foreign_links

_BINARY = (".safetensors", ".pt", ".png")
_MAX_BYTES = 2**24
_MAX_WEIGHT_BYTES = 2**32
"""A head and an adapter of a model of 24 billion parameters have 0.4 GB; its frozen weights have 48."""
_SECRETS = {
    "a token of Hugging Face": rb"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    "a token of GitHub": rb"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22})",
    "a token of GitLab": rb"(?<![A-Za-z0-9])glpat-[\w-]{20}",
    "a key of OpenAI or Anthropic": rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}",
    "a key of AWS": rb"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])",
    "a key of Google": rb"(?<![A-Za-z0-9])AIza[\w-]{35}",
    "a token of Slack": rb"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
_HOME = rb"(?<![\w.])(?:/(?:home|Users|root|private|mnt|tmp)/\w|[A-Z]:\\{1,2}Users\\)"
_ABSOLUTE_PATH = rb"(?<![\w.~/:<-])/(?:[\w.@+-]+/)+[\w.@+-]|\bfile:/|(?<!\w)~/\w|(?<![A-Za-z])[A-Za-z]:\\{1,2}[\w.-]+\\"
_PLACEHOLDER = rb"\{\{|\[More Information Needed\]|\b(?:TODO|FIXME|TBD)\b"
_COMMON_USERS = {
    "root",
    "user",
    "users",
    "ubuntu",
    "admin",
    "runner",
    "docker",
    "jovyan",
    "vscode",
    "codespace",
    "test",
}


def unreadable_problems(package: Path) -> list[PackageError]:
    """What may not even be opened: links that leave the package, devices and pipes, files far too big."""
    try:
        refuse_foreign_links(package)
    except PackageError as error:
        return [error]
    problems = []
    for name, path in package_files(package).items():
        limit = _MAX_WEIGHT_BYTES if name.endswith((".safetensors", ".pt")) else _MAX_BYTES
        if not path.is_file():
            problems.append(PackageError(name, "is no plain file", "delete it"))
        elif (size := path.stat().st_size) > limit:
            problems.append(
                PackageError(name, f"has {size:,} bytes, more than {limit:,}", "delete it, or export again")
            )
    return problems


def layout_problems(package: Path) -> list[PackageError]:
    """Files that are missing, empty, or no part of a package."""
    present, known = set(package_files(package)), set(LAYOUT.files())
    lost = [
        PackageError(name, "is missing", "hub_release export again") for name in LAYOUT.files() if name not in present
    ]
    foreign = [PackageError(name, "is no part of a package", "delete it") for name in sorted(present - known)]
    empty = [name for name in sorted(present & known) if not (package / name).stat().st_size]
    return [*lost, *foreign, *(PackageError(name, "is empty", "hub_release export again") for name in empty)]


def hash_problems(package: Path) -> list[PackageError]:
    """Files that are not those which ``SHA256SUMS`` was written over."""
    remedy = "hub_release export again, or download the package again"
    try:
        lines = (package / LAYOUT.sums).read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        return [PackageError(LAYOUT.sums, f"cannot be read: {error}", remedy)]
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not match or match[2] in sums:
            return [PackageError(LAYOUT.sums, f"has no sum, or one for the second time, in line {number}", remedy)]
        sums[match[2]] = match[1]
    expected = set(package_files(package)) - {LAYOUT.sums}
    problems = [PackageError(LAYOUT.sums, f"does not name {name}", remedy) for name in sorted(expected - set(sums))]
    problems += [
        PackageError(LAYOUT.sums, f"names {name!r}, which the package does not hold", remedy)
        for name in sorted(set(sums) - expected)
    ]
    changed = [name for name in sorted(expected & set(sums)) if sha256(package / name) != sums[name]]
    return problems + [PackageError(name, f"is not the file that {LAYOUT.sums} names", remedy) for name in changed]


def text_problems(package: Path) -> list[PackageError]:
    """Secrets, absolute paths, the user's name and unfilled placeholders, wherever they stand.

    The code that ships is left out: it is compared with this version's own, and has patterns in it.
    """
    problems = []
    user = _user_name()
    for name, path in package_files(package).items():
        if name in (LAYOUT.code, LAYOUT.handler):
            continue
        content = path.read_bytes()
        patterns = [(kind, pattern, "delete it, and revoke it where it was made") for kind, pattern in _SECRETS.items()]
        if name.endswith(_BINARY):
            patterns.append(("an absolute path", _HOME, "write it without the path"))
        else:
            patterns.append(("an absolute path", _ABSOLUTE_PATH, "name files relative to the run, models by Hub id"))
            patterns.append(("an unfilled placeholder", _PLACEHOLDER, "fill it in"))
            if user:
                patterns.append(("your user name", user, "take it out"))
        for kind, pattern, remedy in patterns:
            if match := re.search(pattern, content):
                line = content.count(b"\n", 0, match.start()) + 1
                where = "" if name.endswith(_BINARY) else f" in line {line}"
                problems.append(PackageError(name, f"holds {kind}{where}", remedy))
    return problems


def _user_name() -> bytes | None:
    """A pattern of the user's name, where it is not a common word; as the first part of a Hub id it may stand."""
    names = {Path.home().name, _login()} - _COMMON_USERS
    own = [re.escape(name.encode()) for name in sorted(names) if len(name) >= 4]
    return rb"(?<![\w-])(?:" + b"|".join(own) + rb")(?![\w/-])" if own else None


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""
