"""What packages trained on English GoEmotions can do in other languages: XED and BRIGHTER, with their own thresholds.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/languages.py path/to/data PACKAGE …

The folder of data has ``xed/`` (``en.tsv``, ``it.tsv``) and ``brighter/dev/`` (a CSV file for each language). This script
prints one JSON line per package and file: macro F1 with its 95 % interval, the same if every row got every label, and
the area under the ROC curve of each label and on average. XED's files are sampled. A package that reads the words and a
sentence embedding is scored once more with the embedding of a blank text for every text: what the words alone bring.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from timing import emit

from modeling.infer import EmotionClassifier, LoadedEncoder
from modeling.machine import cpu_name
from training.commands.evaluate import score
from training.data.label_mapping import match_labels, read_mapping
from training.data.labeled_file import FileOptions, LabeledRow, read_labeled_file

ROWS, SEED = 2_000, 0
BLANK = "the embedding of a blank text"


def read(path: Path, mapping: str, labels: list[str]) -> list[LabeledRow]:
    """The rows of a file, at most ``ROWS`` of them."""
    rows = read_labeled_file(path, read_mapping(mapping), labels, FileOptions())
    return rows if len(rows) <= ROWS else sorted(random.Random(SEED).sample(rows, ROWS))


def blank(encoder: LoadedEncoder) -> LoadedEncoder:
    """An encoder that says the same of every text."""
    vector = encoder([""])
    return LoadedEncoder(BLANK, encoder.version, lambda texts: np.repeat(vector, len(texts), axis=0))


def main() -> None:
    data, packages = Path(sys.argv[1]), sys.argv[2:]
    files = [(data / "xed" / f"{language}.tsv", "plutchik") for language in ("en", "it")]
    files += [(path, "brighter") for path in sorted((data / "brighter" / "dev").glob("*.csv"))]
    print(cpu_name(), file=sys.stderr)
    for package in packages:
        classifier = EmotionClassifier(package, dtype=torch.bfloat16)
        whole = classifier.encoder
        assert isinstance(whole, LoadedEncoder)
        encoders = [whole, blank(whole)] if classifier.config.input == "hybrid" else [whole]
        for encoder in encoders:
            classifier = EmotionClassifier(package, dtype=torch.bfloat16, encoder=encoder)
            for path, mapping in files:
                rows = read(path, mapping, classifier.labels)
                counts = Counter(label for row in rows for label in row.labels)
                result = score(
                    classifier, rows, match_labels(read_mapping(mapping), classifier.labels, counts, path.name)
                )
                own, free = result["scores"]["package"], result["without_thresholds"]
                areas = {label: round(values["roc_auc"], 3) for label, values in free.items()}
                emit(
                    "languages",
                    package=Path(package).name,
                    reads=f"{classifier.config.input}, {encoder.name}",
                    file=f"{path.parent.parent.name if mapping == 'brighter' else 'xed'}/{path.stem}",
                    rows=result["rows"]["scored"],
                    macro_f1=round(own["macro_f1"], 3),
                    interval_95=[round(end, 3) for end in own["intervals_95"]["macro_f1"]],
                    every_label=round(float(np.mean([values["f1_always"] for values in free.values()])), 3),
                    roc_auc=round(float(np.mean(list(areas.values()))), 3),
                    roc_auc_per_label=areas,
                    not_scored=list(result["targets_not_scored"]),
                )


if __name__ == "__main__":
    main()
