"""Run folder or package → checked → one commit on the Hub → checked again as strangers get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from hub_release.check.gate import check
from hub_release.check.integrity import copy_files, unreadable_problems
from hub_release.hub.client import HubError, translated_errors
from hub_release.hub.commit import Destination, Pushed, plan_files, push_files, require_reference
from hub_release.hub.diff import CommitPlan
from hub_release.hub.pull import pull
from hub_release.package import LAYOUT, RefusedError, ReleaseError, package_files, printable, require_folder, scratch


@dataclass(frozen=True)
class PushOptions:
    """How to push.

    Attributes:
        message: first line of the commit.
        tag: tag for the commit, or None.
        allow_contaminated: also push scores of the protocol pooled-r2; the card has a banner.
        retry_on_race: plan and commit again if somebody else moved the branch in the meantime.
        verify: download what was pushed into an empty cache, and check it.
        dry_run: check and plan only.
        space: ``user/name`` of a Space to serve the package, or None.
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
    """The outcome of :func:`push` for the package, and for its Space if there is one."""

    package: Pushed
    space: Pushed | None = None


def push(
    api: HfApi,
    source: Path,
    destination: Destination,
    options: PushOptions,
    confirm: Callable[[Destination, CommitPlan], bool],
) -> Published:
    """Publish a finished run or a package.

    Args:
        api: the client, from :func:`hub_release.hub.client.connect`.
        source: run folder, which is exported to a temporary folder first, or package folder.
        destination: where to.
        options: how.
        confirm: gets each plan that has something to change; False leaves both repositories untouched.

    Raises:
        RefusedError: the check found problems, before the push or in what was pushed.
        HubError: the Hub refused, or it or the network failed.
        ReleaseError: wrong use: no run or package, no token, a wrong repository name, a tag that names another commit.

    The package, the tag or the Space are refused before anything is touched.
    """
    space = Destination(options.space, "space", private=destination.private) if options.space else None
    _require_usable(options)
    with ExitStack() as stack:
        package = stack.enter_context(_package_of(source, destination))
        problems = check(package, options.allow_contaminated)
        if problems:
            raise RefusedError(f"{source} is not pushed", problems)
        parts = [_Part(destination, package_files(package))]
        if space:
            parts.append(_Part(space, stack.enter_context(_files_of_space(package, destination))))
        look = partial(_exists_for_everybody, api) if options.dry_run and get_token() is None else lambda to: None
        plans = [plan_files(api, part.destination, part.files, look(part.destination)) for part in parts]
        if options.tag:
            _refuse_taken_tag(api, destination, options.tag, plans[0])
        agreed = not options.dry_run and all(
            plan.is_empty or confirm(part.destination, plan) for part, plan in zip(parts, plans, strict=True)
        )
        if not agreed:
            urls = [part.destination.url(api) for part in parts]
            return Published(*(Pushed(None, url, False, plan) for url, plan in zip(urls, plans, strict=True)))
        return _publish(api, parts, plans, options, confirm)


@dataclass(frozen=True)
class _Part:
    """One of the two repositories that a push writes: the model, and its Space."""

    destination: Destination
    files: Mapping[str, Path]


def _publish(
    api: HfApi,
    parts: list[_Part],
    plans: list[CommitPlan],
    options: PushOptions,
    confirm: Callable[[Destination, CommitPlan], bool],
) -> Published:
    """Carry out plans that were confirmed; a plan that had to be made again is confirmed again."""

    def publish(part: _Part, agreed: CommitPlan) -> Pushed:
        def confirm_other(plan: CommitPlan) -> bool:
            return plan == agreed or confirm(part.destination, plan)

        return push_files(api, part.destination, part.files, options.message, confirm_other, options.retry_on_race)

    destination, pushed = parts[0].destination, publish(parts[0], plans[0])
    if pushed.commit is None:
        return Published(pushed)
    if options.tag:
        with _after(pushed, f"is not tagged {options.tag}"):
            _set_tag(api, destination, options.tag, pushed.commit)
    if options.verify:
        with _after(pushed, "what a stranger gets could not be checked"):
            _verify(api, destination, pushed, options.allow_contaminated)
    if len(parts) == 1:
        return Published(pushed)
    with _after(pushed, f"its Space {parts[1].destination.repo_id} is not"):
        return Published(pushed, publish(parts[1], plans[1]))


