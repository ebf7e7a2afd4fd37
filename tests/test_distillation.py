"""Teachers: their predictions become half of the targets, and they must have been trained on the same rows."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from safetensors.torch import load_file
from scipy.special import expit

from hub_release.check.gate import check
from hub_release.export import export
from modeling.focal import focal_loss
from modeling.infer import predict_logits
from tests.cards import edit, put
from tests.conftest import tiny_flags, write_corpus
from tests.test_trainer import launch
from training.commands.evaluate import load_classifier
from training.commands.train import hash_inputs
from training.corpora import Corpora, share_of
from training.fit import distillation
from training.fit.distillation import distill
from training.fit.prepare import prepare
from training.options import parse
from training.recipe import RecipeError
from training.run import main

pytestmark = pytest.mark.usefixtures("pixels")

SOFT = ["--alpha", "uniform", "--gamma", "0", "--balance", "duplicate", "--balance_target", "30", "--epochs", "1"]
WORDS = ["--input", "hybrid", "--pooling", "mean", "--window_length", "4", "--window_overlap", "1"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> list[str]:
    """Three teachers: a run that reads words, a one-token package, and a baseline without a backbone."""
    base = tmp_path_factory.mktemp("teachers")
    corpus = write_corpus(base / "corpus")
    for name, flags in (("words", WORDS), ("token", []), ("baseline", ["--head", "mlp"])):
        assert main([*tiny_flags(corpus, tiny_backbone, base / name), *SOFT, *flags]) == 0
    export(base / "token", base / "package")
    return [str(base / name) for name in ("words", "package", "baseline")]


@pytest.fixture()
def flags(teachers: list[str], tiny_backbone: str, tmp_path: Path) -> list[str]:
    """Flags of a student with these teachers."""
    corpus = Path(teachers[0]).parent / "corpus"
    return [*tiny_flags(corpus, tiny_backbone, tmp_path / "student"), *SOFT, "--teachers", *teachers]


def test_targets_are_half_labels_and_half_the_teachers_predictions(teachers: list[str], flags: list[str]) -> None:
    recipe = parse(flags).recipe
    data = distill(prepare(recipe, Corpora()), recipe, PartialState(cpu=True))
    texts, labels = data.training_texts(), data.rows.labels
    assert len(texts) == len(labels) > 48  # includes copied rows
    assert data.targets is not None
    asked = [load_classifier(teacher) for teacher in teachers]
    logits = [predict_logits(teacher.model, teacher.features(texts)) for teacher in asked]
    wanted = (labels + expit(np.mean(logits, axis=0))) / 2
    np.testing.assert_allclose(data.targets, wanted, atol=1e-5)
    assert np.abs(data.targets - labels).max() > 0.1
    assert set(data.audit["teachers"]) == {"teacher 1", "teacher 2", "teacher 3"}


def test_what_was_said_is_read_again(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse(flags).recipe
    data = prepare(recipe, Corpora())
    before = distill(data, recipe, PartialState(cpu=True)).targets

    def refuse(*arguments: object) -> None:
        raise AssertionError("a teacher was asked again")

    monkeypatch.setattr(distillation, "load_classifier", refuse)
    np.testing.assert_array_equal(distill(data, recipe, PartialState(cpu=True)).targets, before)


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
    assert "the prediction of 3 finished models trained on the same splits" in card and "{hinton2015" in card
    assert json.loads((package / "audit.json").read_text())["teachers"]["teacher 1"] in card
    for path in package.rglob("*"):
        assert not path.is_file() or str(Path(teachers[0]).parent).encode() not in path.read_bytes(), path


def test_a_run_is_resumed_only_with_its_own_teachers(
    teachers: list[str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(teachers[2], tmp_path / "mine")
    alone = [*flags[: flags.index("--teachers")], "--head", "mlp"]
    flags = [*alone, "--teachers", str(mine)]
    assert main(flags) == 0
    moved = mine.rename(tmp_path / "moved")
    assert main([*alone, "--teachers", str(moved), "--resume"]) == 0
    edit(moved / "model" / "config.json", put(windows="max"))
    for other in (["--teachers", str(moved)], ["--teachers", teachers[2], teachers[0]], []):
        capsys.readouterr()
        assert main([*alone, *other, "--resume"]) == 2
        assert f"teacher {2 if len(other) == 3 else 1} changed" in capsys.readouterr().err
    student = tmp_path / "student"
    recipe = yaml.safe_load((student / "recipe.yaml").read_text())
    del recipe["teachers"]  # as from a version without teachers
    (student / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    edit(student / "audit.json", lambda audit: audit.pop("teachers"))
    assert main([*alone, "--teachers", teachers[2], "--resume"]) == 2
    assert main([*alone, "--resume"]) == 0


def test_a_grid_trains_again_where_a_teacher_changed(
    teachers: list[str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(teachers[2], tmp_path / "mine")
    grid = [*flags[: flags.index("--teachers")], "--head", "mlp", "--compare", f"teachers=[],[{mine}]"]

    def made() -> str:
        assert main(grid) == 0
        return capsys.readouterr().out.partition(" of 2 runs")[0][-1]

    assert [made(), made()] == ["2", "0"]
    for path in (tmp_path / "student").glob("*/seed-*/recipe.yaml"):
        recipe = yaml.safe_load(path.read_text())
        path.write_text(
            yaml.safe_dump({key: value for key, value in recipe.items() if recipe["teachers"] or key != "teachers"})
        )
    assert made() == "0"  # also when the first run is from a version without teachers
    edit(mine / "model" / "config.json", put(windows="max"))
    assert main(grid) == 2  # a finished run is not replaced unasked
    of_another_teacher = next((tmp_path / "student").glob("*mine*/seed-*"))
    assert f"{of_another_teacher}. Remedy: remove it" in capsys.readouterr().err
    shutil.rmtree(of_another_teacher)
    assert made() == "1"
    shutil.rmtree(mine)
    assert main([*grid, "--seeds", "1", "2"]) == 2
    shown = capsys.readouterr()
    assert "neither a finished run nor a package" in shown.err and not shown.out  # refused before the first run


def test_two_processes_hear_the_same_as_one(flags: list[str], tmp_path: Path) -> None:
    """And each encodes a half of the texts, and asks the teachers about a half."""
    weights, encoded = [], []
    for processes, rows in ((1, 16), (2, 8)):
        cache = tmp_path / f"{processes}"
        cache.mkdir()
        more = ["--head", "mlp", "--head_dropout", "0", "--embedding_noise", "0", "--batch_size", str(rows)]
        done = launch([*flags, *more, "--output_dir", str(cache / "run")], cache, processes)
        assert done == 0, (cache / "launch.log").read_text()[-3000:]
        weights.append(load_file(cache / "run" / "model" / "model.safetensors"))
        log = (cache / "run" / "train.log").read_text(encoding="utf-8")
        encoded.append([int(number) for number in re.findall(r": encoded (\d+) texts", log)])
    assert len(encoded[0]) == 4 and encoded[1] == [-(-number // 2) for number in encoded[0]]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-5)


def test_the_processes_of_each_host_encode_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hosts of two processes, each with a cache of its own; and one host that does not say how many it has."""
    texts = [*map(str, range(7))]
    for variable, processes, local in (("2", 6, 2), (None, 4, 4)):
        if variable:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", variable)
        else:
            monkeypatch.delenv("LOCAL_WORLD_SIZE")
        shares = [
            share_of(texts, cast(PartialState, SimpleNamespace(local_process_index=place, num_processes=processes)))
            for place in range(local)
        ]
        assert sorted(itertools.chain(*shares)) == texts and min(map(len, shares)) >= 7 // local


