"""CPU threads: what a process may use, what it is told to use, and what each thread reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling.infer import EmotionClassifier, cores, encoders, load_encoder, predict
from tests.conftest import ROOT, fake_encoder
from tests.test_texts import tiny_model

OWN = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process with eight cores, no quota and no variable; control groups lie in the folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path / "cgroup"


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.parametrize(
    ("own_groups", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # one and a half cores keep two threads busy
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # a parent's holds too
        ("0::/gone\n", {"cpu.max": "nonsense\n"}, 8),
        (
            "4:cpu,cpuacct:/x\n2:memory:/y\n",
            {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_container_s_quota_counts(eight_cores: Path, own_groups: str, files: dict[str, str], expected: int) -> None:
    write(eight_cores.parent / "own", own_groups)
    for name, content in files.items():
        write(eight_cores / name, content)
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("1,2", 1), ("64", 8), ("0", 1), ("", 8), ("many", 8)])
def test_the_usual_variable_counts(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cores.usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts_in_a_fresh_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from modeling.infer import usable_cores; print(usable_cores())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_odd_numbers_of_threads_are_refused(threads: Any) -> None:
    for call in (
        lambda: load_encoder("use-multilingual-v3", threads),
        lambda: EmotionClassifier.from_model(tiny_model(), threads=threads),
    ):
        with pytest.raises(ValueError, match=r"threads is .*Remedy: use a whole number from 1"):
            call()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_encoder_shares_texts_over_its_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Each thread reads texts of its own, with products of one thread; the embeddings are the same."""
    made: list[int] = []
    original = encoders.ThreadPoolExecutor

    def pool(workers: int) -> Any:
        made.append(workers)
        return original(workers)

    monkeypatch.setattr(encoders, "ThreadPoolExecutor", pool)
    texts = [f"text number {number}" for number in range(10)]
    found = load_encoder("use-multilingual-v3", threads)(texts)
    assert made == ([threads] if threads > 1 else [])  # one thread is the caller's own
    np.testing.assert_allclose(found, load_encoder("use-multilingual-v3", 8)(texts), atol=1e-6)


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (2, 2), (None, 8)])
def test_a_classifier_keeps_to_its_threads(monkeypatch: pytest.MonkeyPatch, threads: int | None, most: int) -> None:
    available = torch.get_num_threads()
    used: list[int] = []
    original = predict.share_cores

    def share(model: Any, texts: int, batch_size: int, threads: int) -> Any:
        used.append(threads)
        return original(model, texts, batch_size, threads)

    monkeypatch.setattr(predict, "share_cores", share)
    classifier = EmotionClassifier.from_model(tiny_model(), encoder=fake_encoder, threads=threads)
    seen: list[int] = []
    classifier.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    classifier.predict([f"text {number}" for number in range(64)])
    assert used == [most] and max(seen) <= min(most, available)
    assert torch.get_num_threads() == available
