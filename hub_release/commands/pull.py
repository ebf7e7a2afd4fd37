"""``hub_release pull``: Hub → package folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hub_release.commands.console import AllowContaminated, Json, errors, finish
from hub_release.hub.client import connect


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
    with errors(as_json):
        from hub_release.check.earlier import describe_earlier
        from hub_release.check.gate import check as check_package
        from hub_release.hub.pull import pull as pull_package

        find_problems = partial(check_package, allow_contaminated=allow_contaminated)
        commit = pull_package(connect(), repo_id, folder, revision, find_problems)
        text = f"✓ {folder} has {repo_id} at {commit}, complete and as its author made it."
        text += describe_earlier(folder)
        finish(as_json, text, folder=str(folder), commit=commit)
