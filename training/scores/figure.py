"""A picture: its title, a size that fits what it shows, and fonts that have the labels' signs."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_DOTS_PER_INCH = 110
_MOST_PIXELS = 2**24
"""A package's check refuses pictures twice as large."""
_LETTERS_PER_INCH = 11
_LONGEST_NAME = 32
_FAMILY = "DejaVu Sans"
"""The font that comes with matplotlib."""
_PLACEHOLDERS = "Last Resort"
"""A font that comes with matplotlib too; it has a box for every sign."""


@contextmanager
def figure(
    path: Path, size: tuple[float, float], title: str, labels: Sequence[str], note: str = ""
) -> Iterator[Figure]:
    """A figure that is written to a PNG file at the end.

    Args:
        path: the file.
        size: inches, width and height.
        title: what the picture shows.
        labels: names that it will show, so that it has a font for each.
        note: a warning over the title.
    """
    width, height = max(size[0], 6.0), size[1]
    families, numbered = _find_fonts(tuple(labels))
    legend = "(label 1 is the first label, and so on: no font on this machine has its signs)" if numbered else ""
    with mpl.rc_context({"font.family": [_FAMILY, *families], "text.parse_math": False}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        lines = [line for text in (note, title, legend) for line in textwrap.wrap(text, int(width * _LETTERS_PER_INCH))]
        drawn.suptitle("\n".join(lines), color="tab:red" if note else "black", fontsize=11)
        yield drawn
        dots = min(_DOTS_PER_INCH, (_MOST_PIXELS / (width * height)) ** 0.5)
        drawn.savefig(path, dpi=dots, format="png")


def shown(labels: Sequence[str], longest: int = _LONGEST_NAME) -> list[str]:
    """The labels as a picture shows them: long ones shortened, those without a font as numbers from 1."""
    numbered = _find_fonts(tuple(labels))[1]
    names = []
    for number, label in enumerate(labels, 1):
        name = " ".join(label.split())
        short = name if len(name) <= longest else f"{name[: longest // 2]}…{name[-(longest // 2 - 1) :]}"
        names.append(f"label {number}" if label in numbered else short)
    return names


@cache
def _find_fonts(labels: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed fonts that have the signs that matplotlib's own lacks, and labels for which there is none; logged."""
    own = _signs(font_manager.findfont(_FAMILY))
    missing = {ord(sign) for label in labels for sign in label if not sign.isspace()} - own
    families: list[str] = []
    for font in font_manager.fontManager.ttflist if missing else ():
        if font.style != "normal" or font.name in families or font.name.startswith(_PLACEHOLDERS):
            continue
        if found := missing & _signs(font.fname):
            families.append(font.name)
            missing -= found
    without = {label: number for number, label in enumerate(labels, 1) if missing & set(map(ord, label))}
    if without:
        logger.warning(
            "no installed font has the signs of %s: pictures show numbers instead. Remedy: install one, such as "
            "fonts-noto-cjk",
            ", ".join(f"{label} (label {number})" for label, number in without.items()),
        )
    return tuple(families), frozenset(without)


@cache
def _signs(file: str) -> frozenset[int]:
    """Code points that a font can draw as outlines."""
    try:
        font = font_manager.get_font(file)
    except (OSError, RuntimeError):  # a broken font file is no reason to have no picture
        return frozenset()
    return frozenset(font.get_charmap() if font.scalable else ())
