"""A graph of a package, computed without PyTorch, with the thresholds that were tuned for it."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modeling.infer.errors import PackageError
from modeling.infer.explanation import Shares
from modeling.infer.features import Features, read_in_windows, to_arrays
from modeling.infer.files import read_json, refuse_unsafe_entries
from modeling.infer.graph_file import GRAPH_FILE, INT8_GRAPH_FILE, read_graph
from modeling.infer.package import PlainSettings, is_probability, read_settings
from modeling.infer.pages import large_pages
from modeling.infer.runtimes import RUNTIMES
from modeling.infer.tokenizer import read_tokenizer

logger = logging.getLogger(__name__)

GRAPH_RECORD = "graphs.json"
"""What was measured of each graph when it was exported, and the thresholds that were tuned for it."""
_LEAST_ROWS = 8
"""From this many texts it pays to give a thread its own."""


class Graph:
    """Features → logits, by a package's graph.

    Args:
        folder: the package.
        backend: ``onnx`` or ``openvino``.
        device: None or ``cpu``.
        dtype: None; for OpenVINO also ``float32`` or ``bfloat16``.
        quantization: ``none`` or ``int8``; None for int8 if the package has it and ONNX Runtime computes.

    Attributes:
        config: the package's settings, with the thresholds of this graph.
        name: the graph's, in ``graphs.json``.
        tokenizer: for words; None if the graph reads none.
        empty_token: the token of a text without any.
        precision: in which it is computed: ``float32``, ``bfloat16`` or ``int8``.

    Raises:
        PackageError: the graph is missing, hostile, cannot be loaded, or is not of this package's kind.
        ImportError: the runtime is missing; the message says what to install.
        ValueError: an option asks for what the graph or its runtime does not have.
    """

    def __init__(
        self, folder: Path, backend: str, device: Any = None, dtype: Any = None, quantization: str | None = None
    ) -> None:
        precision = _check_options(backend, device, dtype, quantization)
        self._made_with = folder, backend, device, dtype, quantization
        refuse_unsafe_entries(folder)
        has_int8 = (folder / INT8_GRAPH_FILE).is_file()
        int8 = quantization == "int8" or (quantization is None and backend == "onnx" and has_int8)
        self.file, self.name = (INT8_GRAPH_FILE, f"{backend}-int8") if int8 else (GRAPH_FILE, backend)
        if not (folder / self.file).is_file():
            flag = {"onnx": "--onnx", "openvino": "--openvino"}[backend]
            raise PackageError(
                self.file,
                "is not in the package",
                f"export the run with {'--int8' if int8 else flag}, or use backend='torch' or another graph of the package",
            )
        config = read_settings(folder)
        self.config = replace(config, thresholds=read_graph_thresholds(folder, self.name, config))
        self.tokenizer = read_tokenizer(folder, config) if config.reads_words else None
        self.empty_token = (config.backbone_config or {}).get("bos_token_id") or 0
        content = read_graph(folder, self.file)
        with large_pages():
            self._session = RUNTIMES[backend](self.file, content, precision)
        self.precision = "int8" if int8 else self._session.precision
        self._refuse_other_kind()
        logger.info("%s computed %s", self.file, self)

    def _refuse_other_kind(self) -> None:
        wanted = {"embeddings"} if self.config.reads_embedding else set()
        wanted |= {"input_ids", "attention_mask"} if self.config.reads_words else set()
        found, shapes = self._session.inputs, self._session.outputs
        if found != wanted or shapes.keys() != {"logits"} or shapes["logits"][1:] != [len(self.config.emotion_labels)]:
            raise PackageError(
                self.file,
                f"reads {', '.join(sorted(found))} and gives {shapes!r:.80}, not logits of the package's labels",
                "export the run again",
            )

    def __reduce__(self) -> tuple[type["Graph"], tuple[Any, ...]]:
        """Another process makes a session of its own."""
        return Graph, self._made_with

    def __str__(self) -> str:
        return f"by {self._session.about}{' in int8' * (self.file == INT8_GRAPH_FILE)} on cpu"

    def probabilities(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Probabilities, float32 [N, L], of N texts."""
        return sigmoid(self.logits(features, batch_size, threads))

    def logits(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Logits, float32 [N, L], of N texts; at most ``batch_size`` of them are read at once, by so many threads."""
        at_once = max(min(batch_size, len(features)), 1)
        workers = min(threads, max(at_once // _LEAST_ROWS, 1))
        if workers == 1:
            return read_in_windows(features, self.config, self._read, at_once)
        with ThreadPoolExecutor(workers) as pool:
            return read_in_windows(features, self.config, self._read, at_once // workers, pool.map)

    def shares(self, features: Features, label: int, steps: int, batch_size: int, threads: int) -> Shares:
        """Refused with a ValueError: a graph computes no gradients."""
        raise ValueError("a graph has no gradients. Remedy: use method='leave-out', or PyTorch (backend='torch')")

    def _read(self, batch: Features) -> np.ndarray:
        return self._session.run(to_arrays(batch))


def _check_options(backend: str, device: Any, dtype: Any, quantization: Any) -> str | None:
    """The precision that ``dtype`` asks for. What a graph cannot follow is refused with a ValueError."""
    precision = None if dtype is None else str(dtype).removeprefix("torch.")
    allowed = {
        "device": (device is None or str(device) == "cpu", device, "a graph is computed on the CPU"),
        "dtype": (
            precision is None or (backend == "openvino" and precision in ("float32", "bfloat16")),
            dtype,
            "openvino computes in float32 or bfloat16, and onnx as the graph is",
        ),
        "quantization": (
            quantization in (None, "none") or (backend == "onnx" and quantization == "int8"),
            quantization,
            "onnx computes the package's graph in float32 (none) or int8, and openvino the one in float32 (none)",
        ),
    }
    for name, (fits, value, why) in allowed.items():
        if not fits:
            raise ValueError(f"{name} is {value!r:.80}, but {why}. Remedy: leave {name} out, or change it")
    return precision


def read_graph_thresholds(folder: Path, name: str, config: PlainSettings) -> dict[str, float]:
    """The threshold of each label that was tuned for a graph; the package's if none was tuned.

    Raises:
        PackageError: they are not probabilities of all of the package's labels.
    """
    if not (folder / GRAPH_RECORD).is_file():
        return config.thresholds
    measured = read_json(folder, GRAPH_RECORD).get("graphs")
    if isinstance(measured, dict) and name not in measured:
        logger.warning("no thresholds were tuned for %s: the package's own are used", name)
        return config.thresholds
    entry = measured[name] if isinstance(measured, dict) else None
    found = entry.get("thresholds") if isinstance(entry, dict) else None
    if (
        not isinstance(found, dict)
        or found.keys() != set(config.emotion_labels)
        or not all(map(is_probability, found.values()))
    ):
        raise PackageError(GRAPH_RECORD, f"has thresholds of {name} that are not probabilities of the package's labels")
    return found


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, of any shape and in their precision."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
