"""Multi-label emotion classification by a package's graph, without PyTorch.

A package that was exported with a graph has this code as one file, ``infer_onnx.py``, beside ``infer.py``. It needs
what ``requirements_onnx.txt`` names:

    from infer_onnx import EmotionClassifier
    EmotionClassifier("path/to/package").predict(["I passed the exam!"])

or, in the shell, ``python infer_onnx.py "I passed the exam!"``. The classes and functions are those of ``infer.py``.
"""

import os
from typing import Any

from modeling.infer.classification import TextClassifier, check_batch_size, check_encoder
from modeling.infer.cores import check_threads
from modeling.infer.encoders import Encoder
from modeling.infer.files import local_folder
from modeling.infer.graph import Graph
from modeling.infer.runtimes import RUNTIMES


class EmotionClassifier(TextClassifier):
    """Classify texts with the graph of a package.

    Args:
        folder_or_hub_id: a package folder, or ``user/model`` on the Hub.
        device: ``cpu``, or None for it.
        dtype: None, the graph's own precision; for OpenVINO also ``float32`` or ``bfloat16``.
        revision: branch, tag or commit on the Hub.
        batch_size: rows that are computed at once.
        encoder: a callable texts → [N, E] that replaces the package's own encoder.
        fuse: of no effect: a graph is fused.
        quantization: ``none`` or ``int8``: which of the package's graphs; None for int8 if the package has it and ONNX
            Runtime computes.
        threads: the most CPU threads, for the encoder too; None for all cores that this process may use.
        backend: ``onnx``, or ``openvino``, which computes in bfloat16 on a CPU that multiplies in it.

    Raises:
        PackageError: a file of the package is broken, hostile or does not fit the others.
        FileNotFoundError: neither a folder nor a Hub id.
        TypeError: the package is not named by a string or path, or ``encoder`` cannot be called.
        ValueError: an option asks for what a graph does not have, or ``batch_size`` or ``threads`` is not a whole number from 1.
    """

    def __init__(
        self,
        folder_or_hub_id: str | os.PathLike[str],
        device: Any = None,
        dtype: Any = None,
        revision: str | None = None,
        batch_size: int = 64,
        encoder: Encoder | None = None,
        fuse: bool = True,
        quantization: str | None = None,
        threads: int | None = None,
        backend: str = "onnx",
    ) -> None:
        options = check_batch_size(batch_size), check_encoder(encoder), check_threads(threads)
        if backend not in RUNTIMES:
            known = " or ".join(RUNTIMES)
            raise ValueError(f"unknown backend {backend!r:.80}. Remedy: use {known}, or infer.py for torch")
        folder = local_folder(folder_or_hub_id, revision)
        super().__init__(str(folder_or_hub_id), Graph(folder, backend, device, dtype, quantization), *options)
