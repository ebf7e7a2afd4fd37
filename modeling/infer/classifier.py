"""``EmotionClassifier``: texts → labels and probabilities, by PyTorch."""

import logging
import os
from typing import Literal, get_args

import torch

from modeling.infer.classification import TextClassifier, check_batch_size, check_encoder
from modeling.infer.cores import check_threads
from modeling.infer.encoders import Encoder
from modeling.infer.files import local_folder
from modeling.infer.graph import Graph
from modeling.infer.model import EmotionModel
from modeling.infer.predict import ModelEngine
from modeling.infer.settings import Quantization

logger = logging.getLogger(__name__)

Backend = Literal["torch", "onnx", "openvino"]


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
        dtype: precision of the backbone; defaults to bfloat16 on a GPU that has it, else float32. OpenVINO's default is
            bfloat16 on a CPU that multiplies in it.
        revision: branch, tag or commit on the Hub.
        batch_size: rows that go through the backbone at once.
        encoder: a callable texts → [N, E] that replaces the package's own encoder.
        threads: the most CPU threads, for the encoder too; None for all cores that this process may use.
        fuse: compute the same faster, if possible: the adapter is merged into a backbone that is not quantized, and a
            one-token backbone becomes a :class:`FusedOneTokenMistral`.
        quantization: ``none``, ``nf4`` or ``8bit``, instead of the package's own; with ``onnx``, ``none`` or ``int8``
            names one of the package's graphs (default: int8 if the package has it).
        backend: what computes: ``torch``; or ``onnx`` or ``openvino``, for a package that was exported with a graph.

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
        quantization: Quantization | Literal["int8"] | None = None,
        threads: int | None = None,
        backend: Backend = "torch",
    ) -> None:
        source = str(folder_or_hub_id)
        options = check_batch_size(batch_size), check_encoder(encoder), check_threads(threads)
        if backend not in get_args(Backend):
            raise ValueError(f"unknown backend {backend!r:.80}. Remedy: use {' or '.join(get_args(Backend))}")
        if backend != "torch":
            folder = local_folder(folder_or_hub_id, revision)
            super().__init__(source, Graph(folder, backend, device, dtype, quantization), *options)
            return
        if quantization == "int8":
            raise ValueError("quantization int8 is a graph's. Remedy: use backend='onnx', or quantization='8bit'")
        chosen, device_reason = _choose_device(device)
        precision, dtype_reason = _choose_dtype(dtype, chosen)
        logger.info("device %s (%s), dtype %s (%s)", chosen, device_reason, precision, dtype_reason)
        folder = local_folder(folder_or_hub_id, revision)
        model = EmotionModel.from_pretrained(
            folder, dtype=precision, device=chosen, fuse=fuse, quantization=quantization
        )
        super().__init__(source, ModelEngine(model, precision), *options)

    @classmethod
    def from_model(
        cls, model: EmotionModel, batch_size: int = 64, encoder: Encoder | None = None, threads: int | None = None
    ) -> "EmotionClassifier":
        """Classify with an already loaded model, on its own device and in its own precision."""
        classifier = cls.__new__(cls)
        TextClassifier.__init__(classifier, "a loaded model", ModelEngine(model), batch_size, encoder, threads)
        return classifier

    @property
    def model(self) -> EmotionModel:
        """The model.

        Raises:
            AttributeError: something else computes, see ``backend``.
        """
        if not isinstance(self._engine, ModelEngine):
            raise AttributeError("a graph has no model. Remedy: use backend='torch'")
        return self._engine.model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._engine.device if isinstance(self._engine, ModelEngine) else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the backbone computes."""
        return self._engine.dtype if isinstance(self._engine, ModelEngine) else torch.float32
