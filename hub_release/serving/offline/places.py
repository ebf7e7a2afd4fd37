"""Where files are: on this machine, or on any file system that pyarrow knows, by a URI such as ``s3://bucket/folder``."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from hub_release.package import ReleaseError
from modeling.infer.storage import publish, staging

UNFINISHED = ".unfinished"
_URI = re.compile("[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_KEY = re.compile("//[^/]*@")


@dataclass(frozen=True)
class Place:
    """A file or folder.

    Attributes:
        path: on its file system.
        uri: that named the file system; empty for this machine's own. It may hold a key, so no message shows it.
    """

    path: Path
    uri: str = field(default="", repr=False)

    def __truediv__(self, name: str) -> Place:
        return Place(self.path / name, self.uri)

    def __str__(self) -> str:
        return self.path.as_posix() if self.uri else str(self.path)

    def absolute(self) -> Place:
        """The same, whatever folder a process is in."""
        return self if self.uri else Place(self.path.absolute())

    @property
    def has_key(self) -> bool:
        """Does the URI hold a name or a key?"""
        return bool(_KEY.search(self.uri))

    def is_in(self, folder: Place) -> bool:
        """Is it a folder, or in it?"""
        if self.uri and folder.uri:
            return bool(self._system.equals(folder._system)) and self.path.is_relative_to(folder.path)
        return not self.uri and not folder.uri and self.path.resolve().is_relative_to(folder.path.resolve())

    @property
    def _system(self) -> Any:
        return _find_system(self.uri)[0]

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
        with staging(Path(tempfile.gettempdir()), ".score-") as folder:
            copy = folder / self.path.name
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

    def remove_empty_folder(self) -> None:
        """Remove a folder if nothing is in it."""
        if not self.uri:
            with contextlib.suppress(OSError):
                self.path.rmdir()
        elif not self.files():
            self._system.delete_dir(str(self))


def find_place(given: str) -> Place:
    """The place that a path or a URI names.

    Raises:
        ReleaseError: pyarrow does not know the file system, or it does not answer.
    """
    return Place(Path(_find_system(given)[1]), given) if _URI.match(given) else Place(Path(given))


@lru_cache
def _find_system(uri: str) -> tuple[Any, str]:
    """A file system, and the path in it; for S3 this asks the network for the bucket's region."""
    scheme = uri.partition("://")[0]
    try:
        return pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        why = str(error).replace(uri, f"{scheme}://…")
        remedy = (
            "check the network, the credentials and that the bucket exists"
            if isinstance(error, OSError)
            else "give a path, or a URI that pyarrow.fs.FileSystem.from_uri reads, such as s3://bucket/folder"
        )
        raise ReleaseError(f"a file system of {scheme}:// cannot be used ({why:.200}). Remedy: {remedy}") from None
