"""Does a package predict something else if names replace GoEmotions' placeholders?

    python tests/benchmarks/placeholders.py path/to/goemotions PACKAGE …

GoEmotions masks people and religions as ``[NAME]`` and ``[RELIGION]``; other texts do not. This script replaces them in
the test texts by random names and religions. It prints one JSON line per package: macro F1 of the whole test split both
ways, with the 95 % interval of the difference, paired by rows; micro F1 of the rows with a placeholder; and the share
of their decisions, and of these rows, that change.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import numpy as np
import torch
from timing import emit

from modeling.infer import EmotionClassifier
from training.corpora import Corpora
from training.options import parse
from training.scores.scoring import bootstrap, scores, weighted_scores

WORDS = {
    "[NAME]": ["John", "Maria", "Ahmed", "Emily", "Trump", "Chen", "Sarah", "Kevin", "LeBron", "Ana", "Smith", "Olga"],
    "[RELIGION]": ["Christian", "Muslim", "Jewish", "Catholic", "Hindu", "Buddhist"],
}


def without_placeholders(text: str, draw: random.Random) -> str:
    """The text with a random word in place of each placeholder."""
    return re.sub("|".join(map(re.escape, WORDS)), lambda found: draw.choice(WORDS[found[0]]), text)


def main() -> None:
    folder, packages = sys.argv[1], sys.argv[2:]
    recipe = parse(["--recipe", "goemotions_tokens", "--data_dir", folder]).recipe
    corpus = Corpora().rows(recipe)
    test = corpus["test"]
    draw = random.Random(0)
    named = [without_placeholders(text, draw) for text in test.texts]
    masked = np.array([text != other for text, other in zip(test.texts, named, strict=True)])
    for package in packages:
        classifier = EmotionClassifier(package, dtype=torch.bfloat16)
        cuts = np.array([classifier.config.thresholds[label] for label in corpus.labels])
        before = classifier.predict_proba(test.texts) >= cuts
        after = before.copy()
        after[masked] = classifier.predict_proba([named[place] for place in np.flatnonzero(masked)]) >= cuts
        draws = [
            bootstrap(len(masked), weighted_scores(decided, test.labels))[0]["macro_f1"] for decided in (after, before)
        ]
        changed = (before != after)[masked]
        emit(
            "placeholders",
            package=Path(package).name,
            rows=int(masked.sum()),
            macro_f1=[round(scores(decided, test.labels)["macro_f1"], 4) for decided in (before, after)],
            difference_interval_95=np.percentile(draws[0] - draws[1], [2.5, 97.5]).round(4).tolist(),
            micro_f1_of_those_rows=[
                round(scores(decided[masked], test.labels[masked])["micro_f1"], 4) for decided in (before, after)
            ],
            share_of_decisions_changed=round(float(changed.mean()), 4),
            rows_changed=round(float(changed.any(axis=1).mean()), 3),
        )


if __name__ == "__main__":
    main()
