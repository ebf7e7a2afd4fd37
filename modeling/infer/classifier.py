"""``EmotionClassifier``: texts → labels and probabilities, by PyTorch."""

import logging
import os
import reprlib
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from modeling.infer.classification import TextClassifier
from modeling.infer.config import EmotionConfig
from modeling.infer.encoders import Encoder
from modeling.infer.features import Features
from modeling.infer.files import local_folder
from modeling.infer.model import EmotionModel
from modeling.infer.predict import predict_probabilities
from modeling.infer.settings import Quantization

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


class EmotionClassifier(TextClassifier):
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
        self._set_options(batch_size, encoder, threads)
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
        classifier._set_options(batch_size, encoder, threads)
        return classifier

    def __repr__(self) -> str:
        config = self.config
        reads = f"input {config.input}, {'no backbone' if config.head == 'mlp' else f'backbone {config.model_name}'}"
        encoder = f", encoder {config.encoder}" if config.reads_embedding else ""
        return (
            f"<EmotionClassifier of {self.source}: {len(self.labels)} labels ({reprlib.repr(self.labels)[1:-1]}), "
            f"{reads}{encoder}, on {self.device} in {self.dtype}>"
        )

    def _probabilities(self, features: Features) -> np.ndarray:
        return predict_probabilities(self.model, features, self.batch_size, self.threads)

    @property
    def _tokenizer(self) -> tuple[Tokenizer, int] | None:
        tokenizer = self.model.tokenizer
        return None if tokenizer is None else (tokenizer, self.model.backbone.config.bos_token_id)
