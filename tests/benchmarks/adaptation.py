"""Thresholds for other texts: macro F1 before, after, of saying everything, and with thresholds tuned on the answers.

    python tests/benchmarks/adaptation.py path/to/data folder packages/goemotions packages/goemotions_tokens

Texts: BRIGHTER's train files in six languages, 3,000 rows each of XED English and Italian, the starter corpus, and, to
compare with texts at home, 1,000 of GoEmotions' test texts. Labels: those with the name of a label of the package. A third
of the rows (at least 200) is scored; so many of the others have labels, drawn anew 20 times. With 0, all others are given
without labels. ``distance`` is how far all rows are from the package's validation rows. ``folder`` keeps the packages'
predictions.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hub_release.serving.adapt import measure_distance
from modeling.infer import EmotionClassifier
from modeling.infer.adaptation import KnownLabels, adapt_thresholds
from modeling.infer.files import local_folder
from modeling.machine import cpu_name
from modeling.thresholds import macro_f1, tune_per_label
from training.data.corpus import STARTER_FOLDER
from training.data.taxonomy import GOEMOTIONS_28

DRAWS, SIZES, LEAST_SCORED, XED_ROWS = 20, (0, 20, 50, 200), 200, 3_000
XED_LABELS = ("anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust")


@dataclass(frozen=True)
class Rows:
    """Texts and their labels, 0/1 [N, L], of the L names."""

    name: str
    texts: list[str]
    names: list[str]
    labels: np.ndarray


def brighter(data: Path) -> Iterator[Rows]:
    for path in sorted((data / "brighter" / "train").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        names = [name for name in table[0] if name not in ("id", "text")]
        labels = np.array([[int(float(row[name] or 0)) for name in names] for row in table], np.int8)
        yield Rows(f"BRIGHTER {path.stem}", [row["text"] for row in table], names, labels)


def xed(data: Path) -> Iterator[Rows]:
    for language in ("en", "it"):
        lines = (data / "xed" / f"{language}.tsv").read_text(encoding="utf-8").split("\n")
        cells = [line.rstrip("\r").split("\t") for line in lines if "\t" in line]
        chosen = [cells[row] for row in np.random.default_rng(0).permutation(len(cells))[:XED_ROWS]]
        labels = np.zeros((len(chosen), len(XED_LABELS)), np.int8)
        for row, (_, ids, *_) in enumerate(chosen):
            for number in ids.split(","):
                if number.strip().isdigit():
                    labels[row, int(number) - 1] = 1
        yield Rows(f"XED {language}", [text for text, *_ in chosen], list(XED_LABELS), labels)


def starter() -> Rows:
    files = (STARTER_FOLDER / f"{split}.jsonl" for split in ("train", "validation", "test"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    names = sorted({label for row in rows for label in row["labels"]})
    labels = np.array([[name in row["labels"] for name in names] for row in rows], np.int8)
    return Rows("starter corpus", [row["text"] for row in rows], names, labels)


def home(data: Path) -> Rows:
    lines = (data / "goemotions" / "test.tsv").read_text(encoding="utf-8").split("\n")[:1_000]
    labels = np.zeros((len(lines), len(GOEMOTIONS_28)), np.int8)
    for row, line in enumerate(lines):
        labels[row, [int(number) for number in line.split("\t")[1].split(",")]] = 1
    return Rows("GoEmotions test", [line.split("\t")[0] for line in lines], list(GOEMOTIONS_28), labels)


def predictions(
    package: str, backend: str, corpora: list[Rows], folder: Path
) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Labels of a package, its thresholds [L], and its probabilities of each corpus, [N, L]."""
    place = folder / f"{Path(package).name}.npz"
    if not place.is_file():
        classifier = EmotionClassifier(package, backend=backend)  # type: ignore[arg-type]  # the command line's
        found = [classifier.predict_proba(rows.texts) for rows in corpora]
        own = np.array([classifier.config.thresholds[label] for label in classifier.labels])
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(place, *found, labels=np.array(classifier.labels), thresholds=own)
    with np.load(place) as arrays:
        found = [arrays[f"arr_{number}"] for number in range(len(corpora))]
        return arrays["labels"].tolist(), arrays["thresholds"], found


def measure(rows: Rows, labels: list[str], thresholds: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Means over the draws."""
    names = [name for name in rows.names if name in labels]
    places = [labels.index(name) for name in names]
    truth, said = rows.labels[:, [rows.names.index(name) for name in names]], probabilities[:, places].astype(float)
    before, generator = thresholds[places], np.random.default_rng(0)
    found: dict[str, list[float]] = {}

    def keep(name: str, cuts: np.ndarray, scored: np.ndarray) -> None:
        found.setdefault(name, []).append(macro_f1(said[scored] >= cuts, truth[scored]))

    for _ in range(DRAWS):
        order = generator.permutation(len(truth))
        number = max(len(truth) // 3, LEAST_SCORED)
        scored, others = order[-number:], order[:-number]
        keep("before", before, scored)
        keep("everything", np.zeros(len(names)), scored)
        keep("ceiling", tune_per_label(said[scored], truth[scored], 0.5), scored)
        for size in SIZES:
            given = others[:size] if size else others
            known = KnownLabels(truth[given] * (size > 0), np.full(len(given), size > 0))
            changed = adapt_thresholds(names, said[given], before, known).thresholds
            keep(f"{size}", np.array([changed.get(name, old) for name, old in zip(names, before, strict=True)]), scored)
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+")
    parser.add_argument("--backend", default="torch")
    options = parser.parse_args()
    corpora = [*brighter(options.data), *xed(options.data), starter(), home(options.data)]
    for package in options.packages:
        labels, thresholds, found = predictions(package, options.backend, corpora, options.folder)
        for rows, probabilities in zip(corpora, found, strict=True):
            scores = measure(rows, labels, thresholds, probabilities)
            way = {
                f"way_{size}": (scores[f"{size}"] - scores["before"]) / (scores["ceiling"] - scores["before"])
                for size in SIZES
            }
            unknown = KnownLabels(np.zeros(probabilities.shape), np.zeros(len(probabilities), bool))
            adapted = adapt_thresholds(labels, probabilities.astype(float), thresholds, unknown)
            far = {"distance": measure_distance(local_folder(package, None), adapted).apart}
            line = {name: round(value, 3) for name, value in (scores | way | far).items()}
            sys.stdout.write(
                json.dumps({"package": Path(package).name, "texts": rows.name, **line, "cpu": cpu_name()}) + "\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
