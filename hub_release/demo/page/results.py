"""Results as HTML and as CSV. Everything from a user or a package passes through ``escape``."""

import base64
import csv
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

ROWS_SHOWN = 200
CHARACTERS_SHOWN = 300
COLUMNS = ["text", "predicted"]
"""The first columns of a download."""
_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
"""What begins like a formula, after any apostrophes; some spreadsheets read the wide signs as the others."""


class LabelResult(NamedTuple):
    """One label's result for one text."""

    label: str
    probability: float
    threshold: float
    unreliable: bool

    @property
    def predicted(self) -> bool:
        """Whether the probability reaches the threshold."""
        return self.probability >= self.threshold


def rank(config: Any, labels: Sequence[str], probabilities: Sequence[float], common: float | None) -> list[LabelResult]:
    """Results of one text, highest probability first; ``common`` replaces the package's thresholds."""
    # The infer.py of an earlier package knows no other thresholds.
    thresholds = {**config.thresholds, **getattr(config, "adapted_thresholds", {})}
    rows = [
        LabelResult(
            label,
            probability,
            thresholds.get(label, config.threshold) if common is None else common,
            label in config.unreliable_labels,
        )
        for label, probability in zip(labels, probabilities, strict=True)
    ]
    return sorted(rows, key=lambda row: -row.probability)


def message(text: str) -> str:
    """A message in place of results."""
    return f'<p class="message" role="status">{escape(text)}</p>'


def render_bars(rows: list[LabelResult], notes: dict[str, str]) -> str:
    """Predicted labels as chips, then a table with a bar for every label and its threshold as a tick."""
    chips = "".join(_chip(row) for row in rows if row.predicted)
    verdict = f'<span class="sr">Predicted: </span>{chips}' if chips else "No label reaches its threshold."
    body = "".join(_bar(row) for row in rows)
    return (
        f'<p class="verdict" role="status">{verdict}</p>'
        '<table class="bars"><caption class="sr">Probability of every label, highest first</caption>'
        '<thead><tr><th scope="col">Label</th><th scope="col" colspan="2">Probability<span class="key">'
        f'<i class="tick"></i>threshold</span></th></tr></thead><tbody>{body}</tbody></table>'
        f"{_why_unreliable(rows, notes)}"
    )


def _chip(row: LabelResult) -> str:
    mark = '<abbr title="unreliable label, see below">†</abbr>' if row.unreliable else ""
    kind = "chip unreliable" if row.unreliable else "chip"
    return f'<span class="{kind}"><b>{escape(row.label)}</b>{mark} {row.probability:.3f}</span> '


def _bar(row: LabelResult) -> str:
    kinds = " ".join(kind for kind in ("predicted", "unreliable") if getattr(row, kind))
    said = f"{row.probability:.3f}, threshold {row.threshold:.3f}, {'predicted' if row.predicted else 'not predicted'}"
    mark = '<abbr title="unreliable label, see below">†</abbr>' if row.unreliable else ""
    return (
        f'<tr class="{kinds}" data-label="{escape(row.label)}"><th scope="row">{escape(row.label)}{mark}</th>'
        f'<td><div class="track" role="img" aria-label="{said}" title="{said}">'
        f'<div class="fill" style="width:{100 * row.probability:.1f}%"></div>'
        f'<i class="tick" style="left:{100 * min(row.threshold, 1):.1f}%"></i></div></td>'
        f'<td class="figure">{"✓ " if row.predicted else ""}{row.probability:.3f}</td></tr>'
    )


def _why_unreliable(rows: list[LabelResult], notes: dict[str, str]) -> str:
    doubtful = sorted(row.label for row in rows if row.unreliable)
    if not doubtful:
        return ""
    which = f"{len(doubtful)} of {len(rows)} labels {'is' if len(doubtful) == 1 else 'are'}"
    which = "All labels are" if len(doubtful) == len(rows) else which
    items = "".join(f"<li><b>{escape(label)}</b> {escape(notes.get(label, ''))}</li>" for label in doubtful)
    return (
        f'<details class="note"><summary>† {which} unreliable: too few test rows, or too uncertain a score, to say how '
        f"often the model is right. Show why</summary><ul>{items}</ul></details>"
    )


def render_table(labels: Sequence[str], texts: list[str], results: list[list[LabelResult]], source: str) -> str:
    """Many results: a link to the CSV, and a table of the predicted labels of each text."""
    body = "".join(
        f'<tr><td class="figure">{number}</td><td>{escape(_shorten(text))}</td>'
        f"<td>{''.join(_chip(row) for row in rows if row.predicted) or '<i>none</i>'}</td></tr>"
        for number, (text, rows) in enumerate(zip(texts[:ROWS_SHOWN], results, strict=False), start=1)
    )
    more = f" The first {ROWS_SHOWN} are shown; the CSV has all." if len(texts) > ROWS_SHOWN else ""
    encoded = base64.b64encode(write_csv(labels, texts, results)).decode()
    return (
        f'<div class="summary"><p role="status">{len(texts):,} text{"s" * (len(texts) != 1)} {escape(source)}.{more}</p>'
        f'<a class="download" download="labels.csv" href="data:text/csv;base64,{encoded}">Download CSV</a></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Results"><table class="many">'
        '<thead><tr><th scope="col">#</th><th scope="col">Text</th><th scope="col">Predicted labels</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _shorten(text: str) -> str:
    return text if len(text) <= CHARACTERS_SHOWN else text[:CHARACTERS_SHOWN] + " …"


def to_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: a formula would run when the file is opened."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text of which :func:`to_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_csv(labels: Sequence[str], texts: list[str], results: list[list[LabelResult]]) -> bytes:
    """Text, predicted labels (joined by ``; ``), and the probability of every label; UTF-8 with the mark Excel needs.

    A text or label that begins like a formula gets an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*COLUMNS, *map(to_cell, labels)])
    for text, rows in zip(texts, results, strict=True):
        probabilities = {row.label: f"{row.probability:.6f}" for row in rows}
        predicted = "; ".join(row.label for row in rows if row.predicted)
        writer.writerow([to_cell(text), to_cell(predicted), *(probabilities[label] for label in labels)])
    return buffer.getvalue().encode("utf-8-sig", "replace")
