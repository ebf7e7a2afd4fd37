"""The house rules: imports, taken names, sizes of files and folders, and the tables of the READMEs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("modeling", "training", "hub_release")
PRETRAINED = "modeling/pretrained/"
"""Exported packages that ship: made, not written."""
ALLOWED = {
    "modeling": {"modeling"},
    "training": {"training", "modeling"},
    "hub_release": {"hub_release", "modeling"},
}


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if PRETRAINED not in str(path)]
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of everything that a module imports, anywhere in its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_flow_one_way() -> None:
    for name, path in modules().items():
        tops = {imported.split(".")[0] for imported in imports_of(path)}
        assert tops & set(PACKAGES) <= ALLOWED[name.split(".")[0]], path
    assert len(modules()) >= 80


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Nodes that reach each other; empty if there are none."""
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_no_imports_in_a_circle() -> None:
    known = modules()
    graph = {name: {i for i in imports_of(path) if i in known and i != name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 200
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b", "c"]


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    def room(name: str) -> str:
        return str(modules()[name].parent.relative_to(ROOT))

    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        if room(name).count("/"):  # modules next to the rooms use the rooms and are used by them
            graph.setdefault(room(name), set()).update(
                room(i) for i in imports_of(path) if i in known and room(i).count("/") and room(i) != room(name)
            )
    assert len(graph) >= 9
    assert circle(graph) == []


def test_no_name_in_training_shadows_a_module() -> None:
    """``training/`` comes first on ``sys.path`` when its script runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    taken = set(sys.stdlib_module_names) | {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in lines}
    names = {path.stem for path in (ROOT / "training").iterdir()} - {"__init__", "__pycache__"}
    assert len(names) >= 9 and {"transformers", "datasets", "json"} <= taken
    assert not names & taken


def test_files_and_functions_keep_to_their_size() -> None:
    functions = 0
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions += 1
                assert node.end_lineno is not None and node.end_lineno - node.lineno < 75, f"{path}: {node.name}"
    assert functions > 500


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if (ROOT / name).exists() and not name.startswith(PRETRAINED)]


def test_a_folder_has_about_a_dozen_names() -> None:
    """Modules of the shipped file and data files do not count."""
    folders: dict[str, set[str]] = {}
    for name in tracked():
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    seen = 0
    for folder, names in folders.items():
        if folder.split("/")[0] in PACKAGES and folder != "modeling/infer" and "starter" not in folder:
            kept = {
                name
                for name in names - {"recipes", "accelerate_configs", "starter", "mappings"}
                if not name.startswith("__init__")
            }
            entries = {name for name in kept if not name.endswith((".yaml", ".jsonl"))}
            assert len(entries) <= 12, f"{folder}: {sorted(entries)}"
            seen += 1
    assert seen >= 12


def test_top_level_is_fixed() -> None:
    tops = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert tops <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
        "model_card_template.md",
        "tests",
        *PACKAGES,
    }


ROOMS = (*PACKAGES, "tests", "tests/benchmarks", "tests/gpu")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_files(room: str) -> None:
    """A room's README table lists exactly the files of the room."""
    readme = (ROOT / room / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w./-]+\.(?:py|css|sh))` \|", readme, re.MULTILINE))
    inner = [other for other in ROOMS if other != room and other.startswith(f"{room}/")]
    there = {
        name.removeprefix(f"{room}/")
        for name in tracked()
        if name.startswith(f"{room}/")
        and name.endswith((".py", ".css", ".sh"))
        and not name.endswith("__init__.py")
        and not any(name.startswith(f"{other}/") for other in inner)
        and "/earlier/" not in name
    }
    assert len(there) >= 7
    assert listed == there


def test_what_tests_and_benchmarks_import_exists() -> None:
    """Benchmarks run only on request, so this test must find a name that moved."""
    seen = 0
    for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "tests" / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or f"{node.module}.{alias.name}" in modules(), (path, alias.name)
                    seen += 1
    assert seen > 200
