"""The house: who imports whom, which names are taken, what the README says of the tree."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("modeling", "training", "hub_release")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def test_imports_flow_one_way() -> None:
    allowed = {
        "modeling": {"modeling"},
        "training": {"training", "modeling"},
        "hub_release": {"hub_release", "modeling"},
    }
    looked_at = 0
    for package, may in allowed.items():
        for path in (ROOT / package).glob("*.py"):
            assert imports_of(path) & set(PACKAGES) <= may, path
            looked_at += 1
    assert looked_at >= 24
    assert not imports_of(ROOT / "modeling" / "infer.py") & set(PACKAGES)


def test_no_file_of_training_shadows_a_module() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    taken = set(sys.stdlib_module_names) | {d.split(">")[0].replace("-", "_") for d in dependencies}
    stems = {path.stem for path in (ROOT / "training").glob("*.py")} - {"__init__"}
    assert len(stems) >= 12
    assert not stems & taken


def test_readme_lists_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = [p for package in PACKAGES for p in (ROOT / package).glob("*.py") if p.stem != "__init__"]
    assert len(paths) >= 20
    missing = [str(p.relative_to(ROOT)) for p in paths if f"`{p.relative_to(ROOT)}`" not in readme]
    assert not missing


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    assert tops <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
        "model_card_template.md",
        "tests",
        *PACKAGES,
    }
