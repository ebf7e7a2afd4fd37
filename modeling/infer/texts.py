"""Texts: whatever is iterable and holds strings, one by one; pieces of a long text; a text without visible characters."""

import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

from tqdm.auto import tqdm

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Unicode's categories of control and format characters and of white space."""
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for start, stop in ((0x180B, 0x1810), (0xFE00, 0xFE10), (0xE0100, 0xE01F0)) for code in range(start, stop)
}
"""Characters of other categories that show nothing: Unicode's "default ignorable" ones and the empty Braille cell."""

PROGRESS_BAR_FROM = 2_000
"""Show a progress bar from this many texts."""

_TEXTS_OF_A_PART, _CHARACTERS_OF_A_PART = 31 * 64, 4_000_000
"""What a classifier holds at once besides the texts and their results, so that memory does not grow with the texts."""


def progress(total: int, what: str, hidden: bool = False) -> AbstractContextManager[Any]:
    """A bar over so many texts, whose ``update`` takes a number; short work has none, nor the time to make one."""
    if hidden or total < PROGRESS_BAR_FROM:
        return nullcontext(_NO_BAR)
    return cast(AbstractContextManager[Any], tqdm(total=total, unit="text", desc=what))


_NO_BAR = SimpleNamespace(update=lambda number: None)


def iterate_texts(texts: Iterable[str]) -> Iterator[str]:
    """Each text as a string that UTF-8 can encode; a string is one text.

    Args:
        texts: a string; or lists, tuples, generators, columns, series, Arrow arrays … of strings, in one dimension.

    Raises:
        TypeError: it holds something else, at the first such item; the message names its index and what to write.
    """
    for index, text in enumerate(_items(texts)):
        value = text.as_py() if hasattr(text, "as_py") else text  # an Arrow array gives scalars of its own
        if not isinstance(value, str):
            raise TypeError(f"texts[{index}] is {_describe(value)}. Remedy: {_remedy(value)}")
        # Half an emoji (a lone surrogate, legal in JSON) is not valid UTF-8: it becomes a question mark.
        yield value.encode("utf-8", "replace").decode()


def check_texts(texts: Iterable[str]) -> list[str]:
    """All of :func:`iterate_texts` as a list."""
    return list(iterate_texts(texts))


def _items(texts: Any) -> Iterable[Any]:
    if isinstance(texts, str):
        return [texts]
    odd = isinstance(texts, Mapping | bytes | bytearray | memoryview) or getattr(texts, "ndim", 1) != 1
    if not odd and not _is_table(texts):
        if hasattr(texts, "__iter__"):
            return cast(Iterable[Any], texts)
        if hasattr(texts, "__len__") and hasattr(texts, "__getitem__"):
            return (texts[index] for index in range(len(texts)))  # a dataset of torch, which may not end by itself
    raise TypeError(f"texts is {_describe(texts)}. Remedy: {_remedy(texts)}")


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {reprlib.repr([*value])}"
    return f"{type(value).__name__}, not a string: {reprlib.repr(value)}"


def _is_table(value: Any) -> bool:
    return hasattr(value, "columns") or hasattr(value, "column_names")


def _remedy(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return "decode it to a string, for example with .decode('utf-8')"
    if isinstance(value, Mapping) or _is_table(value):
        return "give its texts alone, for example the column ['text']"
    if hasattr(value, "__iter__"):
        return "give one flat list of strings"
    return "leave it out, or give a string"


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most ``limit`` characters that make up the text; a piece begins with white space if it can."""
    start = 0
    while len(text) - start > limit:
        piece = text[start : start + limit]
        word = "" if piece[-1].isspace() else piece.rsplit(maxsplit=1)[-1]
        end = limit - len(word) - 1  # of the last white space
        end = end if end > 0 else limit
        yield piece[:end]
        start += end
    yield text[start:]


def share_texts(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, in parts of a limited number of texts and characters; a longer text is a part of its own."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == _TEXTS_OF_A_PART or characters + len(text) > _CHARACTERS_OF_A_PART):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def is_blank(text: str) -> bool:
    """Has the text no visible character?"""
    return all(unicodedata.category(character) in _INVISIBLE or character in _FILLERS for character in text.lstrip())
