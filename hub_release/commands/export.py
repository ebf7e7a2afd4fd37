"""``hub_release export`` and ``hub_release card``: run → package, and a package's card again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hub_release.commands.console import Json, Package, command, errors, finish
from hub_release.package import LAYOUT, ReleaseError

Title = Annotated[str | None, typer.Option(help="Heading of the model card.")]
License = Annotated[
    str | None, typer.Option(help="License of the trained weights, by its id on the Hub, such as apache-2.0.")
]
Language = Annotated[
    list[str] | None, typer.Option(help="ISO code of a language of the texts, such as en; may be given several times.")
]
Contact = Annotated[str | None, typer.Option(help="How to reach you: an address or a page.")]
IntendedUse = Annotated[str | None, typer.Option(help="What the model is for, in a few sentences.")]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, such as runs/goemotions.")],
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Folder to write; must be new or empty.")],
    name: Annotated[
        str, typer.Option(help="The model's name in the Hub's list of results; default: the name of PACKAGE.")
    ] = "",
    title: Title = None,
    license: License = None,
    language: Language = None,
    contact: Contact = None,
    intended_use: IntendedUse = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to show on the card and the page, with the labels that the model gives it; may be given several "
            "times. Needs the memory to load the model."
        ),
    ] = None,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="Also write the model as onnx/model.onnx, in float32 and with its backbone, for "
            "EmotionClassifier(…, backend='onnx'). Needs the extra onnx.",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Also write it as onnx/model_quantized.onnx, in int8: a quarter of the size, several times as fast. "
            "Needs the extra onnx.",
        ),
    ] = False,
    openvino: Annotated[
        bool,
        typer.Option(
            "--openvino",
            help="Also write onnx/model.onnx, and tune thresholds for OpenVINO, which computes it in bfloat16 on a CPU "
            "that multiplies in it: the fastest there for many texts at once. Needs the extras onnx and openvino.",
        ),
    ] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="The most macro F1 on validation that a graph may lose; default: 0.005."),
    ] = None,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged",
            help="Also write all weights as one file, in float32, with the backbone and the adapter in it: the package "
            "then loads without PEFT and without a second download.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the package of a finished run: weights, configuration, infer.py and model card.

    What you say about the model is recorded in the package's card.json and shown on its card and in its metadata.

    Example: `hub_release export runs/goemotions packages/goemotions`
    """
    with errors(as_json):
        from hub_release.export import export as export_run
        from hub_release.graphs.measure import MAX_LOSS

        given = _given(title=title, license=license, language=language, contact=contact, intended_use=intended_use)
        flags = {"onnx": onnx, "onnx-int8": int8, "openvino": openvino}
        graphs = [graph for graph, wanted in flags.items() if wanted]
        if max_loss is not None and not graphs:
            raise ReleaseError("--max-loss is about graphs. Remedy: add --onnx, --int8 or --openvino, or leave it out")
        limit = MAX_LOSS if max_loss is None else max_loss
        export_run(run, package, graphs, limit, merged, **given, **_given(name=name, examples=example))
        next_command = command("hub_release", "check", package)
        finish(as_json, f"{package} is written. Next: run {next_command}", package=str(package))


def card(
    package: Package,
    title: Title = None,
    license: License = None,
    language: Language = None,
    contact: Contact = None,
    intended_use: IntendedUse = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also drop edits outside of the section for own words.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Render the model card again from the package's recorded files, which must match its SHA256SUMS.

    The section between the two comments on own words stays as you wrote it. Other edits are never dropped without
    --overwrite. What you say about the model replaces what export recorded;
    an empty text takes it back.

    Example: `hub_release card packages/goemotions`
    """
    with errors(as_json):
        from hub_release.export import renew_card

        given = _given(title=title, license=license, language=language, contact=contact, intended_use=intended_use)
        renew_card(package, overwrite, **given)
        path = package / LAYOUT.card
        finish(as_json, f"{path} is written.", card=str(path))


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}
