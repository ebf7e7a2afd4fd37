"""Copies of texts between two lists: letter for letter, after normalization, or near. Pure functions.

Near copies are found as in "On the resemblance and containment of documents" (Broder, 1997): shingles, MinHash and
locality-sensitive hashing propose pairs, and the true Jaccard similarity decides, so none is reported by chance.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from datasketch import MinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

KINDS = {"exact": "exact", "normalised": "normalized", "near": "near"}
"""Kind of copy, which is a key of ``audit.json`` → the word that is printed for it."""
NEAR = 0.7
"""Lowest Jaccard similarity of near copies: texts with one five-letter word changed reach it from 55 characters on."""
SHINGLE = 5
MIN_SHINGLES = 30
"""Shorter texts are copies only if they are equal: many people write "thanks for the laugh"."""
BANDS, BAND_ROWS = 24, 4
"""A pair is proposed with probability 1 − (1 − J⁴)²⁴: 0.998 at the threshold, above 0.999999 from J = 0.82."""

_SKETCHED_AT_ONCE, _PAIRS_AT_ONCE = 2_048, 2**20
_LEAST_SHARED = 0.45
"""Share of equal values in the MinHashes of a pair that is looked at: that of near copies is 0.7 or more, ± 0.047."""
_MIX = np.random.default_rng(0).integers(2**63, size=BAND_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
"""Odd factors that make one hash of a band's values."""


@dataclass(frozen=True)
class Copy:
    """A text that is also in the reference.

    Attributes:
        row: its index.
        reference_row: index of the best match in the reference; the first in a tie.
        kind: ``exact`` (letter for letter), ``normalised`` (except for case, spaces and punctuation) or ``near``.
        similarity: Jaccard similarity of the normalized texts' character 5-grams, 1 if they are equal.
    """

    row: int
    reference_row: int
    kind: str
    similarity: float


def normalize(text: str) -> str:
    """``text`` in compatibility form (NFKC), case-folded, without punctuation, with single spaces.

    Emoji and letters of all scripts stay. A text with nothing but punctuation, such as ``:(``, keeps it: only that
    tells it from ``:)``.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = " ".join("".join(character for character in folded if not _is_punctuation(character)).split())
    return kept or " ".join(folded.split())


def match_key(text: str) -> str:
    """The key of texts that are equal except for case, spaces and punctuation (``Well,done`` and ``well done``)."""
    return _without_spaces(normalize(text))


def _without_spaces(form: str) -> str:
    return form.replace(" ", "")


@cache
def _is_punctuation(character: str) -> bool:
    """Punctuation, ASCII symbols, standalone accents, and zero-width characters (a joiner, a variation selector)."""
    category = unicodedata.category(character)
    if category.startswith("P") or category in ("Sk", "Cf") or "\ufe00" <= character <= "\ufe0f":
        return True
    return character.isascii() and category.startswith("S")


def find_copies(texts: Sequence[str], reference_texts: Sequence[str]) -> list[Copy]:
    """The rows of ``texts`` that are also in ``reference_texts``, each once with its best match, in order."""
    return find_copies_both_ways(texts, reference_texts)[0]


def find_copies_both_ways(texts: Sequence[str], others: Sequence[str]) -> tuple[list[Copy], list[Copy]]:
    """The rows of ``texts`` that are also in ``others``, and the rows of ``others`` that are also in ``texts``."""
    left, right = _Index(texts), _Index(others)
    for form, other, similarity in _near_pairs(list(left.forms), list(right.forms)):
        left.keep(form, right.forms[other], similarity)
        right.keep(other, left.forms[form], similarity)
    return left.copies_in(right), right.copies_in(left)


def group_copies(texts: Sequence[str]) -> np.ndarray:
    """A number for each text, int [N]: equal for copies, near ones too, and for copies of copies."""
    index = _Index(texts)
    rows = [index.keys[_without_spaces(form)] for form in index.normalized]
    pairs = [
        (index.forms[one], index.forms[other]) for one, other, _ in _near_pairs(list(index.forms), list(index.forms))
    ]
    ends = np.array([*enumerate(rows), *pairs]).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(len(texts), len(texts)))
    return np.asarray(connected_components(graph, directed=False)[1])


def summarize(copies: Sequence[Copy], size: int) -> str:
    """``3 of 100 rows have a copy (1 exact, 2 normalized, 0 near)``."""
    counts = Counter(copy.kind for copy in copies)
    kinds = ", ".join(f"{counts[kind]:,} {shown}" for kind, shown in KINDS.items())
    return f"{len(copies):,} of {size:,} rows have a copy ({kinds})"


class _Index:
    """The first row of each text, normalized text and key, and the nearest row of the other side."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.normalized = [normalize(text) for text in texts]
        self.exact = _first_rows(texts)
        self.forms = _first_rows(self.normalized)
        self.keys = _first_rows([_without_spaces(form) for form in self.normalized])
        self.nearest: dict[str, tuple[float, int]] = {}

    def keep(self, form: str, row: int, similarity: float) -> None:
        """Remember the most similar row; in a tie, the first."""
        best = (similarity, -row)
        self.nearest[form] = max(self.nearest.get(form, best), best)

    def copies_in(self, other: _Index) -> list[Copy]:
        found = []
        for row, (text, form) in enumerate(zip(self.texts, self.normalized, strict=True)):
            if (same := other.exact.get(text)) is not None:
                found.append(Copy(row, same, "exact", 1.0))
            elif (same := other.keys.get(_without_spaces(form))) is not None:
                found.append(Copy(row, same, "normalised", 1.0))
            elif form in self.nearest:
                similarity, negative = self.nearest[form]
                found.append(Copy(row, -negative, "near", similarity))
        return found


