"""Texts in whatever container: one result for each, in order, or an error that says what to write."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.pipelines.pt_utils import KeyDataset

from modeling.infer import EmotionClassifier, EmotionConfig, EmotionModel, EmotionPipeline
from tests.conftest import EMBED_DIM, LABELS, fake_encoder, tiny_config


def tiny_model(**settings: Any) -> EmotionModel:
    torch.manual_seed(0)
    backbone = tiny_config().to_diff_dict() | {"model_type": "mistral"}
    config = EmotionConfig(
        model_name="tiny/mistral",
        hidden_size=16,
        embed_dim=EMBED_DIM,
        emotion_labels=list(LABELS),
        backbone_config=backbone,
        threshold=0.0,
        **settings,
    )
    return EmotionModel(config).eval()


@pytest.fixture(scope="module")
def classifier() -> EmotionClassifier:
    return EmotionClassifier.from_model(tiny_model(), encoder=fake_encoder)


@pytest.fixture(scope="module")
def pipe(classifier: EmotionClassifier) -> EmotionPipeline:
    made = EmotionPipeline(model=classifier.model, task="text-classification", device=-1)
    made._classifier = classifier
    return made


class Rows(torch.utils.data.Dataset[str]):
    """A dataset of torch: a length and items, which do not end by themselves."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index % len(self.texts)]


Container = Callable[[list[str]], Iterable[str]]
CONTAINERS: dict[str, Container] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "generator": lambda texts: (text for text in texts),
    "iterator": iter,
    "map": lambda texts: map(str, texts),
    "chain": lambda texts: itertools.chain(texts[:1], texts[1:]),
    "dict keys": lambda texts: dict(enumerate(texts)).values(),
    "series": pd.Series,
    "series with another index": lambda texts: pd.Series(texts, index=range(7, 7 + len(texts))),
    "series of Arrow strings": lambda texts: pd.Series(texts, dtype="string[pyarrow]"),
    "index": pd.Index,
    "categorical": pd.Categorical,
    "array of objects": lambda texts: np.array(texts, dtype=object),
    "array of strings": lambda texts: np.array(texts, dtype=np.dtypes.StringDType()),
    "array of fixed width": lambda texts: np.array(texts, dtype=str),
    "column": lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
    "Arrow": lambda texts: pa.array(texts, pa.string()),
    "Arrow in chunks": lambda texts: pa.chunked_array([texts[:1], texts[1:]], pa.large_string()),
    "dataset of torch": Rows,
    "key of a dataset": lambda texts: KeyDataset(datasets.Dataset.from_dict({"text": texts}), "text"),
}
LAZY = {"generator", "iterator", "map", "chain", "dataset of torch", "key of a dataset"}
# NUL is left out: numpy's strings of a fixed width drop it at the end.
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, max_size=6
)


@pytest.mark.parametrize("name", CONTAINERS)
@settings(max_examples=8, deadline=None)
@given(texts=TEXTS)
def test_every_container_gives_a_result_for_each_text(
    classifier: EmotionClassifier, pipe: EmotionPipeline, name: str, texts: list[str]
) -> None:
    fill = CONTAINERS[name]
    expected = classifier.predict_proba(texts)
    found = classifier.predict_proba(fill(texts))
    np.testing.assert_array_equal(found, expected)
    assert classifier.predict(fill(texts)) == classifier.predict(texts)
    batch = classifier({"text": fill(texts)})
    assert len(batch["emotions"]) == len(texts)
    np.testing.assert_array_equal(batch["probabilities"], expected)
    said = pipe(fill(texts), top_k=None, batch_size=4)
    assert isinstance(said, list) != (name in LAZY)
    scores = [[{row["label"]: row["score"] for row in result}[label] for label in LABELS] for result in said]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_string_is_one_text(classifier: EmotionClassifier, pipe: EmotionPipeline) -> None:
    text = "sunny cake"
    for given_text in (text, np.str_(text)):
        np.testing.assert_array_equal(classifier.predict_proba(given_text), classifier.predict_proba([text]))
        assert classifier.predict(given_text) == classifier.predict([text])
        assert pipe(given_text) == pipe([text])
    row = classifier({"text": text, "id": 7})
    assert row["id"] == 7 and isinstance(row["emotions"][0], str) and row["probabilities"].shape == (len(LABELS),)
    rows = datasets.Dataset.from_dict({"text": ["sunny cake", "dark cellar"]})
    one, batched = rows.map(classifier), rows.map(classifier, batched=True)
    assert one["emotions"][:] == batched["emotions"][:]
    np.testing.assert_allclose(np.array(one["probabilities"]), np.array(batched["probabilities"]), atol=1e-6)


