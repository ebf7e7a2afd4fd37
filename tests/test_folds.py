"""Split cross-fit: every row is trained on, and scored by a model that does not know it; the bag of words beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.special import expit

from hub_release.check.gate import check
from hub_release.export import export
from modeling.recipe import Recipe, planned_epochs
from modeling.rows.tables import CorpusError
from modeling.thresholds import choose_thresholds
from tests.conftest import LABELS, tiny_flags, write_corpus
from training.corpora import Corpora
from training.data.copies import find_copies, group_copies
from training.data.corpus import Corpus, Split
from training.data.splits import draw_folds
from training.fit import folds
from training.fit.prepare import prepare
from training.options import parse
from training.recipe import RecipeError
from training.run import main
from training.run_folder import RunFolder
from training.scores.bag_of_words import score_bag_of_words
from training.scores.calibration import choose_calibration
from training.scores.held_out import hold_out_folds

pytestmark = pytest.mark.usefixtures("pixels")

FOLDS = 3
WORDS = {"joy": "sunny cake", "anger": "slammed door", "fear": "dark cellar"}


def write_rows(folder: Path, number: int = 36) -> Path:
    """One file of learnable rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "text": f"train {i} {WORDS[LABELS[i % 3]]}",
            "labels": [LABELS[i % 3], *([LABELS[(i + 1) % 3]] * (i % 4 == 0))],
        }
        for i in range(number)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def flags_of(rows: Path, backbone: str, output: Path, *more: str) -> list[str]:
    own = ["--split", "cross-fit", "--folds", str(FOLDS), "--balance", "none", "--epochs", "2"]
    return [*tiny_flags(rows, backbone, output), *own, *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    base = tmp_path_factory.mktemp("folds")
    assert main(flags_of(write_rows(base), tiny_backbone, base / "run")) == 0
    return base / "run"


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_every_row_is_trained_on_and_scored_once(run: Path) -> None:
    audit, metrics = read(run / "audit.json"), read(run / "metrics.json")
    assert metrics["protocol"] == "cross-fit"
    assert [audit["splits"][split]["rows"] for split in ("train", "validation", "test")] == [36, 36, 36]
    assert audit["training_rows"]["real"] == 36
    assert audit["copies"]["test_in_train"]["rows"] == audit["splits"]["test"]["texts_also_in_train"] == 0
    arrays = RunFolder(run).read_arrays("predictions.npz")
    assert arrays["test_probabilities"].shape == arrays["test_thresholds"].shape == (36, 3)
    assert metrics["bag_of_words"]["per_label"]["macro_f1"] > 0.8  # the words say it all
    said = read(run / "thresholds.json")["source"]
    assert "out of fold" in said and "validation" not in said


def test_a_fold_is_scored_by_a_model_that_does_not_know_it(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels for a fold's rows change nothing that is said of them out of fold; they do of the other rows."""
    rows = write_rows(tmp_path)
    command = parse(flags_of(rows, tiny_backbone, tmp_path / "one"))
    data = prepare(command.recipe, Corpora())
    assert data.fold is not None
    changed = [json.loads(line) for line in rows.read_text().splitlines()]
    for row, number in zip(changed, data.fold, strict=True):
        row["labels"] = ["fear"] if number == 0 else row["labels"]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in changed))
    monkeypatch.setattr("training.corpora.draw_folds", lambda *_: data.fold)
    logits = []
    for name, path in (("one", rows), ("two", other)):
        assert main(flags_of(path, tiny_backbone, tmp_path / name)) == 0
        logits.append(RunFolder(tmp_path / name).read_arrays("folds.npz"))
    np.testing.assert_array_equal(logits[0]["0"], logits[1]["0"])
    assert np.abs(logits[0]["1"] - logits[1]["1"]).max() > 1e-3


