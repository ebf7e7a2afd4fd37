"""Hub → package folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, RepoFile

from hub_release.hub.client import HubError, translated_errors
from hub_release.hub.diff import same_content
from hub_release.package import OF_THE_HUB, RefusedError, require_free
from modeling.infer import publish, staging

_NOT_PULLED = [*sorted(OF_THE_HUB), "__pycache__/*"]
"""Files of the Hub, and compiled code: Python would run it in place of ``infer.py``."""


def pull(
    api: HfApi,
    repo_id: str,
    folder: Path,
    revision: str | None = None,
    find_problems: Callable[[Path], list[str]] = lambda package: [],
) -> str:
    """Download a package; the folder appears whole or not at all, and has only the package in it.

    Args:
        api: the client, from :func:`hub_release.hub.client.connect`.
        repo_id: ``user/name``.
        folder: folder to write; it must be new or empty.
        revision: branch, tag or commit; default ``main``.
        find_problems: lists what is wrong with a package; a package with problems is not kept.

    Returns:
        The commit that was downloaded.

    Raises:
        ReleaseError: the folder is a file or not empty.
        RefusedError: the package has problems; nothing is written.
        HubError: the Hub or the network failed, a name leads out of the folder, or a file is not what the Hub lists.
    """
    require_free(folder)
    with staging(folder.parent, ".pull-") as temporary:
        with translated_errors():
            commit = _download(api, repo_id, revision, temporary)
        if problems := find_problems(temporary / "package"):
            raise RefusedError(f"{repo_id} at {commit} fails the check, and {folder} is not written", problems)
        require_free(folder)  # still: another pull may have been faster
        publish(temporary / "package", folder)
    return commit


def _download(api: HfApi, repo_id: str, revision: str | None, temporary: Path) -> str:
    commit = api.repo_info(repo_id, revision=revision).sha
    assert commit is not None
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    listed = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    files = {name: entry for name, entry in listed.items() if not any(fnmatch(name, x) for x in _NOT_PULLED)}
    for name in files:
        _refuse_hostile_name(name)
    package = temporary / "package"
    api.snapshot_download(
        repo_id,
        revision=commit,
        local_dir=package,
        cache_dir=temporary / "cache",  # empty, as for a stranger
        ignore_patterns=_NOT_PULLED,
    )
    shutil.rmtree(package / ".cache")
    # The client compares sizes only.
    wrong = [name for name, entry in files.items() if not same_content(package / name, entry)]
    if wrong:
        raise HubError(f"{', '.join(wrong)}: not what the Hub lists (its hash differs). Remedy: pull again")
    return commit


def _refuse_hostile_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or {"..", ".git", ".cache"} & set(path.parts) or "\\" in name or ":" in name:
        raise HubError(f"the repository holds a file named {name!r}. Remedy: do not use this repository")
