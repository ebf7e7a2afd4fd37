"""Focal loss, thresholds and scores against independent results or results worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, f1_score

from modeling.focal import alpha_per_label, focal_loss
from modeling.thresholds import choose_thresholds, expected_f1_cuts, tune_global, tune_per_label
from training.data.taxonomy import GOEMOTIONS_28, TAXONOMIES
from training.fit.prepare import Prepared
from training.fit.results import build_report
from training.scores import scoring
from training.scores.held_out import hold_out
from training.scores.published import read_published, to_markdown
from training.scores.scoring import (
    MultiLabelScores,
    Scored,
    bootstrap,
    score_policies,
    scores,
    unreliable_labels,
    weighted_average_precision,
    weighted_scores,
)


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weighted_scores_are_scikit_learns(seed: int) -> None:
    probabilities, labels = random_scores(seed)
    predictions = probabilities >= 0.5
    weights = bootstrap(len(labels), lambda weights: weights, draws=3, seed=seed)
    whole, each = weighted_scores(predictions, labels)(weights)
    precision = weighted_average_precision(probabilities, labels)(weights)
    for draw, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(len(labels)), counts)
        expected = scores(predictions[rows], labels[rows])
        assert {name: value[draw] for name, value in whole.items()} == pytest.approx(expected, abs=1e-5)
        f1 = f1_score(labels[rows], predictions[rows], average=None, zero_division=0)
        np.testing.assert_allclose(each["f1"][draw], f1, atol=1e-5)
        drawn = labels[rows].any(axis=0)
        average = average_precision_score(labels[rows][:, drawn], probabilities[rows][:, drawn], average=None)
        np.testing.assert_allclose(precision[draw, drawn], average, atol=1e-5)


def test_samples_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scored, cutoffs = Scored(*random_scores(3, 50)), {"fixed": np.full(4, 0.5), "per_label": np.full(4, 0.4)}
    found = []
    for at_once in (2**23, 50 * 7, 1):  # 1,000 samples; 143 blocks, the last one smaller; one by one
        monkeypatch.setattr(scoring, "_COUNTS_AT_ONCE", at_once)
        found.append(score_policies(scored, cutoffs, list("abcd")))
        np.testing.assert_array_equal(
            bootstrap(50, lambda weights: {"sums": (weights.sum(axis=1),)})["sums"][0], np.full(1_000, 50)
        )
    for result, table in found[1:]:
        pd.testing.assert_frame_equal(table, found[0][1], rtol=1e-5)
        for policy, whole in found[0][0].items():
            assert result[policy]["intervals_95"]["macro_f1"] == pytest.approx(
                whole["intervals_95"]["macro_f1"], abs=1e-6
            )


def test_intervals_contain_the_score_and_narrow_with_rows() -> None:
    widths = []
    for rows in (100, 1_600):
        result, _ = score_policies(Scored(*random_scores(3, rows)), {"fixed": np.full(4, 0.5)}, list("abcd"))
        low, high = result["fixed"]["intervals_95"]["macro_f1"]
        assert low < result["fixed"]["macro_f1"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_macro_f1_of_the_frequent_labels_leaves_the_rare_ones_out() -> None:
    """Two labels with at least 100 positives (one with exactly 100), and two with fewer."""
    generator = np.random.default_rng(0)
    labels = np.zeros((900, 4), dtype=np.int8)
    for label, count in enumerate((400, 100, 99, 20)):
        labels[generator.permutation(900)[:count], label] = 1
    probabilities = np.clip(0.4 * labels + 0.7 * generator.random((900, 4)), 0, 1)
    result, _ = score_policies(Scored(probabilities, labels), {"fixed": np.full(4, 0.5)}, list("abcd"))
    expected = f1_score(labels[:, :2], probabilities[:, :2] >= 0.5, average="macro")
    assert result["fixed"]["macro_f1_frequent"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected - result["fixed"]["macro_f1"]) > 0.05
    low, high = result["fixed"]["intervals_95"]["macro_f1_frequent"]
    assert low < expected < high and low > result["fixed"]["intervals_95"]["macro_f1"][1]
    for few in ([0, 1], [2, 3]):  # no label is left out, or all are
        part = Scored(probabilities[:, few], labels[:, few])
        assert "macro_f1_frequent" not in score_policies(part, {"fixed": np.full(2, 0.5)}, list("ab"))[0]["fixed"]


def test_labels_with_few_rows_or_wide_intervals_are_unreliable() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((2_000, 3)) < (0.4, 0.06, 0.03)).astype(np.int8)
    probabilities = np.clip(0.6 * labels + 0.4 * generator.random((2_000, 3)), 0, 1)
    probabilities[:, 1] = generator.random(2_000)
    _, table = score_policies(Scored(probabilities, labels), {"per_label": np.array([0.5, 0.99, 0.5])}, list("abc"))
    own = table.set_index("label")
    assert own.loc["b", "support"] >= 100 and own.loc["c", "support"] < 100
    assert unreliable_labels(table.assign(split="test")) == ["c"]
    own.loc["b", ["f1_low", "f1_high"]] = (0.3, 0.51)
    assert unreliable_labels(own.reset_index().assign(split="test")) == ["b", "c"]
    assert unreliable_labels(own.reset_index().assign(split="validation")) == []


def test_a_label_that_no_row_has_gets_the_common_threshold() -> None:
    probabilities = np.random.default_rng(0).random((200, 2)) ** 4
    labels = (np.random.default_rng(1).random((200, 2)) < probabilities).astype(np.int8)
    labels[:, 1] = 0
    chosen = choose_thresholds(probabilities, labels)
    assert chosen.own[1] == chosen.common != chosen.own[0] == expected_f1_cuts(probabilities)[0]


def test_thresholds_by_expected_f1_generalize_better_than_the_best_cut() -> None:
    """Rare labels, calibrated probabilities, many small validation splits, one large test split."""
    generator = np.random.default_rng(0)

    def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
        probabilities = expit(generator.normal(-4.0, 1.7, size=(rows, 6)))
        return probabilities, (generator.random((rows, 6)) < probabilities).astype(np.int8)

    test, gains = draw(20_000), []
    for _ in range(20):
        chosen = choose_thresholds(*draw(400))
        found = [scores(test[0] >= cuts, test[1])["macro_f1"] for cuts in (chosen.own, chosen.best)]
        gains.append(found[0] - found[1])
    assert np.mean(gains) > 0.005


def test_thresholds_see_validation_only() -> None:
    validation, test = random_scores(1), random_scores(2)
    data = SimpleNamespace(corpus=SimpleNamespace(labels=tuple("abcd")), copies={"test": np.arange(len(test[0])) < 9})
    logits = {
        "validation": logit(np.clip(validation[0], 1e-6, 1 - 1e-6)),
        "test": logit(np.clip(test[0], 1e-6, 1 - 1e-6)),
    }
    held_out = hold_out(logits, {"validation": validation[1], "test": test[1]}, 0)
    found = build_report(held_out, cast(Prepared, data), "official", None)
    own = np.array([found.thresholds["per_label"][name] for name in "abcd"])
    calibrated = {split: held_out.calibration(values) for split, values in logits.items()}
    np.testing.assert_allclose(own, choose_thresholds(calibrated["validation"], validation[1]).own)
    test = calibrated["test"], test[1]
    metrics = found.metrics
    assert metrics["test"]["per_label"]["macro_f1"] == pytest.approx(
        scores(test[0] >= own, test[1])["macro_f1"], abs=1e-6
    )
    assert metrics["test"]["fixed"]["macro_f1"] == pytest.approx(scores(test[0] >= 0.5, test[1])["macro_f1"], abs=1e-6)
    without = scores(test[0][9:] >= 0.5, test[1][9:])["macro_f1"]
    assert metrics["test_without_copies"]["fixed"]["macro_f1"] == pytest.approx(without, abs=1e-6)
    shown = to_markdown(found.per_label, metrics | {"protocol": "official"}, [])
    assert f"**{metrics['test']['per_label']['macro_f1']:.3f} [" in shown and shown.count("\n") == 3 + 4
    systems = read_published(GOEMOTIONS_28)
    assert len(systems) == 8 and sum(bool(system.per_label) for system in systems) == 2
    assert all(set(system.per_label) <= set(GOEMOTIONS_28) for system in systems)
    assert len(read_published(TAXONOMIES["ekman"].labels)) == 2 and read_published(["a", "b"]) == []
    table = found.per_label.query("split == 'test' and thresholds == 'per_label'")
    assert table["support"].tolist() == test[1].sum(axis=0).tolist()
