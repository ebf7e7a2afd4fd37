"""``EmotionClassifier``: texts → labels and probabilities."""

import logging
import numbers
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling.infer.config import EmotionConfig
from modeling.infer.cores import check_threads
from modeling.infer.decisions import read_flag, read_thresholds, read_top_k
from modeling.infer.encoders import PROGRESS_BAR_FROM, Encoder, LoadedEncoder, encode_in_batches, load_encoder
from modeling.infer.features import Features, tokenize
from modeling.infer.files import local_folder
from modeling.infer.model import EmotionModel
from modeling.infer.predict import predict_probabilities
from modeling.infer.settings import Quantization
from modeling.infer.texts import check_texts, is_blank, share_texts

logger = logging.getLogger(__name__)


def _choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    if device is not None:
        try:
            torch.zeros(1, device=device).item()
        except (
            RuntimeError,
            AssertionError,
            TypeError,
        ) as error:  # unknown, not in PyTorch, missing, or without values
            why = str(error).splitlines()[0]
            raise ValueError(
                f"device {device} cannot be used ({why:.120}). Remedy: use cpu, cuda, cuda:1 …, or leave device out"
            ) from None
        return torch.device(device), "as requested"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is available"
    return torch.device("cpu"), "no CUDA device is available"


def _choose_dtype(dtype: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    if dtype is not None:
        return dtype, "as requested"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the GPU computes in bfloat16"
    return torch.float32, f"the default on {device.type}"


def _check_encoder(encoder: Any) -> Encoder | None:
    if encoder is None or callable(encoder):
        return cast(Encoder | None, encoder)
    raise TypeError(
        f"encoder is {encoder!r:.80}. Remedy: give a callable texts → [N, E], for example load_encoder('minilm'), or "
        "leave it out"
    )


def _check_batch_size(batch_size: Any) -> int:
    if not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r:.80}. Remedy: use a whole number from 1")
    return int(batch_size)


class EmotionClassifier:
    """Classify texts with a package.

    Args:
        folder_or_hub_id: a package folder, or ``user/model`` on the Hub.
        device: where to run; defaults to the GPU if there is one.
        dtype: precision of the backbone; defaults to bfloat16 on a GPU that has it, else float32.
        revision: branch, tag or commit on the Hub.
        batch_size: rows that go through the backbone at once.
        encoder: a callable texts → [N, E] that replaces the package's own encoder.
        threads: the most CPU threads, for the encoder too; None for all cores that this process may use.
        fuse: compute the same faster, if possible: the adapter is merged into a backbone that is not quantized, and a
            one-token backbone becomes a :class:`FusedOneTokenMistral`.
        quantization: ``none``, ``nf4`` or ``8bit``, instead of the package's own.

    Raises:
        PackageError: a file of the package is broken, hostile or does not fit the others.
        FileNotFoundError: neither a folder nor a Hub id.
        TypeError: the package is not named by a string or path, or ``encoder`` cannot be called.
        ValueError: the device cannot be used, ``quantization`` is unknown, or ``batch_size`` or ``threads`` is not a
            whole number from 1.
    """

    def __init__(
        self,
        folder_or_hub_id: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        batch_size: int = 64,
        encoder: Encoder | None = None,
        fuse: bool = True,
        quantization: Quantization | None = None,
        threads: int | None = None,
    ) -> None:
        self.batch_size, self._encoder = _check_batch_size(batch_size), _check_encoder(encoder)
        self.threads = check_threads(threads)
        self.device, device_reason = _choose_device(device)
        self.dtype, dtype_reason = _choose_dtype(dtype, self.device)
        logger.info("device %s (%s), dtype %s (%s)", self.device, device_reason, self.dtype, dtype_reason)
        self.source = str(folder_or_hub_id)
        folder = local_folder(folder_or_hub_id, revision)
        self.model = EmotionModel.from_pretrained(
            folder, dtype=self.dtype, device=self.device, fuse=fuse, quantization=quantization
        )
        self.config = cast(EmotionConfig, self.model.config)
        self.labels: list[str] = list(self.config.emotion_labels)

    @classmethod
    def from_model(
        cls, model: EmotionModel, batch_size: int = 64, encoder: Encoder | None = None, threads: int | None = None
    ) -> "EmotionClassifier":
        """Classify with an already loaded model, on its own device and in its own precision."""
        classifier = cls.__new__(cls)
        classifier.source = "a loaded model"
        parameter = next(model.parameters())
        classifier.device, classifier.dtype = parameter.device, parameter.dtype
        classifier.config, classifier.model = cast(EmotionConfig, model.config), model.eval()
        classifier.labels = list(classifier.config.emotion_labels)
        classifier.batch_size, classifier._encoder = _check_batch_size(batch_size), _check_encoder(encoder)
        classifier.threads = check_threads(threads)
        return classifier

    def __repr__(self) -> str:
        config = self.config
        reads = f"input {config.input}, {'no backbone' if config.head == 'mlp' else f'backbone {config.model_name}'}"
        encoder = f", encoder {config.encoder}" if config.reads_embedding else ""
        return (
            f"<EmotionClassifier of {self.source}: {len(self.labels)} labels ({reprlib.repr(self.labels)[1:-1]}), "
            f"{reads}{encoder}, on {self.device} in {self.dtype}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """The state without the package's own encoder, which may not pickle and loads on first use."""
        own = isinstance(self._encoder, LoadedEncoder) and self._encoder.name == self.config.encoder
        return {**self.__dict__, "_encoder": None if own else self._encoder}

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder, loaded on first use."""
        if self._encoder is None:
            loaded = load_encoder(self.config.encoder, self.threads)
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
        """Token ids of each text; None if the backbone does not read words."""
        if self.model.tokenizer is None:
            return None
        return tokenize(self.model.tokenizer, texts, self.model.backbone.config.bos_token_id)

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probability of every label, float32 [N, L], in the order of ``labels``.

        It is the model's own output, also for a text without a visible character, which :meth:`predict` gives no label.

        Raises:
            TypeError: an item is not a string; the message names its index.
        """
        checked = check_texts(texts)
        found = [np.zeros((0, len(self.labels)), np.float32)]
        hidden = len(checked) < PROGRESS_BAR_FROM
        with tqdm(total=len(checked), unit="text", desc="classifying", disable=hidden) as bar:
            for part in share_texts(checked):
                found.append(predict_probabilities(self.model, self.features(part), self.batch_size, self.threads))
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
