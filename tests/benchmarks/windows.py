"""For a text longer than a window: is the highest logit of its windows better, their mean, or their mean embedding?

    python tests/benchmarks/windows.py path/to/goemotions PACKAGE_OR_RUN …

GoEmotions' texts are short, so the script joins them into long ones, a third of each kind: ``neutral`` joins neutral
texts, ``same`` joins texts with the same emotion, and ``passage`` joins neutral texts around one text with emotions.
Prints one JSON line per model, split, length and rule: macro and micro F1 over the emotions (without neutral) at the
model's own thresholds; emotions found per neutral text, which has none; recall of ``same`` and ``passage``. Validation
chooses; test is only reported.

A model that reads words has windows of tokens. One that reads only the embedding has windows of characters; beside the
rules for logits it is asked with the mean of the windows' embeddings (what ships) and with the text encoded at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from timing import emit

from modeling.infer import EmotionClassifier, Features, LoadedEncoder, cut_into_windows, pool_windows, predict_logits
from modeling.recipe import choices
from training.corpora import Corpora
from training.data.corpus import Split
from training.options import parse
from training.scores.scoring import scores
from training.trained import load_classifier

KINDS = ("neutral", "same", "passage")
TEXTS_OF_A_KIND = {"tokens": 150, "characters": 25}
LENGTHS = {"tokens": (128, 512), "characters": (20_000,)}
"""The smallest size of a long text."""


def join(
    split: Split, sizes: np.ndarray, neutral: int, length: int, number: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """Long texts, ``number`` of each kind, kind after kind, and their labels, 0/1 [N, L], without neutral."""
    generator = np.random.default_rng(seed)
    only = split.labels.sum(axis=1) == 1
    calm = np.flatnonzero(only & (split.labels[:, neutral] == 1))
    moved = np.flatnonzero(split.labels[:, neutral] == 0)
    pure = np.intersect1d(moved, np.flatnonzero(only))
    texts, labels = [], []
    for kind in KINDS:
        for _ in range(number):
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


def read_words(classifier: EmotionClassifier, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Each rule and its logits [N, L], from windows of tokens."""
    windows, firsts = cut_into_windows(classifier.features(texts), classifier.config)
    logits = predict_logits(classifier.model, windows.take(np.arange(len(windows))))
    for rule in choices("windows"):
        yield rule, pool_windows(logits, firsts, rule)


def read_embeddings(classifier: EmotionClassifier, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Each rule and its logits [N, L], from windows of characters."""
    encoder = classifier.encoder
    assert isinstance(encoder, LoadedEncoder)
    parts = [list(encoder.windows(text)) for text in texts]
    firsts = np.cumsum([0, *map(len, parts[:-1])])

    def logits(embeddings: np.ndarray) -> np.ndarray:
        return predict_logits(classifier.model, Features(np.asarray(embeddings, dtype=np.float32)))

    windows = ["", *(window for part in parts for window in part)]
    embeddings = encoder.encode(windows)
    for rule in choices("windows"):
        yield f"{rule} logit", pool_windows(logits(embeddings[1:]), firsts, rule)
    known = dict(zip(windows, embeddings, strict=True))
    yield "mean embedding", logits(encoder._replace(encode=lambda batch: np.array([known[t] for t in batch]))(texts))
    yield "at once", logits(encoder.encode(texts))


def measure(classifier: EmotionClassifier, split: Split, unit: str, length: int) -> dict[str, dict[str, float]]:
    """The figures of each rule, from the same texts."""
    config, neutral = classifier.config, classifier.labels.index("neutral")
    sizes = np.array([len(row) for row in classifier.tokenize(split.texts) or split.texts])
    texts, labels = join(split, sizes, neutral, length, TEXTS_OF_A_KIND[unit], seed=0)
    cuts = np.array([config.thresholds[label] for label in classifier.labels])
    emotions = np.arange(len(classifier.labels)) != neutral
    truth = labels[:, emotions]
    parts = dict(zip(KINDS, np.split(np.arange(len(texts)), len(KINDS)), strict=True))
    found = {}
    for rule, logits in (read_words if unit == "tokens" else read_embeddings)(classifier, texts):
        decided = (expit(logits) >= cuts)[:, emotions]
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
        unit = "tokens" if classifier.config.reads_words else "characters"
        for name in ("validation", "test"):
            for length in LENGTHS[unit]:
                for rule, figures in measure(classifier, corpus[name], unit, length).items():
                    values = {key: round(value, 3) for key, value in figures.items()}
                    emit("windows", model=Path(model).name, split=name, **{unit: length}, rule=rule, **values)


if __name__ == "__main__":
    main()
