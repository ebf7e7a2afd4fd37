"""The READMEs: their commands and their Python run as written, and their links work."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hub_release.cli import app
from tests.conftest import ROOT
from training.options import parse
from training.run import main

WORDS = {
    "billing": ["invoice", "charged twice", "refund", "credit card"],
    "delivery": ["parcel", "courier", "late again", "tracking number"],
    "defect": ["broken", "does not start", "screen flickers", "loose screw"],
    "praise": ["thank you", "great service", "well done", "lovely"],
    "question": ["how do I", "where can I find", "is it possible", "which size"],
    "cancellation": ["cancel my order", "close the account", "end the contract", "no longer need"],
}


def write_tickets(path: Path, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "topics"])
        for i in range(rows):
            names = list(generator.choice(list(WORDS), size=1 + (i % 3 == 0), replace=False))
            text = ", ".join(str(generator.choice(WORDS[name])) for name in names)
            writer.writerow([f'Ticket {seed}-{i // 2}: "{text}".', ",".join(names)])


README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(heading: str, language: str, number: int = 0) -> str:
    """A fenced block from a section of the README."""
    return README.split(f"\n## {heading}\n")[1].split(f"```{language}\n")[number + 1].split("```")[0]


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in block("Your own rows", "bash").splitlines()]


def test_from_a_file_of_tickets_to_a_scored_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "tickets.csv", 120, 0)
    write_tickets(tmp_path / "next_month.csv", 60, 1)
    typed = commands()
    assert 4 <= len(typed) < 10
    for command in typed:
        if command[:2] == ["python", "training/run.py"]:
            smaller = [] if "evaluate" in command else ["--folds", "2"]
            assert main([*command[2:], *smaller]) == 0, capsys.readouterr().err
        elif command[0] == "hub_release":
            assert CliRunner().invoke(app, command[1:]).exit_code == 0
        else:
            assert command[0] == "python"
            done = subprocess.run(
                [sys.executable, *command[1:]], capture_output=True, text=True, check=True, env=dict(os.environ)
            )
            assert json.loads(done.stdout)["text"].startswith("The parcel")
    audit = json.loads(Path("runs/tickets/audit.json").read_text())
    assert audit["protocol"] == "cross-fit" and audit["training_rows"]["real"] == 120
    result = json.loads(Path("evaluations/next_month/evaluation.json").read_text())
    assert result["scores"]["package"]["macro_f1"] > 0.5 and result["rows"]["scored"] == 60


def test_one_file_needs_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tickets(tmp_path / "tickets.csv", 60, 0)
    columns = ["--text_column", "message", "--label_column", "topics"]
    flags = ["--dataset", "files", "--data_dir", str(tmp_path / "tickets.csv"), *columns, "--labels", *WORDS]
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 2
    assert "one file has no splits. Remedy: use --split stratified" in capsys.readouterr().err


def test_the_readme_is_short_and_starts_with_use() -> None:
    lines = README.splitlines()
    assert len(lines) <= 230
    assert lines.index("```python") < 45
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert headings == [
        *("Use it now", "Use a package", "Quickstart and tests", "Your own rows", "Results", "Which recipe for whom"),
        *("Why believe the scores", "How it works", "Recipes", "The house", "What was never run"),
        "Contributing, license, citation",
    ]


def test_the_first_lines_classify_with_a_real_model(tmp_path: Path) -> None:
    install = block("Use it now", "bash").strip().split(" && ")
    assert install == block("Quickstart and tests", "bash").strip().split(" && ")[2:4]
    command = [sys.executable, "-c", block("Use it now", "python")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "gratitude" in ast.literal_eval(done.stdout)[0]


def test_the_first_python_runs_in_a_package(package: Path) -> None:
    code = block("Use a package", "python")
    assert len(code.splitlines()) == 6
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True)
    predicted, shape = done.stdout.splitlines()
    assert len(ast.literal_eval(predicted)) == 2 and shape == "(2, 3)"
    said = [line for line in re.split(r"[\r\n]+", done.stderr) if line and "it/s]" not in line and "?it" not in line]
    assert said == []  # nothing that a user cannot act on


def test_the_commands_for_a_fresh_machine_are_those_of_ci(tmp_path: Path) -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    quickstart, tests = (block("Quickstart and tests", "bash", number).strip().split(" && ") for number in range(2))
    assert quickstart[:2] == tests[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert quickstart[2] == 'pip install -e ".[quickstart]"'
    assert all(step in script for step in (*tests[2:], quickstart[3]))
    smaller = "--num_hidden_layers 2 --epochs 1 --output_dir run"
    command = [sys.executable, str(ROOT / quickstart[4].removeprefix("python ")), *smaller.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "run" / "metrics.json").is_file() and "macro F1" in done.stderr
    foreign = [line for line in done.stderr.splitlines() if "Warning" in line or "Failed" in line or "it/s" in line]
    assert foreign == []


def test_every_training_command_of_every_readme_is_one() -> None:
    seen = 0
    for path in sorted(ROOT.rglob("*.md")):
        if {"packages", "pretrained"} & set(path.parts) or path.name == "model_card_template.md":
            continue
        text = path.read_text(encoding="utf-8")
        for found in re.findall(r"(?:accelerate launch(?: --\w+(?: \d+)?)*|python) training/run\.py([^`\n]*)", text):
            words = shlex.split(found.split(" #")[0].replace("…", "").replace("you/your-model", "goemotions-small"))
            if "--help" in words or not words or words[0] == "[VERB]":
                continue
            parse(words)
            seen += 1
    assert seen >= 30


LINK = re.compile(r"\]\((?!https?://|#|data:)([^)#\s]+)(#[^)]*)?\)")


def test_links_between_readmes_lead_somewhere() -> None:
    seen = 0
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]:
        for target, heading in LINK.findall(path.read_text(encoding="utf-8")):
            file = (path.parent / target).resolve()
            assert file.exists(), f"{path}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert heading.removeprefix("#") in anchors, f"{path}: {target}{heading}"
            seen += 1
    assert seen >= 20
