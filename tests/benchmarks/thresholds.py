"""Which thresholds work best on rows that they were not tuned on?

    python tests/benchmarks/thresholds.py runs/goemotions [more runs]

splits the validation rows of each run into halves, twenty times: calibrates and tunes on one half, scores on the other.
Prints one JSON line per policy: mean macro F1, and the paired difference from the best threshold of each label with its
standard error. The test split is not read. (Halves have fewer positives than the whole, so all figures are low.)
"""

from __future__ import annotations

import json
import sys

import numpy as np
from scipy.special import expit, logit

from modeling.records import CALIBRATION
from modeling.thresholds import choose_thresholds
from training.run_folder import RunFolder
from training.scores.calibration import choose_calibration
from training.scores.scoring import scores

HALVES = 20


def main() -> None:
    found: dict[str, list[float]] = {}
    for path in sys.argv[1:]:
        run = RunFolder(path)
        arrays, calibration = run.read_arrays("predictions.npz"), run.read(CALIBRATION)
        said, labels = logit(arrays["validation_probabilities"]), arrays["validation_references"]
        logits = (said - np.array(calibration["bias"])) / np.array(calibration["scale"])
        for seed in range(HALVES):
            order = np.random.default_rng(seed).permutation(len(labels))
            fit, held = order[: len(order) // 2], order[len(order) // 2 :]
            mapped, _, _ = choose_calibration(logits[fit], labels[fit], seed)
            for name, probabilities in (("uncalibrated", expit(logits)), ("calibrated", mapped(logits))):
                chosen = choose_thresholds(probabilities[fit], labels[fit])
                policies = {"common": chosen.common, "best cut": chosen.best, "expected F1": chosen.own}
                for policy, cuts in policies.items():
                    score = scores(probabilities[held] >= cuts, labels[held])["macro_f1"]
                    found.setdefault(f"{name}, {policy}", []).append(score)
    baseline = np.array(found["uncalibrated, best cut"])
    for policy, values in found.items():
        difference = np.array(values) - baseline
        error = difference.std(ddof=1) / len(difference) ** 0.5
        line = {"figure": "thresholds_on_held_out_validation", "policy": policy, "macro_f1": float(np.mean(values))}
        print(json.dumps({**line, "against_best_cut": float(difference.mean()), "standard_error": float(error)}))


if __name__ == "__main__":
    main()
