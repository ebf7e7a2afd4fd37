"""What the cells of a column of labels mean: names, multi-hot vectors, or ids.

A cell that equals a label's name is that label. A list with a 0 or 1 for each label is a multi-hot vector. Whole numbers
are ids only where a mapping, the file or ``--label_format ids`` says so. If two readings fit, the column is refused.
"""

from __future__ import annotations

import ast
import difflib
import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from modeling.infer import quote_names
from modeling.recipe import LabelFormat
from modeling.rows.tables import CorpusError, normal_name

logger = logging.getLogger(__name__)

SEPARATORS = {",": "commas", ";": "semicolons", "|": "vertical bars", "\t": "tabs", "\n": "line breaks"}
_SHOWN_LABELS = 12
_BITS = {
    "0": 0,
    "1": 1,
    "0.": 0,
    "1.": 1,
    "0.0": 0,
    "1.0": 1,
    "False": 0,
    "True": 1,
    "false": 0,
    "true": 1,
    "FALSE": 0,
    "TRUE": 1,
}


@dataclass(frozen=True)
class LabelSet:
    """The labels that cells may have.

    Attributes:
        names: the labels, in the order of ids and of multi-hot vectors.
        others: other labels that may appear.
        ids: id → name, where the corpus declares ids.
        is_closed: is a label that is not listed an error?
    """

    names: tuple[str, ...]
    others: frozenset[str] = frozenset()
    ids: Mapping[str, str] = field(default_factory=dict)
    is_closed: bool = True

    def find(self, item: Any) -> str | None:
        """The label with this name; names are compared in Unicode's normal form C. A missing value has no name."""
        if item is None:
            return None
        return self._known.get(_normal(item)) or self._known.get(label_text(item))

    def suggest(self, item: Any) -> str:
        """What to do about a label that is not listed."""
        names = [*self.names, *sorted(self.others - set(self.names))]
        close = difflib.get_close_matches(str(item), names, n=1)
        shown = quote_names(names[:_SHOWN_LABELS]) + (" …" if len(names) > _SHOWN_LABELS else "")
        return f"{f'Did you mean {quote_names(close)}? ' if close else ''}Remedy: correct it, or add it to labels ({shown})"

    @cached_property
    def _known(self) -> dict[str, str]:
        return {_normal(name): name for name in (*self.others, *self.names)}


@dataclass(frozen=True)
class LabelReading:
    """How a column of labels is read.

    Attributes:
        format: see :mod:`modeling.rows.label_cells`; ``auto`` finds out.
        separator: what separates the labels of a cell; None finds out.
    """

    format: LabelFormat = "auto"
    separator: str | None = None


def _normal(item: Any) -> str:
    return normal_name(str(item)).strip()


