"""Thresholds for other texts: ``classifier.adapt`` and ``hub_release adapt``."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from typer.testing import CliRunner

from hub_release.check.gate import check
from hub_release.cli import app
from hub_release.export import export
from hub_release.package import seal
from hub_release.serving.adapt import Distance, measure_distance
from modeling.infer import EmotionClassifier
from modeling.infer.adaptation import (
    Adaptation,
    adapt_thresholds,
    expected_f1_cut,
    fit_scale_and_bias,
    read_known_labels,
)

NAMES = ["one", "two", "three"]


def texts_of(number: int) -> list[str]:
    return [f"test {i} {('sunny cake', 'slammed door', 'dark cellar')[i % 3]}" for i in range(number)]


def labels_of(number: int) -> list[list[str]]:
    return [[("joy", "anger", "fear")[i % 3]] for i in range(number)]


# The choice


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_cut_has_the_highest_expected_f1(values: list[float]) -> None:
    """Against every possible cut, by the definition."""
    probabilities = np.array(values)
    cut, expected = expected_f1_cut(probabilities)

    def score(chosen: np.ndarray) -> float:
        return float(2 * probabilities[chosen].sum() / max(chosen.sum() + probabilities.sum(), 1e-12))

    assert score(probabilities >= cut) == pytest.approx(expected)
    assert all(score(probabilities >= other) <= expected + 1e-9 for other in probabilities)


@given(st.integers(0, 2**32 - 1))
def test_scale_and_bias_are_the_most_probable(seed: int) -> None:
    """Against scipy's minimizer."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(generator.uniform(-6, 3), generator.uniform(0.2, 3), 50)
    targets = (generator.random(50) < generator.uniform(0, 1)).astype(float)
    start, variance = np.array([1.0, generator.normal()]), np.array([0.25, 4.0])

    def loss(values: np.ndarray) -> float:
        said = values[0] * logits + values[1]
        return float(np.sum(np.logaddexp(0, said) - targets * said) + np.sum((values - start) ** 2 / variance) / 2)

    best = minimize(loss, start, method="BFGS", options={"gtol": 1e-8}).x
    found = fit_scale_and_bias(logits, targets, start, variance)
    if best[0] < 0.05:
        best = np.array([0.05, minimize(lambda bias: loss(np.array([0.05, bias[0]])), best[1:], method="BFGS").x[0]])
    np.testing.assert_allclose(found, best, atol=1e-3)


