"""Ctrl-C, SIGTERM, a full disk, too little memory: one line says what is kept, and its command goes on."""

from __future__ import annotations

import logging
import os
import re
import resource
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerState
from typer.testing import CliRunner

import hub_release.export
from hub_release.cli import app
from hub_release.package import ReleaseError
from modeling.infer import EXHAUSTED, INTERRUPTED, TERMINATED, CacheError, describe_stop, shell
from tests.conftest import ROOT, tiny_flags, write_corpus
from training.commands.train import LogFile
from training.fit.trainer import SealedCheckpoints
from training.recipe import RecipeError
from training.run import main
from training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("pixels")
FIRST = 3
"""The step of the first checkpoint."""


def interrupt(monkeypatch: pytest.MonkeyPatch, stop: Callable[..., object]) -> None:
    """Stop a training right after its first checkpoint is sealed."""
    original = SealedCheckpoints.on_save

    def save(callback: SealedCheckpoints, args: Any, state: TrainerState, control: Any, **others: Any) -> None:
        original(callback, args, state, control, **others)
        if state.global_step == FIRST:
            stop()

    monkeypatch.setattr(SealedCheckpoints, "on_save", save)


def take_memory(*arguments: Any) -> torch.Tensor:
    return torch.empty(1 << 46)


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Files cannot grow beyond a size: what a library meets then is what it meets on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A finished training, with its corpus beside it."""
    base = tmp_path_factory.mktemp("stops")
    write_corpus(base / "corpus", rows=24)
    assert main(flags(base / "whole", tiny_backbone)) == 0
    return base / "whole"


def flags(run: Path, backbone: str) -> list[str]:
    return [*tiny_flags(run.parent / "corpus", backbone, "no-spaces"), "--epochs", "2", "--output_dir", str(run)]


def go_on(told: str) -> int:
    """Run the command that a stop has named."""
    assert told.count("\n") == 1 and "Traceback" not in told
    named = re.search(r"Remedy: to go on, (?:free some of it, and )?run python (.+)$", told)
    assert named is not None
    words = shlex.split(named[1])[1:]
    return main(words)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines(keepends=True)[-1]


STOPS = {
    "Ctrl-C": (INTERRUPTED, "interrupted", lambda *arguments: os.kill(os.getpid(), signal.SIGINT)),
    "SIGTERM": (TERMINATED, "terminated", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)),
    "memory": (EXHAUSTED, "too little memory", take_memory),
}


@pytest.mark.parametrize("kind", STOPS)
def test_a_stopped_training_names_its_checkpoint_and_goes_on(
    whole: Path,
    tiny_backbone: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    run = whole.parent / f"run of {kind}"  # with spaces: the command can be pasted
    code, reason, stop = STOPS[kind]
    with monkeypatch.context() as patched:
        interrupt(patched, stop)
        assert main([*flags(run, tiny_backbone), "--overwrite"]) == code
    told = last_line(capsys)
    assert told.startswith(f"{reason}: {run} keeps checkpoint-{FIRST}. ") and told.endswith(" --resume\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if kind != "Ctrl-C":  # the others have the same command
        return
    assert go_on(told) == 0
    assert f"resuming from {run}/checkpoints/checkpoint-{FIRST}" in (run / "train.log").read_text()
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_a_full_disk_costs_the_checkpoint_that_did_not_fit(
    whole: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole.parent / "full"
    with small_files(20_000):
        assert main([*flags(run, tiny_backbone), "--remove_checkpoints"]) == EXHAUSTED
    told = last_line(capsys)
    assert told.startswith("the disk is full") and f"{run} keeps no checkpoint yet" in told
    assert go_on(told) == 0 and not (run / "checkpoints").exists()
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_a_stop_before_training_leaves_the_finished_run_as_it_was(
    whole: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, whole.parent / "kept")
    before = (run / "metrics.json").read_bytes()
    typed = [*flags(run, tiny_backbone), "--overwrite"]
    monkeypatch.setattr("training.commands.train.build_model", STOPS["Ctrl-C"][2])
    assert main(typed) == INTERRUPTED
    told = last_line(capsys)
    assert "the finished run in" in told and shlex.split(told)[-len(typed) :] == typed
    assert (run / "metrics.json").read_bytes() == before and RunFolder(run).is_finished


def test_a_finished_run_without_checkpoints_is_not_trained_again_unasked(
    whole: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, whole.parent / "bare")
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.json").read_bytes()
    assert main([*flags(run, tiny_backbone), "--resume"]) == 2
    assert "is finished and its checkpoints are deleted" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before


def test_bad_rows_are_named_before_a_folder_that_is_taken(
    whole: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(whole, tiny_backbone), "--text_column", "message"]) == 2
    told = capsys.readouterr().err
    assert "message" in told and "already holds a run" not in told


def test_the_screen_shows_the_lines_of_the_log_and_each_once(
    whole: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*arguments: Any) -> None:
        for library in ("huggingface_hub", "transformers"):
            logging.getLogger(f"{library}.part").warning("%s retries", library)
        raise KeyboardInterrupt

    for library in ("huggingface_hub", "transformers"):  # as when each is imported
        logging.getLogger(library).addHandler(logging.StreamHandler())
    monkeypatch.setattr("training.commands.train.build_model", build)
    run = whole.parent / "lines"
    assert main(flags(run, tiny_backbone)) == INTERRUPTED
    shown = capsys.readouterr().err.splitlines()[:-1]
    assert shown == (run / "train.log").read_text().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in shown)
    assert [line[9:] for line in shown[-2:]] == ["huggingface_hub retries", "transformers retries"]
    assert not any(isinstance(handler, LogFile) for handler in logging.root.handlers)
    assert logging.getLogger("transformers").handlers  # for other users of this process, such as notebooks


def test_a_log_takes_half_a_character(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "train.log")
    log.emit(logging.LogRecord("training", logging.INFO, "", 0, "label %r is %s", ("\ud83d", "joy\ud83d"), None))
    log.close()
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "label '\\ud83d' is joy\\ud83d\n"


def test_the_log_promises_no_time_that_is_not_left(whole: Path) -> None:
    lines = [line for line in (whole / "train.log").read_text().splitlines() if "step " in line]
    assert lines and " of training left" in lines[0] and "left" not in lines[-1]
    assert " 0 min" not in "".join(lines) and " 0 s" not in "".join(lines)


@pytest.mark.parametrize("kind", ["Ctrl-C", "SIGTERM", "memory"])
def test_a_stopped_export_leaves_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(hub_release.export, "write_card", STOPS[kind][2])
    monkeypatch.setattr("sys.argv", ["hub_release", "export", str(whole), "a package"])
    done = CliRunner().invoke(app, ["export", str(whole), str(tmp_path / "package")])
    assert done.exit_code == STOPS[kind][0] and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith(f"error: {STOPS[kind][1]}; nothing is left half done. Remedy: to go on, run ")
    assert done.stderr.endswith(f"hub_release export {whole} 'a package'\n")


@pytest.mark.parametrize("kind", ["Ctrl-C", "SIGTERM", "memory"])
def test_a_stopped_classification_says_how_much_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    def write(arguments: object) -> Iterator[int]:
        yield 2048
        STOPS[kind][2]()

    monkeypatch.setattr(shell, "_write", write)
    assert shell.main(["--input", "texts.csv"]) == STOPS[kind][0]
    assert capsys.readouterr().err == f"{STOPS[kind][1]} (2,048 results are in the output)\n"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device", "x"), EXHAUSTED),
        (OSError("1048576 requested and 0 written"), EXHAUSTED),
        (sqlite3.OperationalError("database or disk is full"), EXHAUSTED),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), EXHAUSTED),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), EXHAUSTED),
        (MemoryError(), EXHAUSTED),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), EXHAUSTED),
        (caused(RecipeError("model_name: it cannot be loaded. Remedy: use another"), MemoryError()), EXHAUSTED),
        (caused(CacheError(Path("x"), "cannot be used"), sqlite3.OperationalError("database or disk is full")), EXHAUSTED),
        (ReleaseError("line 3: unknown label 'out of memory'. Remedy: use a known one"), None),
        (FileNotFoundError(2, "No such file", "x"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)  # fmt: skip
def test_a_stop_is_told_from_a_mistake(error: Exception, code: int | None) -> None:
    found = describe_stop(error)
    assert (found and found[0]) == code


def test_an_unwritable_cache_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modeling.infer import bundled, convert_bundled_backbone, load_encoder
    from training.data.encoding import encode

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOEMOTIONS_MISTRAL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(bundled, "_find_gguf", pytest.fail)
    remedy = r"cache cannot be made \(Not a directory\). Remedy: set GOEMOTIONS_MISTRAL_CACHE \(or HF_HOME\)"
    with pytest.raises(CacheError, match=remedy):
        convert_bundled_backbone()
    encoder = load_encoder("use-multilingual-v3")._replace(encode=pytest.fail)
    with pytest.raises(CacheError, match=remedy):
        encode(["text"], encoder, bundled.cache_folder())


def test_ctrl_c_while_libraries_load() -> None:
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == 'transformers': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from training.run import main\n"
        "sys.exit(main(['--epochs', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == INTERRUPTED and re.fullmatch("interrupted: nothing was done yet.*\n", done.stderr)
