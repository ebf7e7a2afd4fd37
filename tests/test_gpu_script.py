"""``tests/gpu/run.sh`` at tiny size on a CPU, so that nothing but the GPU is new to it."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from training.data.taxonomy import build_taxonomy

PARTS = ("proofs", "shapes", "whole_run", "unsloth_run", "graphs")
WAYS = {"one token", "the reference's way", "tokens"}


def run_script(
    out: Path, corpus: Path | None = None, **environment: str
) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The script's exit code and its lines, by part."""
    command = ["bash", str(ROOT / "tests" / "gpu" / "run.sh"), str(out), *([str(corpus)] if corpus else [])]
    result = subprocess.run(command, env=os.environ | {"TINY": "1"} | environment, capture_output=True, text=True)
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines():
        lines[(values := json.loads(line)).pop("part")].append(values)
    assert tuple(lines) == PARTS, result.stderr[-3000:]
    return result.returncode, lines


@pytest.fixture(scope="module")
def goemotions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GoEmotions' own layout, with rows that anybody may write."""
    folder = tmp_path_factory.mktemp("goemotions")
    (folder / "labels.txt").write_text("\n".join(build_taxonomy(["goemotions-28"]).labels), encoding="utf-8")
    for split, rows in (("train", 112), ("dev", 56), ("test", 56)):
        lines = [f"{split} text {row} of feeling number {row % 28}\t{row % 28}\tx{split}{row}\n" for row in range(rows)]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_every_part_gives_its_figures(goemotions: Path, tmp_path: Path) -> None:
    failed, lines = run_script(tmp_path, goemotions)
    logs = {part: (tmp_path / f"{part}.log").read_text(encoding="utf-8")[-2000:] for part in PARTS}
    ends = {part: values[-1] for part, values in lines.items()}
    assert failed == 0 and all(end["figure"] == "end" and end["exit_code"] == 0 for end in ends.values()), logs
    proofs = [line for line in lines["proofs"] if line["figure"] == "test"]
    assert len(proofs) > 25 and all("cuda" in line["name"] for line in proofs)
    shapes = defaultdict(list)
    for line in lines["shapes"][:-1]:
        shapes[line["figure"]].append(line)
    assert {line["way"] for line in shapes["training"]} == WAYS
    assert all(line["rows_per_second"] > 0 and line["planned_bytes"] > 1e6 for line in shapes["training"])
    assert len(shapes["inference"]) == 2 * 2 and len(shapes["inference_memory"]) == 2
    (scores,) = (line for line in lines["whole_run"] if line["figure"] == "scores")
    assert scores["corpus"] == "goemotions" and scores["minutes_of_training"] > 0
    (graph,) = (line for line in lines["graphs"] if line["figure"] == "scores")
    assert graph["greatest_difference"] < 1e-4
    assert graph["test_macro_f1"] == pytest.approx(scores["test_macro_f1"]["per_label"], abs=1e-6)
    assert sum(line["figure"] == "speed" for line in lines["graphs"]) == 2


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    failed, lines = run_script(tmp_path, PYTHON="/bin/false")
    assert failed == len(PARTS) and [values[-1]["exit_code"] for values in lines.values()] == [1] * len(PARTS)
