"""A package's files, written by strangers: each is read as data, and refused if reading it could do harm."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from modeling.infer.errors import PackageError
from modeling.infer.tables import unique_keys

HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
"""Pattern of ``user/model``."""
HUB_OPTIONS = ("token", "cache_dir", "force_download", "local_files_only")
"""Options of ``from_pretrained`` that say how to download."""
INSTALLED = Path(__file__).resolve().parents[1] / "pretrained" if __name__ == "modeling.infer.files" else None
"""Folder of the packages that are installed with the project; a shipped file knows none."""
_MAX_JSON_BYTES = 2**24
_MAX_JSON_DEPTH = 32
_MAX_FOLDERS = 16
"""Folders in folders; the Hub client's own records have five."""


def local_folder(folder_or_hub_id: str | os.PathLike[str], revision: str | None, **hub: Any) -> Path:
    """Folder of a package: a folder here, else one that is installed with the project, else downloaded from the Hub.

    Raises:
        FileNotFoundError: neither a folder nor the id of a repository on the Hub.
        TypeError: neither a string nor a path.
    """
    if not isinstance(folder_or_hub_id, str | os.PathLike):
        raise TypeError(
            f"the package is {folder_or_hub_id!r:.80}. Remedy: name a folder, or a Hub id such as user/model"
        )
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if installed := installed_package(str(folder_or_hub_id)):
        return installed
    if not re.fullmatch(HUB_ID, str(folder_or_hub_id)):
        raise FileNotFoundError(
            f"{folder} is neither a folder nor a Hub id. Remedy: name a package folder, or a Hub id such as user/model"
        )
    try:
        return Path(snapshot_download(str(folder_or_hub_id), revision=revision, **hub))
    except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        answer = "cannot be asked, and its cache has" if isinstance(error, LocalEntryNotFoundError) else "has"
        raise FileNotFoundError(
            f"{folder} is not a folder here, and the Hub {answer} no such model. Remedy: correct the path or the Hub "
            "id; for a model on the Hub, check the network, HF_HUB_OFFLINE and the token"
        ) from error


def installed_package(name: str) -> Path | None:
    """The folder of a package that is installed with the project, such as ``goemotions-small``; None if there is none."""
    folder = (INSTALLED or Path()) / name
    named = INSTALLED is not None and re.fullmatch(r"[a-z][a-z0-9-]*", name)
    return folder if named and (folder / "config.json").is_file() else None


def refuse_unsafe_entries(folder: Path) -> None:
    """Refuse a folder if reading it could lead outside or never end.

    Raises:
        PackageError: the first of :func:`unsafe_entries`.
    """
    for problem in unsafe_entries(folder):
        raise problem


def unsafe_entries(folder: Path) -> Iterator[PackageError]:
    """Entries that must not be opened.

    They are links that leave the folder or lead to a folder, folders that are nested too deeply, and entries that are
    neither file nor folder: pipes, sockets, devices, broken links. Links from a snapshot in the Hub's cache to its
    blobs are allowed.
    """
    root = folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in sorted(entries(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes):
            yield PackageError(name, "is a link that leaves the package", "delete it")
        elif path.is_symlink() and path.is_dir():
            yield PackageError(name, "is a link to a folder", "delete it")
        elif not path.is_file() and not path.is_dir():
            yield PackageError(name, "is not a plain file", "delete it")
        elif path.is_dir() and name.count("/") >= _MAX_FOLDERS:
            yield PackageError(name[:80], f"is nested deeper than {_MAX_FOLDERS} folders", "delete it")


def entries(folder: Path) -> Iterator[Path]:
    """Everything in a folder, down to the deepest folders that a package may have. Links are not followed."""
    waiting = [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop()
        with os.scandir(parent) as found:
            for entry in found:
                yield parent / entry.name
                if entry.is_dir(follow_symlinks=False) and depth < _MAX_FOLDERS:
                    waiting.append((parent / entry.name, depth + 1))


def read_bytes(folder: Path, name: str, most: int) -> bytes:
    """The content of a file of a package. Read a file once: then what is validated is what is used.

    Raises:
        PackageError: it is missing, cannot be read, or has more than ``most`` bytes.
    """
    with open_limited(folder, name, most) as (file, size):
        return file.read(size)


@contextmanager
def open_limited(folder: Path, name: str, most: int) -> Iterator[tuple[BinaryIO, int]]:
    """A file of a package, opened to be read, and its size in bytes.

    Raises:
        PackageError: see :func:`read_bytes`.
    """
    try:
        with (folder / name).open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise PackageError(name, f"has {size:,} bytes, more than {most:,}")
            yield file, size
    except FileNotFoundError:
        raise PackageError(name, "is missing") from None
    except OSError as error:
        raise PackageError(name, f"cannot be read: {error.strerror}") from None


def read_json(folder: Path, name: str, most: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of a package.

    Raises:
        PackageError: it is missing, has more than ``most`` bytes, is not UTF-8 or not strict JSON; or a key appears
            twice, which readers resolve differently.
    """

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is not a JSON number")

    text = read_bytes(folder, name, most)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=no_number)
        level = [content]
        for _ in range(_MAX_JSON_DEPTH):
            level = [part for whole in level for part in _parts(whole)]
        if level:
            raise ValueError(f"nested deeper than {_MAX_JSON_DEPTH} levels")
    except (ValueError, RecursionError) as error:
        raise PackageError(name, f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PackageError(name, "is not a JSON object")
    return content


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
