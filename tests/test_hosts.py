"""Training on two hosts: two network namespaces of this machine, which reach each other over a cable alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import EXHAUSTIVE
from tests.conftest import ROOT, tiny_flags, write_corpus
from tests.forks import Training
from tests.hosts import Host, can_make_hosts, two_hosts
from tests.test_trainer import weights_of
from training.run_folder import RunFolder

pytestmark = [
    pytest.mark.skipif(not can_make_hosts(), reason="needs root and iproute2 to make network namespaces"),
    pytest.mark.usefixtures("pixels"),
]
SHARED = ("--head_dropout", "0", "--embedding_noise", "0", "--input", "tokens", "--balance", "none")
CUT = ("--batch_size", "4", "--gradient_accumulation_steps", "2")
"""Of each of two processes: a step of 16 rows."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def flags(cache: Path, tiny_backbone: str) -> list[str]:
    return [*tiny_flags(write_corpus(cache / "corpus", rows=58), tiny_backbone, cache / "run"), *SHARED]


@pytest.fixture(scope="module")
def alone(cache: Path, flags: list[str]) -> dict[str, torch.Tensor]:
    """The weights that one process trains."""
    run = cache / "one"
    done = Training([*flags, "--batch_size", "16", "--output_dir", str(run)], cache, 1).wait()
    assert done == 0, log_of(cache)
    return weights_of(run)


@pytest.fixture(scope="module")
def together(cache: Path, flags: list[str], hosts: tuple[Host, Host]) -> Path:
    """A run on both hosts, with a checkpoint after every step."""
    run = cache / "two"
    command = [*flags, *CUT, "--output_dir", str(run), "--checkpoint_minutes", "1e-9", "--save_total_limit", "99"]
    assert Training(command, cache, 2, hosts).wait() == 0, log_of(cache)
    return run


def log_of(cache: Path) -> str:
    return (cache / "launch.log").read_text(encoding="utf-8")[-3000:]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], exactly: bool) -> None:
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        tolerance = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(second[name], first[name], **tolerance)


def test_two_hosts_train_what_one_process_does(alone: dict[str, torch.Tensor], together: Path) -> None:
    assert RunFolder(together).read("environment.json")["processes"] == 2
    equal(alone, weights_of(together), exactly=False)


def test_a_host_is_killed_and_both_resume(
    cache: Path, together: Path, flags: list[str], hosts: tuple[Host, Host]
) -> None:
    run = cache / "killed"
    command = [*flags, *CUT, "--output_dir", str(run), "--checkpoint_minutes", "1e-9", "--save_total_limit", "99"]
    training = Training(command, cache, 2, hosts)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "checkpoint-6" / "SHA256SUMS").exists():
        assert time.monotonic() < deadline and training.poll() is None, log_of(cache)
        time.sleep(0.002)
    training.processes[1].kill()
    training.processes[0].join(timeout=60)
    assert training.processes[0].exitcode not in (0, None), "the other host did not notice"
    assert not (run / "metrics.json").exists()
    assert Training([*command, "--resume"], cache, 2, hosts).wait() == 0, log_of(cache)
    resumed = (run / "train.log").read_text(encoding="utf-8").split("resuming from")[1]
    assert "checkpoint-" in resumed.splitlines()[0]
    equal(weights_of(together), weights_of(run), exactly=True)


@pytest.mark.skipif(not EXHAUSTIVE, reason="the launcher starts for half a minute; EXHAUSTIVE=1 runs it")
def test_the_launcher_on_two_hosts(
    cache: Path, flags: list[str], hosts: tuple[Host, Host], alone: dict[str, torch.Tensor]
) -> None:
    """The commands of training/README.md, with the configuration that ships."""
    run = cache / "launched"
    shutil.rmtree(run, ignore_errors=True)
    processes = []
    for rank, host in enumerate(hosts):
        command = ["ip", "netns", "exec", host.namespace, sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", "training/accelerate_configs/ddp_two_hosts.yaml", "--machine_rank", str(rank)]
        command += ["--num_processes", "2", "--main_process_ip", hosts[0].address, "--main_process_port", "29511"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": host.interface, "GOEMOTIONS_MISTRAL_CACHE": str(cache)}
        command += ["training/run.py", *flags, *CUT, "--output_dir", str(run)]
        with (cache / "launch.log").open("ab") as log:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    assert [process.wait(timeout=300) for process in processes] == [0, 0], log_of(cache)
    equal(alone, weights_of(run), exactly=False)
