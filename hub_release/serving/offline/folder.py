"""The folder of the parts: the record of what decides their bytes, and what a killed process left behind."""

from __future__ import annotations

import json
from typing import Any

from filelock import FileLock, Timeout

from hub_release.package import ReleaseError
from hub_release.serving.offline.places import UNFINISHED, Place

RECORD, BAD_ROWS, _LOCK = "_score.json", "_bad_rows.jsonl", "_lock"
"""Files beside the parts; readers of folders leave out names that begin with ``_``."""


class Folder:
    """The parts of a run; within ``with`` no other process of this machine writes there.

    Args:
        place: the folder.
        record: of this run.
        resume: go on with parts that are there.

    Raises:
        ReleaseError: the folder is there and is not to be resumed, is another run's, or is in use.
    """

    def __init__(self, place: Place, record: dict[str, Any], resume: bool) -> None:
        self.place, self.record = place, record
        if place.exists() and (not place.is_folder() or any(map(_is_kept, self._names()))):
            self._compare(record, resume)
        self._made = not place.exists()
        place.make_folder()
        self._lock = None if place.uri else FileLock(place.path / _LOCK)
        try:
            if self._lock:
                self._lock.acquire(blocking=False)
        except Timeout:
            raise ReleaseError(f"{place} is being written by another process. Remedy: wait for it") from None

    def _compare(self, record: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise ReleaseError(
                f"{self.place} already exists. Remedy: add --resume to go on with it, delete it, or name another OUTPUT"
            )
        try:
            found = json.loads((self.place / RECORD).read())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise ReleaseError(
                f"{self.place} has no {RECORD} of a run to go on with. Remedy: delete it, or name another OUTPUT"
            )
        for name, value in record.items():
            if found.get(name) != value:
                raise ReleaseError(
                    f"{self.place} was begun with {name} {found.get(name)!r:.120}, not {value!r:.120}. Remedy: use the "
                    "same, or name another OUTPUT"
                )

    def _names(self) -> list[str]:
        """Names of all files, of folders in the folder too."""
        return [file.path.relative_to(self.place.path).as_posix() for file in self.place.files()]

    def parts(self) -> set[str]:
        """Names of the parts that are there."""
        return {name for name in self._names() if name.startswith("part-") and _is_kept(name)}

    def __enter__(self) -> Folder:
        try:
            if not (self.place / RECORD).exists():
                (self.place / RECORD).write([(json.dumps(self.record, indent=2) + "\n").encode()])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names():
            if not _is_kept(name):
                (self.place / name).remove()
        if self._lock:
            self._lock.release()
        if self._names() == [RECORD]:  # nothing to go on with
            (self.place / RECORD).remove()
            if self._made:
                self.place.remove_empty_folder()


def _is_kept(name: str) -> bool:
    """Is a file more than what a killed process left behind?"""
    ours = name.endswith(UNFINISHED) and name.startswith((RECORD, BAD_ROWS, "part-", "joined"))
    return name != _LOCK and not ours
