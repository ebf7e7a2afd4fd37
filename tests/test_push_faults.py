"""Every request of a push fails in every way: the repository is as before or as after, and a rerun completes."""

from __future__ import annotations

import functools
import itertools
import os
import queue
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hub_release.hub import client as hub_module
from hub_release.hub.client import HubError, connect
from hub_release.hub.commit import Destination, Pushed, push_files
from hub_release.package import package_files
from tests.conftest import ROOT, write_files
from tests.hub_server import TestHub, environment

NAME = "you/model"
BEFORE = {"README.md": b"# before", "config.json": b"{}", "old.txt": b"old", "sub/head_weights.pt": b"old" * 99}
AFTER = {"README.md": b"---\nlicense: mit\n---\n# after", "config.json": b"{}", "sub/head_weights.pt": b"new" * 99}
ONCE, ALWAYS = 1, 10_000


@pytest.fixture(autouse=True)
def _own_client(hub: TestHub) -> None:
    api.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "package", AFTER)


@functools.cache
def api() -> HfApi:
    return connect()  # made once, because reading the certificates takes longer than a push


def push(folder: Path) -> Pushed:
    return push_files(api(), Destination(NAME), package_files(folder), "message", lambda plan: True)


def start(hub: TestHub, before: dict[str, bytes]) -> None:
    hub.reset()
    if before:
        hub.add("model", NAME, before)


def state(hub: TestHub) -> dict[str, bytes]:
    repository = hub.repositories.get(("model", NAME))
    return repository.files() if repository else {}


def rerun(hub: TestHub, folder: Path) -> str:
    """Push again without faults: it completes, and all tries together have made one commit."""
    hub.count_from_here()
    changed = push(folder).changed
    assert state(hub) == AFTER
    commits = [commit.title for commit in hub.repositories["model", NAME].commits.values()]
    assert commits.count("message") == 1, "the same files were committed twice"
    return "rerun published" if changed else "rerun found it done"


@pytest.mark.parametrize("before", [{}, BEFORE], ids=["new", "existing"])
def test_fault_table(hub: TestHub, folder: Path, before: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    start(hub, before)
    assert push(folder).changed
    number = len(hub.requests)
    assert number >= 12
    counts: Counter[tuple[str, str, str, str]] = Counter()
    faults = ("500", "503 page", "429", "reset", "lost answer", "silence", "silence after")
    for fault, times, at in itertools.product(faults, (ONCE, ALWAYS), range(1, number + 1)):
        start(hub, before)
        hub.fail(fault, at, times)
        with monkeypatch.context() as patience:
            if fault.startswith("silence"):
                patience.setattr(hub_module, "TIMEOUT", dict.fromkeys(hub_module.TIMEOUT, 0.06))
                patience.setattr(hub_module, "TRIES", 5 if times == ONCE else 2)
            try:
                assert push(folder).changed
                outcome = "pushed"
                assert state(hub) == AFTER
            except HubError as error:
                outcome = "failed"
                assert times == ALWAYS and "Remedy: " in str(error), (fault, at, error)
        found = state(hub)
        assert found in (before, AFTER), f"half-published after {fault} at request {at}"
        which = "after" if found == AFTER else "before"
        counts[f"{fault}{'' if times == ONCE else ', always'}", outcome, which, rerun(hub, folder)] += 1
    print_table("fault | push | repository | rerun", counts)
    assert counts.total() == number * len(faults) * 2
    assert sum(count for key, count in counts.items() if key[1] == "pushed") >= number * len(faults)
    assert {key[2] for key in counts if key[1] == "failed"} == {"before", "after"}


PUSHER = f"""
import os, sys
from pathlib import Path
import huggingface_hub._commit_api, huggingface_hub.lfs
from hub_release.hub.commit import Destination, push_files
from hub_release.hub.client import connect
from hub_release.package import package_files
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        push_files(connect(), Destination({NAME!r}), package_files(Path(line.strip())), "message", lambda plan: True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process without threads that forks one push for every line that it reads."""


@pytest.mark.parametrize("before", [{}, BEFORE], ids=["new", "existing"])
def test_killed_at_every_request(hub: TestHub, folder: Path, before: dict[str, bytes], tmp_path: Path) -> None:
    start(hub, before)
    push(folder)
    number = len(hub.requests)
    children: queue.Queue[int] = queue.Queue()
    hub.kill_client = lambda: os.kill(children.get(timeout=10), signal.SIGKILL)
    counts: Counter[tuple[str, str, str]] = Counter()
    with subprocess.Popen(
        [sys.executable, "-c", PUSHER],
        cwd=ROOT,
        env={**os.environ, **environment(hub, tmp_path / "home")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as pusher:
        assert pusher.stdin is not None and pusher.stdout is not None
        for fault, at in itertools.product(("kill before", "kill after"), range(1, number + 1)):
            start(hub, before)
            hub.fail(fault, at)
            print(folder, file=pusher.stdin, flush=True)
            children.put(int(pusher.stdout.readline()))
            assert int(pusher.stdout.readline()) == -signal.SIGKILL
            found = state(hub)
            assert found in (before, AFTER), f"half-published after {fault} at request {at}"
            counts[fault, "after" if found == AFTER else "before", rerun(hub, folder)] += 1
        pusher.stdin.close()
    print_table("fault | repository | rerun", counts)
    assert counts.total() == 2 * number
    assert {key[1] for key in counts} == {"before", "after"}


def print_table(head: str, counts: Counter[tuple[str, ...]]) -> None:
    print(f"\n{head} | count")
    for key, count in sorted(counts.items()):
        print(" | ".join([*key, str(count)]))
