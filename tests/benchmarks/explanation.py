"""Do contributions of words mean something? Deletion and insertion curves against random orders (Petsiuk et al. 2018).

    python tests/benchmarks/explanation.py PACKAGE path/to/goemotions [TEXTS [--baselines | --graphs]]

For each text of GoEmotions' test split with 5 to 25 words (200 by default, drawn once) and its likeliest label, the words
are deleted in the order of their contributions, the largest first, and inserted into the empty text in the same order.
Prints one JSON line per method and curve: the mean area under the label's probability, from all words to none or from
none to all, and its difference from random orders (five for each text; a random order has the same expected area in both
curves). Deletion is better below random, insertion above. Then, on ten of the texts, the completeness error of integrated
gradients against the number of steps. Brackets hold 95 % bootstrap intervals over texts.

``--baselines`` instead compares where the path of integrated gradients may begin, on texts of the dev split. ``--graphs``
compares the contributions of the package's graphs with those of PyTorch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timing import emit

from modeling.infer import EmotionClassifier, Explanation, gradients, keep_words, split_words
from modeling.infer.explanation import Method

DRAWS, FEWEST, MOST, STEPS, TEXTS_OF_STEPS = 5, 5, 25, 32, 10


def interval(values: np.ndarray) -> list[float]:
    """Mean of one value per text, with its 95 % bootstrap interval."""
    rows = np.random.default_rng(0).integers(0, len(values), (2_000, len(values)))
    return [round(float(v), 4) for v in (values.mean(), *np.quantile(values[rows].mean(axis=1), (0.025, 0.975)))]


def stages(text: str, order: Sequence[int], delete: bool) -> list[str]:
    """The text after none of its words is deleted (or inserted), after the first in this order, … after all."""
    rank = np.argsort(order)
    return [
        keep_words(text, split_words(text), (rank >= k if delete else rank < k).tolist()) for k in range(len(order) + 1)
    ]


def areas(classifier: EmotionClassifier, curves: list[list[str]], places: Sequence[int]) -> np.ndarray:
    """Area under each curve, [C]: the mean probability of its label over the share of words."""
    found = classifier.predict_proba([text for curve in curves for text in curve])
    parts = np.split(found, np.cumsum([len(curve) for curve in curves])[:-1])
    rows = [part[:, place] for part, place in zip(parts, places, strict=True)]
    return np.array([(row[1:] + row[:-1]).mean() / 2 for row in rows])


class Texts:
    """Some texts of a split, and their likeliest labels."""

    def __init__(self, classifier: EmotionClassifier, path: Path, number: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        fitting = [text for line in lines if FEWEST <= len(split_words(text := line.split("\t")[0])) <= MOST]
        self.generator, self.classifier = np.random.default_rng(0), classifier
        self.texts = [fitting[row] for row in self.generator.permutation(len(fitting))[:number]]
        self.places = classifier.predict_proba(self.texts).argmax(axis=1).tolist()
        self.labels = [classifier.labels[place] for place in self.places]

    def explain(self, method: Method, steps: int, number: int | None = None) -> list[Explanation]:
        pairs = list(zip(self.texts, self.labels, strict=True))[:number]
        return [self.classifier.explain(text, label, method, steps) for text, label in pairs]

    def random_area(self) -> np.ndarray:
        """Mean area of random orders, [N]."""
        sizes = [len(split_words(text)) for text in self.texts]
        drawn = [[self.generator.permutation(size).tolist() for _ in range(DRAWS)] for size in sizes]
        return np.mean([self.area([*orders], "deletion") for orders in zip(*drawn, strict=True)], axis=0)

    def area(self, orders: list[list[int]], curve: str) -> np.ndarray:
        pairs = zip(self.texts, orders, strict=True)
        return areas(self.classifier, [stages(text, order, curve == "deletion") for text, order in pairs], self.places)


def report(texts: Texts, random: np.ndarray, method: Method, **name: str) -> None:
    """Both curves of a method."""
    started = time.perf_counter()
    explained = texts.explain(method, STEPS)
    seconds = (time.perf_counter() - started) / len(explained)
    errors = [found.completeness_error / abs(found.logit - found.baseline_logit) for found in explained]
    orders = [np.argsort([-word.contribution for word in found.words], kind="stable").tolist() for found in explained]
    for curve in ("deletion", "insertion"):
        area = texts.area(orders, curve)
        better = (area < random) if curve == "deletion" else (area > random)
        emit(
            "area",
            method=method,
            **name,
            curve=curve,
            area=interval(area),
            difference_from_random=interval(area - random),
            better_than_random=round(float(better.mean()), 3),
            relative_completeness_error=round(float(np.median(errors)), 4),
            seconds_per_text=round(seconds, 3),
        )


def steps(texts: Texts) -> None:
    """Completeness errors against steps."""
    for number in (8, 16, 32, 64, 128):
        explained = texts.explain("integrated-gradients", number, TEXTS_OF_STEPS)
        missed = np.array([found.completeness_error for found in explained])
        whole = np.array([abs(found.logit - found.baseline_logit) for found in explained])
        emit(
            "completeness",
            steps=number,
            texts=len(explained),
            median_error=round(float(np.median(missed)), 4),
            largest_error=round(float(missed.max()), 4),
            median_relative_error=round(float(np.median(missed / whole)), 4),
        )


def compare_graphs(package: str, texts: Texts) -> None:
    """Contributions by leaving words out, in logits: how far those of each graph are from PyTorch's."""

    def contributions() -> np.ndarray:
        return np.array([word.contribution for found in texts.explain("leave-out", 1) for word in found.words])

    ours = contributions()
    for options in (
        {"backend": "onnx", "quantization": "none"},
        {"backend": "openvino"},
        {"backend": "onnx", "quantization": "int8"},
    ):
        texts.classifier = EmotionClassifier(package, **cast(Any, options))
        apart = np.abs(contributions() - ours)
        emit(
            "graph",
            computed=texts.classifier.computed,
            texts=len(texts.texts),
            mean_size=round(float(np.abs(ours).mean()), 4),
            mean_difference=round(float(apart.mean()), 6),
            largest_difference=round(float(apart.max()), 6),
        )


def main(package: str, folder: Path, number: int, mode: str) -> None:
    classifier, baselines = EmotionClassifier(package), mode == "--baselines"
    texts = Texts(classifier, folder / ("dev.tsv" if baselines else "test.tsv"), number)
    if mode == "--graphs":
        compare_graphs(package, texts)
        return
    random = texts.random_area()
    words = float(np.mean([len(split_words(text)) for text in texts.texts]))
    emit("area", method="random", texts=len(texts.texts), words=round(words, 1), area=interval(random))
    if not baselines:
        report(texts, random, "leave-out")
        if classifier.config.reads_words:
            report(texts, random, "integrated-gradients")
            steps(texts)
        return
    weight = classifier.model.get_input_embeddings().weight.detach()
    begins = {"empty token": weight[classifier.model.backbone.config.bos_token_id], "mean of the table": weight.mean(0)}
    for name, token in {"zeros": torch.zeros_like(weight[0]), **begins}.items():
        gradients.without_content = lambda words, token=token: token.expand_as(words).clone()
        report(texts, random, "integrated-gradients", baseline=name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int((sys.argv[3:] or ["200"])[0]), (sys.argv[4:] or [""])[0])
