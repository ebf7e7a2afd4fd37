"""Calibration corrects shifted probabilities, leaves correct ones, and changes no decision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import expit, logit
from sklearn.metrics import f1_score
from torch import nn

from modeling.infer import EmotionModel
from modeling.thresholds import choose_thresholds
from training.fit import results
from training.fit.prepare import Prepared
from training.scores.calibration import (
    CALIBRATIONS,
    PRIOR_POSITIVES,
    calibration_error,
    choose_calibration,
    describe_calibration,
    fit_platt,
    fit_temperature,
    fold_into,
    hold_back,
    smooth_targets,
)
from training.scores.held_out import describe


def draw(seed: int, rows: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """True logits and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal((-2.0, -1.0, 0.0), 1.5, size=(rows, 3))
    return logits, (generator.random((rows, 3)) < expit(logits)).astype(np.int8)


def test_platt_finds_the_scale_and_bias_of_each_label() -> None:
    logits, labels = draw(0, 20_000)
    scale, bias = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.0, -1.0])
    found = fit_platt((logits - bias) / scale, labels)
    np.testing.assert_allclose(found.scale, scale, rtol=0.1)
    np.testing.assert_allclose(found.bias, bias, atol=0.12)


def test_temperature_finds_one_scale() -> None:
    logits, labels = draw(1, 20_000)
    np.testing.assert_allclose(fit_temperature(logits / 3, labels).scale, [3, 3, 3], rtol=0.05)


def test_the_method_is_chosen_on_held_out_rows() -> None:
    logits, labels = draw(2)
    assert choose_calibration(logits * 3, labels, 0)[2]["method"] == "temperature"
    moved = logits + np.array([2.0, 0.0, -2.0])
    shifted, rows, record = choose_calibration(moved, labels, 0)
    assert record["method"] == "platt"
    np.testing.assert_allclose(shifted.bias, [-2, 0, 2], atol=0.35)
    assert rows.mean() == pytest.approx(record["cross_fitted_log_loss"]["platt"])
    in_hindsight = np.logaddexp(0, np.where(labels > 0, -1, 1) * logit(shifted(moved)))
    assert rows.mean() > in_hindsight.mean()
    np.testing.assert_allclose(rows, in_hindsight.mean(axis=1), atol=0.2)
    assert choose_calibration(logits[:4], labels[:4], 0)[2]["method"] == "none"
    saturated = np.concatenate([logits, [[80.0, -80.0, 80.0]]])  # certain, and wrong about the last label
    assert np.isfinite(choose_calibration(saturated, np.concatenate([labels, [[1, 0, 0]]]), 0)[0].scale).all()
    few, few_labels = logits[:80, 2:], labels[:80, 2:]
    losses = choose_calibration(few, few_labels, 0)[2]["cross_fitted_log_loss"]
    assert losses["none"] < losses["platt"]  # eighty rows are too few to better the truth


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_decision_survives_with_a_moved_threshold(seed: int) -> None:
    logits, labels = draw(seed, 200)
    labels[:, 0] = 0
    found = fit_platt(logits, labels)
    assert (found.scale > 0).all() and found.scale[0] == pytest.approx(1) and found.bias[0] == pytest.approx(0)
    for cut in (0.1, 0.5, 0.7):
        moved = expit(found.scale * logit(cut) + found.bias)
        np.testing.assert_array_equal(found(logits) >= moved, expit(logits) >= cut)
    targets = smooth_targets(labels)
    said = [np.where(targets > 0.5, value, -value) for value in (logits * found.scale + found.bias, logits)]
    after, before = (np.mean(np.logaddexp(0, -value) + np.minimum(targets, 1 - targets) * value) for value in said)
    assert after <= before + 1e-9


