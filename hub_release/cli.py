"""``hub_release``: export a run as a package, and check the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hub_release.card import write_card
from hub_release.check import check as check_package
from hub_release.demo import serve
from hub_release.export import export as export_run
from hub_release.package import LAYOUT, ReleaseError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a run folder to a package that a stranger can use: first export, then check.",
)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/goemotions.")],
    package: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
) -> None:
    """Write the package of a finished run: weights, configuration, infer.py and model card."""
    try:
        export_run(run, package)
    except ReleaseError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{package} is written. Next: hub_release check {package}")


@app.command()
def card(package: Annotated[Path, typer.Argument(help="Package folder.")]) -> None:
    """Render the model card again, from the recorded files of the package."""
    try:
        write_card(package)
    except ReleaseError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{package / LAYOUT.card} is written.")


@app.command()
def check(
    package: Annotated[Path, typer.Argument(help="Package folder.")],
    allow_contaminated: Annotated[
        bool, typer.Option(help="Accept scores of the protocol pooled-r2; the card carries a banner.")
    ] = False,
) -> None:
    """Load a package in a fresh, isolated process and compare its golden probabilities; list all that is wrong."""
    problems = check_package(package, allow_contaminated)
    for problem in problems:
        typer.echo(f"✗ {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"✓ {package}: complete, its card is true, and a fresh process reproduces the trained model.")


@app.command()
def demo(
    package: Annotated[Path, typer.Argument(help="Package folder.")],
    port: Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    share: Annotated[bool, typer.Option("--share", help="Also make a public address through Gradio's tunnel.")] = False,
) -> None:
    """Serve a page in the browser on which the package can be tried; Control+C ends it."""
    try:
        serve(package, host, port, share)
    except ReleaseError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