def _exists_for_everybody(api: HfApi, destination: Destination) -> bool:
    """Whether a repository exists, without a token; a private one does not seem to."""
    with translated_errors():
        return api.repo_exists(destination.repo_id, repo_type=destination.repo_type)


def _require_usable(options: PushOptions) -> None:
    if not options.message.strip():
        raise ReleaseError("the message is empty. Remedy: give --message a few words, or leave it out")
    if options.tag is not None:
        require_reference(options.tag)


@contextmanager
def _files_of_space(package: Path, model: Destination) -> Iterator[dict[str, Path]]:
    from hub_release.demo.serve import space_files  # imports torch

    with scratch() as temporary:
        (temporary / "space").mkdir()
        for name, content in space_files(package, model.repo_id).items():
            (temporary / "space" / name).write_bytes(content)
        yield package_files(temporary / "space")


@contextmanager
def _after(pushed: Pushed, what: str) -> Iterator[None]:
    """Add to an error after the commit that the commit was made."""
    try:
        yield
    except HubError as error:
        raise HubError(f"{pushed.url} is pushed, but {what}: {error}") from error


@contextmanager
def _package_of(source: Path, destination: Destination) -> Iterator[Path]:
    """A package that nobody else can change, so that what was checked is what is pushed."""
    with scratch() as temporary:
        package = temporary / "package"
        if (source / LAYOUT.config).is_file():
            problems = unreadable_problems(source) or copy_files(source, package, package_files(source))
            if problems:
                raise RefusedError(f"{source} is not pushed", [printable(problem) for problem in problems])
        else:
            require_folder(source)
            from hub_release.card.own import model_name
            from hub_release.export import export  # imports torch, which a package folder does not need

            export(source, package, name=model_name(destination.repo_id.rsplit("/", 1)[-1]))
        yield package


def _verify(api: HfApi, destination: Destination, pushed: Pushed, allow_contaminated: bool) -> None:
    with scratch() as temporary:
        folder = temporary / "package"
        pull(api, destination.repo_id, folder, pushed.commit)
        problems = check(folder, allow_contaminated)
    if problems:
        raise RefusedError(f"{pushed.url} is pushed, but what a stranger gets fails the check", problems)


def _refuse_taken_tag(api: HfApi, destination: Destination, tag: str, plan: CommitPlan) -> None:
    """Raise if a tag names another commit than the one that will hold the package, before anything is touched."""
    tagged = _tagged_commit(api, destination, tag)
    if tagged is not None and not (plan.is_empty and plan.parent == tagged):
        raise ReleaseError(_taken(destination, tag, tagged))


def _tagged_commit(api: HfApi, destination: Destination, tag: str) -> str | None:
    with translated_errors():
        try:
            return api.repo_info(destination.repo_id, repo_type=destination.repo_type, revision=tag).sha
        except (RevisionNotFoundError, RepositoryNotFoundError):
            return None


def _set_tag(api: HfApi, destination: Destination, tag: str, commit: str) -> None:
    """Tag a commit; nothing happens if it already has the tag."""
    with translated_errors():
        # A tag that exists is a success here and is checked below: the answer to an earlier try may have been lost.
        api.create_tag(destination.repo_id, tag=tag, revision=commit, repo_type=destination.repo_type, exist_ok=True)
    found = _tagged_commit(api, destination, tag)
    if found != commit:
        raise HubError(_taken(destination, tag, str(found)))


def _taken(destination: Destination, tag: str, commit: str) -> str:
    return (
        f"{tag} of {destination.repo_id} already names the commit {commit}. Remedy: give another --tag, or run hf "
        f"repos tag delete {destination.repo_id} {tag}"
    )
