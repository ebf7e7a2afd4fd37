"""The card as the publisher's own: details, a section of own words, and models that know no emotions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, SpaceCard
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from hub_release.card.own import _NEUTRAL_TEXTS, BEGIN, END, read_own_words, section, without_own_words
from hub_release.check.gate import inspect
from hub_release.cli import app
from hub_release.demo.page import app as page_app, files as page_files
from hub_release.demo.serve import space_files
from hub_release.export import export
from hub_release.package import ReleaseError, seal
from modeling.infer import EmotionClassifier
from tests.cards import edit, put, read, tables_of
from training.fit.results import GOLDEN_TEXTS

DETAILS: dict[str, Any] = {
    "name": "ticket-router",
    "title": "Tickets & [topics] < 3 of a *shop*",
    "license": "cc-by-nc-4.0",
    "language": ["en", "pt-BR"],
    "contact": "support@example.com | the [desk](x)",
    "intended_use": "Routing of support tickets, by people who read them.",
    "examples": ["The parcel never came.", 'He said "no" & it\'s <i>done</i> | really'],
}
TABLE = ("text", "labels that reach their threshold")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def own(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "a folder"
    flags: list[str] = []
    for key, value in DETAILS.items():
        flag = f"--{key.replace('_', '-').removesuffix('s')}"
        for text in [value] if isinstance(value, str) else value:
            flags += [flag, text]
    said = run("export", finished_run, folder, *flags)
    assert f"hub_release check '{folder}'" in said
    return folder


@pytest.fixture
def copy(own: Path, tmp_path: Path) -> Path:
    return shutil.copytree(own, tmp_path / "copy")


def test_what_the_publisher_says_is_recorded_and_shown(own: Path) -> None:
    assert inspect(own) == []
    assert read(own, "card.json") == DETAILS
    card = (own / "README.md").read_text(encoding="utf-8")
    data = ModelCard(card).data.to_dict()
    assert data["model-index"][0]["name"] == "ticket-router"
    assert {key: data[key] for key in ("license", "language", "title", "contact", "intended_use")} == {
        key: DETAILS[key] for key in ("license", "language", "title", "contact", "intended_use")
    }
    assert data["widget"] == [{"text": text} for text in DETAILS["examples"]]
    assert "\n# Tickets & \\[topics\\] \\< 3 of a \\*shop\\*\n" in card
    assert "**Intended use**: Routing of support tickets" in card
    assert "## Contact\n\nsupport@example.com \\| the \\[desk\\](x)\n" in card
    assert "The publisher states this license for the trained weights: cc-by-nc-4.0." in card


def test_examples_are_classified_and_checked(own: Path) -> None:
    card = (own / "README.md").read_text(encoding="utf-8")
    classifier = EmotionClassifier(own)
    results = classifier.predict(DETAILS["examples"])
    wanted = [", ".join(f"{label} {p:.3f}" for label, p in found.items()) or "none" for found in results]
    assert [row[1] for row in tables_of(card)[TABLE]] == wanted
    golden = [row["text"] for row in read(own, "golden.json")["rows"]]
    assert golden[-2:] == DETAILS["examples"] and len(golden) == len(GOLDEN_TEXTS) + 2
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) >= 3 and all(DETAILS["examples"][0] in block for block in blocks[:3])
    for block in blocks:
        compile(block, "card", "exec")
    assert page_files.read_examples(own) == DETAILS["examples"]
    page = page_app.build_page(classifier, own, "tickets")
    assert "Tickets &amp; [topics] &lt; 3" in json.dumps(page.get_config_file(), default=str)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("license", "MIT License", "license is 'MIT License'. Remedy: use an id of"),
        ("language", "English", "language is 'English'. Remedy: use ISO 639"),
        ("name", "you/model", "name is 'you/model'. Remedy: use letters"),
        ("title", "two\nlines", r"title is 'two\nlines'. Remedy: write it on one line"),
        ("contact", "<a href=x>me</a>", "contact is '<a href=x>me</a>', which has HTML. Remedy: use plain text"),
        ("title", "x" * 151, "title has 151 characters. Remedy: use at most 150"),
        ("intended-use", "x" * 2_001, "intended_use has 2,001 characters"),
        ("example", "x" * 301, "examples has 301 characters"),
    ],
)
def test_a_detail_that_no_card_can_show(finished_run: Path, tmp_path: Path, option: str, value: str, said: str) -> None:
    assert said in run("export", finished_run, tmp_path / "package", f"--{option}", value, code=2)
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(
    "change",
    [put(license="no id"), put(mood="good"), put(title=3), put(language="en"), put(examples=["never classified"])],
)
def test_a_record_of_details_that_export_does_not_write(copy: Path, change: Callable[[Any], None]) -> None:
    edit(copy / "card.json", change)
    seal(copy)
    assert any("card.json" in str(problem) for problem in inspect(copy))


def write_words(package: Path, words: str) -> None:
    path = package / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace(END, f"{words}\n{END}"), encoding="utf-8")


WORDS = "We trained this for our desk.\n\n### Thanks\n\n- to [everybody](https://example.com)\n\n```\n# a comment\n```"


def test_own_words_survive(copy: Path) -> None:
    write_words(copy, WORDS)
    assert [problem.file for problem in inspect(copy)] == ["README.md", "README.md"], "edited, but not sealed"
    run("card", copy)
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n## Notes of the publisher\n\n{WORDS}\n\n{END}\n" in card
    assert inspect(copy) == []
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=copy).returncode == 0
    run("card", copy)
    assert (copy / "README.md").read_text(encoding="utf-8") == card
    run("card", copy, "--license", "mit", "--contact", "elsewhere")
    changed = (copy / "README.md").read_text(encoding="utf-8")
    assert WORDS in changed and "trained weights: mit." in changed and "## Contact\n\nelsewhere\n" in changed
    assert read(copy, "card.json") == DETAILS | {"license": "mit", "contact": "elsewhere"}
    assert inspect(copy) == []
    run("card", copy, "--contact", "")
    assert "contact" not in read(copy, "card.json") and "## Contact" not in (copy / "README.md").read_text()
    assert inspect(copy) == []


def test_an_edit_elsewhere_is_not_dropped_without_a_word(copy: Path) -> None:
    write_words(copy, WORDS)
    path = copy / "README.md"
    path.write_text(
        path.read_text(encoding="utf-8").replace("## Limitations", "## Limitations\n\nMine."), encoding="utf-8"
    )
    edited, sums = path.read_bytes(), (copy / "SHA256SUMS").read_bytes()
    said = run("card", copy, "--title", "Other", code=1)
    assert (
        "was edited outside of its section for own words" in said and "+ Mine. (edited). Remedy: write it into" in said
    )
    assert (path.read_bytes(), (copy / "SHA256SUMS").read_bytes()) == (edited, sums)
    assert read(copy, "card.json") == DETAILS
    run("card", copy, "--overwrite")
    assert "Mine." not in path.read_text(encoding="utf-8") and WORDS in path.read_text(encoding="utf-8")
    assert inspect(copy) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("# Scores", "a heading of the card's own levels"),
        ("Scores\n---", "a heading of the card's own levels"),
        ("fine\n\n> ## Scores", "a heading of the card's own levels"),
        ('fine <img src="x">', "HTML"),
        ("<!-- hidden", "HTML"),
        (f"{END}\n\n### Scores", "HTML"),
        ("```python\nprint(1)", "a code block without an end"),
        ("~~~", "a code block without an end"),
        ("x" * 20_001, "20,001 characters"),
    ],
)
def test_own_words_stay_in_their_section(copy: Path, words: str, said: str) -> None:
    write_words(copy, words)
    assert said in run("card", copy, code=2)
    seal(copy)
    assert any(problem.file == "README.md" and said in str(problem) for problem in inspect(copy))


@given(words=st.text(st.sampled_from("# ab<>-=`~\n!&*|[]():")))
def test_any_words_are_kept_or_refused(words: str) -> None:
    card = f"before\n\n{section(words)}\n\n## Use\n"
    try:
        kept = read_own_words(card)
    except ReleaseError:
        return
    assert kept == words.strip()
    assert without_own_words(card) == without_own_words(f"before\n\n{section('')}\n\n## Use\n")


def test_a_model_that_knows_no_emotions_does_not_speak_of_them(own: Path, finished_run: Path, tmp_path: Path) -> None:
    export(finished_run, tmp_path / "tickets")
    assert read(tmp_path / "tickets", "card.json") == {"name": "tickets", "examples": list(_NEUTRAL_TEXTS)}
    for package in (own, tmp_path / "tickets"):
        space = space_files(package, "you/tickets")
        shown = SpaceCard(space["README.md"].decode()).content + (package / "README.md").read_text(encoding="utf-8")
        words = re.sub(r"goemotions|emotionclassifier|emotion_", "", shown.lower())
        assert not re.search(r"emotion|feel|thank|scared|exam\b", words), re.search(r".*(emotion|feel|thank).*", words)
        page = page_app.build_page(EmotionClassifier(package), package, "tickets")
        config = json.dumps(page.get_config_file(), default=str)
        assert ("Which labels fit a text?" in config) is (package != own) and "Which emotions" not in config
    assert set(_NEUTRAL_TEXTS) <= set(GOLDEN_TEXTS)


def test_the_name_is_the_package_s(package: Path) -> None:
    assert ModelCard.load(package / "README.md").data.model_name == package.name