def test_a_stopped_run_goes_on_after_its_last_fold(
    run: Path, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(run.parent / "rows.jsonl", tiny_backbone, tmp_path / "run")
    scored: list[int] = []
    score = folds._score_fold

    def stop_at_the_third(*arguments: Any) -> np.ndarray:
        scored.append(1)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as stopped:
        stopped.setattr(folds, "_score_fold", stop_at_the_third)
        assert main(flags) == 130
    assert "keeps the finished folds and no checkpoint yet" in capfd.readouterr().err
    monkeypatch.setattr(folds, "_score_fold", lambda *a: scored.append(1) or score(*a))
    assert main([*flags, "--resume"]) == 0
    assert len(scored) == 4
    for name in ("metrics.json", "thresholds.json", "calibration.json", "golden.json"):
        assert read(tmp_path / "run" / name) == read(run / name), name


def test_the_package_passes_its_check_and_says_how_it_was_scored(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "package", graphs=["onnx"])
    assert check(tmp_path / "package") == []
    card = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    assert "trained on every row" in card and "3 models" in card and "test, by a bag of words" in card
    assert (
        "say nothing about new texts" in card
        and "tuned on validation" not in card
        and "best checkpoint was chosen" not in card
    )


def test_null_tests_of_folds_score_at_chance(tiny_backbone: str, tmp_path: Path) -> None:
    flags = flags_of(write_rows(tmp_path, 60), tiny_backbone, tmp_path / "run")
    assert main(["null-test", *flags]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--audit_policy", "drop-from-train"], "audit_policy: with split cross-fit"),
        (["--early_stopping_patience", "2"], "early_stopping_patience: split cross-fit"),
        (["--teachers", "runs/other", "--gamma", "0", "--alpha", "uniform"], "teachers: with split cross-fit"),
    ],
)
def test_what_needs_rows_of_its_own_is_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(flags_of(tmp_path / "rows.jsonl", "tiny/mistral", tmp_path / "run", *flags))


# Folds


@given(
    texts=st.lists(
        st.sampled_from(["a cake", "A cake!", "a door", "the door", "dark", "cellar", "x", "y"]), min_size=8
    ),
    seed=st.integers(0, 99),
)
def test_copies_share_a_fold(texts: list[str], seed: int) -> None:
    near = [f"The parcel came on day {i} and the driver left it in the rain beside the garden gate" for i in range(2)]
    texts = [*texts, *near, *(f"text {i}" for i in range(4))]
    labels = np.random.default_rng(seed).integers(0, 2, (len(texts), 2)).astype(np.int8)
    fold = draw_folds(Split([*map(str, range(len(texts)))], texts, labels), 3, seed)
    assert set(fold) <= {0, 1, 2}
    for number in set(fold):
        inside = [text for text, own in zip(texts, fold, strict=True) if own == number]
        outside = [text for text, own in zip(texts, fold, strict=True) if own != number]
        assert find_copies(inside, outside) == []


def test_near_copies_are_in_one_group() -> None:
    long = "The parcel came on {} and the driver left it in the rain beside the garden gate of our neighbors"
    groups = group_copies([long.format("Monday"), "Something else", long.format("Friday"), "something ELSE."])
    assert groups[0] == groups[2] != groups[1] == groups[3]


