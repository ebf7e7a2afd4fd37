"""How the model card writes recorded texts, code spans, table rows and durations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

HTML = re.compile(r"<[A-Za-z!/?]")
"""How HTML begins."""
_SPECIAL = re.compile(r"([\\`*\[\]<|~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w))")
_BAR = re.compile(r"(?<!\\)\|")
_SPACE = re.compile(r"\s+")


class Markdown(str):
    """Text that is Markdown already. The template escapes every other value."""


def plain(value: Any) -> Markdown:
    """A value as Markdown that shows it literally, on one line."""
    return value if isinstance(value, Markdown) else Markdown(_SPECIAL.sub(r"\\\1", _SPACE.sub(" ", str(value))))


def code(value: Any) -> Markdown:
    """A value as a code span."""
    text = _SPACE.sub(" ", str(value)) or " "
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * (max(runs, default=0) + 1)
    space = " " if runs else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def cells(row: Iterable[Any]) -> Markdown:
    """The cells of a table's row, without its outer bars."""
    return Markdown(" | ".join(_BAR.sub(r"\|", plain(cell)) for cell in row))


def duration(seconds: float) -> str:
    """Seconds up to two minutes, minutes up to two hours, then hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
