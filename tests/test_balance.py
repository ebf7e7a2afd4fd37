"""Balancing: new rows lie where the paper says, carry their parents, and never come from outside train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.audit import LeakError, audit_rows
from training.balance import ismote, real_rows, thin_label
from training.corpus import Corpus, Split

NAMES = ("a", "b", "neutral")


def make(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random((size, 3)) < (0.2, 0.1, 0.5)).astype(np.int8)
    labels[0] = (1, 1, 0)
    return generator.normal(size=(size, 5)).astype(np.float32), labels


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(3, 60), target=st.integers(1, 40))
def test_ismote_rows_are_what_their_parents_give(seed: int, size: int, target: int) -> None:
    embeddings, labels = make(seed, size)
    copies = embeddings.copy(), labels.copy()
    rows = ismote(real_rows(embeddings, labels), NAMES, target, seed, skip=("neutral",))
    np.testing.assert_array_equal(embeddings, copies[0])
    np.testing.assert_array_equal(labels, copies[1])
    new = slice(size, None)
    first, second = rows.parents[new].T
    expected = embeddings[first] + rows.steps[new, None] * (embeddings[second] - embeddings[first])
    np.testing.assert_allclose(rows.embeddings[new], expected, atol=1e-5)
    assert ((rows.steps > -0.5) & (rows.steps < 1.5)).all()
    np.testing.assert_array_equal(rows.labels[new], labels[first])
    assert ((labels[first] & labels[second]).any(axis=1)).all()
    assert (rows.labels.sum(axis=0)[:2] >= np.minimum(target, rows.labels.sum(axis=0)[:2])).all()
    assert (rows.labels.sum(axis=0)[:2] >= target).all()
    again = ismote(real_rows(embeddings, labels), NAMES, target, seed, skip=("neutral",))
    np.testing.assert_array_equal(again.embeddings, rows.embeddings)


def test_ismote_steps_reach_past_both_ends_and_towards_the_neighbour() -> None:
    embeddings, labels = make(0, 40)
    steps = ismote(real_rows(embeddings, labels), NAMES, 5_000, 0, skip=("neutral",)).steps[40:]
    # t = a − b for a ≥ 0.5, else a + b: mean 0.5, one row in eight before x_q and one in eight behind x_j.
    assert abs(steps.mean() - 0.5) < 0.02
    assert abs((steps < 0).mean() - 0.125) < 0.02 and abs((steps > 1).mean() - 0.125) < 0.02


def test_edge_cases() -> None:
    embeddings, labels = make(1, 10)
    labels[:, 1] = 0
    with pytest.raises(ValueError, match="no training row has the label 'b'"):
        ismote(real_rows(embeddings, labels), NAMES, 20, 0)
    labels[3, 1] = 1
    rows = ismote(real_rows(embeddings, labels), NAMES, 4, 0, skip=("a", "neutral"))
    np.testing.assert_array_equal(rows.embeddings[10:], np.repeat(embeddings[3:4], 3, axis=0))


@given(keep=st.floats(0, 1), seed=st.integers(0, 100))
def test_thinning_takes_only_rows_of_that_label_alone(keep: float, seed: int) -> None:
    embeddings, labels = make(seed, 60)
    alone = (labels[:, 2] == 1) & (labels.sum(axis=1) == 1)
    rows = thin_label(real_rows(embeddings, labels), 2, keep, seed)
    kept = set(rows.parents[:, 0])
    assert set(np.flatnonzero(~alone)) <= kept
    assert len(rows) == (~alone).sum() + round(alone.sum() * keep)
    assert not rows.synthetic.any()


def test_audit_refuses_leaks() -> None:
    embeddings, labels = make(2, 12)
    texts = [f"text {i}" for i in range(12)]
    train = Split(texts, texts, labels)
    other = Split(["x"], ["text 3"], labels[:1])
    corpus = Corpus("c", "", NAMES, {"train": train, "validation": other, "test": other})
    rows = ismote(real_rows(embeddings, labels), NAMES, 12, 0, skip=("neutral",))
    report = audit_rows(corpus, embeddings, rows)
    assert report["splits"]["test"]["texts_also_in_train"] == 1
    assert report["training_rows"]["synthetic"] == len(rows) - 12
    foreign = rows.parents.copy()
    foreign[-1, 1] = 12
    with pytest.raises(LeakError, match="outside the training split"):
        audit_rows(corpus, embeddings, dataclasses.replace(rows, parents=foreign))
    moved = rows.embeddings.copy()
    moved[-1] += 1
    with pytest.raises(LeakError, match="not what its parents give"):
        audit_rows(corpus, embeddings, dataclasses.replace(rows, embeddings=moved))
    turned = rows.labels.copy()
    turned[:, [0, 1]] = turned[:, [1, 0]]
    with pytest.raises(LeakError, match="other labels"):
        audit_rows(corpus, embeddings, dataclasses.replace(rows, labels=turned))
