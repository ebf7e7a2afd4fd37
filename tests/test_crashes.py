"""Kills at any moment and damage to any file: the next start gives the same result, or refuses in words.

``CRASHES=20 python -m pytest -n 0 -s tests/test_crashes.py tests/test_push_faults.py`` prints the whole table.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hub_release.export import export
from modeling.infer import LoadedEncoder, bundled, find_damage, seal, staging
from tests.conftest import ROOT, fake_encoder, tiny_flags, write_corpus
from tests.forks import print_to, start
from tests.test_push_faults import print_table
from training.data.encoding import encode
from training.run import main
from training.run_folder import RunFolder, RunFolderError

CRASHES = int(os.environ.get("CRASHES", "1"))
"""Kills of each stage, and damages of each file."""
RESULT = ("metrics.json", "golden.json", "thresholds.json", "calibration.json", "model/adapter_model.safetensors")


def export_run(run: str, package: str) -> int:
    export(Path(run), Path(package))
    return 0


def convert() -> int:
    def small(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        for name, size in (("config.json", 9), ("model.safetensors", 500_000), ("tokenizer.json", 999)):
            (folder / name).write_bytes(bytes(i % 251 for i in range(size)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "_find_gguf", lambda: Path("small.gguf"))
        patch.setattr(bundled, "_convert", small)
        bundled.convert_bundled_backbone()
    return 0


JOBS: dict[str, Callable[..., int]] = {"train": main, "export": export_run, "convert": convert}


def watch(folder: str, kill_at: int, record: int | None) -> None:
    """Count the changes to files below a folder, and die before the one of this number."""
    changes: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0:
            return
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "sqlite3.connect"):
            paths = [os.fspath(a) for a in arguments[:2] if isinstance(a, (str, os.PathLike))]
            if any(path.startswith(folder) for path in paths):
                if len(changes) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                changes.append(f"{event} {paths[-1]}")
                if record:
                    os.write(record, f"{changes[-1]}\n".encode())

    sys.addaudithook(hook)


def work(do: str, folder: Path, arguments: tuple[Any, ...], kill_at: int, seconds: float, record: Path | None) -> None:
    """In a forked process: do a job in a folder, until the change of this number or for so many seconds."""
    os.environ["GOEMOTIONS_MISTRAL_CACHE"] = str(folder / "cache")
    print_to(Path(f"{folder}.log"))
    watch(str(folder), kill_at, os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if record else None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    code = 1
    try:
        code = JOBS[do](*arguments)
    finally:
        os._exit(code)


class Worker:
    """Does jobs in forked processes, each in a folder of its own with a cache of its own."""

    def __call__(
        self, do: str, folder: Path, *arguments: Any, kill_at: int = -1, seconds: float = 0, record: Path | None = None
    ) -> int:
        process = start(work, do, folder, arguments, kill_at, seconds, record)
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def changes(self, do: str, folder: Path, *arguments: Any) -> list[str]:
        """Do a job to its end; returns its changes to files, in order."""
        record = Path(f"{folder}.changes")
        code = self(do, folder, *arguments, record=record)
        assert code == 0, Path(f"{folder}.log").read_text()[-3000:]
        return record.read_text().splitlines()


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes")
    write_corpus(folder / "corpus", rows=24)
    return folder


class Case:
    """A training in a folder of its own."""

    def __init__(self, base: Path, backbone: str, name: str) -> None:
        self.folder = base / name
        self.folder.mkdir()
        self.run = self.folder / "run"
        self.flags = [
            *tiny_flags(base / "corpus", backbone, self.run),
            *("--epochs", "2", "--save_total_limit", "3", "--balance", "none", "--input", "hybrid"),
        ]

    def result(self) -> dict[str, bytes]:
        return {name: (self.run / name).read_bytes() for name in RESULT}

    def leftovers(self) -> list[str]:
        return [str(path) for path in self.folder.rglob(".*") if not path.name.endswith(".lock")]


@pytest.fixture(scope="module")
def whole(worker: Worker, base: Path, tiny_backbone: str) -> tuple[Case, list[str]]:
    """A training that nothing stopped, and its changes to files."""
    case = Case(base, tiny_backbone, "whole")
    return case, worker.changes("train", case.folder, case.flags)


def stage_of(change: str) -> str:
    return "checkpoint" if "/checkpoints" in change else "cache" if "/cache" in change else "results"


def test_a_killed_training_goes_on_to_the_same_result(
    worker: Worker, base: Path, tiny_backbone: str, whole: tuple[Case, list[str]]
) -> None:
    case, changes = whole
    expected, chance, counts = case.result(), random.Random(0), Counter[tuple[str, ...]]()
    stages = [("checkpoint", 1), ("results", 1), *([("cache", 1), ("any-time", 1)] if CRASHES > 1 else [])]
    for stage, number in [(stage, i) for stage, n in stages for i in range(n * CRASHES)]:
        cut = Case(base, tiny_backbone, f"{stage}-{number}")
        at = chance.choice([i for i, change in enumerate(changes) if stage_of(change) == stage] or [-1])
        limits = {"seconds": chance.uniform(0.2, 8)} if stage == "any-time" else {"kill_at": at}
        code = worker("train", cut.folder, cut.flags, **limits)
        assert code in (-signal.SIGKILL, -signal.SIGALRM, 0)
        again = worker("train", cut.folder, [*cut.flags, "--resume"])
        log = Path(f"{cut.folder}.log").read_text()
        outcome = "refused" if again == 2 else "same" if again == 0 and cut.result() == expected else "DIFFERENT"
        assert outcome != "DIFFERENT", (changes[at], log[-3000:])
        assert again == 0 and not cut.leftovers(), log[-3000:]
        counts[f"training, killed: {stage}", "ended before" if code == 0 else "killed", outcome] += 1
        shutil.rmtree(cut.folder)
    print_table("stage | kill | after --resume", counts)
    assert counts.total() == sum(n for _, n in stages) * CRASHES


def damages() -> list[str]:
    return ["deleted", "cut", "zeroed"]


def damage(path: Path, how: str, chance: random.Random) -> None:
    """Delete a file, cut its end off, or zero a block of it, as a stop of the machine may do."""
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        start = chance.choice([i for i, byte in enumerate(content) if byte])
        path.write_bytes(content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :])


def test_damage_to_any_file_of_the_last_checkpoint_is_found(base: Path, whole: tuple[Case, list[str]]) -> None:
    """The one before is taken; with ``CRASHES``, :func:`test_a_damaged_checkpoint_leads_to_the_same_result` runs it."""
    copy = RunFolder(shutil.copytree(whole[0].run, base / "copy"))
    steps = sorted(int(path.name.split("-")[1]) for path in copy.checkpoints.iterdir())
    last, before = (copy.checkpoint(step) for step in (steps[-1], steps[-2]))
    kept = shutil.copytree(last, base / "kept")
    names = sorted(path.name for path in last.iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "SHA256SUMS"} < set(names)
    for how in damages():
        for name in names:
            damage(last / name, how, random.Random(0))
            usable, unusable = copy.inspect_checkpoints()
            assert usable == before and list(unusable) == [last], (name, how)
            shutil.copyfile(kept / name, last / name)
    assert copy.inspect_checkpoints() == (last, {})


@pytest.mark.skipif(CRASHES == 1, reason="a training for each damage: CRASHES=2 and more")
def test_a_damaged_checkpoint_leads_to_the_same_result(
    worker: Worker, base: Path, tiny_backbone: str, whole: tuple[Case, list[str]]
) -> None:
    expected, chance, counts = whole[0].result(), random.Random(1), Counter[tuple[str, ...]]()
    last = max(RunFolder(whole[0].run).checkpoints.iterdir(), key=lambda path: int(path.name.split("-")[1]))
    for name in sorted(path.name for path in last.iterdir()):
        for how in damages():
            cut = Case(base, tiny_backbone, f"damaged-{name}-{how}")
            shutil.copytree(whole[0].run, cut.run)
            (cut.run / "timing.json").unlink()
            damage(cut.run / "checkpoints" / last.name / name, how, chance)
            assert worker("train", cut.folder, [*cut.flags, "--resume"]) == 0
            assert f"{last.name} is deleted: " in Path(f"{cut.folder}.log").read_text()
            assert cut.result() == expected
            counts[f"checkpoint, {name}: {how}", "one before", "same"] += 1
            shutil.rmtree(cut.folder)
    print_table("damage | continued from | result", counts)


def test_a_killed_export_leaves_nothing_or_the_package(
    worker: Worker, base: Path, whole: tuple[Case, list[str]]
) -> None:
    run = whole[0].run
    (base / "exported").mkdir()
    changes = worker.changes("export", base / "exported", str(run), str(base / "exported" / "package"))
    expected = (base / "exported" / "package" / "SHA256SUMS").read_bytes()
    chance, counts = random.Random(2), Counter[tuple[str, ...]]()
    for number in range(CRASHES):
        folder = base / f"export-{number}"
        folder.mkdir()
        package = folder / "package"
        code = worker("export", folder, str(run), str(package), kill_at=chance.randrange(len(changes)))
        found = "whole" if package.exists() else "absent"
        assert code == -signal.SIGKILL
        if found == "absent":
            assert worker("export", folder, str(run), str(package)) == 0
        assert (package / "SHA256SUMS").read_bytes() == expected
        if found == "absent":
            assert [path.name for path in folder.iterdir()] == ["package"]
        counts["export, killed", found, "same"] += 1
    print_table("stage | package | rerun", counts)


def test_a_killed_conversion_is_made_again(worker: Worker, base: Path) -> None:
    (base / "converted").mkdir()
    changes = worker.changes("convert", base / "converted")
    [expected] = [path.read_bytes() for path in (base / "converted" / "cache").glob("*/SHA256SUMS")]
    assert len(changes) > 8
    moments = range(0, len(changes), 5 if CRASHES == 1 else 1)
    for at in moments:
        folder = base / f"convert-{at}"
        folder.mkdir()
        assert worker("convert", folder, kill_at=at) == -signal.SIGKILL
        assert worker("convert", folder) == 0
        [made] = [path for path in (folder / "cache").iterdir() if path.is_dir()]
        assert find_damage(made) == "" and (made / "SHA256SUMS").read_bytes() == expected
    for name in ("config.json", "model.safetensors", "tokenizer.json", "SHA256SUMS"):
        for how in damages():
            damage(made / name, how, random.Random(at))
            assert worker("convert", folder) == 0
            assert find_damage(made) == "" and (made / "SHA256SUMS").read_bytes() == expected
    told = Path(f"{folder}.log").read_text()
    assert "model.safetensors is not as it was written; it is converted again" in told
    table = {
        ("cache, conversion killed", "killed", "same"): len(moments),
        ("cache, converted file", "damaged", "same"): 12,
    }
    print_table("stage | fault | next start", Counter(table))


@settings(max_examples=20 * CRASHES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(how=st.sampled_from(["cut", "zeroed", "flipped"]), seed=st.integers(0, 2**32))
def test_damage_to_cached_embeddings_changes_nothing(tmp_path: Path, how: str, seed: int) -> None:
    texts, encoder = [f"text {i}" for i in range(40)], LoadedEncoder("fake", "1", fake_encoder)
    expected = fake_encoder(texts)
    np.testing.assert_array_equal(encode(texts, encoder, tmp_path), expected)
    [path], chance = tmp_path.glob("*.sqlite"), random.Random(seed)
    if how == "flipped":
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    else:
        damage(path, how, chance)
    for _ in range(2):
        np.testing.assert_array_equal(encode(texts, encoder, tmp_path), expected)


def test_many_embeddings_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cache is only read, with texts that come twice, and after a part of them was damaged."""
    texts, encoder = [f"text {number % 700}" for number in range(1_200)], LoadedEncoder("fake", "1", fake_encoder)
    expected = fake_encoder(texts)
    monkeypatch.setattr("training.data.encoding.MAPPED_BYTES", 0)
    for _ in range(2):
        found = encode(texts, encoder, tmp_path)
        np.testing.assert_array_equal(found, expected)
        assert type(found) is np.ndarray and isinstance(found.base, np.memmap)
    with sqlite3.connect(tmp_path / "fake-1.sqlite") as database:
        database.execute("UPDATE vectors SET vector = ? WHERE text_sha256 < ?", (bytes(48), b"\x40"))
    np.testing.assert_array_equal(encode(texts, encoder, tmp_path), expected)
    monkeypatch.setattr("training.data.encoding.os.access", lambda *_: False)
    np.testing.assert_array_equal(encode(texts, encoder, tmp_path), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"fake-1.sqlite"}  # the file has no name


