"""The ONNX graph of the run that ``whole_run`` trained, scored on its rows by ONNX Runtime's providers for GPUs."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np

from hub_release.export import export
from hub_release.graphs.measure import log_loss, read_rows
from hub_release.graphs.write import write_graphs
from modeling.infer import GRAPH_FILE, EmotionClassifier, Features
from modeling.infer.features import read_in_windows, to_arrays
from modeling.infer.graph import sigmoid
from modeling.infer.runtimes import disable_telemetry
from modeling.thresholds import macro_f1
from tests.gpu import OUT, TINY, emit
from tests.gpu.clock import seconds
from tests.gpu.whole_run import RUN

PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
"""TensorRT last: it takes its time to build an engine."""
TEXTS = (1, 2) if TINY else (1, 64, 512)


def main() -> None:
    disable_telemetry()
    if missing := [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]:
        emit("graphs", "left_out", why=f"{' and '.join(missing)} are not installed")
        return
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = [name for name in PROVIDERS if name in there] or (["CPUExecutionProvider"] if TINY else [])
    if not wanted:
        emit("graphs", "left_out", why=f"ONNX Runtime has no provider for a GPU here, only {', '.join(there)}")
        return
    if not (RUN / "metrics.json").is_file():
        emit("graphs", "left_out", why="the run was not finished")
        return
    package = OUT / "package"
    shutil.rmtree(package, ignore_errors=True)
    export(RUN, package)  # without its gate of graphs, which would score on the CPU
    write_graphs(package, float32=True, int8=False)
    classifier, rows = EmotionClassifier(package, device="cpu"), read_rows(RUN)["test"]
    config, features = classifier.config, classifier.features(rows.texts)
    thresholds = [config.thresholds[label] for label in classifier.labels]
    for name in wanted:
        session = onnxruntime.InferenceSession(
            package / GRAPH_FILE, providers=[*dict.fromkeys([name, "CPUExecutionProvider"])]
        )
        if session.get_providers()[0] != name:
            emit("graphs", "left_out", why=f"{name} cannot be loaded")
            continue

        def read(batch: Features, session: onnxruntime.InferenceSession = session) -> np.ndarray:
            return np.asarray(session.run(None, to_arrays(batch))[0])

        found = sigmoid(read_in_windows(features, config, read, 64))
        emit(
            "graphs",
            "scores",
            provider=name,
            test_macro_f1=macro_f1(found >= thresholds, rows.references),
            test_log_loss=log_loss(found, rows.references),
            greatest_difference=float(np.abs(found - rows.probabilities).max()),
        )
        for count in TEXTS:
            part = features.take(np.arange(count))
            taken = seconds(lambda part=part, count=count, read=read: read_in_windows(part, config, read, count))
            emit("graphs", "speed", provider=name, texts_at_once=count, texts_per_second=round(count / taken, 1))


if __name__ == "__main__":
    main()
