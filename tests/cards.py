"""Read model cards, and change the recorded files behind them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Any], None]


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def put(**values: Any) -> Change:
    return lambda content: content.update(values)


def tables_of(card: str) -> dict[tuple[str, ...], list[list[str]]]:
    """The Markdown tables: header → rows."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    header: tuple[str, ...] | None = None
    for line in card.splitlines():
        if not line.startswith("| "):
            header = header if line.startswith("|-") else None
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if header is None:
            header = tuple(cells)
            assert header not in found
            found[header] = []
        else:
            assert len(cells) == len(header), line
            found[header].append(cells)
    return found


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def score(scores: dict[str, Any], name: str) -> str:
    low, high = scores["intervals_95"][name]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"
