"""A package that an earlier version exported: it loads, passes the check, and predicts the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hub_release.check.earlier import CODE, figures, is_earlier
from hub_release.check.gate import inspect
from hub_release.cli import app
from hub_release.export import renew_card
from hub_release.package import LAYOUT, seal
from tests.conftest import ROOT, add_to_hub_cache

KEPT = ROOT / "tests" / "earlier"
VERSIONS = sorted(path.name for path in KEPT.iterdir())


@pytest.fixture(params=VERSIONS)
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, with its backbone in a separate Hub cache."""
    kept = KEPT / request.param
    add_to_hub_cache("tiny/mistral", kept / "backbone", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(kept / "package", tmp_path / "package")


def test_every_version_is_known_by_its_code() -> None:
    assert sorted({name.split(" of ")[1] for name in CODE.values()}) == VERSIONS


def test_it_passes_the_check(earlier: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(earlier)])
    assert done.exit_code == 0, done.output
    assert "An earlier version made it" in done.output
    renew_card(earlier)
    assert inspect(earlier) == []


def test_this_version_s_code_predicts_the_same(earlier: Path) -> None:
    code = """
import json, sys
from modeling.infer import EmotionClassifier
classifier = EmotionClassifier(sys.argv[1])
texts = [row["text"] for row in json.load(open(sys.argv[1] + "/golden.json"))["rows"]]
print(json.dumps(classifier.predict_proba(texts).tolist()))
"""
    command = [sys.executable, "-c", code, str(earlier)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    golden = json.loads((earlier / LAYOUT.golden).read_text())
    expected = np.array([row["probabilities"] for row in golden["rows"]])
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-4)


def test_the_figures_of_its_card_are_checked(earlier: Path) -> None:
    card = (earlier / LAYOUT.card).read_text(encoding="utf-8")
    assert inspect(earlier) == []
    row = next(line for line in card.splitlines() if line.startswith("| joy |"))
    changes = {
        "a word": ("## Use", "## Usage", False),
        "a digit": (row, row.replace("0.", "1.", 1), True),
        "a link": ("(#data)", "(https://elsewhere)", True),
        "a banner": ("## Use", "> **contaminated**\n\n## Use", True),
        "a number more": ("## Use", "## Use 2", True),
        "the metadata": ("pipeline_tag: text-classification", "pipeline_tag: fill-mask", True),
    }
    for what, (before, after, refused) in changes.items():
        assert before in card, what
        (earlier / LAYOUT.card).write_text(card.replace(before, after, 1), encoding="utf-8")
        seal(earlier)
        problems = inspect(earlier)
        assert bool(problems) == refused and {problem.file for problem in problems} <= {LAYOUT.card}, what


def test_its_requirements_are_those_of_its_code(earlier: Path) -> None:
    """A later version may need more, and newer versions of it; this package does not."""
    path = earlier / LAYOUT.requirements
    text = path.read_text(encoding="utf-8")
    for changed, refused in (
        (text.replace("peft>=0.", "peft>=0.0."), False),
        (text + "evil>=1\n", True),
        (text.replace("peft>=", "evil>="), True),
        (re.sub("peft>=.*", "peft @ https://evil.example/peft.whl", text), True),
        (text + "--index-url https://evil.example/\n", True),
    ):
        assert changed != text
        path.write_text(changed, encoding="utf-8")
        seal(earlier)
        assert [problem.file for problem in inspect(earlier)] == [LAYOUT.requirements] * refused, changed


def test_every_word_of_this_version_s_card_is_checked(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "package")
    assert not is_earlier(copy)
    card = (copy / LAYOUT.card).read_text(encoding="utf-8")
    (copy / LAYOUT.card).write_text(card.replace("eads a text", "eads every text", 1), encoding="utf-8")
    seal(copy)
    assert [problem.file for problem in inspect(copy)] == [LAYOUT.card]


def test_the_figures_of_a_card_are_read_in_linear_time() -> None:
    """The patterns of links and of fenced code took minutes for a megabyte."""
    for unit in ("](", "](a.png", "```x\n", "`", "\n```\n", "1,"):
        started = time.process_time()
        assert figures("---\na: 1\n---\n" + unit * (1_000_000 // len(unit)))
        assert time.process_time() - started < 3, unit
    assert figures("---\na: 1\n---\n0.5 `x`\n```python\n0.7\n```\n[a](b)") == ["a: 1\n", "0.5", "`x`", "](b)"]
