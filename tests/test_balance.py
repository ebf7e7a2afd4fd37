"""Balancing: new rows are where each method says, carry their parents, and add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from modeling.recipe import Recipe
from training.data.balance import BalanceError, Rows, imbalance, oversample, real_rows, thin_label
from training.recipe import RecipeError, check_recipe

NAMES = ("a", "b", "neutral")
MADE = ("duplicate", "smote", "mlsmote", "ismote", "ismote-r2")
REACH = {"duplicate": (0, 0), "smote": (0, 1), "mlsmote": (0, 1), "ismote": (-0.5, 1.5), "ismote-r2": (-1.5, 0.5)}


def make(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random((size, 3)) < (0.2, 0.1, 0.5)).astype(np.int8)
    labels[0] = (1, 1, 0)
    return generator.normal(size=(size, 5)).astype(np.float32), labels


def columns(rows: Rows) -> list[np.ndarray]:
    return [rows.embeddings, rows.labels, rows.parents, rows.steps, rows.synthetic]


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(MADE),
    seed=st.integers(0, 10_000),
    size=st.integers(3, 60),
    target=st.integers(1, 40),
    neighbors=st.integers(1, 7),
)
def test_rows_are_what_their_parents_give(method: str, seed: int, size: int, target: int, neighbors: int) -> None:
    embeddings, labels = make(seed, size)
    copies = embeddings.copy(), labels.copy()
    rows = oversample(real_rows(embeddings, labels), NAMES, method, seed, target, neighbors=neighbors)
    np.testing.assert_array_equal(embeddings, copies[0])
    np.testing.assert_array_equal(labels, copies[1])
    assert not rows.synthetic[:size].any() and rows.synthetic[size:].all()
    new = slice(size, None)
    first, second = rows.parents[new].T
    expected = embeddings[first] + rows.steps[new, None] * (embeddings[second] - embeddings[first])
    np.testing.assert_allclose(rows.embeddings[new], expected, atol=1e-5)
    low, high = REACH[method]
    assert ((rows.steps >= low) & (rows.steps <= high)).all()
    assert (labels[first] & labels[second]).any(axis=1).all()
    if method != "mlsmote":
        np.testing.assert_array_equal(rows.labels[new], labels[first])
    counts = rows.labels.sum(axis=0)
    np.testing.assert_array_equal(counts, labels.sum(axis=0) + rows.labels[new].sum(axis=0))
    assert (counts[:2] >= target).all()
    if method == "ismote-r2":  # a new row counts only for its own label
        assert rows.synthetic.sum() == np.maximum(target - labels.sum(axis=0)[:2], 0).sum()
    again = oversample(real_rows(embeddings, labels), NAMES, method, seed, target, neighbors=neighbors)
    for one, other in zip(columns(rows), columns(again), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(8, 60))
def test_label_sets_of_mlsmote_contain_each_other(seed: int, size: int) -> None:
    embeddings, labels = make(seed, size)
    made = {
        kind: oversample(real_rows(embeddings, labels), NAMES, "mlsmote", seed, 30, only=("b",), mlsmote_labels=kind)
        for kind in ("intersection", "ranking", "union")
    }
    few, some, many = (made[kind].labels[size:] for kind in ("intersection", "ranking", "union"))
    assert (few <= some).all() and (some <= many).all() and few[:, 1].all()
    first, second = made["union"].parents[size:].T
    assert (many >= (labels[first] | labels[second])).all()
    assert (few <= (labels[first] & labels[second])).all()


def test_mlsmote_takes_the_labels_of_more_than_half() -> None:
    # Four rows share b. Among a row and its three neighbors, three have a, two have c, and one has d.
    labels = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1]], dtype=np.int8)
    rows = real_rows(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), labels)
    for kind, expected in (("ranking", [1, 1, 0, 0]), ("union", [1, 1, 1, 1]), ("intersection", [0, 1, 0, 0])):
        made = oversample(rows, tuple("abcd"), "mlsmote", 0, 6, neighbors=3, only=("b",), mlsmote_labels=kind)
        assert made.labels[4:].tolist() == [expected] * 2


def test_ismote_steps_reach_past_both_ends_and_the_references_walk_away() -> None:
    embeddings, labels = make(0, 40)
    steps = oversample(real_rows(embeddings, labels), NAMES, "ismote", 0, 5_000).steps[40:]
    # t = a − b for a ≥ 0.5, else a + b: mean 0.5; one row in eight is before x_q and one in eight after x_j.
    assert abs(steps.mean() - 0.5) < 0.02
    assert abs((steps < 0).mean() - 0.125) < 0.02 and abs((steps > 1).mean() - 0.125) < 0.02
    away = oversample(real_rows(embeddings, labels), NAMES, "ismote-r2", 0, 5_000).steps[40:]
    assert abs((away < 0).mean() - 0.875) < 0.02 and away.max() <= 0.5


def test_targets_by_ratio_and_by_mean_ratio() -> None:
    labels = np.zeros((100, 3), dtype=np.int8)
    labels[:60, 0], labels[60:80, 1], labels[80:84, 2] = 1, 1, 1
    rows = real_rows(np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32), labels)
    names = ("a", "b", "c")
    assert oversample(rows, names, "smote", 0, ratio=4.0).labels.sum(axis=0).tolist() == [60, 20, 15]
    # IRLbl 1, 3, 15; MeanIR 19/3; ML-ROS copies only c, up to 60 / (19/3) = 9.47.
    assert oversample(rows, names, "duplicate", 0).labels.sum(axis=0).tolist() == [60, 20, 10]
    assert oversample(rows, names, "duplicate", 0, 50, only=("b",)).labels.sum(axis=0).tolist() == [60, 50, 4]
    assert len(oversample(rows, names, "none", 0, 50)) == 100
    with pytest.raises(BalanceError, match="balance_labels: d is not a label"):
        oversample(rows, names, "smote", 0, 50, only=("d",))


def test_imbalance_by_hand() -> None:
    labels = np.array([[1, 0], [1, 0], [1, 1], [1, 0], [0, 0]])
    found = imbalance(labels)
    assert found["IRLbl"] == [1.0, 4.0] and found["MeanIR"] == 2.5
    # One row of five has both labels: 1 − √(1·4) / ((1 + 4) / 2) = 0.2; rows of one label have 0.
    assert found["SCUMBLE"] == pytest.approx(0.2 / 5)
    assert imbalance(np.array([[1, 0]]))["IRLbl"] == [1.0, None]


def test_edge_cases() -> None:
    embeddings, labels = make(1, 10)
    labels[:, 1] = 0
    with pytest.raises(BalanceError, match="no training row has the label 'b'"):
        oversample(real_rows(embeddings, labels), NAMES, "smote", 0, 20)
    labels[3, 1] = 1
    for method in MADE:  # a single positive is copied
        rows = oversample(real_rows(embeddings, labels), NAMES, method, 0, 4, only=("b",))
        np.testing.assert_array_equal(rows.embeddings[10:], np.repeat(embeddings[3:4], 3, axis=0))
    enough = oversample(real_rows(embeddings, labels), NAMES, "ismote", 0, 1)  # many embeddings lie in a file
    assert len(enough) == 10 and np.shares_memory(enough.embeddings, embeddings)
    twins = np.repeat(embeddings, 2, axis=0), np.repeat(labels, 2, axis=0)  # copies among the neighbors
    assert len(oversample(real_rows(*twins), NAMES, "ismote", 0, 30, only=("b",))) == 20 + 28


@given(keep=st.floats(0, 1), seed=st.integers(0, 100))
def test_thinning_takes_only_rows_with_no_other_label(keep: float, seed: int) -> None:
    embeddings, labels = make(seed, 60)
    alone = (labels[:, 2] == 1) & (labels.sum(axis=1) == 1)
    rows = thin_label(real_rows(embeddings, labels), 2, keep, seed)
    kept = set(rows.parents[:, 0])
    assert set(np.flatnonzero(~alone)) <= kept
    assert len(rows) == (~alone).sum() + round(alone.sum() * keep)
    assert not rows.synthetic.any()
    assert len(thin_label(real_rows(embeddings, labels), 2, 3, seed)) == (~alone).sum() + min(3, alone.sum())
    having = labels[:, 2] == 1
    both = thin_label(real_rows(embeddings, labels), 2, keep, seed, alone=False)
    assert len(both) == (~having).sum() + round(having.sum() * keep)


def test_rows_between_embeddings_are_refused_for_words() -> None:
    with pytest.raises(
        RecipeError, match=r"have no words to read\. Remedy: with input tokens, use one of none, duplicate"
    ):
        check_recipe(Recipe(input="tokens", balance="smote"))
    check_recipe(Recipe(input="tokens", balance="duplicate"))
