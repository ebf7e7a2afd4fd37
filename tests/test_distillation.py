"""Teachers: what they say becomes half of the targets, and only those that were trained on the same rows are asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.special import expit

from hub_release.check import check
from hub_release.export import export
from modeling.focal import focal_loss
from modeling.infer import predict_logits
from tests.cards import edit, put
from tests.conftest import tiny_flags, write_corpus
from training import distillation
from training.distillation import distil, given
from training.evaluation import load_classifier
from training.options import parse_recipe
from training.prepare import prepare
from training.recipe import RecipeError
from training.run import main

SOFT = ["--alpha", "uniform", "--gamma", "0", "--balance", "duplicate", "--balance_target", "30", "--epochs", "1"]
WORDS = ["--input", "hybrid", "--pooling", "mean", "--window_length", "4", "--window_overlap", "1"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> list[str]:
    """Three of a kind each: a run that reads words, a package of one token, and a baseline without a backbone."""
    base = tmp_path_factory.mktemp("teachers")
    corpus = write_corpus(base / "corpus")
    for name, flags in (("words", WORDS), ("token", []), ("baseline", ["--head", "mlp"])):
        assert main([*tiny_flags(corpus, tiny_backbone, base / name), *SOFT, *flags]) == 0
    export(base / "token", base / "package")
    return [str(base / name) for name in ("words", "package", "baseline")]


@pytest.fixture()
def flags(teachers: list[str], tiny_backbone: str, tmp_path: Path) -> list[str]:
    """Flags of a student of theirs."""
    corpus = Path(teachers[0]).parent / "corpus"
    return [*tiny_flags(corpus, tiny_backbone, tmp_path / "student"), *SOFT, "--teachers", *teachers]


def test_targets_are_half_labels_and_half_what_the_teachers_say(teachers: list[str], flags: list[str]) -> None:
    recipe, _ = parse_recipe(flags)
    data = distil(prepare(recipe), recipe)
    texts, labels = data.training_texts(), data.rows.labels
    assert len(texts) == len(labels) > 48  # with copies
    assert data.targets is not None
    asked = [load_classifier(teacher) for teacher in teachers]
    logits = [predict_logits(teacher.model, teacher.features(texts)) for teacher in asked]
    wanted = (labels + expit(np.mean(logits, axis=0))) / 2
    np.testing.assert_allclose(data.targets, wanted, atol=1e-5)
    assert np.abs(data.targets - labels).max() > 0.1
    assert set(data.audit["teachers"]) == {"teacher 1", "teacher 2", "teacher 3"}


def test_what_was_said_is_read_again(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = parse_recipe(flags)
    data = prepare(recipe)
    before = distil(data, recipe).targets

    def refuse(*arguments: object) -> None:
        raise AssertionError("a teacher was asked again")

    monkeypatch.setattr(distillation, "predict_logits", refuse)
    np.testing.assert_array_equal(distil(data, recipe).targets, before)


def test_bfloat16_says_nearly_the_same(teachers: list[str]) -> None:
    texts = ["train 1 sunny cake", "a dark cellar", "door " * 9]
    for teacher in teachers:
        exact = load_classifier(teacher).predict_proba(texts)
        np.testing.assert_allclose(load_classifier(teacher, torch.bfloat16).predict_proba(texts), exact, atol=0.02)
    backbone = load_classifier(teachers[0], torch.bfloat16).model.backbone
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}


def test_the_loss_of_soft_targets_is_that_of_labels_and_teachers() -> None:
    torch.manual_seed(0)
    logits, labels, said = torch.randn(5, 3), (torch.rand(5, 3) < 0.5).float(), torch.rand(5, 3)
    alpha = torch.full((3,), 0.5)
    both = [focal_loss(logits, targets, alpha, 0.0) for targets in (labels, said)]
    torch.testing.assert_close(focal_loss(logits, (labels + said) / 2, alpha, 0.0), sum(both) / 2)


def test_a_student_learns_from_its_teachers_and_says_so_without_naming_their_folders(
    teachers: list[str], flags: list[str], tmp_path: Path
) -> None:
    student = tmp_path / "student"
    assert main(flags) == 0
    assert main([*flags[: flags.index("--teachers")], "--output_dir", str(tmp_path / "alone")]) == 0
    learned, alone = (np.load(path / "predictions.npz")["test_probabilities"] for path in (student, tmp_path / "alone"))
    assert not np.allclose(learned, alone)
    assert yaml.safe_load((student / "recipe.yaml").read_text())["teachers"] == teachers
    package = tmp_path / "package"
    export(student, package)
    assert check(package) == []
    card = (package / "README.md").read_text()
    assert "what 3 finished models, trained on the same splits, said of the text" in card and "{hinton2015" in card
    assert json.loads((package / "audit.json").read_text())["teachers"]["teacher 1"] in card
    for path in package.rglob("*"):
        assert not path.is_file() or str(Path(teachers[0]).parent).encode() not in path.read_bytes(), path


def test_a_run_is_not_resumed_from_a_teacher_that_changed(
    teachers: list[str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(teachers[2], tmp_path / "mine")
    flags = [*flags[: flags.index("--teachers")], "--head", "mlp", "--teachers", str(mine)]
    assert main(flags) == 0
    assert main([*flags, "--resume"]) == 0
    edit(mine / "model" / "config.json", put(windows="mean"))
    capsys.readouterr()
    assert main([*flags, "--resume"]) == 2
    assert "teacher 1 changed" in capsys.readouterr().err


def test_a_grid_trains_again_where_a_teacher_changed(
    teachers: list[str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(teachers[2], tmp_path / "mine")
    grid = [*flags[: flags.index("--teachers")], "--head", "mlp", "--compare", f"teachers=[],[{mine}]"]

    def made() -> str:
        assert main(grid) == 0
        return capsys.readouterr().out.partition(" of 2 runs")[0][-1]

    assert [made(), made()] == ["2", "0"]
    edit(mine / "model" / "config.json", put(windows="mean"))
    assert made() == "1"


REFUSED = {
    "--gamma 2": "gamma 0 and alpha uniform",
    "--alpha r2": "gamma 0 and alpha uniform",
    "--balance ismote": "no text for a teacher to read",
    "--null_test": "teachers know what it takes away",
    "--labels anger joy fear": "has other labels: joy, anger, fear",
    "--split stratified": "other rows in train, validation, test",
    "--teachers /nowhere": "neither a finished run nor a package",
}


@pytest.mark.parametrize("bad", REFUSED)
def test_what_does_not_go_together_is_refused(flags: list[str], bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, *bad.split()]) == 2
    message = capsys.readouterr().err
    assert REFUSED[bad] in message and "Remedy: " in message


BROKEN = {
    "metrics.json": ("is a null test", put(null_test="labels")),
    "audit.json": ("trained with other rows in test", lambda audit: audit["splits"]["test"].update(sha256="0")),
    "model/config.json": ("cannot be loaded", put(hidden_size=3)),
}


@pytest.mark.parametrize("file", BROKEN)
def test_a_teacher_that_cannot_be_trusted_is_refused(
    teachers: list[str], flags: list[str], tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(teachers[2], tmp_path / "mine")
    message, change = BROKEN[file]
    edit(mine / file, change)
    assert main([*flags, "--teachers", str(mine)]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_is_no_teacher(flags: list[str], tmp_path: Path) -> None:
    recipe, _ = parse_recipe([*flags, "--teachers", str(tmp_path)])
    with pytest.raises(RecipeError, match="holds no model"):
        given(recipe)
