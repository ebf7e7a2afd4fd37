"""``hub_release score --ray``: the same files as in one process, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hub_release.cli import app
from hub_release.package import ReleaseError
from hub_release.serving.offline import on_ray
from hub_release.serving.offline.columns import ColumnsOfFiles
from hub_release.serving.offline.job import score
from hub_release.serving.offline.on_ray import Cluster, Scorer, read, run_on_ray, seal_of
from hub_release.serving.offline.places import Place
from hub_release.serving.offline.read import find_sources
from hub_release.serving.offline.work import Piece, Settings, Work
from hub_release.serving.offline.write import score_columns
from modeling.infer import EmotionClassifier

SETTINGS = Settings("text", "jsonl", True, 20, "torch", None, 64, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: with bad rows, of other columns, and one that breaks."""
    folder = tmp_path_factory.mktemp("given")
    texts = [f"sunny cake {number}" for number in range(90)]
    lines = [f'{{"text": "{text}", "id": {number}}}' for number, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:50], "nonsense", *lines[50:]]))
    pd.DataFrame({"text": texts, "other": 1.5}).to_parquet(folder / "b.parquet")
    (folder / "c.csv").write_bytes(b"text,id\ngood,1\nbad\xff,2\n")
    return folder


@pytest.fixture(scope="module")
def here(package: Path, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    target = tmp_path_factory.mktemp("here") / "out"
    classifier = EmotionClassifier(package, threads=1)
    score(package, find_sources(str(given)), str(target), SETTINGS, classifier, False, None, lambda *_: None)
    return target


def test_a_killed_run_on_a_real_cluster_goes_on(package: Path, given: Path, here: Path, tmp_path: Path) -> None:
    """Driver and cluster are killed after the first part; then the bytes are those of one process."""
    command = [sys.executable, "-m", "hub_release.cli", "score", str(package), str(given), str(tmp_path / "out")]
    options = ["--format", "jsonl", "--rows_per_part", "20", "--ray", "local", "--actors", "1"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((tmp_path / "out").glob("part-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list((tmp_path / "out").glob("part-*"))) > 0
    done = subprocess.run([*command, *options, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "180 rows are scored" in done.stdout and "2 cannot be scored" in done.stdout
    assert contents(tmp_path / "out") == contents(here)


def work_of(package: Path, given: Path, target: Path) -> Work:
    added = score_columns(EmotionClassifier(package).labels, True)
    target.mkdir()
    return Work(package, Place(target), SETTINGS, ColumnsOfFiles("jsonl", added, one_file=False), set())


def test_tasks_and_actors_do_what_one_process_does(package: Path, given: Path, here: Path, tmp_path: Path) -> None:
    """Each file read on its own, in another order, and each part by another actor."""
    work, pieces = work_of(package, given, tmp_path / "out"), []
    classifier = EmotionClassifier(package)
    for source in reversed(find_sources(str(given))):
        column = np.array([source], dtype=object)
        for batch in read({"source": column}, work):
            actor = Scorer(work, classifier.computed, seal_of(package), device="cpu")
            pieces += list(actor(batch)["piece"])
    assert all(piece.part is None for piece in pieces)  # nothing but the counts goes back
    found = contents(tmp_path / "out")
    assert found == {name: content for name, content in contents(here).items() if name.startswith("part-")}
    assert sum(piece.rows for piece in pieces) == 180 and sum(len(piece.bad) for piece in pieces) == 2


def test_an_actor_refuses_another_package_and_another_precision(package: Path, given: Path, tmp_path: Path) -> None:
    work, computed = work_of(package, given, tmp_path / "out"), EmotionClassifier(package).computed
    with pytest.raises(ReleaseError, match=r"another package than here\. Remedy: "):
        Scorer(work, computed, "other", device="cpu")
    with pytest.raises(ReleaseError, match="Remedy: use machines of one kind"):
        Scorer(work, "in another precision", seal_of(package), device="cpu")


def test_a_written_part_is_not_scored_again(package: Path, given: Path, tmp_path: Path) -> None:
    work = work_of(package, given, tmp_path / "out")
    source = np.array(find_sources(str(given))[:1], dtype=object)
    names = [batch["piece"][0].name for batch in read({"source": source}, work)]
    again = [batch["piece"][0] for batch in read({"source": source}, replace(work, finished={names[1]}))]
    assert [piece.before for piece in again] == [name == names[1] for name in names]
    assert [piece.part is None for piece in again] == [name == names[1] for name in names]
    done = Piece((0, 1), names[1], 20, [], before=True)
    work.score(done, classifier=None)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actors", "2"], "add --ray local"),
        (["--ray", "local", "--threads", "2"], "give --cpus_per_actor"),
        (["--ray", "local", "--gpus_per_actor", "1", "--backend", "onnx"], "graphs are computed on CPUs"),
        (["--ray", "local", "--gpus_per_actor", "-1"], "cannot be"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, package: Path, given: Path, tmp_path: Path
) -> None:
    done: Any = CliRunner().invoke(app, ["score", str(package), str(given), str(tmp_path / "out"), *options])
    assert done.exit_code == 2 and message in done.output and not (tmp_path / "out").exists()


def test_the_standard_output_is_not_shared(package: Path, given: Path) -> None:
    done = CliRunner().invoke(app, ["score", str(package), str(given), "-", "--ray", "local"])
    assert done.exit_code == 2 and "cannot be shared with actors" in done.output


def test_no_cluster_at_the_address(package: Path, given: Path, tmp_path: Path) -> None:
    """The command is refused, and leaves nothing behind."""
    command = [sys.executable, "-m", "hub_release.cli", "score", str(package), str(given), str(tmp_path / "out")]
    done = subprocess.run([*command, "--ray", "127.0.0.1:1"], capture_output=True, text=True)
    assert done.returncode == 2 and "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_key_is_not_given_to_a_cluster(package: Path, given: Path, tmp_path: Path) -> None:
    """Ray keeps the command line of a job."""
    work = replace(work_of(package, given, tmp_path / "out"), place=Place(Path("bucket"), "s3://name:key@bucket"))
    with pytest.raises(ReleaseError, match="a URI holds a key") as refused:
        next(run_on_ray(work, [], Cluster("local", 1, 0, None), ""))
    assert "name" not in str(refused.value).split("Remedy")[0] and "key@" not in str(refused.value)


def test_actors_fit_on_one_machine_each() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 5.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert [on_ray._room(nodes, Cluster("", cpus, 0, None)) for cpus in (1, 2, 6)] == [6, 2, 0]
    assert [on_ray._room(nodes, Cluster("", 1, gpus, None)) for gpus in (0.5, 1, 2)] == [2, 1, 0]


def test_what_a_task_said_is_told_with_its_remedy() -> None:
    ours = RuntimeError("Traceback\n  line\nhub_release.package.ReleaseError: other package. Remedy: copy it")
    assert on_ray._cause(ours) == "other package. Remedy: copy it"
    assert on_ray._cause(OSError("No space left")) == "No space left. Remedy: mend it, and go on with --resume"
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = ValueError("inner")
    assert on_ray._cause(wrapped).startswith("inner. Remedy: ")
    ours.__cause__ = KeyError()  # Ray's own cause of a refusal says nothing
    assert on_ray._cause(ours) == "other package. Remedy: copy it"
