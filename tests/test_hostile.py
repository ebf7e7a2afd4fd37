"""Broken and hostile packages: each is refused with a message that names the file, and no code of it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hub_release.check.gate
from hub_release.cli import app
from hub_release.export import export
from hub_release.package import LAYOUT, seal
from modeling.infer import EmotionClassifier, PackageError, shell
from tests import EXHAUSTIVE, HUB_CACHE, hostile_records, hostile_settings
from tests.conftest import ROOT, tiny_flags
from tests.entry_points import MOST_BYTES, MOST_SECONDS, enter
from tests.hostile_packages import CASES, spoil

assert hostile_records and hostile_settings  # they add their cases


@pytest.fixture(scope="session")
def words_package(finished_run: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a run whose backbone reads words."""
    from training.run import main

    base = tmp_path_factory.mktemp("words")
    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, base / "run")
    assert main([*flags, "--input", "tokens", "--balance", "none", "--token_norm", "0"]) == 0
    export(base / "run", base / "package")
    return base / "package"


@pytest.fixture
def spoiled(
    package: Path, words_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield spoil(words_package if CASES[request.param].words else package, tmp_path, request.param)
    # Folders deeper than Python can remove would break pytest's own cleanup.
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 300 and sum(not case.loads for case in CASES.values()) >= 170


BEFORE_THE_PACKAGE = {
    ("auto", LAYOUT.config): ("OSError", "ValueError", "RecursionError"),
    ("page", LAYOUT.config): ("ReleaseError",),
}
"""Refusals before the package's own code reads a file: the Auto classes and the page look at the configuration first."""


@pytest.mark.parametrize(("name", "spoiled"), [(name, name) for name in CASES], indirect=["spoiled"], ids=list(CASES))
def test_every_way_in_refuses(name: str, spoiled: Path, tmp_path: Path) -> None:
    case = CASES[name]
    for way, outcome in enter(spoiled, ways_to_try(name)).items():
        if outcome.refused_by not in BEFORE_THE_PACKAGE.get((way, case.file), ()):
            assert outcome.refused_by == "PackageError", (way, outcome)
            assert case.file in outcome.said and "Remedy: " in outcome.said, (way, outcome)
        assert outcome.seconds < MOST_SECONDS and outcome.peak < MOST_BYTES, (way, outcome)
        assert case.loads or not outcome.ran, "code was run although files cannot be loaded"
    assert not (tmp_path / "exploded").exists()


def ways_to_try(name: str) -> tuple[str, ...]:
    """Every way in with ``EXHAUSTIVE``; else one, another for the next package."""
    ways = CASES[name].ways
    return ways if EXHAUSTIVE else (ways[list(CASES).index(name) % len(ways)],)


OF_THE_CARD = [name for name, case in CASES.items() if not case.words][:: 1 if EXHAUSTIVE else 5]


@pytest.mark.parametrize(
    ("name", "spoiled"), [(name, name) for name in OF_THE_CARD], indirect=["spoiled"], ids=OF_THE_CARD
)
def test_a_card_is_rendered_or_refused_with_a_remedy(name: str, spoiled: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["card", str(spoiled), "--json"])
    said = json.loads(result.stdout)
    assert said["ok"] == (result.exit_code == 0) and (said["ok"] or "Remedy: " in str(said)), said
    assert isinstance(result.exception, SystemExit | None) and not (tmp_path / "exploded").exists()


def test_a_large_header_is_not_read(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = spoil(package, tmp_path, "a header of many tensors")
    monkeypatch.setattr(
        "modeling.infer.weights.load", lambda content: pytest.fail("a million tensors take 20 s and 2 GB")
    )
    with pytest.raises(PackageError, match=r"head\.safetensors has [\d,]+ bytes, more than"):
        EmotionClassifier(spoiled)


def test_the_shell_says_so_in_one_line(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a_second_configuration", "a head in float8_e4m3fn", "a future version"):
        (tmp_path / name).mkdir()
        spoiled = spoil(package, tmp_path / name, name)
        assert shell.main(["a text", "--model", str(spoiled)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_each_file_is_opened_once(words_package: Path) -> None:
    """What was validated is what is used: nobody can exchange a file in between."""
    code = """
import collections, json, pathlib, sys
from modeling.infer import EmotionClassifier
folder = pathlib.Path(sys.argv[1])
opened = collections.Counter()
def count(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(folder)):
        opened[str(arguments[0])[len(str(folder)) + 1 :]] += 1
sys.addaudithook(count)
EmotionClassifier(folder)
print(json.dumps(opened))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TESTS_HUB_CACHE": str(HUB_CACHE)}
    command = [sys.executable, "-c", code, str(words_package)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == dict.fromkeys(
        (LAYOUT.config, LAYOUT.safe_head, LAYOUT.head, LAYOUT.adapter, LAYOUT.adapter_config, LAYOUT.tokenizer), 1
    )


def test_an_unspoiled_package_is_accepted(package: Path, tmp_path: Path) -> None:
    same = shutil.copytree(package, tmp_path / "package")
    seal(same)
    assert (same / LAYOUT.sums).read_bytes() == (package / LAYOUT.sums).read_bytes()
    assert not hub_release.check.gate.inspect(same)
