"""How often does a package that reads words warn of another language, and what does it cost?

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/language_warning.py path/to/data PACKAGE

The folder of data has ``goemotions/``, ``xed/`` and ``brighter/{train,dev}/``. This script prints one JSON line for the
range of characters per token that GoEmotions' training rows have; one line per corpus: its median, and the share of
1,000 random batches of 32 texts that warn; the same where the training rows are 60 English texts, on the corpus that
warns most often; seconds per text beside the package's own. Where py3langid or lingua is installed, the share of texts
that they do not call English, and of batches with a majority of such texts, are printed, too.
"""

from __future__ import annotations

import csv
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from timing import emit

from modeling.infer import EmotionClassifier, usual_characters_per_token
from modeling.infer.language import LanguageWatch, characters_per_token

BATCHES, SIZE, FEW, DRAWS = 1_000, 32, 60, 20
ENGLISH = ("goemotions/test", "goemotions/dev", "xed/en", "brighter/eng")


def read(data: Path) -> dict[str, list[str]]:
    """The texts of each corpus."""
    found = {f"goemotions/{split}": _first_column(data / "goemotions" / f"{split}.tsv") for split in ("test", "dev")}
    found |= {f"xed/{language}": _first_column(data / "xed" / f"{language}.tsv") for language in ("en", "it")}
    for path in sorted((data / "brighter" / "dev").glob("*.csv")):
        texts = found.setdefault(f"brighter/{path.stem}", [])
        for part in (data / "brighter" / "train" / path.name, path):
            with part.open(encoding="utf-8", newline="") as file:
                texts += [row["text"] for row in csv.DictReader(file)]
    return found


def _first_column(path: Path) -> list[str]:
    return [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]


def share_that_warns(
    usual: Sequence[float], texts: Sequence[str], tokens: Sequence[np.ndarray], draw: np.random.Generator, batches: int
) -> float:
    """Of random batches."""
    warned = 0
    for _ in range(batches):
        rows = draw.choice(len(texts), SIZE, replace=False)
        watch = LanguageWatch(usual)
        watch.look([texts[row] for row in rows], [tokens[row] for row in rows])
        warned += watch.warned
    return warned / batches


def identifiers() -> dict[str, Callable[[str], bool]]:
    """Does another library call a text English?"""
    found: dict[str, Callable[[str], bool]] = {}
    if importlib.util.find_spec("py3langid"):
        py3langid = importlib.import_module("py3langid")
        found["py3langid"] = lambda text: py3langid.classify(text)[0] == "en"
    if importlib.util.find_spec("lingua"):
        lingua = importlib.import_module("lingua")
        detector = lingua.LanguageDetectorBuilder.from_all_languages().build()
        found["lingua"] = lambda text: detector.detect_language_of(text) == lingua.Language.ENGLISH
    return found


def compare(corpora: Mapping[str, list[str]], draw: np.random.Generator) -> None:
    """What other libraries say of some texts of each corpus."""
    for name, is_english in identifiers().items():
        is_english("A first text, for which it reads its model.")
        for corpus, texts in corpora.items():
            some = [texts[row] for row in draw.choice(len(texts), min(500, len(texts)), replace=False)]
            started = time.perf_counter()
            other = np.array([not is_english(text) for text in some])
            seconds = (time.perf_counter() - started) / len(some)
            batches = np.array([other[draw.choice(len(some), SIZE, replace=False)].mean() for _ in range(BATCHES)])
            emit(
                "identifier",
                library=name,
                corpus=corpus,
                texts=round(float(other.mean()), 3),
                batches=float((batches > 0.5).mean()),
                microseconds_per_text=round(1e6 * seconds, 1),
            )


def main() -> None:
    logging.disable(logging.WARNING)  # the warnings are counted
    data, package = Path(sys.argv[1]), sys.argv[2]
    classifier = EmotionClassifier(package, dtype=torch.bfloat16, threads=1)
    draw = np.random.default_rng(0)

    def tokenize(texts: Sequence[str]) -> list[np.ndarray]:
        tokens = classifier.tokenize(texts)
        assert tokens is not None, "the package reads no words"
        return tokens

    training = _first_column(data / "goemotions" / "train.tsv")
    usual = usual_characters_per_token(training, tokenize(training))
    emit("range", package=Path(package).name, characters_per_token=usual)
    corpora = read(data)
    tokens = {name: tokenize(texts) for name, texts in corpora.items()}
    for name, texts in corpora.items():
        median = round(float(np.median(characters_per_token(texts, tokens[name]))), 2)
        share = share_that_warns(usual, texts, tokens[name], draw, BATCHES)
        emit("warning", corpus=name, texts=len(texts), median=median, batches_that_warn=share)
    for home in ENGLISH:
        shares: dict[str, list[float]] = {name: [] for name in corpora}
        for _ in range(DRAWS):
            rows = draw.choice(len(corpora[home]), FEW, replace=False)
            few = usual_characters_per_token([corpora[home][i] for i in rows], [tokens[home][i] for i in rows])
            for name, texts in corpora.items():
                shares[name].append(share_that_warns(few, texts, tokens[name], draw, 50))
        means = {name: round(float(np.mean(values)), 3) for name, values in shares.items()}
        most = max(ENGLISH, key=lambda name: means[name])
        least = min(means.keys() - set(ENGLISH), key=lambda name: means[name])
        emit("few_rows", trained_on=f"{FEW} of {home}", english={most: means[most]}, others={least: means[least]})
    texts = corpora["goemotions/test"][:2_000]
    classifier.predict_proba(texts[:64])
    started = time.perf_counter()
    classifier.predict_proba(texts)
    between = time.perf_counter()
    LanguageWatch(usual).look(texts, tokens["goemotions/test"][:2_000])
    whole, part = between - started, time.perf_counter() - between
    emit("cost", microseconds_per_text=round(1e6 * part / 2_000, 2), share=round(part / whole, 6))
    compare(corpora, draw)


if __name__ == "__main__":
    main()
