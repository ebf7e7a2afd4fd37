"""Accuracy against speed: the recorded test macro F1 of packages, and their texts per second on this machine.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/accuracy_speed.py PICTURE path/to/goemotions/test.tsv PACKAGE …

Each model classifies 256 texts at once, from text to labels, in batches of 64 of similar length. RoBERTa-base has
random weights and its best setting; its score is a published one (SamLowe/roberta-base-go_emotions, re-scored by
others, no interval). The score of a package is its run's, in float32. Prints one JSON line per model (median of five
alternating rounds) and draws them; the bars are 95 % intervals of the score.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("agg")
from matplotlib import pyplot as plt
from roberta import DTYPES, Roberta
from timing import alternate, emit

from modeling.infer import EmotionClassifier

TEXTS, BATCH_SIZE = 256, 64
ROBERTA_MACRO_F1 = 0.505


def recorded_score(package: Path) -> tuple[float, float, float]:
    """Test macro F1 with thresholds per label, and its interval."""
    scores = json.loads((package / "metrics.json").read_text(encoding="utf-8"))["test"]["per_label"]
    low, high = scores["intervals_95"]["macro_f1"]
    return scores["macro_f1"], low, high


@torch.inference_mode()
def main() -> None:
    picture, data, packages = sys.argv[1], Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]]
    texts = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line][:TEXTS]
    setting, best = Roberta().best(texts, BATCH_SIZE)
    other = f"RoBERTa-base, {setting}"
    scores, functions = {other: (ROBERTA_MACRO_F1,) * 3}, {other: best}
    for package in packages:
        for dtype_name, dtype in DTYPES.items():
            name = f"{package.name}, {dtype_name}"
            classifier = EmotionClassifier(package, dtype=dtype, batch_size=BATCH_SIZE)
            scores[name], functions[name] = recorded_score(package), partial(classifier.predict, texts)
    seconds = alternate(functions)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, (score, low, high) in scores.items():
        speed = TEXTS / seconds[name]
        emit("accuracy_speed", model=name, macro_f1=round(score, 3), texts_per_second=round(speed, 1))
        axes.errorbar(speed, score, [[score - low], [high - score]], fmt="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="texts per second, text in and labels out", ylabel="test macro F1")
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main()
