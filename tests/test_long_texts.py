"""Long texts: read in windows to their end, in memory and time that a window's size bounds; short texts as ever."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from torch import nn

from modeling.infer import (
    EmotionClassifier,
    LoadedEncoder,
    bundled_tokenizer,
    features,
    load_encoder,
    texts as texts_module,
    tokenize,
)
from modeling.infer.encoders import WINDOW
from modeling.infer.texts import cut_text, share_texts
from tests.conftest import fake_encoder
from tests.test_texts import tiny_model

WORDS = st.text(st.sampled_from("ab \n\u3042"), max_size=200)


@given(text=WORDS, limit=st.integers(1, 40))
def test_pieces_make_up_the_text(text: str, limit: int) -> None:
    pieces = list(cut_text(text, limit))
    assert "".join(pieces) == text and all(len(piece) <= limit for piece in pieces)
    assert all(pieces) or text == ""
    for before, after in itertools.pairwise(pieces):
        # A word is cut only where a whole piece has no white space after its first character.
        assert after[0].isspace() or not any(character.isspace() for character in before[1:])


class Recorder:
    """Embeddings that depend on each text's content, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked.append(texts)
        return 3 * fake_encoder(texts)


def test_the_embedding_of_a_long_text_is_the_mean_of_its_windows() -> None:
    record = Recorder()
    encoder = LoadedEncoder("fake", "1", record, lambda text: len(text) <= WINDOW)
    short = ["sunny cake", "", "x" * WINDOW]
    long = " ".join(f"word{number}" for number in range(3_000)) + " " * 12_000 + "end"
    found = encoder([short[0], long, *short[1:]])
    np.testing.assert_array_equal(found[[0, 2, 3]], Recorder()(short))
    windows = [window for window in encoder.windows(long) if window.strip()]
    assert len(windows) > 2 and "".join(encoder.windows(long)) == long
    vectors = Recorder()(windows).astype(np.float64)
    weights = np.array([len("".join(window.split())) for window in windows], dtype=np.float64)
    weights /= weights.sum()
    mean = weights @ vectors
    expected = mean / np.linalg.norm(mean) * (weights @ np.linalg.norm(vectors, axis=1))
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)
    assert found.dtype == np.float32


def test_the_encoder_never_holds_more_than_some_windows() -> None:
    record = Recorder()
    encoder = LoadedEncoder("fake", "1", record, lambda text: len(text) <= WINDOW)
    texts = ["sunny " * 60_000, "x" * 300_000, "é" * 100_000, " \n" * 100_000, "a"]
    assert np.isfinite(encoder(texts)).all()
    assert max(len(text) for batch in record.asked for text in batch) <= WINDOW
    assert max(map(len, record.asked)) <= 64
    # Each character is read once: time is linear.
    assert sum(len(text) for batch in record.asked for text in batch) <= sum(map(len, texts))
    np.testing.assert_array_equal(encoder([" " * (WINDOW + 1)]), encoder([""]))


def test_a_window_fits_the_tokens_of_its_encoder() -> None:
    """A text may have few characters and many tokens."""
    record = Recorder()
    encoder = LoadedEncoder("fake", "1", record, lambda text: len(text.split()) + text.count("\u3042") <= 50)
    for text in ("a " * 700, "\u3042" * 1_500, "word " * 30 + "\u3042" * 60):
        record.asked.clear()
        encoder([text])
        read = [window for batch in record.asked[1:] for window in batch]
        assert len(read) > 1 and all(map(encoder.fits, read))  # type: ignore[arg-type]
        assert "".join(read).split() == text.split() or "".join("".join(read).split()) == "".join(text.split())


@pytest.mark.parametrize("name", ["use-multilingual-v3", "minilm"])
def test_real_encoders_read_to_the_end(name: str) -> None:
    encoder = load_encoder(name)
    calm = "The train leaves at nine and the office opens at ten. " * 40
    short, long, other = encoder(["I am so happy!", calm, calm + "I hate you, I am furious about all of this! " * 20])
    np.testing.assert_allclose([np.linalg.norm(row) for row in (short, long, other)], 1, atol=1e-4)
    np.testing.assert_allclose(short, encoder.encode(["I am so happy!"])[0], atol=1e-6)
    angry = encoder(["I hate you, I am furious about all of this!"])[0]
    assert other @ angry > long @ angry + 0.1
    assert long @ encoder.encode([calm[:500]])[0] > 0.8


def test_tokens_of_a_long_text_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bundled_tokenizer()
    text = "Thank you so much, this made my day! It's 2024, isn't it?\nGrazie mille 😀 お誕生日 " * 40
    whole = tokenize(tokenizer, [text], 1)[0]
    assert whole.dtype == np.int64 and len(text) < features._PIECE
    for piece in (60, 500, 3_001):
        monkeypatch.setattr(features, "_PIECE", piece)
        np.testing.assert_array_equal(tokenize(tokenizer, ["a", text, ""], 1)[1], whole)


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 30), max_size=60), most=st.integers(1, 7), characters=st.integers(1, 50))
def test_parts_are_the_texts_in_order(sizes: list[int], most: int, characters: int) -> None:
    texts = ["x" * size for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_module, "_TEXTS_OF_A_PART", most)
        patch.setattr(texts_module, "_CHARACTERS_OF_A_PART", characters)
        parts = list(share_texts(texts))
    assert [text for part in parts for text in part] == texts and all(parts)
    assert all(len(part) <= most and (len(part) == 1 or sum(map(len, part)) <= characters) for part in parts)


def test_many_texts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder()
    classifier = EmotionClassifier.from_model(tiny_model(), encoder=record)
    texts = [f"text {number}" for number in range(100)]
    expected = classifier.predict_proba(texts)
    monkeypatch.setattr(texts_module, "_TEXTS_OF_A_PART", 7)
    record.asked.clear()
    np.testing.assert_allclose(classifier.predict_proba(texts), expected, atol=1e-6)
    assert max(map(len, record.asked)) == 7 and [text for batch in record.asked for text in batch] == texts
    words = EmotionClassifier.from_model(tiny_model(input="hybrid"), encoder=fake_encoder)
    words.model.tokenizer = bundled_tokenizer()
    held: list[int] = []
    take = features.Features.take
    monkeypatch.setattr(features.Features, "take", lambda self, rows: held.append(len(rows)) or take(self, rows))
    words.model.backbone.embed_tokens = nn.Embedding(49_152, 16)
    assert np.isfinite(words.predict_proba(["sunny cake " * 20_000])).all()
    assert sum(held) > 300 and max(held) <= 64
