"""Files that outlive a stop: written aside, put on the disk, verified by hash, and moved into place whole."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

SEAL = "SHA256SUMS"
"""File of a sealed folder with the hash of every other file, for ``sha256sum -c``."""
_LOCK = ".lock"


@contextmanager
def staging(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent``, to write into before moving the result; at the end it is removed.

    Each process holds a lock in its folder while it lives, so that :func:`remove_abandoned` knows it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, prefix)
    folder, lock = _claim(parent, prefix)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _claim(parent: Path, prefix: str) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        lock = FileLock(folder / _LOCK)
        with suppress(FileNotFoundError):
            lock.acquire()
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()  # another process took the folder for an abandoned one before it was locked


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders of :func:`staging` whose lock is free: their process was killed."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError, Timeout):
            # In a folder that everybody may write to, a name may belong to anybody and lead anywhere.
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == _user():
                with FileLock(folder / _LOCK, blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


def _user() -> int:
    return os.getuid() if os.name == "posix" else 0


def publish(path: Path, target: Path) -> None:
    """Put a file or folder on the disk, and then move it to ``target``, which is the old one or the whole new one."""
    for part in (path, *path.rglob("*")):
        _flush(part)
    path.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not in memory only."""
    if path.is_dir() and os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot wait
            raise
    finally:
        os.close(handle)


def seal(folder: Path, without: Sequence[str] = ()) -> None:
    """Write the hashes of a folder's files, last; when this returns, all of them are on the disk.

    Args:
        folder: the folder.
        without: names of files that may go.
    """
    written = folder / f".{SEAL}"
    left_out = {folder / name for name in (SEAL, written.name, *without)}
    files = [path for path in folder.rglob("*") if path.is_file() and path not in left_out]
    lines = sorted(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    written.write_text("".join(lines), encoding="utf-8")
    for path in (*folder.rglob("*"), folder.parent):
        _flush(path)
    publish(written, folder / SEAL)


def find_damage(folder: Path) -> str:
    """What differs from a folder's seal, in words; empty if every file is as it was sealed."""
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
        for digest, _, name in (line.partition("  ") for line in lines):
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{SEAL}, which is written last, is missing"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    return "" if lines else f"{SEAL} is empty"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
