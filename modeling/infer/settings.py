"""Settings of a model: the fields that a recipe and a package's configuration share."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Input = Literal["embedding", "tokens", "hybrid"]
Quantization = Literal["none", "nf4", "8bit"]
Number = float | int
"""JSON writes 1 for 1.0."""


def setting(
    default: Any, help: str, group: str = "model", least: float | None = None, most: float | None = None, **marks: bool
) -> Any:
    """A dataclass field with its help, the values it accepts, and marks for the code that trains.

    Args:
        default: its default; a list or mapping is copied for each instance.
        help: one line for ``--help``.
        group: heading under which ``--help`` lists it.
        least: smallest accepted number; None accepts everything.
        most: largest accepted number; None is unbounded.
        **marks: more metadata, for the code that trains; nothing in a package reads it.
    """
    metadata = {"help": help, "group": group, "validator": _in_range(least, most), **marks}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _in_range(least: float | None, most: float | None) -> Callable[[Any], None]:
    """A validator of a number; of anything where the field has no range."""

    def validate(value: Any) -> None:
        if least is not None and not least <= value <= (math.inf if most is None else most):
            accepted = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
            raise ValueError(f"{value!r:.80} is out of range. Remedy: use {accepted}")

    return validate


@dataclass
class ModelSettings:
    """Settings of a model. A field's annotation is its type and its choices."""

    head: Literal["backbone", "mlp"] = setting(
        "backbone", "backbone, or mlp: a baseline without a backbone, trained in seconds", on_card=False
    )
    quantization: Quantization = setting("none", "precision of the frozen weights: full, 4-bit or 8-bit")
    input: Input = setting(
        "embedding",
        "what the backbone reads: embedding (one token from the sentence embedding), tokens (words) or hybrid (both)",
    )
    pooling: Literal["last", "mean", "attention"] = setting(
        "last", "what the classifier reads of the words' states: the last, their mean, or their attention-weighted mean"
    )
    attention: Literal["causal", "bidirectional"] = setting(
        "causal", "causal: each word sees the words before it, as in pretraining; bidirectional: it sees all words"
    )
    window_length: int = setting(
        128, "tokens of a text that are read at once; training cuts off the rest", least=1, most=2**20
    )
    window_overlap: int = setting(
        32, "tokens shared by neighboring windows of a longer text, when classifying", least=0, most=2**20
    )
    windows: Literal["max", "mean"] = setting(
        "mean",
        "logits of a text in several windows: their mean, for what the whole text says; or max, for what one passage "
        "says, which also finds unintended labels",
    )
    prefix: Literal["none", "bos"] = setting(
        "none", "bos: put the beginning-of-sequence token before the backbone's input"
    )
    one_token: bool = setting(
        True, "leave out what a single token does not need (queries, keys, positions, vocabulary); same outputs"
    )
    embedding_noise: Number = setting(
        0.0,
        "standard deviation of Gaussian noise on the embeddings while training; USE's own is 0.042 per dimension",
        least=0,
    )
    head_dropout: Number = setting(0.1, "dropout before the classifier", least=0, most=1)

    @property
    def reads_one_token(self) -> bool:
        """Is the backbone a :class:`OneTokenMistral`?"""
        return self.one_token and self.prefix == "none" and not self.reads_words

    @property
    def reads_words(self) -> bool:
        """Does the backbone read the text's tokens?"""
        return self.input != "embedding"

    @property
    def is_sequence_classifier(self) -> bool:
        """Is it what ``MistralForSequenceClassification`` computes: words → the state of the last token, or their mean?

        A beginning-of-sequence token has no part in our mean, but it has in a server's.
        """
        pools = self.pooling == "last" or (self.pooling == "mean" and self.prefix == "none")
        return self.input == "tokens" and pools

    @property
    def reads_embedding(self) -> bool:
        """Does it read the sentence embedding?"""
        return self.input != "tokens"
