"""What the publisher says on the card: details recorded in the package, and a section of own words that stays."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from hub_release.card.text import HTML
from hub_release.package import LAYOUT, ReleaseError
from modeling.infer import PackageError, read_json

BEGIN = "<!-- own words: what is between this line and the next such line stays when the card is rendered again -->"
END = "<!-- end of own words -->"
_HEADING = "## Notes of the publisher"
_MOST_CHARACTERS = 20_000
_NEUTRAL_TEXTS = (
    "Why was I charged twice for the same parcel? This is ridiculous.",
    "The meeting is on Tuesday at ten.",
)
"""Golden texts that are also plausible for a model that knows no emotions."""
_LONGEST_EXAMPLE = 80
_LIMITS = {"title": 150, "contact": 200, "intended_use": 2_000, "examples": 300}
"""Characters."""
_PATTERNS = {
    "name": (r"[\w.-]{1,96}", "use letters, digits, '-', '_' and '.'"),
    "license": (r"[a-z0-9.+-]{2,60}", "use an id of https://huggingface.co/docs/hub/repositories-licenses, as apache-2.0"),
    "language": (r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?", "use ISO 639 codes such as en or it"),
}  # fmt: skip


@dataclass(frozen=True)
class CardDetails:
    """What the publisher says about a model; empty is not said.

    Attributes:
        name: the model's name in the Hub's list of results.
        title: the card's heading.
        license: license of the trained weights, by its id on the Hub.
        language: ISO codes of the languages of the texts.
        contact: how to reach the publisher.
        intended_use: what the model is for, in a few sentences.
        examples: texts to try the model on.

    Raises:
        ValueError: a value that no card can show; the message names the field.
    """

    name: str = ""
    title: str = ""
    license: str = ""
    language: Sequence[str] = ()
    contact: str = ""
    intended_use: str = ""
    examples: Sequence[str] = ()

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            for text in (value,) if isinstance(value, str) else value:
                _refuse_odd(key, text)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that say something."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}


def _refuse_odd(key: str, text: str) -> None:
    pattern, remedy = _PATTERNS.get(key, (r"[^\x00-\x1f\x7f-\x9f]*", "write it on one line"))
    if text and not re.fullmatch(pattern, text):
        raise ValueError(f"{key} is {text[:100]!r}. Remedy: {remedy}")
    if key != "examples" and HTML.search(text):
        raise ValueError(f"{key} is {text[:100]!r}, which has HTML. Remedy: use plain text")
    if len(text) > (most := _LIMITS.get(key, 100)):
        raise ValueError(f"{key} has {len(text):,} characters. Remedy: use at most {most:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{key} is {text[:100]!a}, which is not Unicode text. Remedy: leave out half characters"
        ) from None


def read_details(package: Path) -> CardDetails | None:
    """What the publisher says in a package; None in a package of an earlier version.

    Raises:
        PackageError: the record is not what export writes.
    """
    if not (package / LAYOUT.details).is_file():
        return None
    content = read_json(package, LAYOUT.details)
    for field in dataclasses.fields(CardDetails):
        value = content.get(field.name, field.default)
        texts = [value] if isinstance(field.default, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise PackageError(LAYOUT.details, f"has no text in {field.name}", "run hub_release export again")
    try:
        return CardDetails(**content)
    except (TypeError, ValueError) as error:
        raise PackageError(
            LAYOUT.details, f"is not what export writes: {error}", "run hub_release export again"
        ) from None


def change_details(before: CardDetails | None, changes: Mapping[str, Any]) -> CardDetails:
    """What the publisher says, with changes.

    Raises:
        ReleaseError: a value that no card can show.
    """
    try:
        return dataclasses.replace(before or CardDetails(), **changes)
    except ValueError as error:
        raise ReleaseError(str(error)) from None


def to_json(details: CardDetails) -> str:
    """The record of what the publisher says."""
    return json.dumps(details.given, indent=2, ensure_ascii=False) + "\n"


def choose_examples(golden: Sequence[str], about_emotions: bool) -> list[str]:
    """Texts to try a model on if the publisher names none: short golden texts, without feelings where none are known."""
    short = [text for text in golden if len(text) <= _LONGEST_EXAMPLE]
    return short if about_emotions else [text for text in short if text in _NEUTRAL_TEXTS]


def model_name(text: str) -> str:
    """A folder's or repository's name as the model's name in the Hub's list of results."""
    return re.sub(r"[^\w.-]+", "-", text)[:96]


def section(words: str) -> str:
    """The card's section of own words."""
    return "\n\n".join(filter(None, (BEGIN, words and f"{_HEADING}\n\n{words}", END)))


def read_own_words(card: str) -> str:
    """The publisher's own words on a card; empty if there are none.

    Raises:
        ReleaseError: they would break out of their section, or are HTML.
    """
    words = _split(card)[1].strip().removeprefix(_HEADING).strip()
    if len(words) > _MOST_CHARACTERS:
        raise ReleaseError(f"the own words have {len(words):,} characters. Remedy: use at most {_MOST_CHARACTERS:,}")
    for token in MarkdownIt("commonmark").enable("table").parse(words):
        line = token.map[0] if token.map else 0
        what = ""
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            what = "a heading of the card's own levels. Remedy: use ### or lower"
        elif any(part.type.startswith("html") for part in (token, *(token.children or []))):
            what = "HTML. Remedy: use Markdown"
        elif token.type == "fence" and token.level == 0 and not _is_closed(words.split("\n"), token):
            what = f"a code block without an end. Remedy: close it with {token.markup}"
        if what:
            raise ReleaseError(f"the own words on the card have in {words.splitlines()[line][:100]!r} {what}")
    return words


def _is_closed(lines: Sequence[str], fence: Token) -> bool:
    first, end = fence.map or [0, 0]
    return end - first > 1 and re.fullmatch(rf" {{0,3}}{fence.markup}[`~]*\s*", lines[end - 1]) is not None


def without_own_words(card: str) -> str:
    """The card with an empty section of own words."""
    before, _, after = _split(card)
    return before + after


def _split(card: str) -> tuple[str, str, str]:
    """What is before, in and after the section of own words; it ends at the last such line."""
    before, begin, rest = card.partition(f"{BEGIN}\n")
    words, end, after = rest.rpartition(END)
    return (before, words, after) if begin and end else (card, "", "")