@pytest.mark.parametrize("empty", [[], (), pd.Series([], dtype=object), np.array([], dtype=str), pa.array([])])
def test_nothing_gives_nothing(classifier: EmotionClassifier, pipe: EmotionPipeline, empty: Any) -> None:
    assert classifier.predict(empty) == [] and classifier.predict_proba(empty).shape == (0, 3)
    assert list(pipe(empty)) == []
    assert list(pipe(iter(empty))) == []


FRAME = pd.DataFrame({"text": ["a", "b"], "id": [1, 2]})
WRONG: dict[str, tuple[Any, str]] = {
    "bytes": (b"sunny", r"texts is bytes.*decode it"),
    "bytearray": (bytearray(b"sunny"), r"texts is bytearray.*decode it"),
    "mapping": ({"text": ["a"]}, r"texts is a mapping of \['text'\].*column \['text'\]"),
    "ordered mapping": (OrderedDict(text=["a"]), r"texts is a mapping of \['text'\].*column \['text'\]"),
    "none": (None, r"texts is NoneType.*give a string"),
    "number": (7, r"texts is int.*give a string"),
    "path": (Path("a.txt"), r"texts is PosixPath.*give a string"),
    "frame": (FRAME, r"texts is DataFrame.*column \['text'\]"),
    "rows of a dataset": (datasets.Dataset.from_pandas(FRAME), r"texts is Dataset.*column \['text'\]"),
    "Arrow table": (pa.table({"text": ["a", "b"]}), r"texts is Table.*column \['text'\]"),
    "two dimensions": (np.array([["a", "b"], ["c", "d"]]), r"texts is ndarray.*one flat list"),
    "no dimension": (np.array("a"), r"texts is ndarray.*one flat list"),
    "numbers": (np.arange(3), r"texts\[0\] is int64.*give a string"),
    "tensor": (torch.arange(3), r"texts\[0\] is Tensor"),
    "Arrow of numbers": (pa.array([1, 2]), r"texts\[0\] is int.*give a string"),
    "a null of Arrow": (pa.array(["a", None]), r"texts\[1\] is NoneType.*leave it out"),
    "a missing value": (pd.Series(["a", None], dtype="string[pyarrow]"), r"texts\[1\] is NAType.*leave it out"),
    "nested": ([["a", "b"]], r"texts\[0\] is list.*one flat list"),
    "pairs": ([("a", "b")], r"texts\[0\] is tuple.*one flat list"),
    "bytes inside": (["a", b"b"], r"texts\[1\] is bytes.*decode it"),
    "array of bytes": (np.array([b"a"]), r"texts\[0\] is bytes_.*decode it"),
    "chat": ([{"role": "user", "content": "a"}], r"texts\[0\] is a mapping of \['role', 'content'\]"),
    "generator": ((text for text in ["a", 7]), r"texts\[1\] is int.*give a string"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_no_texts_is_refused_in_words(
    classifier: EmotionClassifier, pipe: EmotionPipeline, name: str
) -> None:
    given_texts, message = WRONG[name]
    calls: list[Callable[[Any], Any]] = [
        classifier.predict,
        classifier.predict_proba,
        lambda texts: classifier({"text": texts}),
        lambda texts: list(pipe(texts)),
    ]
    for call in calls[:1] if name == "generator" else calls:
        with pytest.raises(TypeError, match=rf"(?s)^{message}") as caught:
            call(given_texts)
        assert "Remedy: " in str(caught.value) and len(str(caught.value)) < 250


def test_the_index_of_a_wrong_item_counts_from_the_first_text(pipe: EmotionPipeline) -> None:
    results = pipe((text for text in ["a", "b", "c", None]), batch_size=2)
    assert len(list(itertools.islice(results, 2))) == 2
    with pytest.raises(TypeError, match=r"^texts\[3\] is NoneType"):
        list(results)


def test_a_generator_is_read_on_demand(pipe: EmotionPipeline) -> None:
    results = pipe((str(number) for number in itertools.count()), batch_size=3)
    assert len(list(itertools.islice(results, 10))) == 10


BLANK = [
    "",
    " ",
    "\n\t\r",
    "\u00a0\u2003",
    "\u200b\ufeff",
    "\u2028",
    "\x00\x07",
    "\u3164\u2800",
    "\u115f\ufe0f",
    " " * 100_000,
]


def test_a_text_without_a_visible_character_carries_no_label(classifier: EmotionClassifier) -> None:
    """Whatever the thresholds are, alone or among others; the probabilities stay the model's."""
    texts = [*BLANK, "sunny", ".", "😀"]
    for threshold in (None, 0.0, {"joy": 0.0}):
        found = classifier.predict(texts, threshold=threshold)
        assert found[: len(BLANK)] == [{}] * len(BLANK) and all(found[len(BLANK) :])
    batch = classifier({"text": texts})
    assert batch["emotions"][: len(BLANK)] == [[]] * len(BLANK) and all(batch["emotions"][len(BLANK) :])
    assert (classifier.predict_proba(BLANK) > 0).all()


def test_repr_says_what_was_loaded(classifier: EmotionClassifier, package: Path) -> None:
    loaded = EmotionClassifier(package)
    said = repr(loaded)
    assert said.startswith(f"<EmotionClassifier of {package}: 3 labels ('joy', 'anger', 'fear'), input embedding")
    assert "backbone tiny/mistral, encoder use-multilingual-v3, on cpu in torch.float32>" in said
    half = EmotionClassifier(package, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and "on cpu in torch.bfloat16>" in repr(half)
    assert repr(classifier).startswith("<EmotionClassifier of a loaded model: 3 labels")
    words = EmotionClassifier.from_model(tiny_model(input="tokens"))
    assert "encoder" not in repr(words) and "input tokens" in repr(words)


@pytest.mark.parametrize("batch_size", [0, -5, 2.5, True, "8", None])
def test_batch_size(batch_size: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size is .*Remedy: use a whole number from 1"):
        EmotionClassifier.from_model(tiny_model(), batch_size=batch_size, encoder=fake_encoder)


ODD_ROWS = [np.full((2, EMBED_DIM), np.nan), np.zeros((1, EMBED_DIM)), np.zeros(EMBED_DIM), None, [[1.0], [1.0, 2.0]]]


@pytest.mark.parametrize("rows", ODD_ROWS)
def test_an_encoder_without_one_finite_row_for_each_text(rows: Any) -> None:
    classifier = EmotionClassifier.from_model(tiny_model(), encoder=lambda _: rows)
    with pytest.raises(ValueError, match=f"the encoder gives {type(rows).__name__}, .* for 2 texts.*Remedy"):
        classifier.predict(["a", "b"])


def test_an_argument_of_another_type_is_refused_before_anything_is_read(
    classifier: EmotionClassifier, package: Path
) -> None:
    for name in (None, 5, ["a"]):
        with pytest.raises(TypeError, match=r"the package is .*Remedy: name a folder"):
            EmotionClassifier(cast(Any, name))
    with pytest.raises(TypeError, match=r"encoder is 'minilm'\. Remedy: give a callable"):
        EmotionClassifier(package, encoder=cast(Any, "minilm"))
    with pytest.raises(ValueError, match=r"unknown quantization '4bit'\. Remedy: "):
        EmotionClassifier(package, quantization=cast(Any, "4bit"))
    with pytest.raises(TypeError, match=r"exclude_unreliable is 'no'\. Remedy: use True or False"):
        classifier.predict(["a"], exclude_unreliable=cast(Any, "no"))
