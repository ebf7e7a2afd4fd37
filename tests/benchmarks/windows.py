"""For a text longer than a window: is the highest logit of its windows better, or their mean?

    python tests/benchmarks/windows.py path/to/goemotions PACKAGE_OR_RUN …

GoEmotions' texts are short, so the script joins them into long ones, a third of each kind: ``neutral`` joins neutral
texts, ``same`` joins texts with the same emotion, and ``passage`` joins neutral texts around one text with emotions.
Prints one JSON line per model, split, length and rule: macro and micro F1 over the emotions (without neutral) at the
model's own thresholds; emotions found per neutral text, which has none; recall of ``same`` and ``passage``. Validation
chooses; test is only reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from timing import emit

from modeling.infer import EmotionClassifier, cut_into_windows, pool_windows, predict_logits
from modeling.recipe import choices
from training.data.corpus import Split
from training.fit.prepare import Corpora
from training.options import parse
from training.scores.scoring import scores
from training.trained import load_classifier

KINDS = ("neutral", "same", "passage")
TEXTS_OF_A_KIND = 150
LENGTHS = (128, 512)
"""The smallest number of tokens in a long text."""


def join(split: Split, sizes: np.ndarray, neutral: int, length: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Long texts, kind after kind, and their labels, 0/1 [N, L], without neutral."""
    generator = np.random.default_rng(seed)
    only = split.labels.sum(axis=1) == 1
    calm = np.flatnonzero(only & (split.labels[:, neutral] == 1))
    moved = np.flatnonzero(split.labels[:, neutral] == 0)
    pure = np.intersect1d(moved, np.flatnonzero(only))
    texts, labels = [], []
    for kind in KINDS:
        for _ in range(TEXTS_OF_A_KIND):
            first = generator.choice({"neutral": calm, "same": pure, "passage": moved}[kind])
            like = calm
            if kind == "same":
                like = pure[split.labels[pure, split.labels[first].argmax()] == 1]
            chosen = [first]
            while sizes[chosen].sum() < length:
                chosen.append(generator.choice(like))
            texts.append(" ".join(split.texts[row] for row in generator.permutation(chosen)))
            labels.append(split.labels[first] * (kind != "neutral"))
    return texts, np.array(labels)


def measure(classifier: EmotionClassifier, split: Split, length: int) -> dict[str, dict[str, float]]:
    """The figures of each rule, from the same logits."""
    config, neutral = classifier.config, classifier.labels.index("neutral")
    words = classifier.tokenize(split.texts)
    assert words is not None, "the model does not read words"
    texts, labels = join(split, np.array([len(row) for row in words]), neutral, length, seed=0)
    windows, firsts = cut_into_windows(classifier.features(texts), config)
    logits = predict_logits(classifier.model, windows)
    cuts = np.array([config.thresholds[label] for label in classifier.labels])
    emotions = np.arange(len(classifier.labels)) != neutral
    truth = labels[:, emotions]
    parts = dict(zip(KINDS, np.split(np.arange(len(texts)), len(KINDS)), strict=True))
    found = {}
    for rule in choices("windows"):
        decided = (expit(pool_windows(logits, firsts, rule)) >= cuts)[:, emotions]
        whole = scores(decided, truth)
        figures = {"macro_f1": whole["macro_f1"], "micro_f1": whole["micro_f1"]}
        figures["emotions_per_neutral_text"] = float(decided[parts["neutral"]].sum(axis=1).mean())
        for kind in ("same", "passage"):
            rows = parts[kind]
            figures[f"recall_{kind}"] = float((decided & (truth == 1))[rows].sum() / truth[rows].sum())
        found[rule] = figures
    return found


def main() -> None:
    folder, models = sys.argv[1], sys.argv[2:]
    corpus = Corpora().rows(parse(["--recipe", "goemotions_tokens", "--data_dir", folder]).recipe)
    for model in models:
        classifier = load_classifier(model, torch.bfloat16)
        for name in ("validation", "test"):
            for length in LENGTHS:
                for rule, figures in measure(classifier, corpus[name], length).items():
                    values = {key: round(value, 3) for key, value in figures.items()}
                    emit("windows", model=Path(model).name, split=name, tokens=length, rule=rule, **values)


if __name__ == "__main__":
    main()
