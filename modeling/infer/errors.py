"""Errors of a package, of the cache, of a file of rows, and of a dependency that is not installed."""

import importlib
from pathlib import Path
from typing import Any


class PackageError(ValueError):
    """A package is broken, or not what it claims; ``file`` says where, the message adds what and the remedy."""

    def __init__(self, file: str, what: str, remedy: str = "export or download the package again") -> None:
        super().__init__(f"{file} {what}. Remedy: {remedy}")
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


def import_optional(module: str, install: str) -> Any:
    """Import an optional package, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}). Remedy: pip install {install}") from error
