"""Focal loss, thresholds and scores against independent or hand-worked answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from modeling.focal import alpha_per_label, focal_loss
from training.scoring import MultiLabelScores, bootstrap_f1, report, scores
from training.taxonomy import GOEMOTIONS_28
from training.thresholds import tune_global, tune_per_label


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float64)  # p = 0.5, 0.75
    targets = torch.tensor([[1.0, 0.0]])
    loss = focal_loss(logits, targets, torch.tensor([0.75, 0.25]), gamma=2.0)
    by_hand = (0.75 * 0.5**2 * -np.log(0.5) + 0.75 * 0.75**2 * -np.log(0.25)) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 1_000), gamma=st.sampled_from([0.0, 1.0, 2.0, 2.8]))
def test_focal_loss_is_weighted_cross_entropy_and_adds_up(seed: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 3, generator=generator, dtype=torch.float64) * 5
    targets = (torch.rand(8, 3, generator=generator) < 0.3).double()
    alpha = torch.rand(3, generator=generator, dtype=torch.float64)
    probability = torch.sigmoid(logits)
    at_target = torch.where(targets > 0, probability, 1 - probability)
    weight = torch.where(targets > 0, alpha, 1 - alpha)
    expected = (weight * (1 - at_target) ** gamma * -torch.log(at_target)).mean()
    torch.testing.assert_close(focal_loss(logits, targets, alpha, gamma), expected, rtol=1e-6, atol=1e-12)
    halves = [focal_loss(x, y, alpha, gamma, 24) for x, y in zip(logits.split(3), targets.split(3), strict=True)]
    torch.testing.assert_close(torch.stack(halves).sum(), expected, rtol=1e-6, atol=1e-12)


def test_focal_gradient_is_finite_at_extreme_logits() -> None:
    logits = torch.tensor([[90.0, -90.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[1.0, 0.0, 1.0]]), torch.full((3,), 0.5), 2.0).backward()
    assert torch.isfinite(logits.grad).all()


def test_alpha_presets() -> None:
    r2 = dict(zip(GOEMOTIONS_28, alpha_per_label("r2", GOEMOTIONS_28, [], 0), strict=True))
    card = dict(zip(GOEMOTIONS_28, alpha_per_label("r2-card", GOEMOTIONS_28, [], 0), strict=True))
    assert sum(value == 0.75 for value in r2.values()) == 15 and set(r2.values()) == {0.75, 0.25}
    assert {label for label in r2 if r2[label] != card[label]} == {"disapproval", "desire"}
    assert alpha_per_label("inverse-frequency", ["a", "b"], [1, 5], 10) == [0.9, 0.5]
    assert alpha_per_label('{"a": 0.9, "default": 0.3}', ["a", "b"], [], 0) == [0.9, 0.3]
    for bad, message in (("r3", "unknown preset"), ({"c": 0.5}, "unknown labels c"), ({"a": 2}, r"\[0, 1\]")):
        with pytest.raises(ValueError, match=message):
            alpha_per_label(bad, ["a", "b"], [], 0)


def random_scores(seed: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, 4)) < (0.5, 0.2, 0.1, 0.05)).astype(np.int8)
    return np.clip(0.3 * labels + 0.7 * generator.random((rows, 4)), 0, 1).round(2), labels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tuned_thresholds_are_the_best_there_are(seed: int) -> None:
    probabilities, labels = random_scores(seed)
    tuned = tune_per_label(probabilities, labels, fallback=0.4)
    for label in range(4):
        if not labels[:, label].any():
            assert tuned[label] == 0.4
            continue
        cuts = np.append(np.unique(probabilities[:, label]), 0)
        best = max(f1_score(labels[:, label], probabilities[:, label] >= cut) for cut in cuts)
        assert f1_score(labels[:, label], probabilities[:, label] >= tuned[label]) == pytest.approx(best)
    one = tune_global(probabilities, labels)
    macro = f1_score(labels, probabilities >= one, average="macro", zero_division=0)
    for cut in (0.1, 0.3, 0.5, 0.7):
        assert macro >= f1_score(labels, probabilities >= cut, average="macro", zero_division=0)


def test_scores_by_hand_and_through_evaluate() -> None:
    references = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    predictions = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    result = scores(predictions, references)
    assert result["exact_accuracy"] == 0.5
    assert result["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert result["micro_f1"] == pytest.approx(0.75)
    assert result["macro_precision"] == pytest.approx((2 / 3 + 1) / 2)
    assert MultiLabelScores(keep_in_memory=True).compute(predictions=predictions, references=references) == result


def test_bootstrap_holds_the_score_and_narrows_with_rows() -> None:
    widths = []
    for rows in (100, 1_600):
        probabilities, labels = random_scores(3, rows)
        predictions = (probabilities >= 0.5).astype(np.int8)
        low, high = bootstrap_f1(predictions, labels)["macro_f1"]
        assert low < scores(predictions, labels)["macro_f1"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_report_uses_validation_thresholds_on_test() -> None:
    validation, test = random_scores(1), random_scores(2)
    metrics, thresholds, table = report(validation, test, list("abcd"))
    cutoffs = np.array([thresholds["per_label"][name] for name in "abcd"])
    np.testing.assert_allclose(cutoffs, tune_per_label(*validation, fallback=thresholds["global"]))
    assert metrics["test"]["per_label"]["macro_f1"] == scores(test[0] >= cutoffs, test[1])["macro_f1"]
    assert metrics["test"]["fixed"]["macro_f1"] == scores(test[0] >= 0.5, test[1])["macro_f1"]
    assert [row[1] for row in table] == test[1].sum(axis=0).tolist()
