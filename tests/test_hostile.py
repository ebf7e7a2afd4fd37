"""Broken and hostile packages: each is refused with a message that names the file, and no code of it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hub_release.check.gate
from hub_release.check.gate import check
from hub_release.cli import app
from hub_release.package import LAYOUT, seal
from modeling.infer import EmotionClassifier, PackageError, shell
from tests.hostile_packages import CASES, spoil


@pytest.fixture
def spoiled(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.chdir(tmp_path)
    return spoil(package, tmp_path, request.param)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 170 and sum(not case.loads for case in CASES.values()) >= 80


@pytest.mark.parametrize(("name", "spoiled"), [(name, name) for name in CASES], indirect=["spoiled"], ids=list(CASES))
def test_check_refuses(name: str, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[Path] = []
    monkeypatch.setattr(hub_release.check.gate, "golden_problems", lambda package: run.append(package) or [])
    problems = check(spoiled)
    assert any(CASES[name].file in problem for problem in problems), problems
    assert all("Remedy: " in problem and problem.isprintable() for problem in problems)
    assert not (tmp_path / "exploded").exists()
    assert CASES[name].loads or not run, "code was run although files cannot be loaded"


@pytest.mark.parametrize(("name", "spoiled"), [(name, name) for name in CASES], indirect=["spoiled"], ids=list(CASES))
def test_a_card_is_rendered_or_refused_with_a_remedy(name: str, spoiled: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["card", str(spoiled), "--json"])
    said = json.loads(result.stdout)
    assert said["ok"] == (result.exit_code == 0) and (said["ok"] or "Remedy: " in str(said)), said
    assert isinstance(result.exception, SystemExit | None) and not (tmp_path / "exploded").exists()


REFUSED = [name for name, case in CASES.items() if not case.loads]


@pytest.mark.parametrize(("name", "spoiled"), [(name, name) for name in REFUSED], indirect=["spoiled"], ids=REFUSED)
def test_the_classifier_refuses(name: str, spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PackageError, match="Remedy: ") as refused:
        EmotionClassifier(spoiled)
    assert CASES[name].file in str(refused.value)
    assert shell.main(["a text", "--model", str(spoiled)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "exploded").exists()


def test_a_large_header_is_not_read(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = spoil(package, tmp_path, "a header of many tensors")
    monkeypatch.setattr(
        "modeling.infer.weights.load_file", lambda path: pytest.fail("a million tensors take 20 s and 2 GB")
    )
    with pytest.raises(PackageError, match=r"head\.safetensors is missing or damaged, .* \(ValueError\)"):
        EmotionClassifier(spoiled)


def test_an_unspoiled_package_is_accepted(package: Path, tmp_path: Path) -> None:
    same = shutil.copytree(package, tmp_path / "package")
    seal(same)
    assert (same / LAYOUT.sums).read_bytes() == (package / LAYOUT.sums).read_bytes()
    assert not hub_release.check.gate.inspect(same)
