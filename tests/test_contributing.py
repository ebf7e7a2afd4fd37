"""What CONTRIBUTING.md says of adding an encoder and a way to oversample is enough for a run, a package and its check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT, tiny_flags

LOADER = """
def _load_letters(name: str, threads: int) -> LoadedEncoder:
    def count(texts: list[str]) -> np.ndarray:
        return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)

    return LoadedEncoder(name, "1", count)


ENCODERS = {
    "letters": EncoderSource(_load_letters, 26, ""),
"""
EDITS = {
    "modeling/infer/encoders.py": ("ENCODERS = {\n", LOADER.lstrip()),
    "modeling/recipe.py": ('"smote", ', '"smote", "nudge", '),
    "training/data/balance.py": (
        '    "smote": lambda a, b: a,\n',
        '    "smote": lambda a, b: a,\n    "nudge": lambda a, b: a / 10,\n',
    ),
    "hub_release/card/sources.yaml": (
        "encoders:\n",
        "encoders:\n  letters:\n    name: Letter counts\n    license: CC0-1.0\n    about: It counts letters.\n",
    ),
}
COMMANDS = """
import sys
from hub_release.cli import app
from training.run import main
assert main(sys.argv[1:]) == 0
for command in (["export", "run", "package"], ["check", "package"]):
    assert not app(command, standalone_mode=False), command
"""


def test_an_encoder_and_a_way_to_oversample_are_added(finished_run: Path, tiny_backbone: str, tmp_path: Path) -> None:
    named = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for folder in ("modeling", "training", "hub_release"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("pyproject.toml", "model_card_template.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for file, (before, after) in EDITS.items():
        assert file in named
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert text.count(before) == 1, file
        (tmp_path / file).write_text(text.replace(before, after), encoding="utf-8")
    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, "run")
    chosen = ["--encoder", "letters", "--balance", "nudge", "--balance_target", "30", "--epochs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "GOEMOTIONS_MISTRAL_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMMANDS, *flags, *chosen]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    audit = yaml.safe_load((tmp_path / "run" / "audit.json").read_text())
    assert audit["training_rows"]["synthetic"] > 0
    card = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    assert "Letter counts" in card and "nudge" in card
