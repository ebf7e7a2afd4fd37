"""Files that a visitor uploads, and files of the package that the page shows."""

import base64
import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub_release.demo.page.results import COLUMNS, from_cell
from modeling.infer.errors import TableError
from modeling.infer.separated import quote_names
from modeling.infer.tables import Row, read_rows

KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
"""Suffixes of files that a visitor may upload; a compressed file could be of any size."""
MAX_TEXTS = 1_000
MAX_CHARACTERS = 20_000
"""Of one text."""
MAX_TOTAL = 500_000
"""Characters of all texts together."""
_MAX_BYTES = 2**20
"""Of a file of the package that the page shows."""
_MAX_PICTURE_BYTES = 2**23
"""Of all pictures of a card together."""
_PICTURE = re.compile(r"!\[([^\[\]]*)\]\(([^\[\]()]*)\)")
"""A picture in Markdown. No part can begin where another part is sought, so the time is linear."""


class OddInputError(ValueError):
    """Input that cannot be classified; the message, shown on the page, says what to do."""


def refuse_too_much(texts: Sequence[str]) -> None:
    """Refuse what would take this page minutes or gigabytes.

    Raises:
        OddInputError: too many texts, a text that is too long, or too many characters in all.
    """
    remedy = "In the package's folder, python infer.py --input FILE takes any number and length."
    if len(texts) > MAX_TEXTS:
        raise OddInputError(f"{len(texts):,} texts are more than this page takes at once ({MAX_TEXTS:,}). {remedy}")
    for number, text in enumerate(texts, 1):
        if len(text) > MAX_CHARACTERS:
            which = f"Text {number:,}" if len(texts) > 1 else "The text"
            raise OddInputError(
                f"{which} has {len(text):,} characters, more than this page takes in one text ({MAX_CHARACTERS:,}). "
                f"{remedy}"
            )
    if (total := sum(map(len, texts))) > MAX_TOTAL:
        raise OddInputError(f"{total:,} characters are more than this page takes at once ({MAX_TOTAL:,}). {remedy}")


def read_upload(path: Path) -> list[str]:
    """Texts of a table (column ``text``), of a file of JSON, or the lines of a text file.

    Raises:
        OddInputError: another kind of file, or one that cannot be read; the message names the line.
    """
    if path.suffix.lower() not in KINDS:
        raise OddInputError(f"{path.name} is none of {', '.join(KINDS)}. Save it as one of these and try again.")
    try:
        return [_text_of(row) for row in read_rows(path)] if path.stat().st_size else []
    except TableError as error:
        raise OddInputError(str(error).replace(f"{path.parent}/", "")) from None


def _text_of(row: Row) -> str:
    if row.problem:
        raise TableError(f"{row.place}: {row.problem}")
    column = next((name for name in row.values if name.strip().lower() == "text"), None)
    if column is None:
        names = quote_names(row.values)
        raise TableError(f"{row.place} has no column 'text', only {names}. Remedy: name the column with the texts text")
    text = row.values[column]
    if not isinstance(text, str):
        raise TableError(f"{row.place} is not a text: {text!r:.80}. Remedy: write a string")
    return from_cell(text) if list(row.values)[: len(COLUMNS)] == COLUMNS else text


def _read_optional(path: Path) -> str:
    """Content of a file; empty if it is missing, as from a package of only the reference's six files, or huge."""
    is_small = path.is_file() and path.stat().st_size <= _MAX_BYTES
    return path.read_text(encoding="utf-8", errors="replace") if is_small else ""


def read_notes(folder: Path) -> dict[str, str]:
    """A note on each label's test scores, from the package's ``per_label.csv``."""
    table = csv.DictReader(io.StringIO(_read_optional(folder / "per_label.csv")))
    return {
        row["label"]: f"{row['support']} test rows, F1 {float(row['f1']):.2f} "
        f"(95% interval {float(row['f1_low']):.2f} to {float(row['f1_high']):.2f})"
        for row in table
        if (row["split"], row["thresholds"]) == ("test", "per_label")
    }


def read_examples(folder: Path) -> list[str]:
    """Up to six short texts: those of the package's ``card.json``, else of its ``golden.json``."""
    chosen = read_details(folder).get("examples")
    rows = json.loads(_read_optional(folder / "golden.json") or '{"rows": []}')["rows"]
    return [text for text in chosen or [row["text"] for row in rows] if 0 < len(text) <= 100][:6]


def read_details(folder: Path) -> dict[str, Any]:
    """What the publisher says in the package's ``card.json``."""
    return dict(json.loads(_read_optional(folder / "card.json") or "{}"))


def read_card(folder: Path) -> str:
    """The model card without its metadata, empty if it has none or a huge one; each of the package's pictures is put into the text where it first appears.

    Other pictures are replaced by their captions: the page loads nothing from other hosts.
    """
    waiting, room = _own_pictures(folder), _MAX_PICTURE_BYTES

    def embed(found: re.Match[str]) -> str:
        nonlocal room
        picture = waiting.pop(found[2].strip(), None)
        if picture is None or (size := picture.stat().st_size) > room:
            return found[1]
        room -= size
        return f"![{found[1]}](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"

    return _PICTURE.sub(embed, _split_card(folder)[1])


def _own_pictures(folder: Path) -> dict[str, Path]:
    """The pictures in the package's folder, by name."""
    found = {path.name: path.resolve() for path in folder.glob("*.png")}
    homes = {folder.resolve(), folder.resolve().parent.parent / "blobs"}  # a snapshot in the Hub's cache has links
    return {name: path for name, path in found.items() if path.is_file() and path.parent in homes}


def _split_card(folder: Path) -> tuple[str, str]:
    """The card's metadata and its body."""
    text = _read_optional(folder / "README.md")
    metadata, found, body = text.removeprefix("---\n").partition("\n---\n")
    return (metadata, body) if found and text.startswith("---\n") else ("", text)


def is_about_emotions(folder: Path) -> bool:
    """Whether the card's metadata has the tag of emotions."""
    return "- emotion-classification" in _split_card(folder)[0].split("\n")
