"""Spark: the lines in the README score a folder as ``predict`` does. Skipped without pyspark or Java."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from modeling.infer import EmotionClassifier
from tests.conftest import ROOT


def test_the_lines_of_the_readme_run_on_spark(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    if not shutil.which("java"):
        pytest.skip("pyspark needs Java")
    readme = (ROOT / "hub_release" / "README.md").read_text(encoding="utf-8")
    lines = readme.split("### On Spark\n")[1].split("```python\n")[1].split("```")[0]
    assert len(lines.splitlines()) <= 20
    texts = [f"sunny cake {number}" for number in range(20)]
    pd.DataFrame({"id": range(20), "text": texts}).to_parquet(tmp_path / "comments.parquet")
    lines = lines.replace('"packages/goemotions", backend="onnx"', f"{str(package)!r}")
    for name in ("comments.parquet", "scored"):
        lines = lines.replace(f'"{name}"', repr(str(tmp_path / name)))
    local = "import pyspark; pyspark.sql.SparkSession.builder.master('local[1]').getOrCreate()\n"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
    }
    code = f"import pyspark.sql\n{local}{lines}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3_000:]
    found = pd.read_parquet(tmp_path / "scored").sort_values("id")
    assert list(found["text"]) == texts
    assert [list(row) for row in found["emotions"]] == EmotionClassifier(package)({"text": texts})["emotions"]