@pytest.mark.parametrize(("positives", "rows"), [(3, 180), (20, 180), (20, 5_000), (500, 5_000)])
def test_few_positives_say_little(positives: int, rows: int) -> None:
    """Separable rows: what is fitted to them must not say more than they can."""
    generator = np.random.default_rng(positives)
    labels = (np.arange(rows) < positives).astype(np.int8)[:, None]
    logits = np.where(labels > 0, 4.0, -4.0) + generator.normal(size=(rows, 1))
    fitted = fit_platt(logits, labels)
    said = fitted(logits)
    assert 0.5 < said[:positives].mean() <= (positives + 1) / (positives + 2)
    assert 0 < 1 - said[:positives].mean() < 10 / positives
    assert said[positives:].mean() < 0.02
    assert fit_temperature(logits, labels).scale[0] < 3  # without targets it grows until the optimizer gives up
    most = (positives + 1) / (positives + 2)
    for method in CALIBRATIONS.values():
        found = hold_back(method(logits * 3, labels), logits * 3, labels)
        held = found(logits * 3)
        if positives > PRIOR_POSITIVES:
            assert found(logits * 3).tolist() == method(logits * 3, labels)(logits * 3).tolist()
        else:
            assert held.max() <= most + 1e-6 and found.scale[0] > 0
            # The same label read the other way round is held back in the same way.
            mirrored = hold_back(method(-logits * 3, 1 - labels), -logits * 3, 1 - labels)(-logits * 3)
            np.testing.assert_allclose(mirrored, 1 - held, atol=2e-3)
    assert choose_calibration(logits * 3, labels, 0)[0](logits * 3).max() <= most + 1e-6 or positives > PRIOR_POSITIVES


def test_many_positives_are_calibrated_as_ever() -> None:
    """The targets move by one row in thousands, and the probabilities by less than they are uncertain."""
    logits, labels = draw(6, 20_000)
    moved = np.array([1.5, -1.0, 0.5])
    found = fit_platt(logits * 0.5 + moved, labels)
    np.testing.assert_allclose(found(logits * 0.5 + moved), expit(logits), atol=0.02)
    np.testing.assert_allclose(smooth_targets(labels), labels, atol=1e-3)


def test_folding_gives_the_calibrated_logits() -> None:
    logits, labels = draw(3)
    classifier = nn.Linear(5, 3)
    hidden = torch.randn(7, 5)
    before = classifier(hidden).detach().numpy()
    found = fit_platt(logits * 2, labels)
    fold_into(classifier, found)
    after = torch.sigmoid(classifier(hidden)).detach().numpy()
    np.testing.assert_allclose(after, found(before), atol=1e-6)


def test_errors_by_hand() -> None:
    probabilities = np.array([[0.1], [0.1], [0.9], [0.9]])
    labels = np.array([[0], [1], [1], [1]])
    # Bin 0.1: half are positive, an error of 0.4. Bin 0.9: all are positive, an error of 0.1. Two decisions each.
    assert calibration_error(probabilities, labels) == pytest.approx(0.25)
    described = describe_calibration(probabilities, labels)
    assert described["brier_score"] == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)
    assert described["mean_label_calibration_error"] == pytest.approx(0.25)


def test_the_record_says_what_calibration_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platt scaling corrects shifted logits: macro F1 before and after, at 0.5 and at each one's own thresholds."""
    splits = {"validation": draw(4), "test": draw(5)}
    shift = np.array([2.0, 0.0, -2.0])
    said = {split: (logits + shift).astype(np.float32) for split, (logits, _) in splits.items()}
    monkeypatch.setattr(results, "predict_logits", lambda _, values: values)
    corpus = {split: SimpleNamespace(labels=labels) for split, (_, labels) in splits.items()}
    data, model = SimpleNamespace(corpus=corpus, features=said.get), SimpleNamespace(classifier=nn.Linear(4, 3))
    found = results.calibrate(cast(EmotionModel, model), cast(Prepared, data), None, 0)
    before, after, record = found.before, found.after, describe(found)
    assert record["method"] == "platt"
    np.testing.assert_allclose(before["test"].probabilities, expit(said["test"].astype(float)))
    for when, scored in (("before", before), ("after", after)):
        chosen = choose_thresholds(scored["validation"].probabilities, splits["validation"][1])
        own = chosen.own if when == "after" else chosen.best
        for split, (_, labels) in splits.items():
            for name, cuts in (("0.5", 0.5), ("own_thresholds", own)):
                expected = f1_score(labels, scored[split].probabilities >= cuts, average="macro")
                assert record[split][when][f"macro_f1_at_{name}"] == pytest.approx(expected)
    at_half, own = (
        [record["test"][w][f"macro_f1_at_{k}"] for w in ("before", "after")] for k in ("0.5", "own_thresholds")
    )
    assert abs(at_half[1] - at_half[0]) > 0.02 and abs(own[1] - own[0]) < 0.02
