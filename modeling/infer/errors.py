"""Errors of a package, of the cache, of a file of rows, and of a dependency that is not installed."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    """A line for a terminal: what it would not print as it stands, a stranger's control characters say, is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class PackageError(ValueError):
    """A package is broken, or not what it claims; ``file`` says where, the message adds what and the remedy.

    What a terminal would not print as it stands is escaped.
    """

    def __init__(self, file: str, what: str, remedy: str = "export or download the package again") -> None:
        super().__init__(printable(f"{file} {what}. Remedy: {remedy}"))
        self.file = file


class TableError(ValueError):
    """A file of rows cannot be read; the message names the place and the remedy."""


class CacheError(OSError):
    """The cache cannot be used; the message names its folder and the remedy."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"the cache folder {folder} {what}. Remedy: set GOEMOTIONS_MISTRAL_CACHE (or HF_HOME) to a folder that you "
            "may write to"
        )


@contextmanager
def as_package_error(file: str, what: str, remedy: str = "export or download the package again") -> Iterator[None]:
    """Turn whatever a parser raises on a hostile file into a :class:`PackageError` that says ``what``.

    A panic of Rust code (tokenizers, safetensors) is no ``Exception``, and no module exports its class. A missing
    dependency stays an ``ImportError``: it is not the file's fault.
    """
    try:
        yield
    except (PackageError, CacheError, ImportError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {error.__cause__ or error}"
        raise PackageError(file, f"{what} ({reason:.300})", remedy) from error


def import_optional(module: str, install: str) -> Any:
    """Import an optional package, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}). Remedy: pip install {install}") from error
