"""``hub_release demo``: the page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from hub_release.commands.console import Package, errors


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
    with errors(as_json=False):
        from hub_release.demo.serve import serve

        serve(package, host, port, share)
