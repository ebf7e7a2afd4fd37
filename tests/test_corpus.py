"""Corpora: every format gives the same rows; every fault is named with its place."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from training.corpus import STARTER_FOLDER, load_corpus
from training.reading import SPLITS, CorpusError
from training.taxonomy import GOEMOTIONS_15, GOEMOTIONS_28, TAXONOMIES

OWN = ["happy", "angry"]
TABLE = pd.DataFrame({"text": ["a b", "NA", "c,\td"], "labels": [["happy"], ["angry", "happy"], []]})
EXPECTED = np.array([[1, 0], [1, 1], [0, 0]])


def save(folder: Path, kind: str, table: pd.DataFrame = TABLE) -> None:
    flat = table.assign(labels=[",".join(names) for names in table.labels])
    for split in SPLITS:
        path = folder / f"{split}.{kind}"
        if kind == "parquet":
            table.to_parquet(path)
        elif kind == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            flat.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)


def test_a_hub_dataset_with_declared_label_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset folder, which ``datasets`` loads as it loads one from the Hub: ids whose names the features declare."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.Sequence(datasets.ClassLabel(names=["angry", "other", "happy"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": names})
    for split in SPLITS:
        rows = {"text": list(TABLE.text), "labels": [[2], [0, 2], [1]]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    corpus = load_corpus(str(tmp_path / "data"), OWN)
    for split in SPLITS:
        assert corpus[split].texts == list(TABLE.text) and corpus[split].without_label == 1
        np.testing.assert_array_equal(corpus[split].labels, EXPECTED)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    save(tmp_path, kind)
    corpus = load_corpus("files", OWN, str(tmp_path))
    for split in SPLITS:
        assert corpus[split].texts == list(TABLE.text)
        np.testing.assert_array_equal(corpus[split].labels, EXPECTED)
        assert corpus[split].without_label == 1
    dropped = load_corpus("files", OWN, str(tmp_path), unlabelled="drop")
    assert len(dropped["train"]) == 2 and dropped["train"].without_label == 1


def test_one_column_a_label_and_ids(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text("text,happy,angry\na b,1,0\nNA,1,1\n")
    np.testing.assert_array_equal(load_corpus("files", OWN, str(tmp_path))["test"].labels, EXPECTED[:2])
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text('text,labels\na b,0\nNA,"1,0"\n')
    np.testing.assert_array_equal(load_corpus("files", OWN, str(tmp_path))["test"].labels, EXPECTED[:2])


FAULTS = {
    "unknown label": (b"text,labels\nx,sad\n", r"train\.csv, line 2: unknown label 'sad'.*Remedy"),
    "id out of range": (b"text,labels\nx,7\n", r"train\.csv, line 2: label id 7 is out of range, 0 to 1"),
    "missing column": (b"words,labels\nx,happy\n", r"train\.csv: no column 'text', only words, labels.*Remedy"),
    "missing label column": (b"text,mood\nx,happy\n", r"no column 'labels'.*Remedy"),
    "empty file": (b"", r"train\.csv is empty"),
    "no rows": (b"text,labels\n", "train split has no rows"),
    "encoding": (b"text,labels\ncaf\xe9,happy\n", r"train\.csv: byte 15 is not UTF-8.*Remedy"),
    "too many cells": (b"text,labels\nhello, world,happy\n", r"line 2: 3 cells for the 2 columns text, labels.*Remedy"),
    "open quote": (b'text,labels\n"x,happy\ny,angry\n', r"line 2: unexpected end of data.*Remedy"),
    "line number": (b'text,labels\n"a\nb",happy\n\nx,sad\n', r"train\.csv, line 5: unknown label 'sad'"),
    "no list": (b'text,labels\nx,"[happy"\n', r"line 2: labels '\[happy' are not a list"),
    "fraction": (b"text,labels\nx,0.7\n", r"line 2: unknown label '0\.7'"),
    "empty text": (b"text,labels\n ,happy\n", r"train\.csv, line 2: the text is ' '.*Remedy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_their_place(tmp_path: Path, fault: str) -> None:
    save(tmp_path, "csv")
    content, message = FAULTS[fault]
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus("files", OWN, str(tmp_path))


def test_a_json_row_without_labels_is_named(tmp_path: Path) -> None:
    save(tmp_path, "jsonl")
    (tmp_path / "train.jsonl").write_text('{"text": "x", "labels": ["happy"]}\n\n{"text": "y", "lables": ["happy"]}\n')
    with pytest.raises(CorpusError, match=r"train\.jsonl, line 3: no labels"):
        load_corpus("files", OWN, str(tmp_path))


def test_ids_are_those_of_goemotions_for_its_label_sets(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text("text,labels\nx,0\ny,27\n")
    corpus = load_corpus("files", ["goemotions-15"], str(tmp_path))
    np.testing.assert_array_equal(corpus["train"].labels.sum(axis=1), [1, 0])
    assert corpus["train"].labels[0, corpus.labels.index("admiration")] == 1
    assert load_corpus("starter", ["joy", "anger"])["test"].labels.shape[1] == 2


def test_duplicate_ids_and_missing_split(tmp_path: Path) -> None:
    save(tmp_path, "jsonl", TABLE.assign(id=["1", "2", "1"]))
    with pytest.raises(CorpusError, match=r"line 3: id '1' stands already at .*line 1"):
        load_corpus("files", OWN, str(tmp_path), id_column="id")
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(CorpusError, match="exactly one test file"):
        load_corpus("files", OWN, str(tmp_path))


def test_split_without_positives_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "csv")
    (tmp_path / "test.csv").write_text("text,labels\nx,happy\n")
    load_corpus("files", OWN, str(tmp_path))
    assert "test: no positive row for angry" in caplog.text


def goemotions(folder: Path) -> None:
    (folder / "labels.txt").write_text("\n".join(GOEMOTIONS_28))
    for name in ("train", "dev", "test"):
        lines = [f"text {i}\u2028more\t{i}{',27' if i == 3 else ''}\tid{i}" for i in range(28)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", TAXONOMIES)
def test_label_sets_on_goemotions(tmp_path: Path, name: str) -> None:
    goemotions(tmp_path)
    corpus = load_corpus("goemotions", [name], str(tmp_path))
    assert corpus.labels == TAXONOMIES[name].labels
    for split in SPLITS:
        assert corpus[split].labels.shape == (28, len(corpus.labels))
    by_name = dict(zip(GOEMOTIONS_28, corpus["train"].labels, strict=True))
    named = {label: {corpus.labels[i] for i in np.flatnonzero(row)} for label, row in by_name.items()}
    wanted = {
        "goemotions-28": {"annoyance", "neutral"},
        "goemotions-15": {"annoyance"},
        "ekman": {"anger", "neutral"},
        "sentiment": {"negative", "neutral"},
    }[name]
    assert named["annoyance"] == wanted
    if name == "goemotions-15":
        assert corpus.labels == GOEMOTIONS_15 and corpus["train"].without_label == 13


def test_goemotions_faults(tmp_path: Path) -> None:
    goemotions(tmp_path)
    (tmp_path / "dev.tsv").write_text("x\t28\tid\n")
    with pytest.raises(CorpusError, match=r"dev\.tsv, line 1: column labels: id 28 is out of range"):
        load_corpus("goemotions", ["goemotions-28"], str(tmp_path))
    goemotions(tmp_path)
    with pytest.raises(CorpusError, match="unknown label set 'ekmann'"):
        load_corpus("goemotions", ["ekmann"], str(tmp_path))


def test_starter_corpus() -> None:
    corpus = load_corpus("starter", ["goemotions-28"])
    total = sum(corpus[split].labels.sum(axis=0) for split in SPLITS)
    assert total.min() >= 40
    texts = [re.sub(r"\W", "", text.lower()) for split in SPLITS for text in corpus[split].texts]
    assert len(texts) >= 1_200 and max(Counter(texts).values()) == 1
    assert all(corpus[split].labels.sum(axis=0).min() > 0 for split in SPLITS)
    two = sum(int((corpus[split].labels.sum(axis=1) >= 2).sum()) for split in SPLITS)
    assert two > 400
    ids = [json.loads(line)["id"] for path in STARTER_FOLDER.glob("*.jsonl") for line in path.open(encoding="utf-8")]
    assert len(ids) == len(set(ids)) == len(texts)