REFUSED = {
    "--gamma 2": "gamma 0 and alpha uniform",
    "--alpha r2": "gamma 0 and alpha uniform",
    "--balance ismote": "no text for a teacher to read",
    "--null_test": "teachers know what the test removes",
    "--labels anger joy fear": "has other labels: joy, anger, fear",
    "--split stratified": "other rows in train, validation, test",
    "--teachers /nowhere": "has no audit.json and metrics.json of a finished run",
    "--teachers /same /same": "/same is given twice",
    "--teachers {tmp_path}/student": "is this run's own folder",
}


@pytest.mark.parametrize("bad", REFUSED)
def test_what_does_not_go_together_is_refused(
    flags: list[str], bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, *bad.format(tmp_path=tmp_path).split()]) == 2
    message = capsys.readouterr().err
    assert REFUSED[bad] in message and "Remedy: " in message


BROKEN = {
    "a null test": ("metrics.json", "is a null test", put(null_test="labels")),
    "other rows": ("audit.json", "other rows in test", lambda audit: audit["splits"]["test"].update(sha256="0")),
    "another protocol": ("audit.json", "other rows in another order", put(protocol="pooled-r2")),
    "no labels": ("audit.json", "has no audit.json and metrics.json", lambda audit: audit.pop("labels")),
    "a foreign table": ("audit.json", "has no audit.json and metrics.json", put(splits=[])),
    "another width": ("model/config.json", "cannot be run", put(hidden_size=3)),
    "no backbone": ("model/config.json", "cannot be run", put(model_name="no/model")),
    "no encoder": ("model/config.json", "cannot be run", put(encoder="sentence-transformers/no/model")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_teacher_that_cannot_be_trusted_is_refused(
    teachers: list[str], flags: list[str], tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, message, change = BROKEN[what]
    mine = shutil.copytree(teachers[0 if what.startswith("no ") else 2], tmp_path / "mine")
    edit(mine / file, change)
    assert main([*flags, "--teachers", str(mine)]) == 2
    told = capsys.readouterr().err.rpartition("error: ")[2]
    assert message in told and "Remedy: " in told and "Traceback" not in told


def test_an_empty_folder_is_not_a_teacher(flags: list[str], tmp_path: Path) -> None:
    recipe = parse([*flags, "--teachers", str(tmp_path)]).recipe
    with pytest.raises(RecipeError, match="neither a finished run nor a package"):
        hash_inputs(recipe, Corpora())
