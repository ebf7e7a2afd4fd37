"""``hub_release``: from a finished run to a package that strangers can trust, on the Hub and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hub_release.commit import Destination, Pushed
from hub_release.hub import HubError, connect
from hub_release.package import LAYOUT, RefusedError, ReleaseError
from hub_release.plan import Plan

# The verbs' own modules are imported where they are used: torch takes seconds, --help should not.

REFUSED, WRONG_USE, HUB_FAILED = 1, 2, 3

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="From a finished run to a package that a stranger can trust.\n\n"
    "`hub_release push runs/goemotions you/your-model` does it all: export, check, one commit on the Hub, and a check "
    "of what arrived. The token comes from `hf auth login` or `HF_TOKEN`, the Hub from `HF_ENDPOINT`.\n\n"
    "Exit codes: 0 done; 1 the check found problems, or you said no; 2 wrong use or input; 3 the Hub refused, or it "
    "or the network failed. With `--json` the screen gets one JSON object, whatever happens: `ok`, and `error` or "
    "`problems` where it is not.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Package = Annotated[Path, typer.Argument(help="Package folder, such as packages/goemotions.")]
AllowContaminated = Annotated[
    bool, typer.Option(help="Accept scores of the protocol pooled-r2; the card carries a banner.")
]


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """End a verb with the exit code and the words of its error."""
    try:
        yield
    except ReleaseError as error:
        problems = error.problems if isinstance(error, RefusedError) else []
        if as_json:
            _print_json({"ok": False, "error": str(error), "problems": problems})
        else:
            for line in (f"error: {error}", *(f"✗ {problem}" for problem in problems)):
                typer.echo(line, err=True)
        codes = {HubError: HUB_FAILED, RefusedError: REFUSED}
        raise typer.Exit(next((code for kind, code in codes.items() if isinstance(error, kind)), WRONG_USE)) from None


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


def _finish(as_json: bool, text: str, **result: Any) -> None:
    if as_json:
        _print_json({"ok": True, **result})
    else:
        typer.echo(text)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/goemotions.")],
    package: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    as_json: Json = False,
) -> None:
    """Write the package of a finished run: weights, configuration, infer.py and model card.

    Example: `hub_release export runs/goemotions packages/goemotions`
    """
    with _errors(as_json):
        from hub_release.export import export as export_run

        export_run(run, package)
        _finish(as_json, f"{package} is written. Next: hub_release check {package}", package=str(package))


@app.command()
def card(package: Package, as_json: Json = False) -> None:
    """Render the model card again, from the files that the package records; they must be those of its SHA256SUMS.

    Example: `hub_release card packages/goemotions`
    """
    with _errors(as_json):
        from hub_release.card import renew_card

        renew_card(package)
        path = package / LAYOUT.card
        _finish(as_json, f"{path} is written.", card=str(path))


@app.command()
def check(package: Package, allow_contaminated: AllowContaminated = False, as_json: Json = False) -> None:
    """Load a package in a fresh, isolated process and compare its golden probabilities; list all that is wrong.

    Example: `hub_release check packages/goemotions`
    """
    with _errors(as_json):
        from hub_release.check import check as check_package

        problems = check_package(package, allow_contaminated)
        if problems:
            raise RefusedError(f"{package} fails the check", problems)
        text = f"✓ {package}: complete, its card is true, and a fresh process reproduces the trained model."
        _finish(as_json, text, package=str(package))


@app.command()
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_PACKAGE", help="Folder of a finished run, or a package.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub; made if it does not exist.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the commit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show what would change; touch nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch; made from main if it does not exist.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request; the branch stays.")] = False,
    message: Annotated[str, typer.Option(help="First line of the commit.")] = "Publish with hub_release",
    tag: Annotated[str | None, typer.Option(help="Tag the commit, such as v1.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Afterwards download into an empty cache, and check that.")
    ] = True,
    retry_on_race: Annotated[
        bool, typer.Option("--retry-on-race", help="Plan and commit again if somebody else commits meanwhile.")
    ] = False,
    space: Annotated[
        str | None, typer.Option(metavar="SPACE_ID", help="Also publish the demo page, as this Space: user/name.")
    ] = None,
    allow_contaminated: AllowContaminated = False,
    as_json: Json = False,
) -> None:
    """Check a run or package and publish it, by one commit: the Hub holds all of it, or what it held before.

    What the repository holds beyond the package is removed; the plan says so before anything happens. The same
    package again changes nothing. A push that was stopped can be run again.

    Example: `hub_release push runs/goemotions you/your-model --tag v1`
    """
    with _errors(as_json):
        if tag and create_pr:
            raise ReleaseError("--tag names a published commit, --create-pr only proposes one. Remedy: leave out one")
        if not (yes or dry_run or sys.stdin.isatty()):
            raise ReleaseError("nobody is here to be asked. Remedy: --yes to push, --dry-run to look only")
        from hub_release.push import Options
        from hub_release.push import push as push_package

        if space and create_pr:
            raise ReleaseError("a Space serves what is published, --create-pr only proposes. Remedy: leave out one")

        def confirm(target: Destination, plan: Plan) -> bool:
            if not as_json:
                typer.echo(_describe(plan, target.repo_id))
            return yes or typer.confirm("Push?", err=True)

        destination = Destination(repo_id, "model", revision, private, create_pr)
        options = Options(message, tag, allow_contaminated, retry_on_race, verify, dry_run, space)
        published = push_package(connect(), source, destination, options, confirm)
        pushed = published.package
        lines = [_describe(pushed.plan, repo_id), "Nothing was touched."] if dry_run else [_outcome(pushed, "package")]
        if published.space:
            lines.append(_outcome(published.space, "Space"))
        if pushed.commit:
            lines.append(f"Next: hub_release pull {repo_id} FOLDER")
        result = {**asdict(pushed), "tag": tag, "verified": verify and pushed.commit is not None}
        _finish(as_json, "\n".join(lines), **result, space=asdict(published.space) if published.space else None)
        if pushed.commit is None and not dry_run:
            raise typer.Exit(REFUSED)


def _outcome(pushed: Pushed, what: str) -> str:
    if pushed.commit is None:
        return f"The {what} was not pushed."
    return pushed.url if pushed.changed else f"Nothing to push: {pushed.url} holds this {what} already."


def _describe(plan: Plan, repo_id: str) -> str:
    lines = [f"{repo_id}: {'does not exist and will be made' if plan.parent is None else f'stands at {plan.parent}'}"]
    for mark, word, paths in (
        ("+", "new", plan.new),
        ("~", "changed", plan.changed),
        ("-", "removed", plan.removed),
        ("=", "same", plan.same),
    ):
        lines += [f"  {mark} {path} ({word})" for path in paths]
    return "\n".join([*lines, f"{plan.bytes:,} bytes to upload"])


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default main.")] = None,
    allow_contaminated: AllowContaminated = False,
    as_json: Json = False,
) -> None:
    """Download a package, verify every file's hash, and check it.

    Example: `hub_release pull you/your-model packages/your-model --revision v1`
    """
    with _errors(as_json):
        from hub_release.check import check as check_package
        from hub_release.pull import pull as pull_package

        commit = pull_package(connect(), repo_id, folder, revision)
        problems = check_package(folder, allow_contaminated)
        if problems:
            raise RefusedError(f"{folder} is {repo_id} at {commit}, which fails the check", problems)
        text = f"✓ {folder} is {repo_id} at {commit}, complete and as its author made it."
        _finish(as_json, text, folder=str(folder), commit=commit)


@app.command()
def demo(
    package: Package,
    port: Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    share: Annotated[bool, typer.Option("--share", help="Also make a public address through Gradio's tunnel.")] = False,
) -> None:
    """Serve a page in the browser on which the package can be tried; Control+C ends it.

    Example: `hub_release demo packages/goemotions`
    """
    with _errors(as_json=False):
        from hub_release.demo import serve

        serve(package, host, port, share)


if __name__ == "__main__":
    app()