def test_embeddings_of_an_earlier_version_have_no_hash_and_are_made_again(tmp_path: Path) -> None:
    encoder, key = LoadedEncoder("fake", "1", fake_encoder), hashlib.sha256(b"text").digest()
    with sqlite3.connect(tmp_path / "fake-1.sqlite") as database:
        database.execute("CREATE TABLE embeddings (text_sha256 BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        database.execute("INSERT INTO embeddings VALUES (?, ?)", (key, bytes(48)))
    np.testing.assert_array_equal(encode(["text"], encoder, tmp_path), fake_encoder(["text"]))
    with sqlite3.connect(tmp_path / "fake-1.sqlite") as database:
        assert database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("vectors",)]


@contextmanager
def other_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs code, writes a line when it is ready, and sleeps; it is killed at the end."""
    command = [sys.executable, "-c", f"{code}\n    print(flush=True)\n    import time; time.sleep(999)", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        yield process
        process.kill()


def test_folders_of_killed_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    code = "import sys\nfrom pathlib import Path\nfrom modeling.infer.storage import staging\n"
    code += "with staging(Path(sys.argv[1]), '.writing-') as folder:\n    (folder / 'half').write_text('half')"
    (tmp_path / ".writing-link").symlink_to(tmp_path, target_is_directory=True)
    with other_process(code, str(tmp_path)):
        [alive] = [path for path in tmp_path.iterdir() if not path.is_symlink()]
        with staging(tmp_path, ".writing-") as own:
            assert (alive / "half").exists() and own.is_dir()
        assert not own.exists()
    with staging(tmp_path, ".writing-"):
        assert not alive.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".writing-link"]


def test_one_process_at_a_time_writes_to_a_run_folder(tmp_path: Path) -> None:
    code = "import sys\nfrom training.run_folder import RunFolder\nwith RunFolder(sys.argv[1]).locked():\n    pass"
    run = RunFolder(tmp_path / "run")
    with (
        other_process(code, str(run.path)),
        pytest.raises(RunFolderError, match=r"run is in use: .*Remedy: wait"),
        run.locked(),
    ):
        pass
    with run.locked():  # its holder was killed
        pass


def test_checkpoints_are_kept_by_step_and_with_the_best_before(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.inspect_checkpoints() == (None, {})

    def save(step: int, best: int, age: int) -> None:
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
        seal(run.checkpoint(step))
        os.utime(run.checkpoint(step), (age, age))

    def kept() -> list[int]:
        return sorted(int(path.name.split("-")[1]) for path in run.checkpoints.iterdir())

    for step, best, age in ((8, 8, 300), (16, 8, 200), (100, 100, 100)):  # the clock runs backwards
        save(step, best, age)
    run.rotate(3)
    assert kept() == [8, 16, 100]
    assert run.inspect_checkpoints() == (run.checkpoint(100), {})
    run.rotate(2)  # 16 is of no use without 8
    assert kept() == [8, 100]
    save(108, 100, 50)
    run.rotate(1)
    assert kept() == [100, 108]
    shutil.rmtree(run.checkpoint(100))
    usable, unusable = run.inspect_checkpoints()
    assert usable is None and "checkpoint-100, the best until then" in unusable[run.checkpoint(108)]
    (run.checkpoints / "checkpoint-200").mkdir()  # killed before it was sealed
    assert run.checkpoint(200) in run.inspect_checkpoints()[1]


@pytest.mark.parametrize("name", ["recipe.yaml", "audit.json"])
@pytest.mark.parametrize("content", [b"", bytes(4096), b'{"cut'])
def test_a_damaged_record_refuses_to_resume(
    base: Path, whole: tuple[Case, list[str]], capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    run = shutil.copytree(whole[0].run, base / "record", dirs_exist_ok=True)
    (run / name).write_bytes(content)
    assert main([*whole[0].flags, "--output_dir", str(run), "--resume"]) == 2
    told = capsys.readouterr().err
    assert f"{run / name} is damaged (" in told and "Remedy: use --overwrite" in told
