"""What int8 costs a graph: its logits against those in float32, with and without care for the inputs of ``down_proj``.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/int8.py PACKAGE path/to/goemotions/dev.tsv

PACKAGE was exported with ``--onnx --int8``. Its graph in float32 is also quantized as ONNX Runtime does by itself, and
so without the layers ``down_proj``. Each reads 256 texts on one thread, in batches of 64 of similar length and one by
one. Prints one JSON line for each graph and size: the correlation with the logits in float32, the root of the mean
squared difference, the size, and texts per second of the graph alone (median of five alternating rounds).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import quantize_dynamic
from timing import alternate, emit

from modeling.infer import GRAPH_FILE, INT8_GRAPH_FILE, EmotionClassifier, Features
from modeling.infer.features import to_arrays

TEXTS = {64: 256, 1: 64}
"""Batch size → number of texts."""
_LINEAR_LAYERS = 7
"""Of a layer of the backbone; ``down_proj`` comes last."""


def down_projections(path: Path) -> list[str]:
    """The products of a graph that are those of ``down_proj``."""
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and constants & set(node.input)]
    return products[_LINEAR_LAYERS - 1 :: _LINEAR_LAYERS]


def session(path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A batch → logits, on one thread."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    loaded = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(loaded.run(["logits"], batch)[0])


def read_all(run: Callable[[dict[str, np.ndarray]], np.ndarray], batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The logits of all batches."""
    return np.concatenate([run(batch) for batch in batches])


def batches_of(features: Features, size: int, number: int) -> list[dict[str, np.ndarray]]:
    """So many of the texts, in batches of similar length."""
    order = np.argsort(features.lengths, kind="stable")[:: len(features) // number][:number]
    return [to_arrays(features.take(order[start : start + size])) for start in range(0, number, size)]


def main() -> None:
    package, data = Path(sys.argv[1]), Path(sys.argv[2])
    texts = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line][
        : max(TEXTS.values())
    ]
    features = EmotionClassifier(package, backend="onnx", quantization="none").features(texts)
    with tempfile.TemporaryDirectory() as temporary:
        paths = {"float32": package / GRAPH_FILE, "int8 as exported": package / INT8_GRAPH_FILE}
        for name, left_out in (("int8", []), ("int8, down_proj in float32", down_projections(package / GRAPH_FILE))):
            paths[name] = Path(temporary) / f"{name}.onnx"
            quantize_dynamic(paths["float32"], paths[name], per_channel=True, nodes_to_exclude=left_out)
        sessions = {name: session(path) for name, path in paths.items()}
        size = {name: path.stat().st_size for name, path in paths.items()}
    for batch_size, number in TEXTS.items():
        batches = batches_of(features, batch_size, number)
        wanted = read_all(sessions["float32"], batches)
        seconds = alternate({name: partial(read_all, run, batches) for name, run in sessions.items()})
        for name, run in sessions.items():
            found = read_all(run, batches)
            emit(
                "int8",
                graph=name,
                batch_size=batch_size,
                correlation=round(float(np.corrcoef(wanted.ravel(), found.ravel())[0, 1]), 5),
                rms_difference=round(float(np.sqrt(((wanted - found) ** 2).mean())), 4),
                megabytes=round(size[name] / 1e6, 1),
                texts_per_second=round(number / seconds[name], 1),
            )


if __name__ == "__main__":
    main()
