"""The sentence encoder in bfloat16: the embeddings of its library."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from modeling.infer import load_encoder
from modeling.infer.encoder_graph import compile_encoder

TEXTS = [
    "I passed the exam!",
    "",
    " ",
    "Che bella sorpresa, non me l'aspettavo!",
    "今日は本当に疲れた。",
    "😀",
    "What?!",
    "a",
    "I am scared of what they will say. " * 40,
    "word " * 5_000,
    *(f"text {number} " * (number % 9 + 1) for number in range(90)),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_embeddings_are_those_of_the_library(threads: int) -> None:
    """In batches and one by one, in the order of the texts."""
    expected = load_encoder("use-multilingual-v3", 1)(TEXTS)
    encoder = load_encoder("use-multilingual-v3", threads, bfloat16=True)
    assert encoder.version == load_encoder("use-multilingual-v3").version
    found = encoder(TEXTS)
    assert found.dtype == np.float32 and not np.array_equal(found, expected)
    cosines = (found * expected).sum(axis=1)
    # The library itself promises 0.99 to the original. A text that says the same all over rounds the same all over.
    assert cosines.min() > 0.99 and cosines.mean() > 0.9995 and abs(np.linalg.norm(found, axis=1) - 1).max() < 0.01
    one_by_one = np.concatenate([encoder([text]) for text in TEXTS[:12]])
    assert (one_by_one * expected[:12]).sum(axis=1).min() > 0.99
    assert encoder([]).shape == (0, 512)


def test_an_encoder_of_another_kind_is_left_to_its_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(encoder: object, threads: int) -> None:
        raise AttributeError("proj_W")

    monkeypatch.setattr("modeling.infer.encoders.compile_encoder", fail)
    caplog.set_level(logging.INFO)
    found = load_encoder("use-multilingual-v3", 1, bfloat16=True)(TEXTS[:3])
    np.testing.assert_array_equal(found, load_encoder("use-multilingual-v3", 1)(TEXTS[:3]))
    assert "is computed by its library" in caplog.text


def test_other_encoders_are_computed_as_ever() -> None:
    assert load_encoder("minilm", bfloat16=True).name == "minilm"


def test_other_layers_are_told_apart() -> None:
    with pytest.raises(AttributeError):
        compile_encoder(object(), 1)