@given(epochs=st.integers(1, 9), least=st.integers(0, 400), rows=st.integers(1, 500), size=st.integers(1, 64))
def test_epochs_reach_the_steps_and_are_no_more_than_needed(epochs: int, least: int, rows: int, size: int) -> None:
    planned, steps = planned_epochs(epochs, least, rows, size), -(-rows // size)
    assert planned >= epochs and planned * steps >= least
    assert planned == epochs or (planned - 1) * steps < least


def test_a_chain_of_near_copies_does_not_fill_one_fold(caplog: pytest.LogCaptureFixture) -> None:
    said = "The parcel number {} came late and the driver left it in the rain beside the garden gate"
    texts = [said.format(i % 40) for i in range(80)]
    labels = np.tile(np.eye(2, dtype=np.int8), (40, 1))
    fold = draw_folds(Split([*map(str, range(80))], texts, labels), 4, 0)
    assert np.bincount(fold).tolist() == [20, 20, 20, 20]
    assert (fold[:40] == fold[40:]).all()  # equal texts still share one
    assert "80 rows are copies" in caplog.text


def test_a_corpus_with_a_test_split_is_not_trained_on_whole(tiny_backbone: str, tmp_path: Path) -> None:
    command = parse(flags_of(write_corpus(tmp_path), tiny_backbone, tmp_path / "run"))
    with pytest.raises(CorpusError, match="trains on every row, but the corpus has train, validation, test"):
        prepare(command.recipe, Corpora())


def test_damaged_or_foreign_folds_are_trained_again(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fold = RunFolder(run).read_arrays("folds.npz")["fold"]
    assert set(folds.kept_folds(RunFolder(run), fold)) == {"0", "1", "2"}
    assert folds.kept_folds(RunFolder(run), fold[::-1].copy()) == {} and "folds of other rows" in caplog.text
    whole = (run / "folds.npz").read_bytes()
    (tmp_path / "folds.npz").write_bytes(whole[: len(whole) // 2])
    assert folds.kept_folds(RunFolder(tmp_path), fold) == {} and "cannot be read" in caplog.text


def test_few_steps_are_said(caplog: pytest.LogCaptureFixture) -> None:
    from accelerate import PartialState

    from training.fit.batch import fit_epochs

    data: Any = type("Data", (), {"rows": range(80)})
    recipe = Recipe(epochs=2, batch_size=8, gradient_accumulation_steps=1)
    with caplog.at_level("WARNING"):
        assert fit_epochs(replace(recipe, start_from="goemotions-small"), data, PartialState(cpu=True)).epochs == 2
        assert not caplog.text  # a start has learned most of it
        assert fit_epochs(recipe, data, PartialState(cpu=True)).epochs == 2
    assert "only 20 steps" in caplog.text and "--min_steps" in caplog.text


# Scores


def test_each_fold_is_scored_with_what_the_others_give() -> None:
    """Recomputed here, fold by fold."""
    generator = np.random.default_rng(0)
    labels = (generator.random((120, 3)) < 0.3).astype(np.int8)
    logits = generator.normal(size=(120, 3)) + 2 * labels - 1
    fold = np.arange(120) % 4
    found = hold_out_folds(logits, labels, fold, seed=1)
    for number in range(4):
        held, rest = fold == number, fold != number
        calibration, _, _ = choose_calibration(logits[rest], labels[rest], 1)
        cuts = choose_thresholds(calibration(logits[rest]), labels[rest]).own
        np.testing.assert_allclose(found.after["test"].probabilities[held], calibration(logits[held]))
        np.testing.assert_allclose(found.cutoffs["test"]["per_label"][held], np.tile(cuts, (held.sum(), 1)))
    np.testing.assert_allclose(found.before["test"].probabilities, expit(logits))


def test_a_bag_of_words_of_folds_does_not_know_its_fold() -> None:
    """A word that is only in one row can tell nothing about it."""
    names = [f"word{i}" for i in range(40)]
    labels = np.zeros((40, 1), np.int8)
    labels[::2] = 1
    split = Split(names, [f"{name} again {name}" for name in names], labels)
    corpus = Corpus("x", "", ("one",), dict.fromkeys(("train", "validation", "test"), split))
    found = score_bag_of_words(corpus, np.arange(40) % 4, None, 0)
    assert found is not None
    decided = found.after["test"].probabilities >= found.cutoffs["test"]["per_label"]
    assert len(set(decided.ravel())) == 1


def test_texts_without_words_have_no_bag(tmp_path: Path) -> None:
    split = Split(["1", "2"], ["a", "!"], np.array([[1], [0]], np.int8))
    corpus = Corpus("x", "", ("one",), dict.fromkeys(("train", "validation", "test"), split))
    assert score_bag_of_words(corpus, None, None, 0) is None
