"""Files → one commit on the Hub, of a model or a Space: planned, confirmed, whole or not at all.

Large files are uploaded before the commit, by Xet if hf-xet is installed, else by LFS. Nobody sees them until a commit
names them. ``create_commit`` makes one commit either way (``upload_folder`` may make several).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from hub_release.hub.client import TRANSIENT, TRIES, HubError, translated_errors, wait_before_next_try
from hub_release.hub.diff import CommitPlan, compare, same_content
from hub_release.package import OF_THE_HUB, ReleaseError

RACES = 5
"""How often a commit is tried when others keep moving the branch."""


class LostRaceError(HubError):
    """Somebody else moved the branch between plan and commit."""


@dataclass(frozen=True)
class Destination:
    """Where files go.

    Raises:
        ReleaseError: ``repo_id`` is not a repository name, or ``revision`` is not a branch name.

    Attributes:
        repo_id: ``user/name``.
        repo_type: ``model`` or ``space`` (then a Gradio one).
        revision: the branch; it is created from ``main`` if it is missing.
        private: whether a new repository is private.
        create_pr: propose the commit as a pull request instead of moving the branch.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str = "main"
    private: bool = False
    create_pr: bool = False

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
            if "/" not in self.repo_id:
                raise HFValidationError("It has no owner.")
        except HFValidationError as error:
            raise ReleaseError(
                f"{self.repo_id!r} is not a repository name. {error} Remedy: name it as user/name"
            ) from None
        require_reference(self.revision)

    def url(self, api: HfApi, *parts: str) -> str:
        """An address in the repository's pages."""
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return "/".join([api.endpoint, f"{prefix}{self.repo_id}", *parts])


def require_reference(name: str) -> None:
    """Refuse a name that a branch or tag cannot have by git's rules (``git help check-ref-format``).

    Raises:
        ReleaseError: the name is refused.
    """
    if not re.fullmatch(r"\w[\w./-]*", name) or re.search(r"\.\.|//|/\.|[./]$|\.lock(?:/|$)", name):
        raise ReleaseError(
            f"{name!r} is not a branch or tag name. Remedy: use letters, digits, '-', '_', '.' and '/', such as v1.0"
        )


@dataclass(frozen=True)
class Pushed:
    """The outcome of :func:`push_files`.

    Attributes:
        commit: the commit that has the files; None if ``confirm`` refused.
        url: its page, or the pull request's.
        changed: False if the Hub already had the files, so that no commit was made.
        plan: what was planned.
    """

    commit: str | None
    url: str
    changed: bool
    plan: CommitPlan


def push_files(
    api: HfApi,
    destination: Destination,
    files: Mapping[str, Path],
    message: str,
    confirm: Callable[[CommitPlan], bool],
    retry_on_race: bool = False,
) -> Pushed:
    """Make the repository hold exactly these files, by one commit on top of the one that was compared.

    A missing repository or branch is created before the commit. A push that is stopped leaves them as they were, or
    empty, and can be run again. Files of the repository that are not in ``files`` are removed.

    Args:
        api: the client, from :func:`hub_release.hub.client.connect`.
        destination: where to.
        files: path in the repository → file. The client reads them when it uploads.
        message: first line of the commit, and title of a pull request.
        confirm: gets the plan if there is something to change; False ends the push before anything is touched.
        retry_on_race: plan, confirm and commit again if somebody else moved the branch in the meantime.

    Raises:
        LostRaceError: the branch moved.
        HubError: the Hub refused, or it or the network failed.
        ReleaseError: there is no token.
    """
    upload = _Upload(api, destination, files, message)
    with translated_errors():
        exists = upload.require_write()
        for _ in range(RACES - 1 if retry_on_race else 0):
            try:
                return upload.push(confirm, exists)
            except LostRaceError:
                exists = True
        return upload.push(confirm, exists)


