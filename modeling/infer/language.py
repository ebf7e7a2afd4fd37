"""Whether texts are in another language than the training rows, as the package's own tokenizer sees it.

A tokenizer cuts the language that it was made from into long tokens, and others into short ones: the bundled backbone's
has 4.0 characters per token of GoEmotions, 2.5 of Italian and 1.3 of Russian. So no further package is needed to notice.
"""

import logging
import threading
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger(__name__)

_LEAST_CHARACTERS, _LEAST_TEXTS = 20, 16
"""A shorter text says little of its language, and fewer texts say little of a batch."""
_LEAST_WORDS = 0.9
"""Share of a text's characters; the rest is white space beyond one between words, whose tokens are of any length."""
_SHARE, _MARGIN = 5, 0.75
"""Percent of the training rows below what is usual, and above; but what is usual goes at least from 3/4 to 4/3 of the
median: rows may be few or alike. English corpora differ by less, and Romance and German texts have 2/3 of the English."""
_COUNTING = threading.Lock()


def characters_per_token(texts: Sequence[str], tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Characters per token, float [M], of the M texts that are long enough and not padded with white space.

    Args:
        texts: N texts.
        tokens: their token ids, [T] each with T ≥ 1.
    """
    found = []
    for text, ids in zip(texts, tokens, strict=True):
        if len(text) >= _LEAST_CHARACTERS and len(" ".join(text.split())) > _LEAST_WORDS * len(text):
            found.append(len(text) / len(ids))
    return np.array(found, dtype=float)


def usual_characters_per_token(texts: Sequence[str], tokens: Sequence[np.ndarray]) -> list[float]:
    """The range ``[low, high]`` that at least 90 % of the texts are in; empty if too few texts are long enough."""
    found = characters_per_token(texts, tokens)
    if len(found) < _LEAST_TEXTS:
        return []
    low, median, high = np.percentile(found, [_SHARE, 50, 100 - _SHARE]).tolist()
    return [round(min(low, _MARGIN * median), 3), round(max(high, median / _MARGIN), 3)]


class LanguageWatch:
    """Logs one warning once most of the texts in a batch have unusually many or few characters per token.

    Small batches are counted together until they have enough texts. A copy in another process begins anew.

    Attributes:
        usual: the range of the training rows, see :func:`usual_characters_per_token`; if empty, nothing is looked at.
        warned: has it logged the warning?
    """

    def __init__(self, usual: Sequence[float]) -> None:
        self.usual, self.warned = tuple(usual), False
        self._counts = np.zeros(3, dtype=int)

    def __reduce__(self) -> tuple[type["LanguageWatch"], tuple[tuple[float, ...]]]:
        return LanguageWatch, (self.usual,)

    def look(self, texts: Sequence[str], tokens: Sequence[np.ndarray]) -> None:
        """Count texts, with their token ids."""
        if self.warned or not self.usual:
            return
        found = characters_per_token(texts, tokens)
        low, high = self.usual
        with _COUNTING:
            self._counts += [len(found), (found < low).sum(), (found > high).sum()]
            every, below, above = self._counts.tolist()
            if every < _LEAST_TEXTS:
                return
            self._counts[:] = 0
            if self.warned or max(below, above) * 2 <= every:
                return
            self.warned = True
        few, end = ("fewer", low) if below > above else ("more", high)
        logger.warning(
            "%s of %s texts have %s than %.2f characters per token, as at most %d %% of the training rows do: they seem to be "
            "in a language that the training rows do not have, so labels may be missing or wrong. Remedy: use a model that reads "
            "one embedding of a multilingual encoder (recipe goemotions), or train on rows in that language",
            f"{max(below, above):,}",
            f"{every:,}",
            few,
            end,
            _SHARE,
        )
