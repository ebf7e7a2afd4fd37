"""Platt scaling to 0 and 1, to smooth targets, and held back where rows are few: log loss on rows it was not fitted on.

    python tests/benchmarks/calibration.py RUN …

Needs runs with a calibration (``calibration.json`` has its scale and bias, with which the logits before it are
computed). Prints one JSON line for each run and kind of targets: cross-fitted log loss on validation (five folds) over
all labels, over labels with at most 20 positives and over the others; log loss on test; the highest probability.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import logit
from sklearn.model_selection import KFold
from timing import emit

from modeling.records import CALIBRATION, PREDICTIONS
from training.run_folder import RunFolder
from training.scores import calibration
from training.scores.calibration import (
    PRIOR_POSITIVES,
    Calibration,
    fit_platt,
    hold_back,
    log_loss_of_logits,
    smooth_targets,
)

Fit = Callable[[np.ndarray, np.ndarray], Calibration]


def fit_held_back(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """What ships."""
    return hold_back(fit_platt(logits, labels), logits, labels)


def measure(fit: Fit, logits: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures of the targets that are in use."""
    truth, few = labels["validation"], labels["validation"].sum(axis=0) <= PRIOR_POSITIVES
    held_out = np.zeros(truth.shape)
    for train, held in KFold(5, shuffle=True, random_state=0).split(truth):
        found = fit(logits["validation"][train], truth[train])
        held_out[held] = logits["validation"][held] * found.scale + found.bias
    found = fit(logits["validation"], truth)
    groups = {"all_labels": np.ones(len(few), dtype=bool), "few_positives": few, "more_positives": ~few}
    figures = {name: log_loss_of_logits(held_out[:, own], truth[:, own]) for name, own in groups.items() if own.any()}
    figures["test"] = log_loss_of_logits(logits["test"] * found.scale + found.bias, labels["test"])
    return {
        **figures,
        "highest_probability": float(found(logits["validation"]).max()),
        "highest_of_few": float(found(logits["validation"])[:, few].max()),
    }


def main() -> None:
    for name in sys.argv[1:]:
        run = RunFolder(Path(name))
        fitted, saved = run.read(CALIBRATION), np.load(run.path / PREDICTIONS)
        logits, labels = {}, {}
        for split in ("validation", "test"):
            calibrated = logit(np.clip(saved[f"{split}_probabilities"].astype(float), 1e-12, 1 - 1e-12))
            logits[split] = (calibrated - np.array(fitted["bias"])) / np.array(fitted["scale"])
            labels[split] = saved[f"{split}_references"]
        for kind, fit, targets in (
            ("0 and 1", fit_platt, lambda rows: rows),
            ("smooth", fit_platt, smooth_targets),
            ("smooth, held back", fit_held_back, smooth_targets),
        ):
            calibration.smooth_targets = targets
            figures = {key: round(value, 5) for key, value in measure(fit, logits, labels).items()}
            emit("calibration", run=Path(name).name, targets=kind, **figures)


if __name__ == "__main__":
    main()
