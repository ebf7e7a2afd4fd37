"""Corpora: every format gives the same rows; every error names its place."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from modeling.rows.tables import CorpusError, read_table
from training.data.corpus import STARTER_FOLDER, load_corpus
from training.data.reading import SPLITS
from training.data.taxonomy import GOEMOTIONS_15, GOEMOTIONS_28, TAXONOMIES

OWN = ["happy", "angry"]
TABLE = pd.DataFrame({"text": ["a b", "NA", "c,\td"], "labels": [["happy"], ["angry", "happy"], []]})
EXPECTED = np.array([[1, 0], [1, 1], [0, 0]])


def save(folder: Path, kind: str, table: pd.DataFrame = TABLE, splits: Sequence[str] = SPLITS) -> None:
    flat = table.assign(labels=[",".join(names) for names in table.labels])
    for split in splits:
        path = folder / f"{split}.{kind}"
        if kind == "parquet":
            table.to_parquet(path)
        elif kind == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            flat.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)


def test_a_hub_dataset_with_declared_label_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` loads a local folder as it loads a Hub dataset: the features declare the names of the ids."""
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


def test_one_column_per_label_and_ids(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text("text,happy,angry\na b,1,0\nNA,1,1\n")
    np.testing.assert_array_equal(load_corpus("files", OWN, str(tmp_path))["test"].labels, EXPECTED[:2])
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text('text,labels\na b,0\nNA,"1,0"\n')
    with pytest.raises(CorpusError, match=r"train\.csv, line 2.*'0' is a number.*0 is happy.*--label_format ids"):
        load_corpus("files", OWN, str(tmp_path))
    np.testing.assert_array_equal(
        load_corpus("files", OWN, str(tmp_path), label_format="ids")["test"].labels, EXPECTED[:2]
    )


FAULTS: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    # file to break, its content, and what the message must have: place, column, value and the reason
    "unknown label": ("train.csv", b"text,labels\nx,sad\n", ("line 2", "'labels'", "unknown label 'sad'")),
    "number out of range": ("train.csv", b"text,labels\nx,7\n", ("line 2", "'labels'", "unknown label '7'")),
    "fraction": ("train.csv", b"text,labels\nx,0.7\n", ("line 2", "'labels'", "'0.7'")),
    "no list": ("train.csv", b'text,labels\nx,"[happy"\n', ("line 2", "'labels'", "'[happy'")),
    "not 0 or 1": ("train.csv", b"text,happy,angry\nx,0,2\n", ("line 2", "'angry'", "'2' is not 0 or 1")),
    "missing text column": ("train.csv", b"words,labels\nx,happy\n", ("'text'", "'words', 'labels'", "--text_column")),
    "missing labels": ("train.csv", b"text,mood\nx,happy\n", ("'labels'", "'text', 'mood'", "--label_column")),
    "repeated column": ("train.csv", b"text,labels,text\nx,happy,y\n", ("line 1", "'text'", "twice")),
    "empty file": ("train.csv", b"", ("line 1", "empty")),
    "header only": ("train.csv", b"text,labels\n", ("line 1", "'text', 'labels'", "no rows")),
    "blank lines": ("train.jsonl", b"\n\n", ("line 1", "empty")),
    "windows": ("train.csv", b"text,labels\ncaf\xe9,happy\n", ("line 2", "byte 15", "WINDOWS-1252", "caf\ufffd,happy")),
    "UTF-16, little": ("train.csv", "text,labels\n".encode("utf-16"), ("line 1", "iconv -f UTF-16 -t UTF-8")),
    "UTF-16, big": ("train.csv", b"\xfe\xff" + "text".encode("utf-16-be"), ("line 1", "iconv -f UTF-16 -t UTF-8")),
    "too many cells": (
        "train.csv",
        b"text,labels\na, b,happy\n",
        ("line 2", "3 cells", "'text', 'labels'", "'a', ' b'"),
    ),
    "open quote": ("train.csv", b'text,labels\n"x,happy\ny,angry\n', ("line 2", "column 1", "'\"x,happy")),
    "open quote, later": (
        "train.csv",
        b'text,labels\nw,happy\n"a\nb","happy\ny,angry\n',
        ("line 4", "column 2", "'\"happy"),
    ),
    "quote that another ends": ("train.csv", b'text,labels\n"x,happy\n"y",angry\n', ("line 2", "column 1", "'\"x")),
    "open quote, tabs": ("train.tsv", b'text\tlabels\n"x\ny\tangry\n', ("line 2", "'\"x'", "close the quotes")),
    "line after breaks": ("train.csv", b'text,labels\n"a\nb",happy\n\nx,sad\n', ("line 5", "'labels'", "'sad'")),
    "empty text": ("train.csv", b"text,labels\n ,happy\n", ("line 2", "'text'", "' '")),
    "half a character": ("train.jsonl", b'{"text": "\\ud83d", "labels": []}', ("line 1", "'text'", "ud83d", "half")),
    "no labels": (
        "train.jsonl",
        b'{"text": "x"}\n\n{"text": "y", "lables": []}',
        ("'labels'", "only 'text', 'lables'", "Did you mean 'lables'"),
    ),
    "no label in a row": (
        "train.jsonl",
        b'{"text": "x", "labels": ["happy"]}\n\n{"text": "y", "lables": ["happy"]}',
        ("line 3", "'labels'", "nan"),
    ),
    "not JSON": ("train.jsonl", b'{"text": "x", "labels": []}\n{oh}\n', ("line 2", "'{oh}'", "not JSON")),
    "no object": ("train.jsonl", b'["x", "happy"]\n', ("line 1", '["x", "happy"]', "not an object")),
    "not Parquet": ("train.parquet", b"text", ("cannot be read as Parquet",)),
    "duplicate id": ("train.csv", b"text,labels,id\nx,happy,1\ny,angry,1\n", ("line 3", "'id'", "'1'", "line 2")),
    "id of another split": (
        "test.csv",
        b"text,labels,id\nx,happy,train2\n",
        ("line 2", "'id'", "'train2'", "train.csv"),
    ),
    "missing id column": ("train.csv", b"text,labels\nx,happy\n", ("'id'", "only 'text', 'labels'", "--id_column")),
    "missing file": ("train.txt", b"", ("exactly one train file", "train.csv, train.tsv")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_place_column_value_and_remedy(tmp_path: Path, fault: str) -> None:
    broken, content, wanted = FAULTS[fault]
    for split in SPLITS:
        if not broken.startswith(split):
            ids = [f"{split}{row}" for row in range(len(TABLE))]
            save(tmp_path, "csv", TABLE.assign(id=ids), [split])
    (tmp_path / broken).write_bytes(content)
    with pytest.raises(CorpusError) as raised:
        load_corpus("files", OWN, str(tmp_path), id_column="id" if "id" in fault.split() else None)
    message = str(raised.value)
    named = str(tmp_path) if fault == "missing file" else str(tmp_path / broken)
    assert message.startswith(named) and "Remedy: " in message
    assert [part for part in wanted if part not in message] == []


def test_parquet_without_rows_is_named(tmp_path: Path) -> None:
    save(tmp_path, "parquet")
    TABLE.iloc[:0].to_parquet(tmp_path / "train.parquet")
    with pytest.raises(CorpusError, match=r"train\.parquet, row 1: no rows, only the columns 'text', 'labels'.*Remedy"):
        load_corpus("files", OWN, str(tmp_path))


def test_a_quote_does_not_swallow_rows_of_a_tsv_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    texts = ['"open', 'closed ""twice""', '"a" and b', 'a "b', '"']
    lines = [f"{text}\thappy" for text in texts] + ['"one\ttab ""x"""\thappy', '"two\nlines"\tangry', '"last\thappy']
    path.write_text("text\tlabels\n" + "\n".join(lines) + "\n")
    table, places = read_table(path)
    assert table.text.tolist() == [*texts, 'one\ttab "x"', "two\nlines", '"last']
    assert table.labels.tolist() == ["happy"] * 6 + ["angry", "happy"]
    assert places[-1].endswith("line 10")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_table(path)[0].labels.tolist() == table.labels.tolist()


def test_ids_are_those_of_goemotions_for_its_label_sets(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text("text,labels\nx,0\ny,27\n")
    corpus = load_corpus("files", ["goemotions-15"], str(tmp_path), label_format="ids")
    np.testing.assert_array_equal(corpus["train"].labels.sum(axis=1), [1, 0])
    assert corpus["train"].labels[0, corpus.labels.index("admiration")] == 1
    assert load_corpus("starter", ["joy", "anger"])["test"].labels.shape[1] == 2


def test_split_without_positives_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "csv")
    (tmp_path / "test.csv").write_text("text,labels\nx,happy\n")
    load_corpus("files", OWN, str(tmp_path))
    assert "test: no positive row for angry" in caplog.text


def goemotions(folder: Path) -> None:
    (folder / "labels.txt").write_text("\n".join(GOEMOTIONS_28))
    for name in ("train", "dev", "test"):
        lines = [f"text {i}\u2028more\t{i}{',27' if i == 3 else ''}\t{name}{i}" for i in range(28)]
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
    with pytest.raises(CorpusError, match=r"dev\.tsv, line 1, column 'labels': label id 28 is out of range.*Remedy"):
        load_corpus("goemotions", ["goemotions-28"], str(tmp_path))
    for content, message in (
        ("x\t3\n", r"line 1: 2 cells for the 3 columns text, labels, id: 'x\\t3'.*Remedy"),
        ("x\tjoy\tid\n", r"line 1, column 'labels': 'joy' is not a list of ids.*Remedy"),
        ("x\t3\ttrain3\n", r"line 1, column 'id': id 'train3' is already at .*train\.tsv, line 4.*Remedy"),
    ):
        (tmp_path / "dev.tsv").write_text(content)
        with pytest.raises(CorpusError, match=rf"dev\.tsv, {message}"):
            load_corpus("goemotions", ["goemotions-28"], str(tmp_path))
    (tmp_path / "labels.txt").write_text("joy\nanger\n")
    with pytest.raises(CorpusError, match=r"labels\.txt: 'joy anger' is not the 28 GoEmotions labels.*Remedy"):
        load_corpus("goemotions", ["goemotions-28"], str(tmp_path))
    goemotions(tmp_path)
    with pytest.raises(CorpusError, match=r"'ekmann' is not a label set\. Did you mean 'ekman'"):
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
