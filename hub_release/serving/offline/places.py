"""Where files are: on this machine, or on any file system that pyarrow knows, by a URI such as ``s3://bucket/folder``."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from hub_release.package import ReleaseError
from modeling.infer.storage import publish

UNFINISHED = ".unfinished"
_URI = re.compile("[a-z][a-z0-9+.-]+://")


@dataclass(frozen=True)
class Place:
    """A file or folder.

    Attributes:
        path: on its file system.
        uri: that named the file system; empty for this machine's own. It may hold a key, so no message shows it.
    """

    path: Path
    uri: str = ""

    def __truediv__(self, name: str) -> Place:
        return Place(self.path / name, self.uri)

    def __str__(self) -> str:
        return self.path.as_posix() if self.uri else str(self.path)

    def absolute(self) -> Place:
        """The same, whatever folder a process is in."""
        return self if self.uri else Place(self.path.absolute())

    @property
    def _system(self) -> Any:
        return pyarrow.fs.FileSystem.from_uri(self.uri)[0]

    def _info(self) -> Any:
        return self._system.get_file_info(str(self))

    def is_folder(self) -> bool:
        """Is it a folder?"""
        return self._info().type == pyarrow.fs.FileType.Directory if self.uri else self.path.is_dir()

    def exists(self) -> bool:
        """Is there anything?"""
        return self._info().type != pyarrow.fs.FileType.NotFound if self.uri else self.path.exists()

    def state(self) -> list[int]:
        """Bytes of a file, and when it was changed, in ns."""
        if self.uri:
            info = self._info()
            return [info.size, info.mtime_ns or 0]
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns]

    def files(self) -> list[Place]:
        """The files below a folder, at any depth, in the order of their paths."""
        if not self.uri:
            return [Place(path) for path in sorted(self.path.rglob("*")) if path.is_file()]
        found = self._system.get_file_info(pyarrow.fs.FileSelector(str(self), recursive=True))
        return [Place(path, self.uri) for path in sorted(Path(info.path) for info in found if info.is_file)]

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """The file on this machine: itself, or a copy for as long as it is read."""
        if not self.uri:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / self.path.name
            # By the name's end pyarrow would decompress it.
            with self._system.open_input_stream(str(self), compression=None) as given, copy.open("wb") as file:
                shutil.copyfileobj(given, file)
            yield copy

    def read(self) -> bytes:
        """The content of a file."""
        if not self.uri:
            return self.path.read_bytes()
        with self._system.open_input_stream(str(self), compression=None) as file:
            return bytes(file.read())

    def write(self, content: Iterable[bytes]) -> None:
        """Write a file whole or not at all, whoever else writes the same."""
        unfinished = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}{UNFINISHED}")
        if not self.uri:
            with unfinished.open("wb") as file:
                file.writelines(content)
            publish(unfinished, self.path)
            return
        with self._system.open_output_stream(unfinished.as_posix(), compression=None) as stream:
            for part in content:
                stream.write(part)
        self._system.move(unfinished.as_posix(), str(self))

    def make_folder(self) -> None:
        """Make a folder and those above it."""
        if self.uri:
            self._system.create_dir(str(self), recursive=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove a file."""
        if self.uri:
            self._system.delete_file(str(self))
        else:
            self.path.unlink()

    def remove_folder(self) -> None:
        """Remove a folder and what is in it."""
        if self.uri:
            self._system.delete_dir(str(self))
        else:
            shutil.rmtree(self.path)


def find_place(given: str) -> Place:
    """The place that a path or a URI names.

    Raises:
        ReleaseError: pyarrow does not know the file system.
    """
    if not _URI.match(given):
        return Place(Path(given))
    try:
        path = pyarrow.fs.FileSystem.from_uri(given)[1]
    except (pa.ArrowException, OSError, ValueError) as error:
        scheme = given.partition("://")[0]
        why = str(error).replace(given, f"{scheme}://…")
        raise ReleaseError(
            f"a file system of {scheme}:// cannot be used ({why:.200}). Remedy: give a path, or a URI that "
            "pyarrow.fs.FileSystem.from_uri reads, such as s3://bucket/folder"
        ) from None
    return Place(Path(path), given)