def shifted(seed: int, number: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that ranks well, but whose logits are too low by so much; and labels, 0/1 [N, 3]."""
    generator = np.random.default_rng(seed)
    true = generator.normal([-1.0, 0.0, -2.0], 2.0, (number, 3))
    return expit(true - shift), (generator.random((number, 3)) < expit(true)).astype(np.int8)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    hits = (predicted & (labels > 0)).sum(axis=0)
    return float((2 * hits / np.maximum(predicted.sum(axis=0) + labels.sum(axis=0), 1)).mean())


def named(labels: np.ndarray) -> list[list[str]]:
    return [[name for name, value in zip(NAMES, row, strict=True) if value] for row in labels]


def test_fifty_labeled_rows_find_most_of_what_a_shift_has_hidden() -> None:
    gains, ceilings = [], []
    for seed in range(10):
        probabilities, labels = shifted(seed, 1_050, 3.0)
        known = read_known_labels(NAMES, 50, named(labels[:50]))
        found = adapt_thresholds(NAMES, probabilities[:50], np.full(3, 0.4), known)
        cuts = np.array([found.thresholds[name] for name in NAMES])
        before = macro_f1(probabilities[50:] >= 0.4, labels[50:])
        best = macro_f1(probabilities[50:] >= expit(logit(0.4) - 3.0), labels[50:])
        gains.append(macro_f1(probabilities[50:] >= cuts, labels[50:]) - before)
        ceilings.append(best - before)
    assert np.mean(gains) > 0.85 * np.mean(ceilings) > 0.1


def test_texts_without_labels_only_lower_thresholds() -> None:
    probabilities, _ = shifted(0, 400, 3.0)
    before = np.array([0.4, 0.001, 0.4])
    found = adapt_thresholds(NAMES, probabilities, before, read_known_labels(NAMES, 400, None))
    assert found.thresholds.keys() == {"one", "three"} and found.labeled == 0 and found.positives == {}
    assert all(value < found.before[name] for name, value in found.thresholds.items())


def test_a_label_that_no_row_has_keeps_its_threshold() -> None:
    probabilities, labels = shifted(1, 60, 2.0)
    labels[:, 1] = 0
    known = read_known_labels(NAMES, 60, named(labels))
    found = adapt_thresholds(NAMES, probabilities, np.full(3, 0.4), known)
    assert found.thresholds.keys() == {"one", "three"} == found.positives.keys()


def test_texts_with_and_without_labels_count_together() -> None:
    """The recalibration comes from labeled rows alone, the cut from all."""
    probabilities, labels = shifted(2, 600, 2.0)
    rows = [*named(labels[:40]), *[None] * 560]
    both = adapt_thresholds(NAMES, probabilities, np.full(3, 0.4), read_known_labels(NAMES, 600, rows))
    few = adapt_thresholds(NAMES, probabilities[:40], np.full(3, 0.4), read_known_labels(NAMES, 40, rows[:40]))
    assert (both.texts, both.labeled, both.positives) == (600, 40, few.positives)
    assert both.thresholds != few.thresholds


@pytest.mark.parametrize(
    ("number", "rows", "kind", "message"),
    [
        (0, None, ValueError, "no texts"),
        (2, [["one"]], ValueError, "2 texts have 1 rows"),
        (1, [["four"]], ValueError, "'four'.*start_from"),
        (2, [[], None], ValueError, "no text has a label"),
        (1, ["one"], TypeError, "text 0 are 'one'"),
        (1, [[1]], TypeError, r"text 0 are \[1\]"),
        (1, [{"one": 1, "two": 0}], TypeError, "text 0 are {"),
        (99, None, ValueError, "99 texts without labels"),
        (1, [1], TypeError, "text 0 are 1"),
    ],
)
def test_bad_labels_are_refused(number: int, rows: list[list[str]], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as refused:
        read_known_labels(NAMES, number, rows)
    assert "Remedy: " in str(refused.value)


def test_rows_of_labels_may_be_read_once_and_spelled_otherwise() -> None:
    known = read_known_labels(["joy", "fierte\u0301"], 2, [map(str.strip, ["joy "]), ("fiert\u00e9",)])
    assert known.labels.tolist() == [[1, 0], [0, 1]]


def test_few_labeled_texts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    read_known_labels(NAMES, 3, [["one"], None, []])
    assert "only 2 texts have labels" in caplog.text


@pytest.mark.parametrize("value", [0.0, 0.004])
def test_a_rare_label_keeps_its_threshold_without_labels(value: float) -> None:
    """Whatever is predicted of it would mostly be wrong."""
    probabilities = np.full((200, 3), value)
    found = adapt_thresholds(NAMES, probabilities, np.full(3, 0.3), read_known_labels(NAMES, 200, None))
    assert found.thresholds == {} and found.expected_f1 == {}


# The classifier


def test_a_classifier_uses_its_new_thresholds(package: Path) -> None:
    classifier = EmotionClassifier(package)
    texts, probabilities = texts_of(30), classifier.predict_proba(texts_of(30))
    found = classifier.adapt(texts, labels_of(30))
    assert found.thresholds and str(found).startswith(f"{len(found.thresholds)} thresholds changed (30 texts")
    np.testing.assert_array_equal(classifier.predict_proba(texts), probabilities)
    cuts = np.array([{**found.before, **found.thresholds}[label] for label in classifier.labels])
    wanted = [{classifier.labels[i] for i in np.flatnonzero(row)} for row in probabilities >= cuts]
    assert [set(row) for row in classifier.predict(texts)] == wanted
    copy = pickle.loads(pickle.dumps(classifier))  # noqa: S301  # our own
    assert [set(row) for row in copy.predict(texts)] == wanted
    assert [set(row) for row in classifier({"text": texts})["emotions"]] == wanted


# The verb


def write_table(folder: Path, name: str, with_labels: bool = True) -> Path:
    number = 30 if with_labels else 120
    rows = [
        {"message": text, **({"tags": labels} if with_labels else {})}
        for text, labels in zip(texts_of(number), labels_of(number), strict=True)
    ]
    if with_labels:
        rows[0]["tags"] = ["joy", "pride"]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def adapted(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    table = write_table(folder, "rows.jsonl")
    said = run("adapt", package, table, folder / "new", "--text_column", "message", "--label_column", "tags")
    assert (
        "30 of them with labels" in said
        and "distance from the rows that the package was validated on: " in said
        and "lacks 'pride', which 1 of the rows have" in said
    )
    return folder / "new"


def test_texts_of_another_kind_are_far(package: Path) -> None:
    """From the shares of the validation rows: none apart, half of the labels moved, and every label in every text."""
    validation = json.loads((package / "audit.json").read_text())["splits"]["validation"]
    usual = {label: count / validation["rows"] for label, count in validation["positives"].items()}
    total = sum(usual.values())

    def distance(shares: dict[str, float], texts: int = 400) -> Distance:
        return measure_distance(package, Adaptation(texts, 0, {}, {}, {}, {}, shares))

    assert distance(usual).apart == 0 and 0 < distance(usual).chance < distance(usual, texts=40).chance
    most, other = sorted(usual, key=lambda label: -usual[label])[:2]
    moved = distance({**usual, most: 0.0, other: usual[other] + usual[most]})
    assert moved.apart == pytest.approx(2 * usual[most] / total) and moved.label in (most, other)
    everything = distance(dict.fromkeys(usual, 1.0))
    assert everything.apart == pytest.approx((len(usual) - total) / total) and everything.share == 1
    assert f"{everything.label!r} differs most: the model expects it in 100% of these texts" in str(everything)


def test_an_adapted_package_passes_its_check_and_says_so(adapted: Path, package: Path) -> None:
    assert check(adapted) == []
    config = json.loads((adapted / "config.json").read_text())
    assert config["thresholds"] == json.loads((package / "config.json").read_text())["thresholds"]
    card = (adapted / "README.md").read_text(encoding="utf-8")
    assert "thresholds of this package were adapted" in card and "decision_thresholds" in card
    assert "were adapted" not in (package / "README.md").read_text(encoding="utf-8")


def test_a_fresh_process_uses_adapted_thresholds(adapted: Path) -> None:
    here = EmotionClassifier(adapted)
    code = "import json\nfrom infer import EmotionClassifier\nc = EmotionClassifier('.')\n" + (
        f"print(json.dumps([c.config.decision_thresholds, [sorted(row) for row in c.predict({texts_of(9)!r})]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=adapted, capture_output=True, text=True, check=True)
    thresholds, found = json.loads(done.stdout.splitlines()[-1])
    assert thresholds == here.config.decision_thresholds == {**here.config.thresholds, **here.config.adapted_thresholds}
    assert found == [sorted(row) for row in here.predict(texts_of(9))]


def test_a_graph_uses_adapted_thresholds(finished_run: Path, tmp_path: Path) -> None:
    """They come before those that were tuned for the graph."""
    export(finished_run, tmp_path / "package", graphs=["onnx"])
    run(
        "adapt",
        tmp_path / "package",
        write_table(tmp_path, "rows.jsonl", False),
        tmp_path / "new",
        *["--text_column", "message"],
    )
    assert check(tmp_path / "new") == []
    graph, own = EmotionClassifier(tmp_path / "new", backend="onnx"), EmotionClassifier(tmp_path / "new")
    changed = own.config.adapted_thresholds
    tuned = json.loads((tmp_path / "new" / "graphs.json").read_text())["graphs"]["onnx"]["thresholds"]
    assert changed and any(changed[name] != tuned[name] for name in changed)
    assert {name: graph.config.decision_thresholds[name] for name in changed} == changed


def test_columns_of_labels_are_read(package: Path, tmp_path: Path) -> None:
    """Labels without a column were not looked for; the others were, even where no row has them."""
    lines = ["text,joy,anger", *(f"{text},{int(i % 3 == 0)},{int(i % 3 == 1)}" for i, text in enumerate(texts_of(12)))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    found = json.loads(run("adapt", package, tmp_path / "rows.csv", tmp_path / "new", "--json"))
    assert found["positives"] == {"joy": 4, "anger": 4} and found["labeled"] == 12
    shares = EmotionClassifier(package).predict_proba(texts_of(12)).mean(axis=0)
    assert [*found["shares"].values()] == pytest.approx(shares.tolist(), abs=1e-5) and found["distance"]["apart"] > 0


def test_damaged_packages_and_taken_folders_are_refused(package: Path, adapted: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path, "rows.jsonl")
    columns = ["--text_column", "message", "--label_column", "tags"]
    damaged = shutil.copytree(package, tmp_path / "damaged")
    (damaged / "golden.json").write_text("{}")
    for folder, output, message in ((damaged, tmp_path / "a", "golden.json"), (package, adapted, "is not empty")):
        done = CliRunner().invoke(app, ["adapt", str(folder), str(table), str(output), *columns])
        assert done.exit_code != 0 and message in done.output and "Remedy" in done.output
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_adapted_is_refused(package: Path, adapted: Path, tmp_path: Path) -> None:
    other = shutil.copytree(package, tmp_path / "other")
    (other / "infer.py").write_text((other / "infer.py").read_text() + "\n# another version\n")
    seal(other)
    table = write_table(tmp_path, "rows.jsonl")
    (tmp_path / "strange.csv").write_text("text,labels\nA cake,Freude\n")
    tags = ["--text_column", "message", "--label_column", "tags"]
    for words, message in (
        ([other, table, *tags], "infer.py of another version"),
        ([adapted, table, *tags], "is adapted already"),
        ([package, table, *tags[:2], "--label_column", "topics"], "no column 'topics', only 'message', 'tags'"),
        ([package, tmp_path / "strange.csv"], "the file has 'Freude'"),
    ):
        done = CliRunner().invoke(app, ["adapt", *map(str, words[:2]), str(tmp_path / "new"), *map(str, words[2:])])
        assert done.exit_code == 2 and message in done.output and "Remedy" in done.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"thresholds": {}}, "adaptation.json"),
        ({"labeled": 31}, "adaptation.json"),
        ({"labeled": True}, "adaptation.json"),
        ({"texts": 1e300}, "adaptation.json"),
        ({"positives": {"joy": 0}}, "adaptation.json"),
        ({"positives": {}}, "adaptation.json"),
        ({"expected_f1": {"joy": 1.5}}, "adaptation.json"),
        ({"file_sha256": "none"}, "adaptation.json"),
        ({"rows": ["a text"]}, "adaptation.json"),
        (None, "config.json"),
    ],
)
def test_a_record_that_contradicts_is_refused(
    adapted: Path, tmp_path: Path, changes: dict[str, object] | None, file: str
) -> None:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    if changes is None:
        (copy / "adaptation.json").unlink()
    else:
        record = json.loads((copy / "adaptation.json").read_text())
        (copy / "adaptation.json").write_text(json.dumps(record | changes))
    seal(copy)
    problems = check(copy)
    assert any(problem.startswith(file) for problem in problems), problems
