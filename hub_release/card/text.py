"""How the model card writes texts and durations."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*\[\]<|])")


def plain(text: str) -> str:
    """Escape a text for Markdown, also inside a table."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def duration(seconds: float) -> str:
    """Seconds up to two minutes, minutes up to two hours, then hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
