"""Why this label: how much each word of a text adds to the label's logit, or takes from it."""

import numbers
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from modeling.infer.errors import printable
from modeling.infer.settings import ModelSettings
from modeling.infer.texts import check_texts, is_blank

Method = Literal["leave-out", "integrated-gradients"]
MAX_WORDS = 200
"""Words of a text that can be explained: each costs one more reading of the text."""
_LINES = 12
"""Words that an explanation shows in a terminal."""
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han, which are written without spaces: each character counts as a word."""
_ONE_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")

Span = tuple[int, int]


class Word(NamedTuple):
    """A word of a text.

    Attributes:
        text: the word, with its punctuation: ``Explanation.text[start:end]``.
        start: its first character.
        end: the character after its last.
        contribution: in logits of the label: what the word adds, or what it takes if it is negative.
    """

    text: str
    start: int
    end: int
    contribution: float


class Shares(NamedTuple):
    """What :func:`integrate_gradients` gives.

    Attributes:
        tokens: share of each token, float64 [T].
        embedding: share of the sentence embedding; 0 if the model reads none.
        logit: the label's, of the text.
        baseline_logit: the label's, of the baseline.
    """

    tokens: np.ndarray
    embedding: float
    logit: float
    baseline_logit: float


@dataclass(frozen=True)
class Explanation:
    """What the words of a text add to the logit of a label; its ``str`` is for a terminal.

    Attributes:
        text: the text.
        label: the label.
        method: how the contributions were found.
        words: each word with its contribution, in the order of the text.
        sentence_embedding: the sentence embedding's own contribution, beside the words'; None if it has none.
        probability: the label's, of the text.
        logit: the label's, of the text.
        baseline_logit: the label's, of what the text is compared with.
        meaning: one sentence on what a contribution means here.
    """

    text: str
    label: str
    method: Method
    words: tuple[Word, ...]
    sentence_embedding: float | None
    probability: float
    logit: float
    baseline_logit: float
    meaning: str

    @property
    def completeness_error(self) -> float:
        """How far the sum of all contributions is from ``logit - baseline_logit``, in logits, at least 0."""
        total = sum(word.contribution for word in self.words) + (self.sentence_embedding or 0.0)
        return abs(total - (self.logit - self.baseline_logit))

    def __str__(self) -> str:
        largest = sorted(self.words, key=lambda word: -abs(word.contribution))[:_LINES]
        lines = [f"{word.contribution:+8.3f}  {word.text:.60}" for word in sorted(largest, key=lambda word: word.start)]
        if left := len(self.words) - len(largest):
            rest = sum(word.contribution for word in self.words) - sum(word.contribution for word in largest)
            lines.append(f"{rest:+8.3f}  ({left} other words together)")
        if self.sentence_embedding is not None:
            lines.append(f"{self.sentence_embedding:+8.3f}  (the sentence embedding)")
        head = f"{self.label}: probability {self.probability:.3f}; contributions in logits, by {self.method}:"
        difference = self.logit - self.baseline_logit
        foot = (
            f"completeness error {self.completeness_error:.3f}, of a difference of {difference:+.3f} from the baseline"
        )
        return "\n".join(printable(line) for line in [head, *lines, foot, self.meaning])


def check_explained(text: Any, label: Any, labels: Sequence[str], method: Any, steps: Any) -> tuple[str, list[Span]]:
    """A text that can be explained, and its words.

    Raises:
        TypeError: the text is not a string.
        ValueError: the text has no visible character or more than :data:`MAX_WORDS` words, the label or the method is
            unknown, or ``steps`` is not a whole number from 1.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}, not a string: {reprlib.repr(text)}. Remedy: give one text")
    if label not in labels:
        known = reprlib.repr(list(labels))[1:-1]
        raise ValueError(f"label {label!r:.80} is not one of {known}. Remedy: use one of the classifier's labels")
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r:.80}. Remedy: use {' or '.join(get_args(Method))}")
    if not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is {steps!r:.80}. Remedy: use a whole number from 1")
    if is_blank(text):
        raise ValueError("the text has no visible character, so no word to explain. Remedy: give a text with words")
    (checked,) = check_texts(text)
    spans = split_words(checked)
    if len(spans) > MAX_WORDS:
        raise ValueError(
            f"the text has {len(spans):,} words, more than the {MAX_WORDS} that can be explained. Remedy: explain its "
            "passages one by one"
        )
    return checked, spans


