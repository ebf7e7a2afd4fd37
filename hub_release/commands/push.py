"""``hub_release push``: run or package → Hub."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub import get_token

from hub_release.commands.console import REFUSED, AllowContaminated, Json, command, errors, fail, find_package, finish
from hub_release.hub.client import connect
from hub_release.hub.commit import Destination, Pushed
from hub_release.hub.diff import CommitPlan
from hub_release.package import ReleaseError


def push(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_PACKAGE", callback=find_package, help="Folder of a finished run, or a package."),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub; created if missing.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the commit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show what would change; touch nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch; created from main if it does not exist.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the commit as a pull request.")] = False,
    message: Annotated[str, typer.Option(help="First line of the commit message.")] = "Publish with hub_release",
    tag: Annotated[str | None, typer.Option(help="Tag for the commit, such as v1.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="After the push, download into an empty cache and check that.")
    ] = True,
    retry_on_race: Annotated[
        bool, typer.Option("--retry-on-race", help="Plan and commit again if somebody else commits in the meantime.")
    ] = False,
    space: Annotated[
        str | None, typer.Option(metavar="SPACE_ID", help="Also publish the demo page as this Space: user/name.")
    ] = None,
    allow_contaminated: AllowContaminated = False,
    as_json: Json = False,
) -> None:
    """Check a run or package and publish it in one commit. The Hub then has all of it, or what it had before.

    Files in the repository that are not in the package are removed; the plan lists them before anything happens.
    Pushing the same package again changes nothing. A push that was stopped can be run again.

    To only look: `hub_release push packages/goemotions you/your-model --dry-run`

    Example: `hub_release push runs/goemotions you/your-model --tag v1`
    """
    with errors(as_json):
        _refuse_combinations(tag, create_pr, space, revision)
        if not (yes or dry_run or sys.stdin.isatty()):
            raise ReleaseError("no terminal to confirm on. Remedy: give --yes to push, or --dry-run to only look")
        from hub_release.hub.push import PushOptions, push as push_package

        def confirm(target: Destination, plan: CommitPlan) -> bool:
            if not (yes and as_json):
                typer.echo(_describe(plan, target), err=as_json)
            return yes or _ask(f"Push to {target.repo_id}?")

        destination = Destination(repo_id, "model", revision, private, create_pr)
        options = PushOptions(message, tag, allow_contaminated, retry_on_race, verify, dry_run, space)
        published = push_package(connect(), source, destination, options, confirm)
        pushed, page = published.package, published.space
        result = {**asdict(pushed), "tag": tag, "verified": verify and pushed.commit is not None}
        result["space"] = asdict(page) if page else None
        if dry_run:
            plans = [_describe(pushed.plan, destination)]
            if page:
                plans.append(_describe(page.plan, Destination(str(space), "space")))
            unseen = [] if get_token() else ["There is no token, so a private repository seems not to exist."]
            finish(as_json, "\n".join([*plans, *unseen, "Nothing was touched."]), **result)
        elif pushed.commit is None:
            fail(as_json, REFUSED, "you said no; nothing was pushed", **result)
        elif page and page.commit is None:
            fail(as_json, REFUSED, f"{pushed.url} is pushed; you said no to its Space", **result)
        else:
            lines = [_outcome(pushed, "package"), *([_outcome(page, "Space")] if page else [])]
            finish(
                as_json, "\n".join([*lines, f"Next: run {command('hub_release', 'pull', repo_id, 'FOLDER')}"]), **result
            )


def _refuse_combinations(tag: str | None, create_pr: bool, space: str | None, revision: str) -> None:
    if tag and create_pr:
        raise ReleaseError(
            "--tag names a published commit, but --create-pr only proposes one. Remedy: leave out one of them"
        )
    if space and create_pr:
        raise ReleaseError(
            "--space serves a published commit, but --create-pr only proposes one. Remedy: leave out one of them"
        )
    if space and revision != "main":
        raise ReleaseError(f"a Space serves the branch main, not {revision}. Remedy: leave out --space or --revision")


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # the input ended without an answer
        return False


def _outcome(pushed: Pushed, what: str) -> str:
    return pushed.url if pushed.changed else f"Nothing to push: {pushed.url} already has this {what}."


def _describe(plan: CommitPlan, target: Destination) -> str:
    state = "does not exist and will be created" if plan.parent is None else f"is at {plan.parent}"
    lines = [f"{target.repo_type} {target.repo_id}: {state}"]
    if plan.parent is not None and not plan.branch_exists:
        lines.append(f"  + branch {target.revision} (new, from main)")
    for mark, word, paths in (
        ("+", "new", plan.new),
        ("~", "changed", plan.changed),
        ("-", "removed", plan.removed),
        ("=", "same", plan.same),
    ):
        lines += [f"  {mark} {path} ({word})" for path in paths]
    return "\n".join([*lines, f"{plan.bytes:,} bytes to upload"])