def plan_files(
    api: HfApi, destination: Destination, files: Mapping[str, Path], exists: bool | None = None
) -> CommitPlan:
    """What :func:`push_files` would change. The token must have write access, unless ``exists`` is given.

    Raises:
        HubError: the Hub refused, or it or the network failed.
        ReleaseError: there is no token.
    """
    upload = _Upload(api, destination, files, message="")
    with translated_errors():
        return upload.plan(upload.require_write() if exists is None else exists)


@dataclass(frozen=True)
class _Upload:
    api: HfApi
    destination: Destination
    files: Mapping[str, Path]
    message: str

    def require_write(self) -> bool:
        """Whether the repository exists; raises an error if the token may not write, before anything is created."""
        to = self.destination
        if get_token() is None:
            raise ReleaseError("there is no token. Remedy: run hf auth login, or set HF_TOKEN")
        try:
            # create_repo(exist_ok=True) succeeds with a token that may only read, so it cannot tell.
            self.api.auth_check(to.repo_id, repo_type=to.repo_type, write=not to.create_pr)
        except RepositoryNotFoundError:
            self._require_may_create()
            return False
        return True

    def _require_may_create(self) -> None:
        repo_id, account = self.destination.repo_id, self.api.whoami()
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(
                f"{repo_id} does not exist, and this token may only read. Remedy: use a token with write access "
                "(https://huggingface.co/settings/tokens)"
            )
        namespaces = [account["name"], *(o["name"] for o in account.get("orgs", []) if o.get("roleInOrg") != "read")]
        if repo_id.split("/")[0].lower() not in [name.lower() for name in namespaces]:
            raise HubError(
                f"{repo_id} does not exist, and this token may not create it: it may write to {', '.join(namespaces)}. "
                f"Remedy: name it {account['name']}/{repo_id.split('/')[1]}, or use a token of that account"
            )

    def push(self, confirm: Callable[[CommitPlan], bool], exists: bool) -> Pushed:
        plan = self.plan(exists)
        if plan.is_empty:
            return self._pushed(str(plan.parent), plan, changed=False)
        if exists and self.destination.create_pr and (found := self._find_pull_request(plan, changed=False)):
            return found
        if not confirm(plan):
            return Pushed(None, self.destination.url(self.api), changed=False, plan=plan)
        if plan.parent is None or not plan.branch_exists:
            self._create(plan)
            made = self.plan(exists=True)
            if made.changes != plan.changes:
                raise LostRaceError(
                    f"somebody else filled {self.destination.repo_id} first; nothing was pushed. Remedy: run again"
                )
            plan = made
            if plan.parent is not None and not any(plan.changes):
                return self._pushed(plan.parent, plan, changed=True)
        return self._commit(plan)

    def plan(self, exists: bool) -> CommitPlan:
        """Compare the files with the branch, or with ``main`` if it is missing, by their hashes."""
        head, branch_exists = self._head() if exists else (None, False)
        there = {} if head is None else self._tree(head)
        return compare(self.files, there, head, branch_exists)

    def _head(self) -> tuple[str | None, bool]:
        """The parent commit, and whether the branch exists."""
        to = self.destination
        for revision in dict.fromkeys((to.revision, "main")):
            try:
                info = self.api.repo_info(to.repo_id, repo_type=to.repo_type, revision=revision)
            except RevisionNotFoundError:
                if to.create_pr:
                    raise
            else:
                return info.sha, revision == to.revision
        return None, False

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        to = self.destination
        entries = self.api.list_repo_tree(to.repo_id, recursive=True, revision=revision, repo_type=to.repo_type)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path not in OF_THE_HUB}

    def _holds(self, revision: str) -> bool:
        there = self._tree(revision)
        return there.keys() == self.files.keys() and all(same_content(self.files[path], there[path]) for path in there)

    def _pushed(self, commit: str, plan: CommitPlan, changed: bool) -> Pushed:
        return Pushed(commit, self.destination.url(self.api, "commit", commit), changed, plan)

    def _create(self, plan: CommitPlan) -> None:
        to = self.destination
        if plan.parent is None:
            self.api.create_repo(
                to.repo_id,
                repo_type=to.repo_type,
                private=to.private or None,  # None: as the organization sets it
                exist_ok=True,
                space_sdk="gradio" if to.repo_type == "space" else None,
            )
        if to.revision != "main":
            self.api.create_branch(
                to.repo_id, branch=to.revision, revision=plan.parent, repo_type=to.repo_type, exist_ok=True
            )

    def _commit(self, plan: CommitPlan) -> Pushed:
        """Make one commit; try again only if the branch shows that it has not landed."""
        tries = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_before_next_try,
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        pushed: Pushed = tries(self._commit_once, plan)
        assert pushed.commit is not None
        try:
            complete = self._holds(pushed.commit)
        except HubError as error:
            raise HubError(f"{pushed.url} is committed, but it could not be checked: {error}") from error
        if not complete:
            raise HubError(
                f"{pushed.url} does not have the files that were sent. Remedy: look for rules in the repository's "
                ".gitignore, which the Hub obeys, and run again"
            )
        return pushed

    def _commit_once(self, plan: CommitPlan) -> Pushed:
        to = self.destination
        # Created again for each try: the client writes its state into them.
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path, str(self.files[path])) for path in (*plan.new, *plan.changed)),
            *(CommitOperationDelete(path) for path in plan.removed),
        ]
        try:
            info = self.api.create_commit(
                to.repo_id,
                operations,
                commit_message=self.message,
                repo_type=to.repo_type,
                revision=to.revision,
                create_pr=to.create_pr,
                parent_commit=plan.parent,
            )
        except (HfHubHTTPError, httpx2.TransportError) as error:
            raced = isinstance(error, HfHubHTTPError) and error.response.status_code == 412
            if not raced and not _is_transient(error):
                raise
            landed = self._find_landed(plan)
            if landed is not None:
                return landed
            self._refuse_second_try(plan, error, raced)
            raise
        return Pushed(info.oid, info.pr_url or info.commit_url, changed=True, plan=plan)

    def _refuse_second_try(self, plan: CommitPlan, error: Exception, raced: bool) -> None:
        to = self.destination
        if raced:
            raise LostRaceError(
                f"somebody else moved {to.revision} of {to.repo_id} away from {plan.parent}; nothing was pushed. "
                "Remedy: look at the new commit and run again, or give --retry-on-race"
            ) from error
        # Only a 429 cannot have opened a pull request. After other failures, a second try might open a second one.
        if to.create_pr and not (isinstance(error, HfHubHTTPError) and error.response.status_code == 429):
            raise HubError(
                "the Hub did not say whether the pull request was opened. Remedy: look at "
                f"{to.url(self.api, 'discussions')}; run again, and an open one with these files is found"
            ) from error

    def _find_landed(self, plan: CommitPlan) -> Pushed | None:
        """The commit whose answer was lost, or somebody else's commit with the same files."""
        try:
            if self.destination.create_pr:
                return self._find_pull_request(plan, changed=True)
            head, _ = self._head()
            landed = head is not None and head != plan.parent and self._holds(head)
        except HubError as error:
            raise HubError(
                f"the Hub did not say whether the commit landed, and then: {error}. A push that has landed is not "
                "made twice"
            ) from error
        return self._pushed(str(head), plan, changed=True) if landed else None

    def _find_pull_request(self, plan: CommitPlan, changed: bool) -> Pushed | None:
        """An open pull request with this title and exactly these files."""
        to = self.destination
        for discussion in self.api.get_repo_discussions(
            to.repo_id, repo_type=to.repo_type, discussion_type="pull_request"
        ):
            if discussion.status not in ("open", "draft") or discussion.title != self.message.strip():
                continue
            reference = f"refs/pr/{discussion.num}"
            if self._holds(reference):
                commit = self.api.repo_info(to.repo_id, repo_type=to.repo_type, revision=reference).sha
                return Pushed(commit, to.url(self.api, "discussions", str(discussion.num)), changed, plan)
        return None


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    return isinstance(error, httpx2.TransportError)
