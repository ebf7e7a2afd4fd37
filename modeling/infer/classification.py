"""What every classifier does, whatever computes its logits: texts → features → probabilities → labels."""

import logging
import numbers
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from tokenizers import Tokenizer

from modeling.infer.adaptation import Adaptation, KnownLabels, adapt_thresholds, read_known_labels
from modeling.infer.cores import check_threads
from modeling.infer.decisions import read_flag, read_thresholds, read_top_k
from modeling.infer.encoders import Encoder, LoadedEncoder, encode_in_batches, load_encoder
from modeling.infer.explanation import (
    Explanation,
    Method,
    Shares,
    check_explained,
    explain_shares,
    explain_without,
    leave_words_out,
)
from modeling.infer.features import Features, tokenize
from modeling.infer.language import LanguageWatch
from modeling.infer.package import PackageSettings
from modeling.infer.texts import check_texts, is_blank, progress, share_texts

logger = logging.getLogger(__name__)


def check_encoder(encoder: Any) -> Encoder | None:
    """An encoder, refused with a TypeError if it cannot be called."""
    if encoder is None or callable(encoder):
        return cast(Encoder | None, encoder)
    raise TypeError(
        f"encoder is {encoder!r:.80}. Remedy: give a callable texts → [N, E], for example load_encoder('minilm'), or "
        "leave it out"
    )


def check_batch_size(batch_size: Any) -> int:
    """A number of rows, refused with a ValueError if it is not a whole number from 1."""
    if not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r:.80}. Remedy: use a whole number from 1")
    return int(batch_size)


