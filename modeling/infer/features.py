"""A model's input: sentence embeddings, tokens, and windows of long texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from modeling.infer.config import EmotionConfig


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
    """Token ids of each text, without special tokens; a text without any gets the beginning-of-sequence token."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids or [bos_token_id], dtype=np.int64) for encoding in encodings]


def cut_into_windows(features: Features, config: EmotionConfig) -> tuple[Features, np.ndarray]:
    """Windows of at most ``window_length`` tokens, text by text, and the index of each text's first window, [N].

    The last window ends with the text, so a long text has no short window.
    """
    if features.tokens is None:
        return features, np.arange(len(features))
    step = config.window_length - config.window_overlap
    counts = 1 + np.ceil(np.maximum(features.lengths - config.window_length, 0) / step).astype(int)
    texts = np.repeat(np.arange(len(features)), counts)
    firsts = np.cumsum(counts) - counts
    windows = []
    for window, text in enumerate(texts.tolist()):
        tokens = features.tokens[text]
        start = max(min((window - firsts[text]) * step, len(tokens) - config.window_length), 0)
        windows.append(tokens[start : start + config.window_length])
    return Features(None if features.embeddings is None else features.embeddings[texts], windows), firsts


def pool_windows(logits: np.ndarray, firsts: np.ndarray, windows: str) -> np.ndarray:
    """Logits of texts, float32 [N, L], pooled over their windows; ``firsts`` is from :func:`cut_into_windows`."""
    if windows == "max":
        return np.maximum.reduceat(logits, firsts)
    return np.add.reduceat(logits, firsts) / np.diff(firsts, append=len(logits))[:, None].astype(np.float32)
