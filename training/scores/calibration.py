"""Calibration: a map from logits to probabilities that mean what they say, fitted on validation rows only.

Alpha, oversampling and thinning shift each label's probabilities by a different amount. One temperature for all labels
cannot undo that; a scale and a bias per label (Platt) can, but Platt has 2·L numbers to learn. Each run uses one of
them or neither, chosen by cross-fitted log loss on validation. Both are linear in the logit and increasing. So they can
be folded into the classifier's weights, the order of the rows under each label stays, and a threshold moved the same
way makes the same decisions.

Few rows say little, so whatever the method, a label with few positives is :func:`held back <hold_back>`. After no
calibration or one temperature, only such labels have a bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import KFold
from torch import nn

from modeling.records import CalibrationChoice

PRIOR_POSITIVES = 20
"""Labels with at most so many positives, or negatives, are held back."""
_FOLDS = 5
_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(scale · logit + bias), per label; scale > 0."""

    scale: np.ndarray
    bias: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of logits [N, L]."""
        return np.asarray(expit(logits * self.scale + self.bias))


def keep(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """No change."""
    return Calibration(np.ones(labels.shape[1]), np.zeros(labels.shape[1]))


def smooth_targets(labels: np.ndarray) -> np.ndarray:
    """What the rows can say about each probability (Platt 1999), [N, L].

    Of n positives and m negatives of a label, a positive row says (n + 1) / (n + 2) instead of 1, and a negative row
    1 / (m + 2) instead of 0: 0.955 for 20 positives, 0.999 for a thousand. This bounds the mean over a label's positive
    rows; :func:`hold_back` bounds each of them where they are few.
    """
    positives = labels.sum(axis=0)
    negatives = len(labels) - positives
    return np.where(labels > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, logits) - targets * logits)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """One scale for all labels (Guo et al., ICML 2017)."""

    targets = smooth_targets(labels)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = np.exp(parameters[0]) * logits
        return float(_cross_entropy(scaled, targets).mean()), np.array([np.mean((expit(scaled) - targets) * scaled)])

    best = minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B").x[0]
    return Calibration(np.full(labels.shape[1], np.exp(best)), np.zeros(labels.shape[1]))


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """A scale and a bias for each label (Platt 1999), with the logarithm of the scale held near 0.

    The penalty weighs as much as one row. The scale cannot turn negative. A label without positives or negatives is
    left alone.
    """
    width = logits.shape[1]
    targets = smooth_targets(labels)
    usable = labels.any(axis=0) & ~labels.all(axis=0)
    best = minimize(_platt_loss, np.zeros(2 * width), (logits, targets, usable), jac=True, method="L-BFGS-B").x
    log_scale, bias = best.reshape(2, width)
    return Calibration(np.exp(log_scale), bias)


def _platt_loss(
    parameters: np.ndarray, logits: np.ndarray, targets: np.ndarray, usable: np.ndarray
) -> tuple[float, np.ndarray]:
    """Penalized cross-entropy of the labels' log scales and biases, [2·L], and its gradient."""
    number, width = logits.shape
    log_scale, bias = parameters.reshape(2, width)
    scale = np.exp(log_scale)
    mapped = scale * logits + bias
    error = (expit(mapped) - targets) * usable
    value = np.sum(_cross_entropy(mapped, targets) * usable) + 0.5 * np.sum(log_scale**2)
    slope = np.concatenate([(error * logits).sum(axis=0) * scale + log_scale, error.sum(axis=0)])
    return value / number, slope / number


