"""What only a GPU can show; see README.md. ``run.sh`` runs each part in a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

OUT = Path(os.environ.get("OUT", "gpu"))
"""The folder of the results."""
TINY = bool(os.environ.get("TINY"))
"""Is this a try on a CPU at tiny size?"""


def emit(part: str, figure: str, **values: object) -> None:
    """Add one figure to the results, as a JSON line; it is there even if the next figure never comes."""
    with (OUT / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"part": part, "figure": figure, **values}) + "\n")
