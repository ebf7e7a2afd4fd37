"""Accuracy against speed: packages and RoBERTa-base, each in every runtime that it has, side by side.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/accuracy_speed.py PICTURE path/to/goemotions/test.tsv PACKAGE …

Each classifies 1,024 test texts, from text to probabilities: one at a time (128 of them), and in batches of 64 and of
512 of similar length; on one thread and on all. Each model is in a process of its own. A package is computed by PyTorch
in bfloat16, ONNX Runtime in int8, and OpenVINO; its scores are those that its export recorded. RoBERTa-base has random weights, which are enough for timing; its score is
a published one (SamLowe/roberta-base-go_emotions, re-scored by others, no interval). Prints one JSON line per figure
(median of five alternating rounds) and draws those of batches of 64 on one thread.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
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

_MARKERS = {"torch": "o", "onnx-int8": "s", "openvino": "^", "openvino int8": "D"}

Model = Callable[[Sequence[str], int, int], object]
"""Texts, batch size and threads → probabilities."""


class OwnProcess:
    """A model in a process of its own, as users have it: what others loaded and freed does not decide where it lies.

    Args:
        make: makes the model there.
    """

    def __init__(self, make: Callable[[], Model]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        context.Process(target=answer, args=(make, other), daemon=True).start()
        self.connection.recv()

    def __call__(self, texts: Sequence[str], batch_size: int, threads: int) -> None:
        """Classify."""
        self.connection.send((texts, batch_size, threads))
        self.connection.recv()


def answer(make: Callable[[], Model], connection: Connection) -> None:
    """Make a model and classify what comes, until nothing does."""
    model = make()
    connection.send("ready")
    while True:
        texts, batch_size, threads = connection.recv()
        torch.set_num_threads(threads)
        model(texts, batch_size, threads)
        connection.send("done")


def make_roberta(runtime: str, texts: Sequence[str]) -> Model:
    """RoBERTa-base in a runtime."""
    return RUNTIMES[runtime](Texts(texts))


def make_package(package: Path, options: dict[str, object]) -> Model:
    """A package in a runtime; one text at a time is one call for each."""
    classifier = EmotionClassifier(package, **options)  # type: ignore[arg-type]

    def classify(texts: Sequence[str], batch_size: int, threads: int) -> None:
        classifier.batch_size, classifier.threads = batch_size, threads
        for part in [[text] for text in texts] if batch_size == 1 else [texts]:
            classifier.predict_proba(part)

    return classify


def runtimes_of(package: Path) -> dict[str, tuple[dict[str, object], float]]:
    """The ways to compute a package: options and test macro F1 of each, by name."""
    record = json.loads((package / "graphs.json").read_text(encoding="utf-8"))["graphs"]
    options: dict[str, dict[str, object]] = {"torch": {"dtype": torch.bfloat16}}
    options |= {name: GRAPHS[name] for name in RUNTIMES_OF_PACKAGES if name in record}
    return {f"{package.name}, {name}": (chosen, record[name]["test"]["macro_f1"]) for name, chosen in options.items()}


def draw(picture: str, scores: dict[str, float], speeds: dict[str, float]) -> None:
    """Test macro F1 against texts per second."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    models = list(dict.fromkeys(name.split(", ")[0] for name in speeds))
    for name, speed in speeds.items():
        model, runtime = name.split(", ")
        axes.plot(speed, scores[name], _MARKERS[runtime], color=f"C{models.index(model)}", label=name)
    axes.set(xscale="log", xlabel="texts per second on one thread, text in and probabilities out")
    axes.set(ylabel="test macro F1", title=cpu_name())
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=80)


def main() -> None:
    picture, data, packages = sys.argv[1], Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]]
    texts = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line][
        : max(TEXTS.values())
    ]
    models: dict[str, Model] = {}
    scores: dict[str, float] = {}
    for runtime in RUNTIMES:
        name = f"RoBERTa-base, {runtime}"
        models[name], scores[name] = OwnProcess(partial(make_roberta, runtime, texts)), ROBERTA_MACRO_F1
    for package in packages:
        for name, (options, score) in runtimes_of(package).items():
            models[name], scores[name] = OwnProcess(partial(make_package, package, options)), score
    drawn: dict[str, float] = {}
    for threads in sorted({1, usable_cores()}):
        torch.set_num_threads(threads)  # for the lines; each process has its own
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