def label_text(label: Any) -> str:
    """A label as written, but 3.0, which a table made of the whole number 3, becomes 3 again."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", _normal(label))


def one_hot_labels(values: Sequence[Any], names: Sequence[str], place: str, problems: list[str]) -> list[str]:
    """The labels of a row with a column of 0 or 1 for each label; appends what is neither to ``problems``."""
    found = []
    for name, value in zip(names, values, strict=True):
        bit = _BITS.get(str(value).strip())
        if bit is None:
            problems.append(f"{place}, column {name!r}: {value!r} is not 0 or 1. Remedy: write 0 or 1")
        elif bit:
            found.append(name)
    return found


def is_zero_or_one(value: Any) -> bool:
    """Is it a 0, a 1 or a truth value, as written in a table?"""
    return str(value).strip() in _BITS


def read_label_cells(
    cells: Sequence[Any], places: Sequence[str], labels: LabelSet, reading: LabelReading, problems: list[str]
) -> list[list[str]]:
    """The names of the labels of each cell; the reading that was taken is logged with an example.

    Args:
        cells: N cells of one column: a list, a number, or text such as ``joy, love``, ``['joy']`` or ``[0 1 0]``.
        places: file, row and column of each cell.
        labels: the labels that cells may have.
        reading: the format and the separator, if the user chose them.
        problems: gets what is wrong with single cells.

    Raises:
        CorpusError: two readings fit, or the cells are numbers that nothing declares to be ids.
    """
    separator = _find_separator(cells, labels, reading.separator)
    items = [_items(cell, place, labels, separator, problems) for cell, place in zip(cells, places, strict=True)]
    chosen = reading.format if reading.format != "auto" else _find_format(items, cells, places, labels)
    read = {"names": _read_names, "multi-hot": _read_bits, "ids": _read_ids}[chosen]
    found = [read(part, place, labels, problems) for part, place in zip(items, places, strict=True)]
    example = next((row for row, names in enumerate(found) if names), None)
    if example is not None:
        how = {"names": "names", "multi-hot": "multi-hot vectors", "ids": "ids"}[chosen]
        apart = f", separated by {SEPARATORS.get(separator, repr(separator))}" if separator != "," else ""
        said = ", ".join(found[example])
        logger.info("labels are read as %s%s: %s, %r, is %s", how, apart, places[example], cells[example], said)
    return found


# A cell → items


def _find_separator(cells: Sequence[Any], labels: LabelSet, given: str | None) -> str:
    """The separator with which the fewest items are unknown; a comma if several are as good.

    Raises:
        CorpusError: two separators give other known labels, or the given one is empty.
    """
    if given == "":
        raise CorpusError("label_separator is empty. Remedy: give the sign between the labels, or leave it out")
    if given is not None:
        return given
    texts = [cell for cell in cells if isinstance(cell, str) and labels.find(cell) is None and _literal(cell) is None]
    known = {_normal(text) for text in texts if not any(mark in text.strip() for mark in SEPARATORS)}
    unknown: dict[str, int] = {}
    for separator in SEPARATORS:
        if any(separator in text.strip() for text in texts):
            parts = [part for text in texts for part in _split(text, separator)]
            unknown[separator] = sum(
                labels.find(part) is None and (labels.is_closed or _normal(part) not in known) and not _is_id(part)
                for part in parts
            )
    best = [separator for separator in unknown if unknown[separator] == min(unknown.values())]
    if len(best) > 1 and not unknown[best[0]]:
        text = next(text for text in texts if all(separator in text for separator in best))
        ways = " or ".join(f"{quote_names(_split(text, separator))} ({SEPARATORS[separator]})" for separator in best)
        raise CorpusError(f"labels: {text!r:.80} may be {ways}. Remedy: give --label_separator")
    return best[0] if best else ","


def _split(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _items(cell: Any, place: str, labels: LabelSet, separator: str, problems: list[str]) -> list[Any]:
    if isinstance(cell, (list, tuple, np.ndarray)):
        return list(cell)
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        problems.append(
            f"{place}: {cell!r}, no labels. Remedy: fill them in; an empty list or cell means that there are none"
        )
        return []
    text = str(cell).strip()
    if labels.find(text) is not None:
        return [text]
    listed = _literal(text)
    if listed is None and text.startswith("["):
        problems.append(f"{place}: {text!r:.80} is not a list. Remedy: write ['joy', 'love'] or joy, love")
        return []
    return _split(text, separator) if listed is None else listed


def _literal(cell: str) -> list[Any] | None:
    """The items of a list that was written as text, by Python, JSON or numpy; None if it is not one."""
    text = cell.strip()
    if not re.fullmatch(r"\[.*\]|\(.*\)|\{.*\}", text, re.DOTALL):
        return None
    try:
        # JSON has escapes of its own; numbers stay as they are written.
        listed = json.loads(text, parse_int=str, parse_float=str)
        return listed if isinstance(listed, list) else None
    except (ValueError, RecursionError):
        pass
    try:
        if "," not in text and text.startswith("["):
            return shlex.split(text[1:-1])  # numpy writes no commas
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return list(value) if isinstance(value, (list, tuple, set)) else None


# Items → labels


def _find_format(
    items: Sequence[list[Any]], cells: Sequence[Any], places: Sequence[str], labels: LabelSet
) -> LabelFormat:
    flat = [item for part in items for item in part]
    named = all(labels.find(item) is not None for item in flat)
    declared = bool(labels.ids) and all(label_text(item) in labels.ids for item in flat)
    if _are_vectors(items, cells, len(labels.names)):
        could_be_ids = declared or all(_are_distinct_ids(part, len(labels.names)) for part in items)
        if not named and not could_be_ids:
            return "multi-hot"
        other = "names" if named else "ids"
        raise CorpusError(
            f"{places[0]}: {cells[0]!r:.80} may be a multi-hot vector or {other}. Remedy: give --label_format multi-hot "
            f"or {other}"
        )
    if labels.ids and not named:
        return "ids"
    if named or not labels.names or not all(map(_is_id, flat)):
        return "names"
    row, item = next((row, item) for row, part in enumerate(items) for item in part if labels.find(item) is None)
    place, cell = places[row], f"{cells[row]!r:.80}"
    if any(labels.find(item) is not None for item in flat):  # then numbers are names, and ids would be others
        raise CorpusError(f"{place}: {cell}: unknown label {label_text(item)!r}. {labels.suggest(item)}")
    ways = []
    if all(map(is_zero_or_one, flat)) and any(len(part) == len(labels.names) for part in items):
        ways = ["if they are a 0 or 1 for each label, give --label_format multi-hot"]
    if len(labels.names) > 1:
        ways += [
            f"if numbers are ids in the order of the labels (0 is {labels.names[0]}, {len(labels.names) - 1} is "
            f"{labels.names[-1]}), give --label_format ids"
        ]
    remedy = "; ".join([*ways, "or write names" if ways else "write names"])
    raise CorpusError(f"{place}: {cell} is a number, and no label has this name. Remedy: {remedy}")


def _are_vectors(items: Sequence[list[Any]], cells: Sequence[Any], length: int) -> bool:
    """Is every cell a list, not just text with separators, of so many zeros and ones?"""
    lists = (not isinstance(cell, (str, int, float)) or _literal(str(cell)) is not None for cell in cells)
    bits = (len(part) == length and all(map(is_zero_or_one, part)) for part in items)
    return bool(items) and all(lists) and all(bits)


def _are_distinct_ids(items: list[Any], labels: int) -> bool:
    """Zeros and ones are, only if there are at most two labels."""
    ids = {int(label_text(item)) for item in items if _is_id(item)}
    return len(ids) == len(items) and max(ids, default=0) < labels


def _is_id(item: Any) -> bool:
    return label_text(item).isdecimal()


def _read_names(items: list[Any], place: str, labels: LabelSet, problems: list[str]) -> list[str]:
    found = []
    for item in items:
        name = labels.find(item)
        if name is None and labels.is_closed:
            problems.append(f"{place}: unknown label {quote_names([item])}. {labels.suggest(item)}")
        else:
            found.append(label_text(item) if name is None else name)
    return found


def _read_bits(items: list[Any], place: str, labels: LabelSet, problems: list[str]) -> list[str]:
    if len(items) != len(labels.names) or not all(map(is_zero_or_one, items)):
        problems.append(
            f"{place}: {items!r:.80} is not a vector of {len(labels.names)} zeros and ones. Remedy: write one for each label"
        )
        return []
    return [name for name, item in zip(labels.names, items, strict=True) if _BITS[str(item).strip()]]


def _read_ids(items: list[Any], place: str, labels: LabelSet, problems: list[str]) -> list[str]:
    ids = labels.ids or {str(index): name for index, name in enumerate(labels.names)}
    found = []
    for item in items:
        name = (labels.find(item) if labels.ids else None) or ids.get(label_text(item))
        if name is None and (labels.is_closed or not labels.ids or _is_id(item)):
            problems.append(
                f"{place}: label {label_text(item)!r} is not one of the ids {', '.join(ids)}. Remedy: correct it"
                + (", or add it to the ids of the mapping" if labels.ids else "")
            )
        else:
            found.append(label_text(item) if name is None else name)
    return found
