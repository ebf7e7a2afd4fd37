"""Labels that look wrong: planted ones are found, and what is left out is left out of training alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modeling.records import SUSPECTS
from modeling.rows.tables import CorpusError
from tests.conftest import LABELS, tiny_flags
from tests.test_folds import WORDS, read
from training.audit.suspects import COLUMNS, find_suspects, read_dropped, write_suspects
from training.corpora import Corpora
from training.data.corpus import Corpus, Split
from training.fit.prepare import prepare
from training.options import parse
from training.recipe import RecipeError
from training.run import main
from training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("pixels")

WRONG = (4, 23, 41, 50)
"""Rows whose label is that of other words."""


def write_rows(folder: Path) -> Path:
    rows = []
    for i in range(60):
        name = LABELS[i % 3]
        rows.append({"text": f"train {i} {WORDS[name]}", "labels": [LABELS[(i + 1) % 3] if i in WRONG else name]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def flags_of(rows: Path, output: Path, *more: str) -> list[str]:
    """The baseline without a backbone learns these words in a moment."""
    labels = " ".join(LABELS)
    own = (
        f"--recipe goemotions_mlp --dataset files --data_dir {rows} --labels {labels} --output_dir {output} --split cross-fit "
        "--folds 4 --balance none --neutral_keep 1 --epochs 30 --batch_size 8"
    )
    return [*own.split(), *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("suspects")
    assert main(flags_of(write_rows(base), base / "run")) == 0
    return base / "run"


@pytest.fixture(scope="module")
def listed(run: Path) -> list[dict[str, str]]:
    assert main(["suspects", str(run)]) == 0
    with (run / SUSPECTS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_planted_labels_come_first(listed: list[dict[str, str]]) -> None:
    assert {int(row["row"]) for row in listed[: 2 * len(WRONG)]} == set(WRONG)
    scores = [float(row["score"]) for row in listed]
    assert scores == sorted(scores)
    for row in listed[: 2 * len(WRONG)]:  # the label that a row has, and the one that it lacks
        assert row["text"].split()[1] == row["row"] and {row["given"], row["expected"]} == {"0", "1"}


def test_a_list_that_is_there_is_not_replaced(
    run: Path, listed: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / SUSPECTS).read_bytes()
    assert main(["suspects", str(run)]) == 2 and "may have your changes" in capsys.readouterr().err
    assert (run / SUSPECTS).read_bytes() == before


def test_every_text_survives_the_list(tmp_path: Path) -> None:
    texts = ["a\rb", "a\nb", '"quoted", text', "=1+1", "plain"]
    table = pd.DataFrame([(i, text, "joy", 1, 0, 0.1) for i, text in enumerate(texts)], columns=list(COLUMNS))
    write_suspects(table, tmp_path / "mine.csv")
    split = Split([*map(str, range(6))], [*texts, "another"], np.ones((6, 1), np.int8))
    corpus = Corpus("x", "", ("joy",), dict.fromkeys(("train", "validation", "test"), split))
    assert read_dropped(tmp_path / "mine.csv", corpus).tolist() == [True] * 5 + [False]


def test_what_is_listed_is_left_out_of_training_alone(run: Path, listed: list[dict[str, str]], tmp_path: Path) -> None:
    chosen = [row for row in listed if int(row["row"]) in WRONG]
    with (tmp_path / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, chosen[0].keys())
        writer.writeheader()
        writer.writerows(chosen)
    rows = run.parent / "rows.jsonl"
    assert main(flags_of(rows, tmp_path / "run", "--leave_out", str(tmp_path / "mine.csv"))) == 0
    audit, before = read(tmp_path / "run" / "audit.json"), read(run / "audit.json")
    assert audit["left_out"]["rows"] == before["training_rows"]["real"] - audit["training_rows"]["real"] == len(WRONG)
    assert audit["splits"] == before["splits"]
    (tmp_path / "mine.csv").write_text(
        "text,label,given\n" + f"{chosen[0]['text']},{chosen[0]['label']},{chosen[0]['given']}\n"
    )
    again = flags_of(rows, tmp_path / "run", "--leave_out", str(tmp_path / "mine.csv"), "--resume")
    assert main(again) == 2  # the list is another than that of the run


def test_test_rows_are_never_left_out(tiny_backbone: str, tmp_path: Path) -> None:
    """The same text in train and in test, listed."""
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{WORDS[name]} {i}", "labels": [name]} for i, name in enumerate(LABELS * 4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.csv").write_text(f"text,label,given\n{WORDS['joy']} 0,joy,1\n")
    flags = tiny_flags(tmp_path, tiny_backbone, tmp_path / "run")
    recipe = parse([*flags, "--leave_out", str(tmp_path / "mine.csv"), "--balance", "none"]).recipe
    data = prepare(recipe, Corpora())
    assert len(data.rows) == 11 and [len(data.corpus[split]) for split in ("validation", "test")] == [12, 12]


def corpus() -> Corpus:
    split = Split(["1", "2"], ["a text", "b text"], np.array([[1, 0], [0, 1]], np.int8))
    return Corpus("x", "", ("joy", "fear"), dict.fromkeys(("train", "validation", "test"), split))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na text,joy\n", "no column 'given'"),
        ("text,label,given\na text,pride,1\n", "'pride' is not a label"),
        ("text,label,given\na text,joy,yes\n", "'yes' is not 0 or 1"),
        ("text,label,given\nc text,joy,1\n", "none of its 1 rows"),
        ("text,label,given\na text,joy,0\n", "none of its 1 rows"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(CorpusError, match=message) as refused:
        read_dropped(tmp_path / "mine.csv", corpus())
    assert "Remedy: " in str(refused.value)


def test_a_listed_row_is_found_by_text_and_label(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        "row,text,label,given,expected,score\n7,b text,fear,1,0,0.1\n8,a text,fear,1,0,0.1\n"
    )
    assert read_dropped(tmp_path / "mine.csv", corpus()).tolist() == [False, True]


def test_a_run_that_knows_its_rows_is_refused(finished_run: Path) -> None:
    with pytest.raises(RecipeError, match="cross-fit"):
        find_suspects(RunFolder(finished_run))