def _first_rows(texts: Sequence[str]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, row)
    return rows


def _near_pairs(forms: Sequence[str], references: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """All pairs of near copies, with their similarity."""
    # The smaller side is indexed; the other is read once and not kept.
    few, many = sorted((forms, references), key=len)
    index = _Sketches(few)
    for texts, values in _sketch(many):
        for row, place in index.propose(values):
            text, other = texts[row], index.texts[place]
            similarity = _jaccard(_shingles(text), _shingles(other))
            if similarity >= NEAR:
                yield (other, text, similarity) if few is forms else (text, other, similarity)


class _Sketches:
    """Texts and their MinHashes; for each band, the hashes of all texts in order, and whose they are.

    In arrays: datasketch's own index takes some kilobytes for each text.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        parts = list(_sketch(texts))
        self.texts = [text for part, _ in parts for text in part]
        self.values = np.concatenate([np.zeros((0, BANDS * BAND_ROWS), np.uint32), *(found for _, found in parts)])
        hashes = _hash_bands(self.values)
        self.order = np.argsort(hashes, axis=0, kind="stable")
        self.hashes = np.take_along_axis(hashes, self.order, axis=0)

    def propose(self, values: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs that may be near copies: a row of other texts' MinHashes, and the place of a text.

        They share a band, and so many single values that a near copy has fewer with a probability of 3e-7 at most.
        """
        hashes, bands = _hash_bands(values), range(BANDS)
        starts, ends = (
            np.stack([np.searchsorted(self.hashes[:, band], hashes[:, band], side) for band in bands], axis=1)
            for side in ("left", "right")
        )
        counts = ends - starts
        # Texts from one template share bands with each other: some rows at a time have as many pairs as fit.
        pieces = np.cumsum(counts.sum(axis=1)) // _PAIRS_AT_ONCE
        for piece in np.unique(pieces):
            rows = np.flatnonzero(pieces == piece)
            row, band = np.repeat(np.indices((len(rows), BANDS)).reshape(2, -1), counts[rows].ravel(), axis=1)
            within = np.arange(len(row)) - np.repeat(
                np.cumsum(counts[rows]) - counts[rows].ravel(), counts[rows].ravel()
            )
            place = self.order[starts[rows][row, band] + within, band]
            keys = np.unique(rows[row] * len(self.texts) + place)
            for start in range(0, len(keys), _SKETCHED_AT_ONCE):
                row, place = np.divmod(keys[start : start + _SKETCHED_AT_ONCE], len(self.texts))
                likely = (values[row] == self.values[place]).mean(axis=1) >= _LEAST_SHARED
                yield from zip(row[likely].tolist(), place[likely].tolist(), strict=True)


def _sketch(texts: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Batches of the texts that are long enough, and their MinHashes, uint32 [N, BANDS * BAND_ROWS]."""
    cut = ((text, _shingles(text)) for text in texts)
    long = ((text, shingles) for text, shingles in cut if len(shingles) >= MIN_SHINGLES)
    while batch := list(islice(long, _SKETCHED_AT_ONCE)):
        values = ([shingle.encode("utf-8", "surrogatepass") for shingle in shingles] for _, shingles in batch)
        sketches = MinHash.generator(values, num_perm=BANDS * BAND_ROWS, hashfunc=zlib.crc32)
        yield [text for text, _ in batch], np.array([sketch.hashvalues for sketch in sketches], dtype=np.uint32)


def _hash_bands(values: np.ndarray) -> np.ndarray:
    """A hash of each band of MinHashes, uint64 [N, BANDS]; bands that differ seldom have the same."""
    return np.asarray((values.reshape(-1, BANDS, BAND_ROWS).astype(np.uint64) * _MIX).sum(axis=-1))


def _shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}


def _jaccard(a: set[str], b: set[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
