"""A model's input: sentence embeddings, tokens, and windows of long texts."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from modeling.infer.package import PackageSettings
from modeling.infer.texts import cut_text, progress

_PIECE, _PIECES_AT_ONCE = 2**14, 64
"""Characters that the tokenizer reads as one piece, and pieces that it reads at once: a million characters together."""


@dataclass(frozen=True)
class Features:
    """A model's input for N texts.

    Attributes:
        embeddings: sentence embeddings, float32 [N, E]; None if the model reads only words.
        tokens: token ids of each text, int64 [T] with T ≥ 1; None if it reads only the sentence embedding.
    """

    embeddings: np.ndarray | None = None
    tokens: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(cast(Any, self.embeddings if self.tokens is None else self.tokens))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int64 [N]; 1 if the text is one embedding."""
        return np.array([len(row) for row in self.tokens] if self.tokens is not None else [1] * len(self), dtype=int)

    def take(self, rows: np.ndarray) -> "Features":
        """The features of the rows with these indices."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Features(embeddings, None if self.tokens is None else [self.tokens[row] for row in rows.tolist()])


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], bos_token_id: int) -> list[np.ndarray]:
    """Token ids of each text, int64, without special tokens; a text without any gets the beginning-of-sequence token.

    The tokenizer needs some hundred bytes for each token that it is reading. So it reads a long text in pieces, and
    some pieces at once; tokens change at most where a piece ends.
    """
    pieces = ((row, piece) for row, text in enumerate(texts) for piece in cut_text(text, _PIECE))
    found: list[list[np.ndarray]] = [[] for _ in texts]
    while batch := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
        encodings = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (row, _), encoding in zip(batch, encodings, strict=True):
            found[row].append(np.array(encoding.ids, dtype=np.int64))
    joined = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]
    return [tokens if len(tokens) else np.array([bos_token_id], dtype=np.int64) for tokens in joined]


@dataclass(frozen=True)
class Windows:
    """Windows of texts, cut when they are taken.

    Attributes:
        features: of N texts.
        length: the largest number of tokens in a window.
        texts: index of each window's text, int [W].
        starts: each window's first token, int [W].
    """

    features: Features
    length: int
    texts: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each window, int64 [W]."""
        return np.minimum(self.features.lengths[self.texts], self.length)

    def take(self, rows: np.ndarray) -> Features:
        """The features of the windows with these indices."""
        whole = self.features.take(self.texts[rows])
        if whole.tokens is None:
            return whole
        starts = self.starts[rows].tolist()
        tokens = [row[start : start + self.length] for row, start in zip(whole.tokens, starts, strict=True)]
        return Features(whole.embeddings, tokens)


def cut_into_windows(features: Features, config: PackageSettings) -> tuple[Windows, np.ndarray]:
    """Windows of at most ``window_length`` tokens, text by text, and the index of each text's first window, [N].

    The last window ends with the text, so a long text has no short window.
    """
    length, step = config.window_length, config.window_length - config.window_overlap
    beyond = np.maximum(features.lengths - length, 0)  # 0 if the text is one embedding
    counts = 1 + np.ceil(beyond / step).astype(int)
    texts = np.repeat(np.arange(len(features)), counts)
    firsts = np.cumsum(counts) - counts
    starts = np.minimum((np.arange(len(texts)) - firsts[texts]) * step, beyond[texts])
    return Windows(features, length, texts, starts), firsts


def read_in_windows(
    features: Features,
    config: PackageSettings,
    read: Callable[[Features], np.ndarray],
    size: int,
    map_batches: Callable[..., Iterable[int]] = map,
) -> np.ndarray:
    """Logits, float32 [N, L], of N texts, window by window; windows of similar length share a batch.

    Args:
        features: of N texts.
        config: the package's settings.
        read: computes the logits of a batch of windows.
        size: windows in a batch, at most.
        map_batches: ``map``, or one that computes batches at once.
    """
    if len(features) <= size and max(features.lengths, default=0) <= config.window_length:
        return read(features)
    windows, firsts = cut_into_windows(features, config)
    logits = np.zeros((len(windows), len(config.emotion_labels)), dtype=np.float32)
    order = np.argsort(-windows.lengths, kind="stable")

    def fill(rows: np.ndarray) -> int:
        logits[rows] = read(windows.take(rows))
        return len(rows)

    # Only for tokens: embeddings are read faster than they were made, and making them had its own bar.
    with progress(len(order), "reading", hidden=features.tokens is None) as bar:
        for count in map_batches(fill, [order[start : start + size] for start in range(0, len(order), size)]):
            bar.update(count)
    return logits if len(windows) == len(features) else pool_windows(logits, firsts, config.windows)


def to_arrays(features: Features) -> dict[str, np.ndarray]:
    """The model's inputs by name; tokens are padded on the right to the longest text."""
    found: dict[str, np.ndarray] = {}
    if features.embeddings is not None:
        found["embeddings"] = np.ascontiguousarray(features.embeddings, dtype=np.float32)
    if features.tokens is not None:
        there = np.arange(max(features.lengths, default=0)) < features.lengths[:, None]
        found["input_ids"] = np.zeros(there.shape, dtype=np.int64)
        if len(features):
            found["input_ids"][there] = np.concatenate(features.tokens)
        found["attention_mask"] = there.astype(np.int64)
    return found


def pool_windows(logits: np.ndarray, firsts: np.ndarray, windows: str) -> np.ndarray:
    """Logits of texts, float32 [N, L], pooled over their windows; ``firsts`` is from :func:`cut_into_windows`."""
    if windows == "max":
        return np.maximum.reduceat(logits, firsts)
    return np.add.reduceat(logits, firsts) / np.diff(firsts, append=len(logits))[:, None].astype(np.float32)
