"""The bundle: the modules of ``modeling/infer`` as one file, with nothing lost, doubled or changed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hub_release.package import ReleaseError
from hub_release.shipped import bundle as bundler
from hub_release.shipped.bundle import INFER, ROOT, bundle, bundle_without_torch, definitions, read_module

FOLDER = ROOT / "modeling" / "infer"
WITHOUT_TORCH = "graph_classifier"
"""The one module that ships only in ``infer_onnx.py``."""
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", WITHOUT_TORCH))


def test_every_definition_is_its_module_s() -> None:
    together = [(name, ast.dump(node)) for name, node in definitions(ast.parse(bundle()))]
    apart = [
        (name, ast.dump(node))
        for module in MODULES
        for name, node in definitions(ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8")))
        if name != "logger"
    ]
    assert len(apart) > 100
    assert sorted(together) == sorted([*apart, next(pair for pair in together if pair[0] == "logger")])
    assert len({name for name, _ in together}) == len(together)


def test_the_text_is_the_modules_own() -> None:
    text = bundle()
    for module in MODULES:
        body = read_module(f"{INFER}.{module}").body
        assert body in text and text.count(f"# modeling/infer/{module}.py: ") == 1
    # A module comes after the modules that it imports.
    places = [text.index(f"# modeling/infer/{module}.py: ") for module in MODULES]
    order = dict(zip(MODULES, places, strict=True))
    for module in MODULES:
        assert all(
            order[needed.removeprefix(f"{INFER}.")] < order[module] for needed in read_module(f"{INFER}.{module}").needs
        )


def test_it_imports_nothing_of_ours_and_each_name_once() -> None:
    names: list[str] = []
    for node in ast.walk(ast.parse(bundle())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            assert node.module.split(".")[0] not in ("modeling", "training", "hub_release", "__future__")
        if isinstance(node, ast.Import | ast.ImportFrom) and node.col_offset == 0:
            names += [alias.asname or alias.name for alias in node.names]
    assert len(names) == len(set(names)) > 40


def test_the_bundle_without_torch_has_the_modules_own_text() -> None:
    text, ours = bundle_without_torch(), bundle()
    titles = re.findall(r"^# modeling/infer/(\w+)\.py: ", text, re.MULTILINE)
    assert WITHOUT_TORCH in titles and len(titles) == len(set(titles)) > 15
    for module in titles:
        body = read_module(f"{INFER}.{module}").body
        assert body in text and (body in ours) == (module != WITHOUT_TORCH)
    assert not {"classifier", "model", "config", "pipeline"} & set(titles)


def test_a_subset_makes_a_smaller_bundle_without_torch(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(bundle(("encoders", "files")), encoding="utf-8")
    code = """
import sys
import small
vectors = small.LoadedEncoder("fake", "1", lambda texts: [[len(text)] for text in texts])(["a", "bc"])
print(vectors.tolist(), "torch" in sys.modules, "transformers" in sys.modules, hasattr(small, "EmotionModel"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[[1.0], [2.0]] False False False"


def test_a_traceback_leads_to_the_module(tmp_path: Path) -> None:
    (tmp_path / "infer.py").write_text(bundle(), encoding="utf-8")
    (tmp_path / "config.json").write_text("{}")
    code = "import infer, pathlib; infer.read_config(pathlib.Path('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = re.findall(r'infer.py", line (\d+), in read_config', done.stderr)
    before = bundle().splitlines()[: int(line)]
    section = next(line for line in reversed(before) if line.startswith("# modeling/infer/"))
    assert section.startswith("# modeling/infer/config.py: ")


BAD = {
    "from . import errors": "cannot be bundled",
    "import modeling.infer.errors": "cannot be bundled",
    "from modeling.infer import PackageError": "cannot be bundled",
    "from modeling.infer.errors import PackageError as Error": "cannot be bundled",
    "from modeling.infer.errors import *": "cannot be bundled",
    "def f():\n    from modeling.infer.errors import PackageError": "cannot be bundled",
    "from modeling.focal import focal_loss": "cannot be bundled",
    "from __future__ import annotations": "quote forward references",
    "class PackageError: ...\nfrom modeling.infer.errors import import_optional": "PackageError in two modules",
}


@pytest.mark.parametrize("code", BAD)
def test_what_cannot_be_bundled_is_refused(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "modeling" / "infer")
    (folder / "new.py").write_text(f"{code}\n", encoding="utf-8")
    monkeypatch.setattr(bundler, "ROOT", tmp_path)
    with pytest.raises(ReleaseError, match=BAD[code]):
        bundle(("new",))
    bundle.cache_clear()
