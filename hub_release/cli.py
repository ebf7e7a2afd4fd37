"""The command line ``hub_release``: from a finished run to a trusted package, to the Hub and back."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from hub_release.hub.client import HubError, connect
from hub_release.hub.commit import Destination, Pushed
from hub_release.hub.diff import CommitPlan
from hub_release.package import LAYOUT, RefusedError, ReleaseError
from modeling.infer.quiet import silence_libraries
from modeling.infer.stops import catch_sigterm, describe_local_error, describe_stop

# Each verb imports its own modules: torch takes seconds to import, and --help should not.

REFUSED, WRONG_USE, HUB_FAILED = 1, 2, 3


class _Verbs(TyperGroup):
    """Answers in JSON with ``--json``, even if the command line itself is wrong."""

    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            if not as_json:
                raise
            _print_json({"ok": False, "error": error.format_message(), "problems": []})
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn a finished run into a package that a stranger can trust.\n\n"
    "`hub_release push runs/goemotions you/your-model` does it all: export, check, one commit on the Hub, and a check "
    "of what arrived. The token comes from `hf auth login` or `HF_TOKEN`, the Hub from `HF_ENDPOINT`.\n\n"
    "Exit codes: 0 done; 1 the check found problems, or you said no; 2 wrong use or input; 3 the Hub or the network "
    "failed, or the Hub refused; 4 a full disk or too little memory; 130 interrupted; 143 terminated. With `--json` the "
    "standard output is always one JSON object. It has `ok`, and if that is false, also `error` and `problems`.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Package = Annotated[Path, typer.Argument(metavar="PACKAGE", help="Package folder, such as packages/goemotions.")]
AllowContaminated = Annotated[
    bool,
    typer.Option(
        "--allow-contaminated",
        help="Accept scores of split protocol pooled-r2, which trains on rows made from test rows. The card says so.",
    ),
]


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """End a verb with the exit code and the message of its error."""
    silence_libraries()
    try:
        with catch_sigterm():
            yield
    except (Exception, KeyboardInterrupt) as error:
        _end(as_json, error)


def _end(as_json: bool, error: BaseException) -> NoReturn:
    if (stop := describe_stop(error)) is not None:
        again = shlex.join(["hub_release", *sys.argv[1:]])
        _fail(as_json, stop[0], f"{stop[1]}; nothing is left half done. Remedy: to go on, run {again}")
    if isinstance(error, ReleaseError):
        problems = error.problems if isinstance(error, RefusedError) else []
        codes = {HubError: HUB_FAILED, RefusedError: REFUSED}
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), WRONG_USE)
        _fail(as_json, code, str(error), problems)
    if isinstance(error, OSError):  # from the file system: the Hub client's errors are ReleaseErrors by now
        _fail(as_json, WRONG_USE, describe_local_error(error))
    raise error


def _fail(as_json: bool, code: int, error: str, problems: Sequence[str] = (), **result: Any) -> NoReturn:
    if as_json:
        _print_json({"ok": False, "error": error, "problems": [*problems], **result})
    else:
        for line in (f"error: {error}", *(f"✗ {problem}" for problem in problems)):
            typer.echo(line, err=True)
    raise typer.Exit(code) from None


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


def _finish(as_json: bool, text: str, **result: Any) -> None:
    if as_json:
        _print_json({"ok": True, **result})
    else:
        typer.echo(text)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, such as runs/goemotions.")],
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Folder to write; must be new or empty.")],
    as_json: Json = False,
) -> None:
    """Write the package of a finished run: weights, configuration, infer.py and model card.

    Example: `hub_release export runs/goemotions packages/goemotions`
    """
    with _errors(as_json):
        from hub_release.export import export as export_run

        export_run(run, package)
        _finish(as_json, f"{package} is written. Next: run hub_release check {package}", package=str(package))


@app.command()
def card(package: Package, as_json: Json = False) -> None:
    """Render the model card again from the package's recorded files, which must match its SHA256SUMS.

    Example: `hub_release card packages/goemotions`
    """
    with _errors(as_json):
        from hub_release.export import renew_card

        renew_card(package)
        path = package / LAYOUT.card
        _finish(as_json, f"{path} is written.", card=str(path))


@app.command()
def check(package: Package, allow_contaminated: AllowContaminated = False, as_json: Json = False) -> None:
    """List everything that is wrong with a package, each problem with its remedy.

    First, every file is read as data: layout, hashes, plain tensors, one order of labels, no secrets, a card that
    matches the records. Then a fresh, isolated process reproduces the trained model's probabilities.

    Example: `hub_release check packages/goemotions`
    """
    with _errors(as_json):
        from hub_release.check.earlier import describe_earlier
        from hub_release.check.gate import check as check_package

        problems = check_package(package, allow_contaminated)
        if problems:
            raise RefusedError(f"{package} fails the check", problems)
        text = f"✓ {package} is complete, its card is true, and a fresh process reproduces the trained model."
        text += describe_earlier(package)
        _finish(as_json, text, package=str(package))


@app.command()
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_PACKAGE", help="Folder of a finished run, or a package.")],
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
    with _errors(as_json):
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
            _finish(as_json, "\n".join([*plans, "Nothing was touched."]), **result)
        elif pushed.commit is None:
            _fail(as_json, REFUSED, "you said no; nothing was pushed", **result)
        elif page and page.commit is None:
            _fail(as_json, REFUSED, f"{pushed.url} is pushed; you said no to its Space", **result)
        else:
            lines = [_outcome(pushed, "package"), *([_outcome(page, "Space")] if page else [])]
            _finish(as_json, "\n".join([*lines, f"Next: run hub_release pull {repo_id} FOLDER"]), **result)


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


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; must be new or empty.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default main.")] = None,
    allow_contaminated: AllowContaminated = False,
    as_json: Json = False,
) -> None:
    """Download a package, verify every file's hash, and check it. A package that fails is not kept.

    Example: `hub_release pull you/your-model packages/your-model --revision v1`
    """
    with _errors(as_json):
        from hub_release.check.earlier import describe_earlier
        from hub_release.check.gate import check as check_package
        from hub_release.hub.pull import pull as pull_package

        find_problems = partial(check_package, allow_contaminated=allow_contaminated)
        commit = pull_package(connect(), repo_id, folder, revision, find_problems)
        text = f"✓ {folder} has {repo_id} at {commit}, complete and as its author made it."
        text += describe_earlier(folder)
        _finish(as_json, text, folder=str(folder), commit=commit)


@app.command()
def demo(
    package: Package,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; by default the first free one from 7860.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    share: Annotated[
        bool, typer.Option("--share", help="Also create a public address through Gradio's tunnel.")
    ] = False,
) -> None:
    """Serve a browser page for trying the package. Press Control+C to stop.

    Example: `hub_release demo packages/goemotions`
    """
    with _errors(as_json=False):
        from hub_release.demo.serve import serve

        serve(package, host, port, share)


if __name__ == "__main__":
    app()
