"""What a commit will change: files here compared with files on the Hub, by their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import RepoFile


@dataclass(frozen=True)
class CommitPlan:
    """What a commit will change.

    Attributes:
        parent: its parent commit; None if the repository has to be created.
        branch_exists: whether the branch exists; if not, it is created from ``parent``.
        new: paths to add.
        changed: paths to replace.
        same: paths that are already there with the same content.
        removed: paths to delete.
        bytes: size of the new and changed files.
    """

    parent: str | None
    branch_exists: bool
    new: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    removed: tuple[str, ...]
    bytes: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do: no repository or branch to create, no file that differs."""
        return self.parent is not None and self.branch_exists and not any(self.changes)

    @property
    def changes(self) -> tuple[tuple[str, ...], ...]:
        """The new, changed and removed paths."""
        return (self.new, self.changed, self.removed)


def compare(
    files: Mapping[str, Path], there: Mapping[str, RepoFile], parent: str | None, branch_exists: bool
) -> CommitPlan:
    """The plan to make a branch hold exactly ``files``; ``there`` are its files at ``parent``."""
    new = tuple(path for path in files if path not in there)
    changed = tuple(path for path, file in files.items() if path in there and not same_content(file, there[path]))
    return CommitPlan(
        parent=parent,
        branch_exists=branch_exists,
        new=new,
        changed=changed,
        same=tuple(path for path in files if path not in new and path not in changed),
        removed=tuple(path for path in there if path not in files),
        bytes=sum(files[path].stat().st_size for path in (*new, *changed)),
    )


def same_content(file: Path, entry: RepoFile) -> bool:
    """Whether a file has the content of a file on the Hub, by SHA-256 for a large file, else by git's SHA-1."""
    size = file.stat().st_size
    if size != entry.size:
        return False
    digest = hashlib.sha256() if entry.lfs else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest() == (entry.lfs.sha256 if entry.lfs else entry.blob_id)
