"""Split protocols: what stays together, what leaks, and how much."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from modeling.rows.tables import CorpusError
from training.data.balance import Rows, oversample, real_rows
from training.data.corpus import Corpus, Split
from training.data.splits import pooled_r2, stratified

NAMES = ("a", "b", "c")


def make(seed: int, rows: int = 300) -> Corpus:
    """Three splits with about two spellings of every text."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, 3)) < (0.5, 0.2, 0.1)).astype(np.int8)
    texts = [f"Text{',' if i % 2 else ' '}{i // 2}{'!' * (i % 2)}" for i in generator.permutation(rows)]
    parts = np.split(np.arange(rows), [rows // 2, 3 * rows // 4])
    splits = {
        name: Split([str(i) for i in part], [texts[i] for i in part], labels[part])
        for name, part in zip(("train", "validation", "test"), parts, strict=True)
    }
    return Corpus("c", "", NAMES, splits)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_stratified_keeps_copies_together_and_shares_similar(seed: int) -> None:
    corpus = make(seed)
    found = stratified(corpus, seed)
    before = sorted((t, tuple(y)) for s in corpus.splits.values() for t, y in zip(s.texts, s.labels, strict=True))
    after = sorted((t, tuple(y)) for s in found.splits.values() for t, y in zip(s.texts, s.labels, strict=True))
    assert before == after  # every row once
    groups = {name: {text.strip("!").replace(",", " ") for text in split.texts} for name, split in found.splits.items()}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    assert not groups["test"] & groups["validation"]
    assert 0.75 <= len(found["train"]) / 300 <= 0.85
    shares = np.array([split.labels.mean(axis=0) for split in found.splits.values()])
    assert (np.ptp(shares, axis=0) < 0.25).all()
    unlabelled = {name: int((~split.labels.any(axis=1)).sum()) for name, split in found.splits.items()}
    assert {name: split.without_label for name, split in found.splits.items()} == unlabelled
    again = stratified(corpus, seed)
    assert [split.ids for split in again.splits.values()] == [split.ids for split in found.splits.values()]


def test_stratified_needs_enough_texts() -> None:
    with pytest.raises(CorpusError, match="5 different texts cannot be split"):
        stratified(make(0, 10), 0)


def test_pooled_order_puts_children_of_test_rows_into_train() -> None:
    corpus = make(1)
    vectors = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)

    def balance(embeddings: np.ndarray, labels: np.ndarray) -> Rows:
        return oversample(real_rows(embeddings, labels), NAMES, "ismote-r2", 0, target=200)

    found, moved, rows = pooled_r2(corpus, vectors, balance, seed=0)
    assert [len(found[s]) for s in ("train", "validation", "test")] == [180, 60, 60]
    assert (~rows.synthetic).sum() == 180 and rows.synthetic.sum() > 150
    # Parents are indices into the moved vectors; real rows are train's own, in the order of its ids.
    first, second = moved[rows.parents[:, 0]], moved[rows.parents[:, 1]]
    np.testing.assert_allclose(rows.embeddings, first + rows.steps[:, None] * (second - first), atol=1e-5)
    assert (rows.parents[~rows.synthetic] < 180).all()
    outside = (rows.parents[rows.synthetic] >= 180).any(axis=1)
    assert 0.4 < outside.mean() < 0.9  # 1 − 0.6² is expected for random parents
    labels = np.concatenate([split.labels for split in found.splits.values()])
    np.testing.assert_array_equal(rows.labels, labels[rows.parents[:, 0]])
