"""Packages that earlier versions exported: what they may differ in and still pass."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hub_release.package import LAYOUT, sha256
from modeling.infer import VERSION_KEY, PackageError, read_json

CODE = {
    "a27a75d973f5b09678164629cea74df3677ead1737c9cb18d1b91f059b02fdf3": "infer.py of 0.1.0",
    "6f71380d2821fc8c2251dd68ced51de3f1dc75313fee561580923ee56e38f5f2": "handler.py of 0.1.0",
    "db5c85d87c7758aaccd079cad237cd8fff8bce7e3a25bedf23ec2ee853b65c0d": "infer.py of 0.2.0",
    "cb48b820b26e6feac49a9243859900e296b2d0fe24e9dd44ac0718b9342ae7ef": "handler.py of 0.2.0",
}
"""SHA-256 of the code that earlier versions exported. A release that changes one of the files adds the old one."""
_FIGURES = re.compile(r"`[^`]+`|\]\([^()\[\]\s]+\)|\d+(?:[.,]\d+)*|contaminated")
"""A code span, the target of a link, a number, or the word of the banner over contaminated scores."""


def is_earlier_code(path: Path) -> bool:
    """Did an earlier version export this file?"""
    return sha256(path) in CODE


def is_earlier(package: Path) -> bool:
    """Did an earlier version export this package? Its ``infer.py`` and its configuration must name the same one."""
    code = CODE.get(sha256(package / LAYOUT.code)) if (package / LAYOUT.code).is_file() else None
    try:
        return code == f"{LAYOUT.code} of {read_json(package, LAYOUT.config).get(VERSION_KEY)}"
    except PackageError:  # reported with the weights
        return False


def describe_earlier(package: Path) -> str:
    """What a user should know of a package that an earlier version exported; empty for one of this version."""
    if not is_earlier(package):
        return ""
    return (
        "\n  An earlier version made it: the figures and links of its card are checked, its words are not. "
        f"hub_release card {shlex.quote(str(package))} renders the card again."
    )


def figures(card: str) -> list[str]:
    """The metadata of a card; then its numbers, code spans and links, in order.

    Versions word a card differently. What it claims of the model is in these.
    """
    _, metadata, body = card.split("---\n", 2)
    prose = "\n".join(body.split("\n```")[::2])  # without fenced code
    return [metadata, *_FIGURES.findall(prose)]
