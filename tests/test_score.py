"""``hub_release score``: every row is kept or named, and a stopped run goes on to the same bytes."""

from __future__ import annotations

import csv
import datetime
import decimal
import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner, Result

from hub_release.cli import app
from hub_release.serving.offline import folder as folder_names, job, places
from hub_release.serving.offline.columns import ColumnsOfFiles
from hub_release.serving.offline.read import find_sources, read_parts
from hub_release.serving.offline.write import FORMATS, encode, header
from modeling.infer import EmotionClassifier, TableError, read_rows
from tests.conftest import LABELS

TEXTS = [f"sunny cake {number} dark cellar" * (number % 3 + 1) for number in range(25)]
ADDED = ["emotions", *(f"p_{label}" for label in LABELS)]


def run(*arguments: object) -> Result:
    """The verb, on one thread."""
    return CliRunner().invoke(app, ["score", *map(str, arguments), "--threads", "1"])


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as the file that the suffix says."""
    frame = pd.DataFrame(rows)
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif "json" in path.name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


def numbered(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": str(index), "text": text} for index, text in enumerate(texts)]


@pytest.fixture(scope="module")
def expected(package: Path) -> dict[str, Any]:
    return EmotionClassifier(package, threads=1)({"text": TEXTS})


@pytest.mark.parametrize("source", ["a.csv", "a.tsv.gz", "a.jsonl.xz", "a.JSON", "a.parquet"])
@pytest.mark.parametrize("target", ["b.csv", "b.tsv.gz", "b.jsonl", "b.parquet", "folder"])
def test_scores_are_the_classifier_s_and_columns_are_kept(
    source: str, target: str, package: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """From each format into each, in parts, and as this project reads them back."""
    path = write_table(tmp_path / source.lower(), numbered(TEXTS)).rename(tmp_path / source)
    done = run(package, path, tmp_path / target, "--rows_per_part", "10")
    assert done.exit_code == 0 and "25 rows are scored" in done.output
    files = sorted((tmp_path / target).glob("part-*")) if target == "folder" else [tmp_path / target]
    assert len(files) == (3 if target == "folder" else 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([source, target])
    rows = [row.values for file in files for row in read_rows(file)]
    assert [row["text"] for row in rows] == TEXTS and [int(row["id"]) for row in rows] == list(range(25))
    assert list(rows[0]) == ["id", "text", *ADDED]
    for index, row in enumerate(rows):
        emotions = row["emotions"] if isinstance(row["emotions"], list) else row["emotions"].split(",")
        assert list(filter(None, emotions)) == expected["emotions"][index]
        found = [float(row[f"p_{label}"]) for label in LABELS]
        np.testing.assert_allclose(found, expected["probabilities"][index], atol=1e-6)


def test_types_of_parquet_are_kept(package: Path, tmp_path: Path) -> None:
    """Those of every column, nested ones too, and the file's own metadata."""
    moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.large_string()),
            "when": pa.array([moment, None], pa.timestamp("ns", "UTC")),
            "price": pa.array([decimal.Decimal("1.20"), None], pa.decimal128(9, 2)),
            "raw": pa.array([b"\x00\xff", b""], pa.binary()),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "nested": pa.array([{"a": [1, 2]}, None], pa.struct([("a", pa.list_(pa.int8()))])),
            "number": pa.array([float("nan"), 1.5], pa.float32()),
        }
    ).replace_schema_metadata({"owner": "me"})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert run(package, tmp_path / "a.parquet", tmp_path / "b.parquet").exit_code == 0
    wanted, found = (pyarrow.parquet.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert found.schema.types[: len(wanted.schema)] == wanted.schema.types
    pd.testing.assert_frame_equal(found.select(wanted.schema.names).to_pandas(), wanted.to_pandas())
    assert found.schema.metadata[b"owner"] == b"me"
    assert [found.schema.field(name).type for name in ADDED] == [pa.list_(pa.string()), *[pa.float32()] * 3]
    assert run(package, tmp_path / "a.parquet", tmp_path / "b.jsonl").exit_code == 0
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert first["when"] == "2024-02-29T12:00:00+00:00" and first["price"] == "1.20" and first["raw"] == "AP8="
    assert first["number"] is None and first["nested"] == {"a": [1, 2]}


def test_bad_rows_are_named_and_end_nothing(package: Path, tmp_path: Path) -> None:
    """Broken lines, missing and other texts, and a file that breaks in the middle."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        '{"text": "a"}\n{broken\n{"x": 1}\n{"text": 5}\n{"text": null}\n{"text": "half \\ud83d"}\n'
    )
    (folder / "b.csv").write_text("text,id\na,1\nb\nc,3\n")
    (folder / "c.csv").write_bytes(b"text\n" + b"fine\n" * 4_000 + b"\xff\xfe broken\n" + b"never\n" * 10)
    (folder / "d.csv").write_text("other\nx\n")
    (folder / "e.csv").write_text("")
    (folder / "f.jsonl").write_text('{"id": 1}\n{"text": "later"}\n')
    (folder / "g.txt").write_text("a line\n\n")
    (folder / "notes.md").write_text("no rows")
    (folder / "_hidden.csv").write_text("text\nno\n")
    done = run(package, folder, tmp_path / "out", "--format", "jsonl", "--bad_rows", tmp_path / "bad.jsonl", "--json")
    assert done.exit_code == 0, done.output
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    result = json.loads(done.stdout)
    assert result["bad"] == len(bad) == 9
    places = [entry["place"].removeprefix(f"{folder}/") for entry in bad]
    lines = [*(f"a.jsonl, line {line}" for line in (2, 3, 4, 5)), "b.csv, line 3"]
    assert places == [*lines, "c.csv", "d.csv", "e.csv", "f.jsonl, line 1"]
    assert all("Remedy: " in entry["problem"] for entry in bad)
    rows = [row.values for file in sorted((tmp_path / "out").glob("part-*")) for row in read_rows(file)]
    assert len(rows) == result["scored"]
    texts = [row["text"] for row in rows]
    assert texts[:4] == ["a", "half ?", "a", "c"] and texts[-2:] == ["a line", ""] and texts.count("fine") > 2_000
    assert rows[-1]["emotions"] == []


def test_rows_that_do_not_fit_the_columns_are_named(package: Path, tmp_path: Path) -> None:
    """Parquet's columns have one type, that of the first part; JSON lines keep what each row has."""
    values = [{"text": "a", "n": 1}, {"text": "b", "n": "two"}, {"text": "c", "m": 3}, {"text": "d"}]
    lines = "".join(f"{json.dumps(value)}\n" for value in values)
    (tmp_path / "a.jsonl").write_text(lines)
    done = run(package, tmp_path / "a.jsonl", tmp_path / "a.parquet", "--rows_per_part", "1")
    assert done.exit_code == 0 and "2 cannot be scored" in done.output
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["n"].to_pylist() == [1, None]
    named = (tmp_path / "a.parquet.bad_rows.jsonl").read_text()
    assert "column 'n' is 'two', not int64" in named and "column 'm' is new" in named
    assert run(package, tmp_path / "a.jsonl", tmp_path / "b.jsonl").exit_code == 0
    kept = [row.values for row in read_rows(tmp_path / "b.jsonl")]
    assert [{name: row[name] for name in value} for row, value in zip(kept, values, strict=True)] == values
    done = run(package, tmp_path / "a.jsonl", tmp_path / "c.parquet")
    assert done.exit_code == 2 and "values of several kinds" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv", "b.csv"], "no such file or folder"),
        (["a.csv", "a.csv"], "already exists. Remedy: delete it"),
        (["a.csv", "b.xlsx"], "cannot be written as xlsx. Remedy: use one of csv, tsv"),
        (["a.csv", "b.csv", "--format", "tsv"], "cannot be written as tsv"),
        (["a.csv", "b.parquet.gz"], "cannot be written as parquet"),
        (["a.csv", "-", "--format", "parquet"], "cannot be written as parquet"),
        (["a.csv", "-", "--bad_rows", "a.csv"], "is a file of INPUT or OUTPUT"),
        (["a.csv", "-", "--json"], "the standard output has the rows. Remedy: leave out --json"),
        (["-", "-", "--resume"], "cannot be gone on with. Remedy: name files"),
        (["-", "-", "--input_format", "parquet"], "the standard input cannot be read as .parquet"),
        (["a.csv", "b.csv", "--text_column", "body"], "no column 'body', only 'text'. Remedy: name the column"),
        (["empty", "b.csv"], "has no file of rows"),
        (["folder", "folder/out"], "is in the folder folder, which is read. Remedy: name an OUTPUT elsewhere"),
        (["folder", "folder/out.csv"], "is in the folder folder, which is read"),
        (["taken.csv", "b.csv"], "has the column 'emotions', as the scores do. Remedy: rename it"),
        (["a.csv", "b.csv", "--backend", "onnx"], "is not in the package"),
        (["a.csv", "b.csv", "--bad_rows", "a.csv"], "is a file of INPUT or OUTPUT"),
        (["a.csv", "b.csv", "--bad_rows", "missing/bad"], "cannot be written. Remedy: name a file in a folder"),
        (["blank.jsonl", "b.csv"], "no row can be scored"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_written(
    arguments: list[str], message: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "taken.csv").write_text("text,emotions\na,b\n")
    (tmp_path / "blank.jsonl").write_text("{}\n" * 2 if "blank.jsonl" in arguments else "")
    (tmp_path / "blank.jsonl").write_text('{"text": 1}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.csv").write_text("text\na\n")
    done = run(package, *arguments)
    assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output
    assert not (tmp_path / "b.csv").exists() and not (tmp_path / "b.csv.parts").exists()


def test_columns_of_files_in_another_order_are_the_same(package: Path, tmp_path: Path) -> None:
    """Of CSV and of JSON lines, where values that are missing or of another type may be in any file."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("text,id\na,1\n")
    (folder / "b.csv").write_text("id,text\n2,b\n")
    (folder / "c.jsonl").write_text('{"id": null, "text": "c"}\n{"text": "d"}\n{"text": "e", "id": "5"}\n')
    assert run(package, folder, tmp_path / "out.parquet").exit_code == 0
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found["text"].to_pylist() == list("abcde") and found["id"].to_pylist() == ["1", "2", None, None, "5"]


def test_nothing_is_overwritten_or_left_out_silently(package: Path, tmp_path: Path) -> None:
    """A later row's own emotions, and new keys in an object of a Parquet column."""
    lines = [{"text": "a", "o": {"x": 1}}, {"text": "b", "emotions": ["mine"]}, {"text": "c", "o": {"x": 1, "y": 2}}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = run(package, tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--rows_per_part", "1")
    assert done.exit_code == 0 and "has the column 'emotions'" in done.output
    assert [row.values["text"] for row in read_rows(tmp_path / "b.jsonl")] == ["a", "c"]
    done = run(package, tmp_path / "a.jsonl", tmp_path / "c.parquet", "--rows_per_part", "1")
    assert done.exit_code == 0 and "2 cannot be scored" in done.output and "'y': 2" in done.output
    some = [{"text": "a", "o": {"x": 1.5, "y": [{"z": 1}]}}, {"text": "b", "o": {"x": 2}}, {"text": "c", "o": None}]
    (tmp_path / "e.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in some) + '{"text": "d", "o": {"x": NaN}}\n'
    )
    done = run(package, tmp_path / "e.jsonl", tmp_path / "e.parquet", "--rows_per_part", "3")
    assert done.exit_code == 0 and "4 rows are scored" in done.output and "cannot" not in done.output
    assert pyarrow.parquet.read_table(tmp_path / "e.parquet")["o"].to_pylist()[1] == {"x": 2.0, "y": None}
    (tmp_path / "d.jsonl").write_text('{"text": "a", "o": {}}\n')
    done = run(package, tmp_path / "d.jsonl", tmp_path / "d.parquet")
    assert done.exit_code == 2 and "empty objects" in done.output


def test_a_failing_disk_ends_the_run_and_the_part_is_not_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of a part before a disk failed would otherwise pass for the whole part."""
    path = write_table(tmp_path / "a.csv", numbered(TEXTS))
    whole = read_rows

    def fail(*arguments: Any, **options: Any) -> Any:
        for number, row in enumerate(whole(*arguments, **options)):
            if number == 15:
                try:
                    raise OSError(errno.EIO, "Input/output error")
                except OSError as error:
                    raise TableError(f"{path} cannot be read ({error}). Remedy: check the file") from None
            yield row

    with monkeypatch.context() as patch:
        patch.setattr("hub_release.serving.offline.read.read_rows", fail)
        done = run(package, path, tmp_path / "out", "--rows_per_part", "10")
        assert done.exit_code == 2 and "Input/output error" in done.output
    assert run(package, path, tmp_path / "out", "--rows_per_part", "10", "--resume").exit_code == 0
    assert run(package, path, tmp_path / "whole", "--rows_per_part", "10").exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_goes_on_only_with_what_it_was_begun_with(package: Path, tmp_path: Path) -> None:
    path, out = write_table(tmp_path / "a.csv", numbered(TEXTS)), tmp_path / "out"
    assert run(package, path, out, "--rows_per_part", "10").exit_code == 0
    done = run(package, path, out, "--rows_per_part", "10")
    assert done.exit_code == 2 and "already exists. Remedy: add --resume" in done.output
    done = run(package, path, out, "--rows_per_part", "10", "--resume")
    assert done.exit_code == 0 and "(25 of them before this run)" in done.output
    for options in (["--rows_per_part", "11"], ["--rows_per_part", "10", "--no-probabilities"]):
        done = run(package, path, out, "--resume", *options)
        assert done.exit_code == 2 and "was begun with" in done.output
    with path.open("a") as file:
        file.write("25,more\n")
    done = run(package, path, out, "--rows_per_part", "10", "--resume")
    assert done.exit_code == 2 and "was begun with input" in done.output
    (out / folder_names.RECORD).write_text("[")
    done = run(package, path, out, "--rows_per_part", "10", "--resume")
    assert done.exit_code == 2 and f"has no {folder_names.RECORD}" in done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("target", ["out", "out.parquet", "out.csv.gz"])
def test_a_stop_at_any_step_is_made_good(
    target: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each move of a file into its place fails once; the run goes on, and the bytes are those of a whole run."""
    rows = [*numbered(TEXTS), {"id": "25", "text": None}]
    path = write_table(tmp_path / "a.jsonl", rows)
    (tmp_path / "whole").mkdir()
    assert run(package, path, tmp_path / "whole" / target, "--rows_per_part", "8").exit_code == 0
    publish, stops = places.publish, 0

    def stop(*arguments: Path) -> None:
        raise KeyboardInterrupt

    while True:
        calls = iter([publish] * min(stops, 2) + [stop])

        def next_call(*arguments: Path, calls: Any = calls) -> None:
            next(calls, publish)(*arguments)

        for module in (job, places):
            monkeypatch.setattr(module, "publish", next_call)
        done = run(package, path, tmp_path / target, "--rows_per_part", "8", *["--resume"] * (stops > 0))
        if done.exit_code == 0:
            break
        assert done.exit_code == 130 and "--resume" in done.output
        assert not (tmp_path / target).is_file()
        stops += 1
        assert stops < 10
    assert stops >= 4
    if target == "out":
        assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")
    else:
        assert (tmp_path / target).read_bytes() == (tmp_path / "whole" / target).read_bytes()
        assert (tmp_path / f"{target}.bad_rows.jsonl").exists() and not (tmp_path / f"{target}.parts").exists()


def test_a_killed_process_leaves_whole_parts(package: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments; then the same bytes as in one go."""
    path = write_table(tmp_path / "a.csv", numbered(TEXTS * 40))
    command = [sys.executable, "-m", "hub_release.cli", "score", str(package), str(path)]
    options = ["--rows_per_part", "50", "--threads", "1"]
    done = subprocess.run([*command, str(tmp_path / "whole"), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pause, out = random.Random(0), tmp_path / "out"
    for attempt in range(3):
        resume = ["--resume"] if (out / folder_names.RECORD).exists() else []
        process = subprocess.Popen([*command, str(out), *options, *resume], stderr=subprocess.DEVNULL)
        wanted, until = 4 * (attempt + 1), time.monotonic() + 60
        while len(list(out.glob("part-*"))) < wanted and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(pause.random() / 20)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(out), *options, "--resume"], check=True, capture_output=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_stop_before_the_parts_are_removed(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is complete by then, and the same command with --resume says so."""
    path = write_table(tmp_path / "a.csv", numbered(TEXTS))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job.shutil, "rmtree", stop)
        assert run(package, path, tmp_path / "b.csv").exit_code == 130
    before = (tmp_path / "b.csv").read_bytes()
    done = run(package, path, tmp_path / "b.csv", "--resume")
    assert done.exit_code == 0 and "is complete" in done.output
    assert (tmp_path / "b.csv").read_bytes() == before and not (tmp_path / "b.csv.parts").exists()


def test_a_folder_may_have_a_dot_in_its_name(package: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", numbered(TEXTS))
    assert run(package, path, f"{tmp_path}/v1.2/").exit_code == 0
    assert [row.name for row in sorted((tmp_path / "v1.2").iterdir())] == [folder_names.RECORD, "part-00000-000000.csv"]


def test_two_processes_do_not_write_into_one_folder(package: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", numbered(TEXTS))
    assert run(package, path, tmp_path / "out").exit_code == 0
    record = json.loads((tmp_path / "out" / folder_names.RECORD).read_text())
    with folder_names.Folder(places.Place(tmp_path / "out"), record, resume=True):
        done = run(package, path, tmp_path / "out", "--resume")
    assert done.exit_code == 2 and "is being written by another process" in done.output


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_standard_input_is_scored_as_it_comes(form: str, package: Path, expected: dict[str, Any]) -> None:
    """Bad rows are named on the standard error."""
    lines = {
        "csv": ["text,id\n", *(f'"{text}",{index}\n' for index, text in enumerate(TEXTS))],
        "jsonl": [*(json.dumps({"text": text}) + "\n" for text in TEXTS), '{"other": 1}\n'],
    }[form]
    command = [sys.executable, "-m", "hub_release.cli", "score", str(package), "-", "-", "--input_format", form]
    command += ["--threads", "1", "--format", form]
    done = subprocess.run(command, input="".join(lines), capture_output=True, text=True, check=True)
    if form == "csv":
        rows = list(csv.DictReader(done.stdout.splitlines()))
        assert [row["emotions"].split(",") for row in rows] == expected["emotions"]
    else:
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["emotions"] for row in rows] == expected["emotions"]
    assert [row["text"] for row in rows] == TEXTS
    assert ("line 26" in done.stderr) == (form == "jsonl")


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"a": cells, "text": cells}), min_size=1, max_size=6))
@pytest.mark.parametrize("form", FORMATS)
def test_any_cells_survive(form: str, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is in a cell is read back from what was written."""
    path = tmp_path_factory.mktemp("cells") / f"a.{form}"
    schema = pa.schema([("a", pa.string()), ("text", pa.string())])
    heading = header(["a", "text"], ["emotions"], form)
    path.write_bytes(heading + encode(rows, ["a", "text"], [["joy", "fear"]] * len(rows), {}, form, schema))
    back = [row.values for row in read_rows(path)]
    assert [{name: row[name] for name in ("a", "text")} for row in back] == rows


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A part is read, and no more: ten times the rows, the same peak."""
    peaks = []
    for rows in (3_000, 30_000):
        path = tmp_path / f"{rows}.txt"
        path.write_text("a text\n" * rows)
        columns, read = ColumnsOfFiles("jsonl", ["emotions"], one_file=True), 0
        tracemalloc.start()
        for part in read_parts(find_sources(str(path)), "text", 1_000):
            columns.fit(part)
            read += len(part.rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read == rows
    assert peaks[1] < 1.2 * peaks[0]


def test_gzip_has_no_time_in_it(package: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", numbered(TEXTS))
    for name in ("b.csv.gz", "c.csv.gz"):
        assert run(package, path, tmp_path / name).exit_code == 0
    assert (tmp_path / "b.csv.gz").read_bytes() == (tmp_path / "c.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "b.csv.gz").read_bytes()).startswith(b"id,text,emotions")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_another_file_system_is_as_good(form: str, package: Path, tmp_path: Path) -> None:
    """By a URI, through pyarrow: the same parts, the same names of bad rows but for the folder, and a run that goes on."""
    folder = tmp_path / "in"
    write_table(folder / "a.parquet", numbered(TEXTS))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\nnonsense\n'))
    (folder / "c.csv").write_bytes(b"text\nfine\n\xff\n")
    options = ["--format", form, "--rows_per_part", "10"]
    assert run(package, folder, tmp_path / "here", *options).exit_code == 0
    uris = [f"file://{folder}", f"file://{tmp_path}/there.d"]
    done = run(package, *uris, *options)
    assert done.exit_code == 0 and "26 rows are scored" in done.output, done.output

    def parts(path: Path) -> dict[str, bytes]:
        return {name: content for name, content in contents(path).items() if name.startswith("part-")}

    assert parts(tmp_path / "there.d") == parts(tmp_path / "here")
    bad = [json.loads(line) for line in (tmp_path / "there.d" / folder_names.BAD_ROWS).read_text().splitlines()]
    assert [row["place"] for row in bad] == ["b.jsonl.gz, line 2", "c.csv"]
    assert all(str(tmp_path) not in json.dumps(row) and "file:" not in json.dumps(row) for row in bad)
    (tmp_path / "there.d" / f"part-00000-000001.{form}").unlink()
    assert run(package, *uris, *options).exit_code == 2
    done = run(package, *uris, *options, "--resume")
    assert done.exit_code == 0 and "(16 of them before this run)" in done.output
    assert parts(tmp_path / "there.d") == parts(tmp_path / "here")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("file:///nowhere/a.csv", "out", "no such file or folder"),
        ("nothing://a/b.csv", "out", "nothing:// cannot be used"),
        ("a.csv", "nothing://secret:key@b/out", "nothing:// cannot be used"),
    ],
)
def test_odd_uris_are_refused(source: str, target: str, message: str, package: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", numbered(TEXTS))
    given = source if "://" in source else path
    done = run(package, given, target if "://" in target else tmp_path / target)
    assert done.exit_code == 2 and message in done.output and "Remedy: " in done.output
    assert "key" not in done.output


@pytest.mark.parametrize("output", ["out", "file://{}/out"])
def test_a_folder_that_was_there_is_left_alone(
    output: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with folders in it is not free; an empty one stays when nothing can be scored."""
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n')
    monkeypatch.chdir(tmp_path)
    target = output.format(tmp_path)
    (tmp_path / "out").mkdir()
    done = run(package, "a.jsonl", target)
    assert done.exit_code == 2 and "no row can be scored" in done.output
    assert (tmp_path / "out").is_dir() and not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / "mine").mkdir()
    (tmp_path / "out" / "mine" / "notes.txt").write_text("mine")
    done = run(package, "a.jsonl", target)
    assert done.exit_code == 2 and "already exists" in done.output
    assert (tmp_path / "out" / "mine" / "notes.txt").read_text() == "mine"


def test_a_file_that_cannot_be_opened_ends_the_run(package: Path, tmp_path: Path) -> None:
    """Its rows would be missing without a word; the run goes on when it can be."""
    for name in ("a.csv", "b.csv"):
        write_table(tmp_path / "in" / name, numbered(TEXTS))
    real = find_sources(str(tmp_path / "in"))
    (tmp_path / "in" / "b.csv").rename(tmp_path / "gone.csv")
    with pytest.raises(TableError, match=r"b\.csv cannot be read"):
        list(read_parts(real, "text", 10))


def test_a_stop_does_not_show_a_key(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words = ["score", str(package), "s3://name:secret@bucket/in", str(tmp_path / "out")]
    monkeypatch.setattr("hub_release.serving.offline.read.find_sources", stop)
    monkeypatch.setattr(sys, "argv", ["hub_release", *words])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 130 and "--resume" in done.output and "secret" not in done.output
