"""Run folder or package → checked → one commit on the Hub → checked again as a stranger gets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from hub_release.check import check
from hub_release.commit import Destination, Pushed, plan_files, push_files
from hub_release.hub import errors_in_words
from hub_release.integrity import copy_files
from hub_release.package import LAYOUT, RefusedError, ReleaseError, package_files, words_of
from hub_release.plan import Plan
from hub_release.pull import pull


@dataclass(frozen=True)
class Options:
    """How to push.

    Attributes:
        message: first line of the commit.
        tag: name to give to the commit; None for none.
        allow_contaminated: push scores of the protocol pooled-r2 too; the card carries a banner.
        retry_on_race: plan and commit again where somebody else moved the branch meanwhile.
        verify: download what was pushed into an empty cache, and check it.
        dry_run: check and plan only.
        space: ``user/name`` of a Space that shall serve the package; None for none.
    """

    message: str = "Publish with hub_release"
    tag: str | None = None
    allow_contaminated: bool = False
    retry_on_race: bool = False
    verify: bool = True
    dry_run: bool = False
    space: str | None = None


@dataclass(frozen=True)
class Published:
    """The outcome of :func:`push`: of the package, and of its Space if one was asked for and the package is there."""

    package: Pushed
    space: Pushed | None = None


def push(
    api: HfApi, source: Path, destination: Destination, options: Options, confirm: Callable[[Destination, Plan], bool]
) -> Published:
    """Publish a finished run or a package.

    Args:
        api: the client, from :func:`hub_release.hub.connect`.
        source: run folder, which is exported to a temporary folder first, or package folder.
        destination: where to.
        options: how.
        confirm: is shown each plan that has something to change; False leaves that repository untouched.

    Raises:
        RefusedError: the check found problems, before the push or in what was pushed.
        HubError: the Hub refused, or it or the network failed.
        ReleaseError: wrong use: no run or package, no token, a tag that names another commit.
    """
    with _package_of(source) as package:
        problems = check(package, options.allow_contaminated)
        if problems:
            raise RefusedError(f"{source} is not pushed", problems)
        files = package_files(package)
        tagged = _tagged_commit(api, destination, options.tag) if options.tag else None
        if options.dry_run:
            plan = plan_files(api, destination, files)
            return Published(Pushed(None, destination.url(api), changed=False, plan=plan))

        def refuse_taken_tag(plan: Plan) -> bool:
            if tagged is not None:
                raise ReleaseError(_taken(destination, options.tag, tagged))
            return confirm(destination, plan)

        pushed = push_files(api, destination, files, options.message, refuse_taken_tag, options.retry_on_race)
        if pushed.commit is None:
            return Published(pushed)
        if options.tag:
            _set_tag(api, destination, options.tag, pushed.commit)
        if options.verify:
            _verify(api, destination, pushed, options.allow_contaminated)
        space = _push_space(api, package, destination, options, confirm) if options.space else None
    return Published(pushed, space)


def _push_space(
    api: HfApi, package: Path, model: Destination, options: Options, confirm: Callable[[Destination, Plan], bool]
) -> Pushed:
    from hub_release.demo import space_files  # takes torch

    space = Destination(str(options.space), "space", private=model.private)
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in space_files(package, model.repo_id).items():
            Path(temporary, name).write_bytes(content)
        files = package_files(Path(temporary))
        return push_files(api, space, files, options.message, partial(confirm, space), options.retry_on_race)


@contextmanager
def _package_of(source: Path) -> Iterator[Path]:
    """A package that nobody else can change: what is checked is what is pushed, however long the answer takes."""
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "package"
        if (source / LAYOUT.config).is_file():
            problems = copy_files(source, package, package_files(source))
            if problems:
                raise RefusedError(f"{source} is not pushed", [words_of(problem) for problem in problems])
        else:
            from hub_release.export import export  # takes torch, which a package folder does without

            export(source, package)
        yield package


def _verify(api: HfApi, destination: Destination, pushed: Pushed, allow_contaminated: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "package"
        pull(api, destination.repo_id, folder, pushed.commit)
        problems = check(folder, allow_contaminated)
    if problems:
        raise RefusedError(f"{pushed.url} is pushed, but what a stranger gets fails the check", problems)


def _tagged_commit(api: HfApi, destination: Destination, tag: str) -> str | None:
    with errors_in_words():
        try:
            return api.repo_info(destination.repo_id, repo_type=destination.repo_type, revision=tag).sha
        except (RevisionNotFoundError, RepositoryNotFoundError):
            return None


def _set_tag(api: HfApi, destination: Destination, tag: str, commit: str) -> None:
    """Tag a commit; nothing happens where it is tagged so already."""
    with errors_in_words():
        # A tag that exists is a success here, and then looked at: the answer to an earlier try may have been lost.
        api.create_tag(destination.repo_id, tag=tag, revision=commit, repo_type=destination.repo_type, exist_ok=True)
    found = _tagged_commit(api, destination, tag)
    if found != commit:
        raise ReleaseError(f"the commit is pushed, but {_taken(destination, tag, str(found))}")


def _taken(destination: Destination, tag: str | None, commit: str) -> str:
    return (
        f"{tag} of {destination.repo_id} names the commit {commit} already. Remedy: another --tag, or hf repos tag "
        f"delete {destination.repo_id} {tag}"
    )
