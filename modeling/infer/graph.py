"""The graph of a package: computed by ONNX Runtime, without PyTorch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from modeling.infer.errors import PackageError, import_optional
from modeling.infer.features import Features, read_in_windows, to_arrays
from modeling.infer.files import refuse_unsafe_entries
from modeling.infer.graph_file import GRAPH_FILE, read_graph
from modeling.infer.package import read_settings
from modeling.infer.tokenizer import read_tokenizer

_LEAST_ROWS = 8
"""From this many texts it pays to give a thread its own."""


class Graph:
    """Features → logits, by a package's graph.

    Args:
        folder: the package.

    Attributes:
        config: its settings.
        tokenizer: for words; None if the graph reads none.
        empty_token: the token of a text without any.

    Raises:
        PackageError: the graph is missing, hostile, cannot be loaded, or is not of this package's kind.
        ImportError: ONNX Runtime is missing; the message says what to install.
    """

    def __init__(self, folder: Path) -> None:
        refuse_unsafe_entries(folder)
        self._folder = folder
        self.config = config = read_settings(folder)
        self.tokenizer = read_tokenizer(folder, config) if config.reads_words else None
        self.empty_token = (config.backbone_config or {}).get("bos_token_id") or 0
        runtime = import_optional("onnxruntime", "onnxruntime")
        content = read_graph(folder)
        options = runtime.SessionOptions()
        # Threads that share a product wait for each other; each of several threads reads texts of its own instead.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a kind of its own for each cause, and no common one
            raise PackageError(GRAPH_FILE, f"cannot be loaded: {error!s:.200}", "export the run again") from None
        # The session keeps the file, to load it for other devices: as many bytes as its weights, which nothing reads.
        self._session._model_bytes = b""
        wanted = {"embeddings"} if config.reads_embedding else set()
        wanted |= {"input_ids", "attention_mask"} if config.reads_words else set()
        found = {given.name for given in self._session.get_inputs()}
        shapes = {given.name: given.shape for given in self._session.get_outputs()}
        if found != wanted or shapes.keys() != {"logits"} or shapes["logits"][1:] != [len(config.emotion_labels)]:
            raise PackageError(
                GRAPH_FILE,
                f"reads {', '.join(sorted(found))} and gives {shapes!r:.80}, not logits of the package's labels",
                "export the run again",
            )

    def __reduce__(self) -> tuple[type["Graph"], tuple[Path]]:
        """Another process makes a session of its own."""
        return Graph, (self._folder,)

    def __str__(self) -> str:
        return "by ONNX Runtime on cpu"

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

    def _read(self, batch: Features) -> np.ndarray:
        found: list[Any] = self._session.run(["logits"], to_arrays(batch))
        return np.asarray(found[0], dtype=np.float32)


def refuse_options_of_torch(device: Any, dtype: Any, quantization: Any) -> None:
    """Refuse what a graph cannot follow.

    Raises:
        ValueError: an option asks for another device or precision than the graph's.
    """
    given = {"device": None if str(device) == "cpu" else device, "dtype": dtype, "quantization": quantization}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is {value!r:.80}, but a graph has its own. Remedy: leave {name} out")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, of any shape and in their precision."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
