"""``hub_release adapt``: thresholds for other texts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hub_release.commands.console import Json, Package, command, errors, finish

_SHOWN = 10


def adapt(
    package: Package,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Texts such as those that the package will read (CSV, TSV, JSON lines, JSON or Parquet), best with labels: "
            "50 labeled rows go a long way. Labels are in a column of names, or in 0/1 columns named as labels.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Package folder to write; must be new or empty.")],
    text_column: Annotated[str, typer.Option("--text_column", help="Column of the texts.")] = "text",
    label_column: Annotated[
        str | None,
        typer.Option("--label_column", help="Column of the labels; default: labels, or 0/1 columns named as labels."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a copy of a package with thresholds for your texts; weights and probabilities stay as they are.

    With labels, the threshold of each label that some row has is the one with the highest expected F1. A label that no
    row has keeps its threshold. Without labels, thresholds are only lowered, where that finds more.

    Example: `hub_release adapt goemotions-small comments.csv packages/comments`
    """
    with errors(as_json):
        from hub_release.serving.adapt import adapt_package, measure_distance

        found, rows = adapt_package(package, file, output, text_column, label_column)
        distance = measure_distance(package, found)
        lines = [str(found), str(distance)]
        shown = list(rows.others.items())[:_SHOWN]
        lines += [f"the package lacks {label!r}, which {count:,} of the rows have" for label, count in shown]
        if rows.labels is None:
            lines.append(
                "The file has no column 'labels' and no 0/1 column named as a label, so thresholds were "
                "only lowered. How often a label occurs in these texts is not known: label 50 of them, and run this again"
            )
        else:
            lines.append(
                f"{sum(not labels for labels in rows.labels):,} rows count as having none of the package's labels"
            )
        lines.append(f"{output} is written. Next: {command('hub_release', 'check', output)}")
        finish(
            as_json,
            "\n".join(lines),
            package=str(output),
            labels_lacking=rows.others,
            distance=asdict(distance),
            **asdict(found),
        )