class Engine(Protocol):
    """What computes the probabilities of features.

    Attributes:
        config: the package's settings.
        tokenizer: for words; None if the model reads none.
        empty_token: the token of a text without any.
        precision: the encoder's, where it can be computed in it: ``float32``, ``bfloat16`` or ``int8``.
    """

    config: Any
    empty_token: int
    precision: str

    @property
    def tokenizer(self) -> Tokenizer | None:
        """For words."""
        ...

    def probabilities(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Probabilities, float32 [N, L], of N texts."""
        ...

    def shares(self, features: Features, label: int, steps: int, batch_size: int, threads: int) -> Shares:
        """Shares of a text's tokens in the logit of a label; ``features`` are of the text and of the empty text."""
        ...


class TextClassifier:
    """Classify texts, with an engine that computes the probabilities of their features.

    Attributes:
        source: the package, as it was named.
        config: the package's settings.
        labels: its labels, in the order of the probabilities.
        batch_size: rows that are computed at once.
        threads: the most CPU threads.
    """

    def __init__(
        self, source: str, engine: Engine, batch_size: int, encoder: Encoder | None, threads: int | None
    ) -> None:
        self.source, self._engine = source, engine
        self.config: PackageSettings = engine.config
        self.labels: list[str] = list(self.config.emotion_labels)
        self.batch_size, self._encoder = check_batch_size(batch_size), check_encoder(encoder)
        self.threads = check_threads(threads)
        self._watch = LanguageWatch(self.config.characters_per_token)

    def __repr__(self) -> str:
        config = self.config
        reads = f"input {config.input}, {'no backbone' if config.head == 'mlp' else f'backbone {config.model_name}'}"
        encoder = f", encoder {config.encoder}" if config.reads_embedding else ""
        return (
            f"<EmotionClassifier of {self.source}: {len(self.labels)} labels ({reprlib.repr(self.labels)[1:-1]}), "
            f"{reads}{encoder}, {self._engine}>"
        )

    @property
    def computed(self) -> str:
        """By what, where and in which precision."""
        return str(self._engine)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the package's own encoder, which may not pickle and loads on first use."""
        own = isinstance(self._encoder, LoadedEncoder) and self._encoder.name == self.config.encoder
        return {**self.__dict__, "_encoder": None if own else self._encoder}

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder, loaded on first use."""
        if self._encoder is None:
            loaded = load_encoder(self.config.encoder, self.threads, self._engine.precision)
            if self.config.encoder_version not in ("", loaded.version):
                logger.warning(
                    "the package was made with version %s of %s, but this is %s: probabilities may differ",
                    self.config.encoder_version,
                    loaded.name,
                    loaded.version,
                )
            self._encoder = loaded
        return self._encoder

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """Sentence embeddings, float32 [N, E].

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's, or it does not give finite numbers for each text.
        """
        checked = check_texts(texts)
        batches = list(encode_in_batches(self.encoder, checked))
        embeddings = np.concatenate(batches) if batches else np.zeros((0, self.config.embed_dim), np.float32)
        if embeddings.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"the encoder gives {embeddings.shape[1]} dimensions, the package expects {self.config.embed_dim}. "
                f"Remedy: leave encoder out, or give one with the embeddings of {self.config.encoder}"
            )
        return embeddings

    def features(self, texts: Iterable[str]) -> Features:
        """The model's input: embeddings of the texts, their tokens, or both.

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's, or it does not give finite numbers for each text.
        """
        checked = check_texts(texts)
        return Features(self.embed(checked) if self.config.reads_embedding else None, self.tokenize(checked))

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Token ids of each text; None if the backbone does not read words.

        A warning is logged once if most texts seem to be in a language that the training rows do not have.
        """
        tokens = self._tokens(texts)
        if tokens is not None:
            self._watch.look(texts, tokens)
        return tokens

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        engine = self._engine
        return None if engine.tokenizer is None else tokenize(engine.tokenizer, texts, engine.empty_token)

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probability of every label, float32 [N, L], in the order of ``labels``.

        It is the model's own output, also for a text without a visible character, which :meth:`predict` gives no label.

        Raises:
            TypeError: an item is not a string; the message names its index.
        """
        checked = check_texts(texts)
        found = [np.zeros((0, len(self.labels)), np.float32)]
        with progress(len(checked), "classifying") as bar:
            for part in share_texts(checked):
                found.append(self._engine.probabilities(self.features(part), self.batch_size, self.threads))
                bar.update(len(part))
        return np.concatenate(found)

    def predict(
        self,
        texts: Iterable[str],
        threshold: float | Mapping[str, float] | None = None,
        exclude_unreliable: bool = False,
        top_k: int | None = None,
    ) -> list[dict[str, float]]:
        """Labels that reach their threshold, with their probabilities, highest first; one dict per text.

        A text without a visible character carries no label, whatever the thresholds are.

        Args:
            texts: the texts: a list, a column, a series, an array … of strings; one string is one text.
            threshold: None for the package's thresholds; one probability for all labels (0.0 gives every label);
                or a mapping that overrides single labels.
            exclude_unreliable: leave out the labels whose test scores rest on too few rows.
            top_k: at most this many labels per text, from 1; None for all that reach their threshold.

        Raises:
            ValueError: a threshold is not a number from 0 to 1 or names an unknown label, or ``top_k`` is not a whole
                number from 1; the message has the value. It is raised before anything is computed.
            TypeError: an item is not a string; the message names its index. Or ``exclude_unreliable`` is not a bool.
        """
        cutoffs, most, checked = read_thresholds(self.config, threshold), read_top_k(top_k), check_texts(texts)
        left_out = self.config.unreliable_labels if read_flag("exclude_unreliable", exclude_unreliable) else []
        allowed = np.array([label not in left_out for label in self.labels])
        results: list[dict[str, float]] = []
        for text, row in zip(checked, self.predict_proba(checked), strict=True):
            order = [] if is_blank(text) else np.argsort(-row, kind="stable").tolist()
            chosen = [i for i in order if allowed[i] and row[i] >= cutoffs[i]][:most]
            results.append({self.labels[i]: float(row[i]) for i in chosen})
        return results

    def adapt(self, texts: Iterable[str], labels: Iterable[Iterable[str] | None] | None = None) -> Adaptation:
        """Choose thresholds for texts of another kind than those the package was trained on, and use them from now on.

        The probabilities stay as they are. With labels of some of the texts, 50 for example, the thresholds of these
        labels are those with the highest expected F1, after a recalibration that has few numbers to learn. More texts
        without labels (None) make the choice steadier. Without any labels, thresholds are only lowered, where the
        probabilities say that this finds more; that takes 100 texts. Blank texts are left out.

        Classifiers of the same loaded model share its thresholds.

        Args:
            texts: the texts.
            labels: the labels of each text: names, ``[]`` for none, or None if they are not known. A label that no text
                has keeps its threshold.

        Raises:
            ValueError: there are no texts, or too few without labels; another number of rows of labels, an unknown
                label, or none at all.
            TypeError: an item is not a string, or the labels of a text are not names.
        """
        checked = check_texts(texts)
        known = read_known_labels(self.labels, len(checked), labels)
        seen = [row for row, text in enumerate(checked) if not is_blank(text)]
        probabilities = self.predict_proba([checked[row] for row in seen])
        known = KnownLabels(known.labels[seen], known.is_labeled[seen])
        found = adapt_thresholds(self.labels, probabilities, read_thresholds(self.config, None), known)
        self.config.adapted_thresholds = {**self.config.adapted_thresholds, **found.thresholds}
        return found

    def explain(self, text: str, label: str, method: Method = "leave-out", steps: int = 64) -> Explanation:
        """Why the label: how much each word of the text adds to the label's logit, or takes from it.

        ``leave-out`` compares the text with the text without each word, so W words cost W + 2 readings. Every backend
        has it. Its contributions do not add up: two words that say the same each get little, because the other is
        still there. So its completeness error, against the empty text, need not be small.

        ``integrated-gradients`` is for models that read words, computed by PyTorch, and needs captum; see
        :func:`integrate_gradients`. Its contributions add up, except for an error that falls with more ``steps``.

        Words are what stands between white space, and each character of Kana and Han; Thai has few such words.

        Args:
            text: at most :data:`MAX_WORDS` words.
            label: one of ``labels``, whether it is predicted or not.
            method: ``leave-out`` or ``integrated-gradients``.
            steps: points between the baseline and the text at which ``integrated-gradients`` computes gradients.

        Raises:
            TypeError: the text is not a string.
            ValueError: the text has no visible character or is too long, the label or the method is unknown, ``steps`` is
                not a whole number from 1, or the method is not for this model or backend.
            ImportError: captum is missing.
        """
        checked, spans = check_explained(text, label, self.labels, method, steps)
        place = self.labels.index(label)
        if method == "leave-out":
            variants = leave_words_out(checked, spans)  # one text, and not so many as a warning would count
            features = Features(self.embed(variants) if self.config.reads_embedding else None, self._tokens(variants))
            found = self._engine.probabilities(features, self.batch_size, self.threads)[:, place]
            return explain_without(checked, label, spans, found, self.config)
        shares = self._engine.shares(self.features([checked, ""]), place, steps, self.batch_size, self.threads)
        tokenizer = cast(Tokenizer, self._engine.tokenizer)
        offsets = tokenizer.encode(checked, add_special_tokens=False).offsets
        return explain_shares(checked, label, spans, offsets, shares, self.config)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Add ``emotions`` (names) and ``probabilities`` to columns that have ``text``, or to one row.

        Works with ``datasets.Dataset.map(classifier)``, with or without ``batched=True``, and with
        ``ray.data.Dataset.map_batches(classifier)``. N texts get N lists of names and float32 [N, L]; one text, in a
        row, gets its names and float32 [L].
        """
        if "text" not in batch:
            raise KeyError(
                f"the batch has no column 'text', only {sorted(batch)}. Remedy: rename the column of the texts to text"
            )
        checked = check_texts(batch["text"])
        probabilities = self.predict_proba(checked)
        reached = probabilities >= read_thresholds(self.config, None)
        emotions = [
            [] if is_blank(text) else [self.labels[i] for i in np.flatnonzero(row)]
            for text, row in zip(checked, reached, strict=True)
        ]
        if isinstance(batch["text"], str):
            return {**batch, "emotions": emotions[0], "probabilities": probabilities[0]}
        return {**batch, "emotions": emotions, "probabilities": probabilities}
