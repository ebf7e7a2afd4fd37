"""How the model card writes things."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hub_release.card.facts import Facts

_SPECIAL = re.compile(r"([\\`*\[\]<|])")


def plain(text: str) -> str:
    """Text that Markdown takes as it is, also within a table."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def duration(seconds: float) -> str:
    """Seconds up to two minutes, minutes up to two hours, then hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def unreliable_share(facts: Facts) -> str:
    """How many of the labels are unreliable, in words; at least one is."""
    number, of = len(facts.config["unreliable_labels"]), len(facts.labels)
    return f"all {of} labels" if number == of else f"{number} of the {of} labels"


def find_plots(facts: Facts, plots: Mapping[str, str]) -> list[tuple[str, str]]:
    """Caption and file of those pictures that the package has, of a mapping file: caption."""
    return [(caption, file) for file, caption in plots.items() if file in facts.files]
