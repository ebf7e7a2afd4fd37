"""Accuracy against speed: packages and RoBERTa-base, each in every runtime that it has, side by side.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/accuracy_speed.py PICTURE path/to/goemotions/test.tsv PACKAGE …

Each classifies 1,024 test texts, from text to probabilities: one at a time (128 of them), and in batches of 64 and of
512 of similar length; on one thread and on all. A package is computed by PyTorch in bfloat16, ONNX Runtime in int8, and OpenVINO;
its scores are those that its export recorded. RoBERTa-base has random weights, which are enough for timing; its score is
a published one (SamLowe/roberta-base-go_emotions, re-scored by others, no interval). Prints one JSON line per figure
(median of five alternating rounds) and draws those of batches of 64 on one thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("agg")
from matplotlib import pyplot as plt
from roberta import RUNTIMES, Texts
from timing import alternate, emit

from hub_release.graphs.measure import GRAPHS
from modeling.infer import EmotionClassifier, usable_cores
from modeling.machine import cpu_name

TEXTS = {1: 128, 64: 1_024, 512: 1_024}
"""Batch size → number of texts in a round."""
DRAWN = (64, 1)
"""Batch size and threads of the picture."""
RUNTIMES_OF_PACKAGES = ("onnx-int8", "openvino")
ROBERTA_MACRO_F1 = 0.505

Model = Callable[[Sequence[str], int, int], object]
"""Texts, batch size and threads → probabilities."""


def models_of(package: Path) -> tuple[dict[str, Model], dict[str, float]]:
    """The ways to compute a package, and the test macro F1 of each, by name."""
    record = json.loads((package / "graphs.json").read_text(encoding="utf-8"))["graphs"]
    options = {"torch": {"dtype": torch.bfloat16}} | {
        name: GRAPHS[name] for name in RUNTIMES_OF_PACKAGES if name in record
    }
    models: dict[str, Model] = {}
    for name, chosen in options.items():
        classifier = EmotionClassifier(package, **chosen)  # type: ignore[arg-type]
        models[f"{package.name}, {name}"] = partial(classify, classifier)
    return models, {f"{package.name}, {name}": record[name]["test"]["macro_f1"] for name in options}


def classify(classifier: EmotionClassifier, texts: Sequence[str], batch_size: int, threads: int) -> None:
    """One text at a time is one call for each."""
    classifier.batch_size, classifier.threads = batch_size, threads
    for part in [[text] for text in texts] if batch_size == 1 else [texts]:
        classifier.predict_proba(part)


def draw(picture: str, scores: dict[str, float], speeds: dict[str, float]) -> None:
    """Test macro F1 against texts per second."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, speed in speeds.items():
        axes.plot(speed, scores[name], "o", label=name)
    axes.set(xscale="log", xlabel="texts per second on one thread, text in and probabilities out")
    axes.set(ylabel="test macro F1", title=cpu_name())
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=80)


def main() -> None:
    picture, data, packages = sys.argv[1], Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]]
    texts = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line][
        : max(TEXTS.values())
    ]
    read = Texts(texts)
    models: dict[str, Model] = {f"RoBERTa-base, {name}": make(read) for name, make in RUNTIMES.items()}
    scores = dict.fromkeys(models, ROBERTA_MACRO_F1)
    for package in packages:
        found, recorded = models_of(package)
        models, scores = models | found, scores | recorded
    drawn: dict[str, float] = {}
    for threads in sorted({1, usable_cores()}):
        torch.set_num_threads(threads)
        for batch_size, number in TEXTS.items():
            some = texts[:: len(texts) // number][:number]
            seconds = alternate({name: partial(model, some, batch_size, threads) for name, model in models.items()})
            for name, taken in seconds.items():
                speed = number / taken
                emit(
                    "accuracy_speed",
                    model=name,
                    batch_size=batch_size,
                    texts_per_second=round(speed, 1),
                    cpu=cpu_name(),
                )
                if (batch_size, threads) == DRAWN:
                    drawn[name] = speed
    draw(picture, scores, drawn)


if __name__ == "__main__":
    main()
