"""Evaluation on any labeled file: mappings, odd files, counts worked out by hand, equal scores of run and package."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from modeling.infer import EmotionClassifier, EmotionConfig
from modeling.rows.tables import CorpusError
from training.commands import evaluate as evaluation
from training.commands.evaluate import load_classifier, score
from training.data.label_mapping import LabelMapping, MappingError, match_labels, read_mapping, shipped_mappings
from training.data.labeled_file import FileOptions, LabeledRow, read_labeled_file
from training.data.taxonomy import GOEMOTIONS_28, MAPPINGS, TAXONOMIES
from training.options import parse
from training.recipe import RecipeError
from training.run import main
from training.scores.scoring import Scored, score_policies, scores as training_scores, scores_with_intervals

pytestmark = pytest.mark.usefixtures("pixels")

XED = (
    "They don't know me here.\t1\r\n"
    ", ...\t8, 2\r\n"
    '"He said ""no"" twice."\t6, 1\r\n'
    "- (IN SPANISH)\t2, 8, 5\r\n"
    "What now?\t7\r\n"
)


def write_jsonl(path: Path, rows: list[tuple[str, list[str]]]) -> Path:
    path.write_text("".join(json.dumps({"text": t, "labels": names}) + "\n" for t, names in rows), encoding="utf-8")
    return path


def scored(output: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


# The same scores from a run and from its package


def test_run_and_package_give_the_scores_of_the_training(finished_run: Path, package: Path, tmp_path: Path) -> None:
    data = str(finished_run.parent / "corpus" / "test.jsonl")
    for model, name in ((finished_run, "run"), (package, "package")):
        assert main(["evaluate", str(model), "--data", data, "--output_dir", str(tmp_path / name)]) == 0
    run, packaged = scored(tmp_path / "run"), scored(tmp_path / "package")
    assert run["scores"] == packaged["scores"] and run["thresholds"] == packaged["thresholds"]
    trained = json.loads((finished_run / "metrics.json").read_text())["test"]
    for policy, name in (("package", "per_label"), ("fixed", "fixed")):
        for metric in ("macro_f1", "micro_f1"):
            assert run["scores"][policy][metric] == pytest.approx(trained[name][metric], abs=1e-9)
    assert run["rows"]["all_labels_mapped"] == run["rows"]["file"] == 18
    with (tmp_path / "run" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["joy", "anger", "fear"] * 2
    assert (tmp_path / "run" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        f"evaluation.{s}" for s in ("csv", "json", "png")
    ]


def test_a_run_reproduces_its_golden_texts(finished_run: Path) -> None:
    golden = json.loads((finished_run / "golden.json").read_text())
    classifier = load_classifier(str(finished_run))
    assert classifier.labels == golden["labels"]
    probabilities = classifier.predict_proba([row["text"] for row in golden["rows"]])
    np.testing.assert_allclose(probabilities, [row["probabilities"] for row in golden["rows"]], atol=1e-6)
    assert classifier.predict([golden["rows"][0]["text"]], threshold=0.0)[0].keys() == set(golden["labels"])


def test_the_order_of_the_file_changes_nothing(finished_run: Path, tmp_path: Path) -> None:
    lines = (finished_run.parent / "corpus" / "train.jsonl").read_text().splitlines()
    shuffled = random.Random(3).sample(lines, len(lines))
    assert shuffled != lines
    for name, content in (("a", lines), ("b", shuffled)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(content) + "\n")
        flags = ["--evaluate", str(finished_run), "--data", str(tmp_path / f"{name}.jsonl")]
        assert main([*flags, "--output_dir", str(tmp_path / name)]) == 0
    assert scored(tmp_path / "a")["scores"] == scored(tmp_path / "b")["scores"]


def test_intervals_are_those_of_training_and_hold_the_score() -> None:
    random_rows = np.random.default_rng(1)
    truth = (random_rows.random((600, 4)) < 0.3).astype(np.int8)
    predictions = np.where(random_rows.random((600, 4)) < 0.8, truth, 1 - truth).astype(np.int8)
    result = scores_with_intervals(predictions, truth, "abcd")
    whole, _ = score_policies(Scored(predictions.astype(float), truth), {"fixed": np.full(4, 0.5)}, "abcd")
    for name, interval in result["intervals_95"].items():
        assert interval == whole["fixed"]["intervals_95"][name]
    for name in ("macro_f1", "micro_f1"):
        low, high = result["intervals_95"][name]
        assert low < result[name] < high
    for label in result["per_label"].values():
        for name in ("precision", "recall", "f1"):
            low, high = label[f"{name}_95"]
            assert low < label[name] < high and high - low < 0.2


# A mapping by hand


def test_a_hand_worked_mapping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels joy, love, anger, boredom in the model and happy, cross, tired in the file; two are not mapped."""
    path = tmp_path / "own.yaml"
    path.write_text("labels: {happy: [joy, love], cross: [anger]}\n")
    probabilities = {
        "one": (0.1, 0.6, 0.2, 0.9),  # happy because of love, at both thresholds
        "two": (0.4, 0.1, 0.7, 0.1),  # happy because of joy, only at its own 0.3; cross
        "three": (0.0, 0.0, 0.0, 0.9),
        "four": (0.9, 0.9, 0.9, 0.9),
        "five": (0.1, 0.1, 0.1, 0.1),  # has no label, and none is predicted
    }
    config = EmotionConfig(
        emotion_labels=["joy", "love", "anger", "boredom"], thresholds={"joy": 0.3, "love": 0.55}, threshold=0.5
    )
    classifier = EmotionClassifier.__new__(EmotionClassifier)
    classifier.config, classifier.labels, classifier.batch_size = config, config.emotion_labels, 8
    monkeypatch.setattr(EmotionClassifier, "model", SimpleNamespace(tokenizer=None))
    classifier._engine = cast(Any, SimpleNamespace(tokenizer=None))
    classifier._encoder = lambda texts: np.zeros((len(texts), 1))
    monkeypatch.setattr(evaluation, "encode", lambda texts, *_: texts)
    monkeypatch.setattr(
        evaluation, "predict_probabilities", lambda _, said, size: np.array([probabilities[t] for t in said.embeddings])
    )
    rows = [
        LabeledRow("one", ("happy",)),
        LabeledRow("two", ("cross", "tired")),
        LabeledRow("three", ("cross", "happy")),
        LabeledRow("four", ("tired",)),
        LabeledRow("five", ()),
    ]
    match = match_labels(read_mapping(str(path)), classifier.labels, {"happy": 2, "cross": 2, "tired": 2}, "rows.csv")
    result = score(classifier, rows, match)
    assert result["rows"] == {
        "file": 5,
        "scored": 4,
        "fraction_scored": 0.8,
        "all_labels_mapped": 2,
        "some_labels_mapped": 1,
        "no_label_mapped": 1,
        "without_label": 1,
    }
    assert result["targets"]["happy"] == {"model": ["joy", "love"], "file": ["happy"]}
    assert result["file_labels_not_mapped"] == {"tired": {"rows": 2, "why": "not in the mapping"}}
    # boredom is said of one and three; four is not scored
    assert result["model_labels_not_mapped"] == {"boredom": {"rows": 2, "why": "not in the mapping"}}
    assert result["targets_not_scored"] == {}
    own, fixed = result["scores"]["package"]["per_label"], result["scores"]["fixed"]["per_label"]
    # happy is true for one and three; it is predicted for one and two, and at 0.5 only for one
    assert [own["happy"][key] for key in ("support", "precision", "recall", "f1")] == [2, 0.5, 0.5, 0.5]
    assert [fixed["happy"][key] for key in ("precision", "recall")] == [1.0, 0.5]
    # cross is true for two and three; it is predicted for two
    assert [own["cross"][key] for key in ("support", "precision", "recall")] == [2, 1.0, 0.5]
    assert result["scores"]["package"]["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["scores"]["package"]["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    free = result["without_thresholds"]
    # happy: two of four rows. Its best probabilities are .6 and 0 (true), .4 and .1 (false): two of four pairs in order
    assert free["happy"] == {"f1_always": pytest.approx(2 * 2 / (4 + 2)), "roc_auc": 0.5}
    shown = evaluation.describe(result | {"mapping": str(path)})
    for label in ("tired  ", "boredom"):
        assert f"{label}                2 rows  not in the mapping" in shown
    assert "scored: 4 rows (80.0%)" in shown and "without label" in shown


def test_mappings_are_read_from_either_side() -> None:
    ekman = read_mapping("ekman")
    fine = match_labels(ekman, GOEMOTIONS_28, {"joy": 3, "anger": 1}, "coarse.csv")
    assert fine.model["anger"] == ["anger", "annoyance", "disapproval"] and fine.file["anger"] == ["anger"]
    assert fine.model_left["disgust"] == "the file has nothing for disgust"
    coarse = match_labels(ekman, TAXONOMIES["ekman"].labels, {"love": 3, "remorse": 1, "weird": 2}, "fine.csv")
    assert coarse.model == {"joy": ["joy"], "sadness": ["sadness"]} and coarse.file["joy"] == ["love"]
    assert coarse.file_left == {"weird": {"rows": 2, "why": "not in the mapping"}}


def test_what_the_shipped_mappings_cover() -> None:
    no_feelings = {"approval", "disapproval", "realization", "confusion", "desire", "curiosity", "caring"}
    left_out = {"ekman": set(), "sentiment": set(), "plutchik": {"neutral"}, "brighter": no_feelings | {"neutral"}}
    assert shipped_mappings() == sorted(left_out)
    for name, missing in left_out.items():
        mapping = read_mapping(name)
        members = [member for names in mapping.labels.values() for member in names]
        assert len(members) == len(set(members)), f"{name} lists a label twice"
        assert set(GOEMOTIONS_28) - set(members) == missing and set(members) <= set(GOEMOTIONS_28)
    plutchik = read_mapping("plutchik")
    assert tuple(plutchik.ids.values()) == tuple(plutchik.labels) and len(plutchik.labels) == 8
    moved = {"anticipation", "trust"}
    for target in set(plutchik.labels) - moved:
        assert set(plutchik.labels[target]) <= set(read_mapping("ekman").labels[target])
    brighter = read_mapping("brighter").labels
    assert sorted(brighter) == ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
    for target, members in brighter.items():
        assert set(members) == set(read_mapping("ekman").labels[target]) - no_feelings
    for name in ("ekman", "sentiment"):
        assert TAXONOMIES[name].labels == tuple(read_mapping(name).labels)
    assert "Fine-Grained" in (MAPPINGS / "ekman.yaml").read_text()


# Files


def test_xed_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "xed.tsv"
    path.write_bytes(XED.encode())
    rows = read_labeled_file(path, read_mapping("plutchik"), GOEMOTIONS_28, FileOptions())
    assert {row.text: row.labels for row in rows} == {
        "They don't know me here.": ("anger",),
        ", ...": ("anticipation", "trust"),
        'He said "no" twice.': ("anger", "sadness"),
        "- (IN SPANISH)": ("anticipation", "joy", "trust"),
        "What now?": ("surprise",),
    }


def test_xed_through_the_command(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "xed.tsv"
    path.write_bytes(XED.encode())
    flags = ["--evaluate", str(finished_run), "--data", str(path), "--mapping", "plutchik"]
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    # The model has joy, anger and fear; no row has fear.
    result = scored(tmp_path / "out")
    assert list(result["targets"]) == ["anger", "joy"]
    assert result["model_labels_not_mapped"]["fear"]["why"] == "the file has nothing for fear"
    assert result["targets_not_scored"]["fear"] == "no row of the file has a label for it"
    assert result["targets_not_scored"]["trust"] == "the model has no label for it"
    assert result["file_labels_not_mapped"]["trust"] == {"rows": 2, "why": "the model has nothing for trust"}
    assert (result["rows"]["all_labels_mapped"], result["rows"]["some_labels_mapped"]) == (1, 2)
    assert "surprise               1 rows  the model has nothing for surprise" in shown


def test_brighter_without_a_column_that_another_language_has(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The label is left out of the scores, and said; a row without any label is scored."""
    path = tmp_path / "eng.csv"
    path.write_text(
        "id,text,anger,joy,sadness\neng_1,It is over.,1,0,1\neng_2,At last!,0,1,0\neng_3,On Monday.,0,0,0\n"
    )
    flags = ["evaluate", str(finished_run), "--data", str(path), "--mapping", "brighter"]
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    result = scored(tmp_path / "out")
    assert list(result["scores"]["package"]["per_label"]) == list(result["targets"]) == ["anger", "joy"]
    assert (result["rows"]["scored"], result["rows"]["without_label"]) == (3, 1)
    assert result["file_labels_not_mapped"] == {"sadness": {"rows": 1, "why": "the model has nothing for sadness"}}
    assert result["targets_not_scored"]["fear"] == "no row of the file has a label for it"
    shown = capsys.readouterr().out
    for target in ("fear", "disgust", "surprise", "sadness"):
        assert re.search(rf"^  {target} +not scored: ", shown, re.MULTILINE)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [("so, happy", ["joy", "anger"]), ("x", []), ("dark", ["fear"])]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pd.DataFrame({"text": [t for t, _ in rows], "labels": [n for _, n in rows]}).to_parquet(tmp_path / "a.parquet")
    joined = pd.DataFrame({"labels": [",".join(n) for _, n in rows], "text": [t for t, _ in rows]})
    joined.to_csv(tmp_path / "a.csv", index=False)
    joined.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    labels = ("joy", "anger", "fear")
    hot = pd.DataFrame({"text": [t for t, _ in rows]} | {name: [int(name in n) for _, n in rows] for name in labels})
    hot.to_csv(tmp_path / "hot.csv", index=False)
    expected = sorted(LabeledRow(text, tuple(sorted(names))) for text, names in rows)
    for name in ("a.jsonl", "a.parquet", "a.csv", "a.tsv", "hot.csv"):
        for mapping in (None, read_mapping("plutchik")):  # the header is found even if the mapping names columns
            assert read_labeled_file(tmp_path / name, mapping, labels, FileOptions()) == expected, name


def test_a_column_for_each_label_is_as_good_as_one_of_names(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels that neither the model nor the mapping knows are counted and left out in the same way in both forms."""
    rows = [("sunny cake", ["joy"]), ("slammed", ["anger", "boredom"]), ("meh", ["boredom"]), ("hm", [])]
    rows += [(f"tears {i}", ["sadness"]) for i in range(5)]
    names = ("joy", "anger", "sadness", "boredom")
    hot = pd.DataFrame({"text": [t for t, _ in rows]} | {name: [int(name in n) for _, n in rows] for name in names})
    hot.insert(1, "votes", range(len(rows)))
    hot.to_csv(tmp_path / "hot.csv", index=False)
    hot.to_json(tmp_path / "hot.jsonl", orient="records", lines=True)
    hot.astype(dict.fromkeys(names, bool)).to_parquet(tmp_path / "hot.parquet")
    write_jsonl(tmp_path / "names.jsonl", rows)
    (tmp_path / "own.yaml").write_text("labels: {joy: [joy], anger: [anger]}\n")
    results = {}
    for file in ("names.jsonl", "hot.csv", "hot.jsonl", "hot.parquet"):
        flags = ["--evaluate", str(finished_run), "--data", str(tmp_path / file), "--output_dir", str(tmp_path / "out")]
        assert main([*flags, "--mapping", str(tmp_path / "own.yaml")]) == 0
        results[file] = {k: v for k, v in scored(tmp_path / "out").items() if not k.startswith("data")}
        assert results[file] == results["names.jsonl"], file
        assert main(flags) == 2  # without a mapping, every form is refused with the same names
    assert results["hot.csv"]["file_labels_not_mapped"] == {
        "boredom": {"rows": 2, "why": "not in the mapping"},
        "sadness": {"rows": 5, "why": "not in the mapping"},
    }
    assert results["hot.csv"]["rows"]["scored"] == 3
    assert "columns not taken as labels: votes" in caplog.text
    hot.astype({"boredom": object}).replace({"boredom": {0: None}}).to_csv(tmp_path / "hot.csv", index=False)
    with pytest.raises(CorpusError, match=r"line 2, column 'boredom': '' is not 0 or 1"):
        read_labeled_file(tmp_path / "hot.csv", None, ("joy", "anger"), FileOptions())


def test_a_label_that_no_row_has_is_scored_without_a_mapping(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "joy.jsonl", [("sunny cake", ["joy"]), ("dark cellar", ["joy"]), ("slammed door", ["joy"])])
    flags = ["--evaluate", str(finished_run), "--data", str(tmp_path / "joy.jsonl")]
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    result, shown = scored(tmp_path / "out"), capsys.readouterr().out
    assert list(result["targets"]) == ["joy", "anger", "fear"] and not result["model_labels_not_mapped"]
    assert "no row of the file has anger, fear: their F1 counts as 0 in macro F1" in shown
    classifier = load_classifier(str(finished_run))
    texts = ["sunny cake", "dark cellar", "slammed door"]
    said = classifier.predict_proba(texts) >= [classifier.config.thresholds[label] for label in classifier.labels]
    assert said[:, 1:].any()  # false positives, which only the scores of these labels show
    expected = training_scores(said.astype(int), np.array([[1, 0, 0]] * 3))
    for name in ("macro_f1", "micro_f1"):
        assert result["scores"]["package"][name] == pytest.approx(expected[name], abs=1e-6)
    with pytest.raises(MappingError, match="it has none"):
        match_labels(None, classifier.labels, {}, "rows.csv")


def test_a_swallowed_row_is_pointed_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "xed.csv"
    path.write_bytes(b'Fine.,1\r\n"Open quote,2\r\nraw line,5\r\nend",4\r\n')
    with caplog.at_level("WARNING"):
        assert len(read_labeled_file(path, read_mapping("plutchik"), GOEMOTIONS_28, FileOptions())) == 2
    assert "line 2: 'Open quote,2\\r\\nraw line,5\\r\\nend': an unclosed quote swallows rows" in caplog.text
    lines = path.with_suffix(".tsv")
    lines.write_bytes(path.read_bytes().replace(b",", b"\t"))
    assert len(read_labeled_file(lines, read_mapping("plutchik"), GOEMOTIONS_28, FileOptions())) == 4


BAD_FILES = {
    "nine.tsv": (
        "a\t1\r\nb\t2, 9\r\n",
        r"nine\.tsv, line 2, column 'labels': label '9' is not one of the ids 1, 2, .*mapping",
    ),
    "zero.tsv": ("a\t0\n", r"zero\.tsv, line 1, column 'labels': label '0' is not one of the ids"),
    "cells.tsv": ("a\t1\tx\n", r"cells\.tsv, line 1: 3 cells for the 2 columns 'text', 'labels'"),
    "column.csv": (
        "text,label\na,1\n",
        r"column\.csv: no column 'labels', only 'text', 'label'\. Did you mean 'label'\? Remedy: set --label_column",
    ),
    "blank.tsv": (" \t1\n", r"blank\.tsv, line 1, column 'text': the text is ' '\. Remedy"),
    "empty.tsv": ("", "empty.tsv, line 1: the file is empty"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(CorpusError, match=message):
        read_labeled_file(tmp_path / name, read_mapping("plutchik"), GOEMOTIONS_28, FileOptions())


# Mistakes


BAD_MAPPINGS = {
    "labels: {happy: [joy, angr]}": r"own\.yaml, labels, happy: neither .* has the label 'angr'\. Did you mean 'anger'",
    "labels: {happy: joy}": r"own\.yaml, labels, happy: expected a list, got 'joy'\. Remedy: write \[joy\]",
    "labels: {happy: [joy, joy]}": "labels, happy: 'joy' is listed twice",
    "labels: {yes: [joy]}": "labels: True is not a name. Remedy: quote it",
    "labels: {happy: [joy], joy: [love]}": "'joy' is also a target, but does not list itself",
    "labels: {}": "own.yaml, labels: no target",
    "labels: [joy]": r"own\.yaml, labels: expected a mapping",
    "label: {happy: [joy]}": "the key labels is missing",
    "{labels: {happy: [joy]}, id: {1: joy}}": "unknown key 'id'. Remedy: use labels, ids, columns",
    "{labels: {happy: [joy]}, ids: {one: happy}}": "ids: 'one' is not a whole number",
    "{labels: {happy: [joy]}, ids: {1: 2}}": "ids, 1: 2 is not a name",
    "a: [": "own.yaml: not YAML",
}


@pytest.mark.parametrize("content", BAD_MAPPINGS)
def test_bad_mappings(content: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(MappingError, match=BAD_MAPPINGS[content]):
        match_labels(read_mapping(str(path)), GOEMOTIONS_28, {"happy": 1}, "rows.csv")


def test_labels_that_meet_nowhere() -> None:
    with pytest.raises(
        MappingError, match=r"no label 'happy' \(3 rows\).*built-in one \(brighter, ekman, plutchik, sentiment\)"
    ):
        match_labels(None, GOEMOTIONS_28, {"happy": 3, "joy": 1}, "rows.csv")
    with pytest.raises(MappingError, match=r"no label of rows\.csv \(happy\) matches one of the model"):
        match_labels(LabelMapping("own.yaml", {"glad": ("joy",)}), GOEMOTIONS_28, {"happy": 3}, "rows.csv")
    with pytest.raises(
        MappingError, match=r"no such mapping or file\. Remedy: use brighter, ekman, plutchik, sentiment"
    ):
        read_mapping("plutchick")


def test_flags(tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"evaluate needs rows\. Remedy: add --data FILE"):
        parse(["evaluate", "runs/a"])
    with pytest.raises(RecipeError, match="--data belongs to the verb evaluate"):
        parse(["--data", "rows.csv"])
    assert parse(["evaluate", "runs/a", "--data", "rows.csv"]).options.output_dir is None
    assert main(["evaluate", str(finished_run), "--data", str(tmp_path / "no.csv")]) == 2
    assert "no.csv: no such file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("text,labels\na,joy\n")
    assert main(["evaluate", str(tmp_path / "empty"), "--data", str(tmp_path / "rows.csv")]) == 2
    assert "is neither a package nor a finished run" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    write_jsonl(tmp_path / "rows.jsonl", [("a", ["joy"])])
    assert main(["evaluate", str(tmp_path), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "not a finished run: model/config.json is missing" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "none"), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "neither a folder nor a Hub id" in capsys.readouterr().err
    write_jsonl(tmp_path / "rows.jsonl", [("a", ["happy"])])
    assert main(["evaluate", str(finished_run), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "the model has no label 'happy'" in capsys.readouterr().err
