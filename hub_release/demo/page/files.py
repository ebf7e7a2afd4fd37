"""Files that a visitor uploads, and files of the package that the page shows."""

import base64
import csv
import io
import json
import re
from pathlib import Path


class OddInputError(ValueError):
    """Input that cannot be classified; the message, shown on the page, says what to do."""


def read_texts(path: Path) -> list[str]:
    """Texts of a CSV file (column ``text``, or its only column), a JSONL file, or the lines of a text file.

    Raises:
        OddInputError: the file is malformed, not UTF-8, or has no texts; the message names the line.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OddInputError(f"{path.name} is not UTF-8 text. Save it as UTF-8 and try again.") from None
    if path.suffix.lower() == ".csv":
        return _read_csv(content, path.name)
    if path.suffix.lower() == ".jsonl":
        return [
            _read_json(line, number, path.name) for number, line in enumerate(content.split("\n"), 1) if line.strip()
        ]
    return [line.rstrip("\r") for line in content.split("\n")]


def _read_csv(content: str, name: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row]
    except csv.Error as error:
        raise OddInputError(f"{name} is not a CSV file: {error}.") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "text" in header:
        column = header.index("text")
        return [row[column] if column < len(row) else "" for row in rows[1:]]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    raise OddInputError(
        f"{name} has no column “text”, only {', '.join(header)}. Name the column with the texts “text”."
    )


def _read_json(line: str, number: int, name: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise OddInputError(f"Line {number} of {name} is not JSON: {error.msg}.") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise OddInputError(f'Line {number} of {name} has no text. Write {{"text": "…"}} on every line.')
    return text


def _read_optional(path: Path) -> str:
    """Content of a file; empty if it is missing, as from a package of only the reference's six files."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


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
    """Up to six short texts of the package's ``golden.json``."""
    rows = json.loads(_read_optional(folder / "golden.json") or '{"rows": []}')["rows"]
    return [row["text"] for row in rows if 0 < len(row["text"]) <= 100][:6]


def read_card(folder: Path) -> str:
    """The model card without its metadata; the package's pictures are put into the text."""

    def embed(found: re.Match[str]) -> str:
        picture = (folder / found[2]).resolve()
        if not (picture.is_file() and picture.is_relative_to(folder.resolve())):
            return found[1]
        return f"![{found[1]}](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"

    body = re.sub(r"\A---\n.*?\n---\n", "", _read_optional(folder / "README.md"), flags=re.DOTALL)
    return re.sub(r"!\[([^\]]*)\]\(([^):]+\.png)\)", embed, body)