def hold_back(found: Calibration, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """The same calibration, except for labels that would say more than their few rows can.

    The highest of n positives may say (n + 1) / (n + 2), which is the logit ln(n + 1), and the lowest of m negatives
    1 / (m + 2), where n or m is at most :data:`PRIOR_POSITIVES`. A label beyond that gets the Platt scaling with the
    lowest loss that keeps to it.
    """
    scale, bias = found.scale.copy(), found.bias.copy()
    targets, ends = smooth_targets(labels), np.stack([logits.max(axis=0), logits.min(axis=0)])
    for label, values in enumerate(labels.T):
        counts = np.array([np.sum(values), np.sum(1 - values)])
        limits = np.where(counts <= PRIOR_POSITIVES, np.log(counts + 1), np.inf) * [1, -1]
        if not counts.all() or np.all((limits - scale[label] * ends[:, label] - bias[label]) * [1, -1] >= 0):
            continue

        def room(parameters: np.ndarray, own: np.ndarray = ends[:, label], limits: np.ndarray = limits) -> np.ndarray:
            room_left = (limits - np.exp(parameters[0]) * own - parameters[1]) * [1, -1]
            return np.asarray(room_left[np.isfinite(limits)])

        own = (logits[:, [label]], targets[:, [label]], np.array([True]))
        fitted = minimize(_platt_loss, np.zeros(2), own, "SLSQP", jac=True, constraints={"type": "ineq", "fun": room}).x
        scale[label], bias[label] = np.exp(fitted[0]), fitted[1]
    return Calibration(scale, bias)


CALIBRATIONS: dict[str, Callable[[np.ndarray, np.ndarray], Calibration]] = {
    "none": keep,
    "temperature": fit_temperature,
    "platt": fit_platt,
}


def choose_calibration(
    logits: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[Calibration, np.ndarray, CalibrationChoice]:
    """The method with the lowest cross-fitted log loss, fitted on all rows.

    Args:
        logits: of validation rows, float [N, L].
        labels: multi-hot [N, L].
        seed: seed of the folds.

    Returns:
        The calibration; its cross-fitted log loss of each row, the mean over labels, [N]; and why it was chosen.
    """
    logits = logits.astype(np.float64)
    if len(labels) < _FOLDS:
        losses = _log_loss_terms(logits, labels).mean(axis=1)
        return keep(logits, labels), losses, {"method": "none", "reason": f"fewer than {_FOLDS} validation rows"}
    rows = {name: np.zeros(len(labels)) for name in CALIBRATIONS}
    for train, held in KFold(_FOLDS, shuffle=True, random_state=seed).split(logits):
        for name, fit in CALIBRATIONS.items():
            mapped = hold_back(fit(logits[train], labels[train]), logits[train], labels[train])
            terms = _log_loss_terms(logits[held] * mapped.scale + mapped.bias, labels[held])
            rows[name][held] = terms.mean(axis=1)
    means = {name: float(losses.mean()) for name, losses in rows.items()}
    chosen = min(means, key=means.__getitem__)
    reason = f"lowest log loss on validation rows that it was not fitted on ({_FOLDS} folds)"
    record: CalibrationChoice = {"method": chosen, "reason": reason, "cross_fitted_log_loss": means}
    return hold_back(CALIBRATIONS[chosen](logits, labels), logits, labels), rows[chosen], record


def fold_into(classifier: nn.Module, calibration: Calibration) -> None:
    """Change a trained linear classifier [L, H] in place so that its logits are the calibrated ones."""
    trained = {name.rsplit(".", 1)[-1]: value for name, value in classifier.named_parameters() if value.requires_grad}
    with torch.no_grad():
        scale = torch.from_numpy(calibration.scale).to(trained["weight"])
        trained["weight"].mul_(scale[:, None])
        trained["bias"].mul_(scale).add_(torch.from_numpy(calibration.bias).to(trained["bias"]))


# How well probabilities are calibrated


def _log_loss_terms(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, np.where(labels > 0, -logits, logits)))


def log_loss_of_logits(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean binary cross-entropy over all label decisions."""
    return float(_log_loss_terms(logits, labels).mean())


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of positives and number of decisions in 15 bins of equal width; empty bins left out.

    Args:
        probabilities: any shape.
        labels: 0/1, the same shape.
    """
    bins = np.minimum((probabilities.ravel() * _BINS).astype(int), _BINS - 1)
    number = np.bincount(bins, minlength=_BINS)
    filled = number > 0
    sums = [np.bincount(bins, weights=v.ravel().astype(float), minlength=_BINS) for v in (probabilities, labels)]
    return sums[0][filled] / number[filled], sums[1][filled] / number[filled], number[filled]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean distance between probability and share of positives, bins weighted by size."""
    predicted, observed, number = reliability(probabilities, labels)
    return float(np.average(np.abs(predicted - observed), weights=number))


def describe_calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """ECE over all decisions, its mean over labels, and the Brier score.

    Args:
        probabilities: [N, L].
        labels: 0/1 [N, L].
    """
    each = [calibration_error(p, y) for p, y in zip(probabilities.T, labels.T, strict=True)]
    return {
        "expected_calibration_error": calibration_error(probabilities, labels),
        "mean_label_calibration_error": float(np.mean(each)),
        "brier_score": float(np.mean((probabilities - labels) ** 2)),
    }
