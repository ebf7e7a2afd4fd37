"""Logits of rows that were not trained on → calibration, thresholds, and probabilities to score.

Calibration and thresholds come from validation rows, scores from test rows. After cross-fitting both are the same rows:
the package's calibration and thresholds come from all of them, and each fold is scored with those of the other folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from modeling.records import POLICIES, CalibrationChoice, CalibrationRecord
from modeling.thresholds import Thresholds, choose_thresholds
from training.scores.calibration import Calibration, choose_calibration, describe_calibration
from training.scores.scoring import Cutoffs, Scored, scores


@dataclass(frozen=True)
class HeldOut:
    """What a model's logits say of rows that it was not trained on.

    Attributes:
        calibration: the package's.
        choice: why it was chosen.
        log_losses: cross-fitted log loss of each validation row, [N].
        thresholds: the package's.
        before: probabilities of validation and test without calibration.
        after: the same, calibrated.
        cutoffs: the thresholds with which each split is scored.
        cutoffs_before: thresholds for each split without calibration: the best on the rows that tune, [L] or [N, L].
    """

    calibration: Calibration
    choice: CalibrationChoice
    log_losses: np.ndarray
    thresholds: Thresholds
    before: dict[str, Scored]
    after: dict[str, Scored]
    cutoffs: dict[str, Cutoffs]
    cutoffs_before: dict[str, np.ndarray]


def hold_out(logits: dict[str, np.ndarray], references: dict[str, np.ndarray], seed: int) -> HeldOut:
    """Tune on validation, for both splits.

    Args:
        logits: float [N, L] of ``validation`` and ``test``.
        references: their labels, multi-hot [N, L].
        seed: seed of the folds in which a calibration is chosen.
    """
    calibration, losses, choice = choose_calibration(logits["validation"], references["validation"], seed)
    after = {split: Scored(calibration(values), references[split]) for split, values in logits.items()}
    chosen = choose_thresholds(after["validation"].probabilities, references["validation"])
    cutoffs = dict.fromkeys(logits, _cutoffs(chosen))
    before = {split: Scored(expit(values), references[split]) for split, values in logits.items()}
    best = choose_thresholds(before["validation"].probabilities, references["validation"]).best
    return HeldOut(calibration, choice, losses, chosen, before, after, cutoffs, dict.fromkeys(logits, best))


def hold_out_folds(logits: np.ndarray, references: np.ndarray, fold: np.ndarray, seed: int) -> HeldOut:
    """Tune on all rows; score each fold, as ``test``, with what the other folds give.

    Args:
        logits: out of fold, float [N, L].
        references: multi-hot [N, L].
        fold: of each row, int [N].
        seed: as for :func:`hold_out`.
    """
    everything = {"validation": logits, "test": logits}
    whole = hold_out(everything, dict.fromkeys(everything, references), seed)
    probabilities, before = np.zeros(logits.shape), np.zeros(logits.shape)
    cutoffs = {policy: np.zeros(logits.shape) for policy in POLICIES}
    for number in np.unique(fold):
        held, rest = fold == number, fold != number
        others = {"validation": logits[rest], "test": logits[held]}
        part = hold_out(others, {"validation": references[rest], "test": references[held]}, seed)
        probabilities[held] = part.after["test"].probabilities
        before[held] = part.cutoffs_before["test"]
        for policy, values in part.cutoffs["test"].items():
            cutoffs[policy][held] = values
    after = whole.after | {"test": Scored(probabilities, references)}
    return HeldOut(
        whole.calibration,
        whole.choice,
        whole.log_losses,
        whole.thresholds,
        whole.before,
        after,
        whole.cutoffs | {"test": cutoffs},
        whole.cutoffs_before | {"test": before},
    )


def _cutoffs(chosen: Thresholds) -> Cutoffs:
    constant = [np.full(len(chosen.own), value) for value in (0.5, chosen.common)]
    return dict(zip(POLICIES, (*constant, chosen.own), strict=True))


def describe(found: HeldOut) -> CalibrationRecord:
    """The content of ``calibration.json``.

    Per split, before and after: how well probabilities are calibrated, and macro F1 at 0.5 and at each label's own
    threshold. Before calibration these are the best on validation: expected F1 needs calibrated probabilities.
    """
    measured: dict[str, dict[str, dict[str, float]]] = {split: {} for split in found.after}
    for when, scored in (("before", found.before), ("after", found.after)):
        for split, rows in scored.items():
            own = found.cutoffs_before[split] if when == "before" else found.cutoffs[split]["per_label"]
            measured[split][when] = describe_calibration(rows.probabilities, rows.references) | {
                f"macro_f1_at_{name}": scores(rows.probabilities >= cuts, rows.references)["macro_f1"]
                for name, cuts in (("0.5", 0.5), ("own_thresholds", own))
            }
    return {
        **found.choice,
        "validation": measured["validation"],
        "test": measured["test"],
        "scale": found.calibration.scale.tolist(),
        "bias": found.calibration.bias.tolist(),
    }
