"""The README's walk-through with one's own rows, typed as it stands there."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hub_release.cli import app
from tests.conftest import ROOT
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
        writer.writerow(["text", "labels"])
        for i in range(rows):
            names = list(generator.choice(list(WORDS), size=1 + (i % 3 == 0), replace=False))
            text = ", ".join(str(generator.choice(WORDS[name])) for name in names)
            writer.writerow([f'Ticket {seed}-{i // 2}: "{text}".', ",".join(names)])


def commands() -> list[list[str]]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("**Your own rows**")[1]
    return [shlex.split(line) for line in section.split("```bash\n")[1].split("```")[0].splitlines()]


def test_from_a_file_of_tickets_to_a_scored_package(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOEMOTIONS_MISTRAL_CACHE", str(tmp_path / "cache"))
    write_tickets(tmp_path / "tickets.csv", 400, 0)
    write_tickets(tmp_path / "next_month.csv", 60, 1)
    typed = commands()
    assert 4 <= len(typed) < 10
    for command in typed:
        if command[:3] == ["accelerate", "launch", "training/run.py"]:
            smaller = (
                []
                if "--evaluate" in command
                else ["--model_name", str(tiny_backbone), "--token_norm", "20", "--epochs", "20"]
            )
            assert main([*command[3:], *smaller]) == 0, capsys.readouterr().err
        elif command[0] == "hub_release":
            assert CliRunner().invoke(app, command[1:]).exit_code == 0
        else:
            assert command[0] == "python"
            done = subprocess.run(
                [sys.executable, *command[1:]], capture_output=True, text=True, check=True, env=dict(os.environ)
            )
            assert json.loads(done.stdout)["text"].startswith("The parcel")
    audit = json.loads(Path("runs/tickets/audit.json").read_text())
    assert audit["protocol"] == "stratified" and sum(split["rows"] for split in audit["splits"].values()) == 400
    result = json.loads(Path("evaluations/next_month/evaluation.json").read_text())
    assert result["scores"]["package"]["macro_f1"] > 0.5 and result["rows"]["scored"] == 60


def test_one_file_needs_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tickets(tmp_path / "tickets.csv", 60, 0)
    flags = ["--dataset", "files", "--data_dir", str(tmp_path / "tickets.csv"), "--labels", *WORDS]
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 2
    assert "one file holds no splits. Remedy: --split stratified" in capsys.readouterr().err
