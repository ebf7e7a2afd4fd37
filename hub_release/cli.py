"""The command line ``hub_release``: from a finished run to a trusted package, to the Hub and back."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hub_release.commands.adapt import adapt
from hub_release.commands.check import check
from hub_release.commands.console import escape_unencodable, print_json
from hub_release.commands.container import container
from hub_release.commands.demo import demo
from hub_release.commands.export import card, export
from hub_release.commands.pull import pull
from hub_release.commands.push import push
from hub_release.commands.score import score
from hub_release.commands.serve import serve

# Each verb imports its own modules: torch takes seconds to import, and --help should not.


class _Verbs(TyperGroup):
    """Answers in JSON with ``--json``, even if the command line itself is wrong."""

    def invoke(self, ctx: Any) -> Any:
        escape_unencodable()
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            if not as_json:
                raise
            print_json({"ok": False, "error": error.format_message(), "problems": []})
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from hub_release.shipped.requirements import project_version

        typer.echo(project_version())
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a finished run into a package that a stranger can trust.

    `hub_release push runs/goemotions you/your-model` does it all: export, check, one commit on the Hub, and a check of
    what arrived. The token comes from `hf auth login` or `HF_TOKEN`, the Hub from `HF_ENDPOINT`.

    Exit codes: 0 done; 1 the check found problems, or you said no; 2 wrong use or input; 3 the Hub or the network
    failed, or the Hub refused; 4 a full disk or too little memory; 130 interrupted; 143 terminated. With `--json` the
    standard output is always one JSON object. It has `ok`, and if that is false, also `error` and `problems`.
    """


for verb in (export, card, check, push, pull, adapt, score, serve, container, demo):
    app.command()(verb)


if __name__ == "__main__":
    app()
