"""How much does averaging several models gain?

    python tests/benchmarks/ensemble.py runs/tokens runs/hybrid [more runs]

scores each finished run, and the mean logits of the first two, the first three and so on, with thresholds per label
from validation. Prints one JSON line for each: macro F1 on validation (where the thresholds were tuned) and on test,
with the 95 % bootstrap interval, and the difference from the first run, paired by test rows. All runs must have the
same rows and labels.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from scipy.special import expit, logit

from modeling.thresholds import choose_thresholds
from training.commands.compare import describe_rows
from training.run_folder import RunFolder
from training.scores.scoring import bootstrap, scores, weighted_scores

SPLITS = ("validation", "test")


def read_logits(run: RunFolder) -> dict[str, np.ndarray]:
    """Calibrated logits of a run by split, [N, L]."""
    arrays = run.read_arrays("predictions.npz")
    return {split: logit(np.clip(arrays[f"{split}_probabilities"], 1e-7, 1 - 1e-7)) for split in SPLITS}


def measure(logits: dict[str, np.ndarray], references: dict[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """Scores, and the macro F1 of each bootstrap sample of the test rows."""
    said = {split: expit(values) for split, values in logits.items()}
    cuts = choose_thresholds(said["validation"], references["validation"]).own
    decided = {split: values >= cuts for split, values in said.items()}
    whole, _ = bootstrap(len(references["test"]), weighted_scores(decided["test"], references["test"]))
    test = scores(decided["test"], references["test"])
    return {
        "validation_macro_f1": scores(decided["validation"], references["validation"])["macro_f1"],
        "test_macro_f1": test["macro_f1"],
        "test_interval_95": np.percentile(whole["macro_f1"], [2.5, 97.5]).tolist(),
        "test_micro_f1": test["micro_f1"],
    }, whole["macro_f1"]


def main() -> None:
    paths = sys.argv[1:]
    runs = [RunFolder(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if any(describe_rows(run, split) != describe_rows(runs[0], split) for split in SPLITS):
            raise SystemExit(f"{path}: other validation or test rows or labels than those of {paths[0]}")
    arrays = runs[0].read_arrays("predictions.npz")
    references = {split: arrays[f"{split}_references"] for split in SPLITS}
    members = [read_logits(run) for run in runs]
    systems = {path: [member] for path, member in zip(paths, members, strict=True)}
    systems |= {f"mean of the first {size}": members[:size] for size in range(2, len(members) + 1)}
    first: tuple[dict[str, Any], np.ndarray] | None = None
    for name, chosen in systems.items():
        mean = {split: np.mean([member[split] for member in chosen], axis=0) for split in references}
        found, draws = measure(mean, references)
        first = first or (found, draws)
        against = {
            "against_the_first": found["test_macro_f1"] - first[0]["test_macro_f1"],
            "against_the_first_interval_95": np.percentile(draws - first[1], [2.5, 97.5]).tolist(),
        }
        print(json.dumps({"figure": "ensemble", "system": name, **found, **against}))


if __name__ == "__main__":
    main()