def split_words(text: str) -> list[Span]:
    """Where the words of a text begin and end: what stands between white space; each character of Kana and Han."""
    return [found.span() for found in _ONE_WORD.finditer(text)]


def keep_words(text: str, spans: Sequence[Span], kept: Sequence[bool]) -> str:
    """The text with some of its words; a word that is left out takes the white space after it along."""
    starts = [start for start, _ in spans]
    parts = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    found = text[: starts[0]] + "".join(part for part, keep in zip(parts, kept, strict=True) if keep)
    return found if kept[-1] else found.rstrip()


def leave_words_out(text: str, spans: Sequence[Span]) -> list[str]:
    """The text; the text without each of its words; the empty text."""
    without = [keep_words(text, spans, [other != span for other in spans]) for span in spans]
    return [text, *without, ""]


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits, float64, of probabilities in float32; 0 and 1 count as the nearest other ones."""
    exact = np.clip(probabilities.astype(np.float64), np.finfo(np.float32).tiny, 1 - 2.0**-24)
    return np.log(exact) - np.log1p(-exact)


def explain_without(
    text: str, label: str, spans: Sequence[Span], probabilities: np.ndarray, settings: ModelSettings
) -> Explanation:
    """The explanation from the label's probabilities, float32 [W + 2], of :func:`leave_words_out`."""
    logits = to_logits(probabilities)
    meaning = (
        "A word's contribution is how much the label's logit falls when that word alone is left out."
        if settings.reads_words
        else "The model reads no words, but one embedding of the whole text: a word's contribution is how much the "
        "label's logit falls when the text is embedded without that word."
    )
    words = _join(text, spans, logits[0] - logits[1:-1])
    found = float(probabilities[0]), float(logits[0]), float(logits[-1])
    return Explanation(text, label, "leave-out", words, None, *found, meaning)


def explain_shares(
    text: str, label: str, spans: Sequence[Span], offsets: Sequence[Span], shares: Shares, settings: ModelSettings
) -> Explanation:
    """The explanation from the shares of tokens, whose characters are at ``offsets``.

    White space belongs to the word after it. A token with characters of several words is divided among them.
    """
    if len(offsets) != len(shares.tokens):  # a text without tokens, or one that the tokenizer reads in pieces
        raise ValueError("the tokenizer gives the text no tokens of its own. Remedy: use method='leave-out'")
    owners = np.searchsorted([end for _, end in spans], np.arange(len(text)), side="right").clip(max=len(spans) - 1)
    contributions = np.zeros(len(spans))
    for (start, end), share in zip(offsets, shares.tokens, strict=True):
        characters = owners[start : max(end, start + 1)]
        np.add.at(contributions, characters, share / len(characters))
    embedding = shares.embedding if settings.reads_embedding else None
    meaning = "A word's contribution is its share of the logit's difference from as many tokens without content" + (
        "." if embedding is None else "; the sentence embedding, which reads all words, has a share of its own."
    )
    probability = float(1 / (1 + np.exp(-shares.logit)))
    words = _join(text, spans, contributions)
    found = probability, shares.logit, shares.baseline_logit
    return Explanation(text, label, "integrated-gradients", words, embedding, *found, meaning)


def _join(text: str, spans: Sequence[Span], contributions: np.ndarray) -> tuple[Word, ...]:
    found = zip(spans, contributions.tolist(), strict=True)
    return tuple(Word(text[start:end], start, end, contribution) for (start, end), contribution in found)
