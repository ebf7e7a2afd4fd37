"""Packages that are installed with the project: named without a folder, wherever a package is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import pipeline
from typer.testing import CliRunner

from hub_release.check.gate import check, inspect
from hub_release.cli import app
from hub_release.commands.renew import renew
from hub_release.package import LAYOUT, RefusedError, seal
from modeling.infer import EmotionClassifier, files
from training.run import main
from training.trained import load_classifier

NAME = "tiny-model"


@pytest.fixture
def installed(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package among those of the project."""
    folder = shutil.copytree(package, tmp_path / "pretrained" / NAME)
    monkeypatch.setattr(files, "INSTALLED", folder.parent)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_package_is_named_without_its_folder(installed: Path) -> None:
    classifier = EmotionClassifier(NAME)
    assert classifier.predict(["sunny cake"]) == EmotionClassifier(installed).predict(["sunny cake"])
    assert load_classifier(NAME).labels == classifier.labels
    assert pipeline("text-classification", model=str(files.installed_package(NAME)), trust_remote_code=True)("a")


def test_verbs_take_the_name(installed: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", NAME])
    assert done.exit_code == 0 and str(installed) in done.output.replace("\n", "")
    (tmp_path / "rows.csv").write_text("text,labels\nsunny cake,joy\na slammed door,anger\n")
    assert main(["evaluate", NAME, "--data", "rows.csv", "--output_dir", "evaluation"]) == 0


def test_a_folder_of_that_name_comes_first(installed: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(Exception, match=r"config\.json is missing"):
        EmotionClassifier(NAME)


@pytest.mark.parametrize("name", ["../tiny-model", "tiny-model/.", "", ".", "other", "Tiny-Model"])
def test_no_other_name_leads_there(installed: Path, name: str) -> None:
    assert files.installed_package(name) is None


def test_a_package_gets_the_code_of_this_checkout(package: Path, tmp_path: Path) -> None:
    old = shutil.copytree(package, tmp_path / "package")
    for name in (LAYOUT.code, LAYOUT.requirements, LAYOUT.card):
        (old / name).write_text((old / name).read_text() + "\n# of an earlier day\n")
    seal(old)
    assert inspect(old)
    renew(old)
    assert check(old) == []
    for name in (LAYOUT.safe_head, LAYOUT.golden, LAYOUT.metrics):
        assert (old / name).read_bytes() == (package / name).read_bytes()


def test_a_damaged_package_is_not_renewed(package: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(package, tmp_path / "package")
    with (damaged / LAYOUT.safe_head).open("ab") as file:
        file.write(b" ")
    before = (damaged / LAYOUT.sums).read_bytes()
    with pytest.raises(RefusedError, match="left as it is"):
        renew(damaged)
    assert (damaged / LAYOUT.sums).read_bytes() == before


def test_the_small_model_works_after_the_install() -> None:
    """With real weights, by its name; it passes the check like any other package, and is small."""
    folder = files.installed_package("goemotions-small")
    assert folder is not None and check(folder) == []
    weights = [path for path in folder.rglob("*") if path.suffix in (".pt", ".safetensors")]
    assert len(weights) == 3 and sum(path.stat().st_size for path in weights) <= 8_000_000
    classifier = EmotionClassifier("goemotions-small")
    thanks, fear = classifier.predict(["Thank you so much, this made my day!", "I am scared of what they will say."])
    assert next(iter(thanks)) == "gratitude" and next(iter(fear)) == "fear" and len(classifier.labels) == 28


def test_a_package_of_its_own_knows_none(package: Path) -> None:
    assert 'if __name__ == "modeling.infer.files" else None' in (package / "infer.py").read_text()
