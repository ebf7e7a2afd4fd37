"""``hub_release container``: a package as a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hub_release.commands.console import Json, Package, Quantization, command, errors, finish


def container(
    package: Package,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; must be new or empty.")],
    backend: Annotated[str, typer.Option(help="What computes the package's graph: onnx or openvino.")] = "onnx",
    quantization: Quantization = None,
    as_json: Json = False,
) -> None:
    """Write what `docker build` needs to serve a package: Dockerfile, compose.yaml, the server and the graph.

    The image has neither PyTorch nor this project. It runs without root, on a read-only file system, and needs no
    network once it is built.

    Example: `hub_release container packages/goemotions containers/goemotions`
    """
    with errors(as_json):
        from hub_release.serving.container import write_container

        name = write_container(package, folder, backend, quantization)
        build = command("docker", "build", "--tag", name, folder)
        finish(as_json, f"{folder} is written. Next: run {build}", folder=str(folder), image=name)
