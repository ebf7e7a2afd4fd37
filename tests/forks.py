"""Processes that are forked from one with the libraries loaded, which has trained nothing: each starts in milliseconds.

A fresh interpreter needs seconds to import the same. Where freshness is what is tested, start one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests import HUB_CACHE
from tests.hosts import Host, join
from tests.pictures import quick_pictures

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process that calls ``target``; it shares the Hub's cache of this one."""
    process = CONTEXT.Process(target=target, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_HUB_CACHE", str(HUB_CACHE))  # read by tests/__init__.py where the forks come from
        process.start()
    return process


def print_to(log: Path) -> None:
    """Append what this process prints to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What ``accelerate launch`` makes of training/accelerate_configs/fsdp2.yaml."""


def shard_on_cpus() -> None:
    """Let accelerate shard here: it does so only on accelerators, although FSDP2 itself works on CPUs with gloo."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    make = PartialState.__init__

    def initialize(self: PartialState, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = initialize  # type: ignore[method-assign]


class Training:
    """A run of ``training/run.py`` in forked processes, with the environment that ``accelerate launch`` gives them.

    Args:
        flags: of the command line.
        cache: the folder of its embeddings, and of ``launch.log``.
        processes: how many train together.
        hosts: where each of them runs, if not on this machine.
        sharded: does each hold a part of the weights, by FSDP2?
    """

    def __init__(
        self, flags: list[str], cache: Path, processes: int, hosts: Sequence[Host] = (), sharded: bool = False
    ) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        shared = {"GOEMOTIONS_MISTRAL_CACHE": str(cache), "ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": "1" if hosts else str(processes)}
            address = hosts[0].address if hosts else "127.0.0.1"
            shared |= {**sizes, "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        if sharded:
            shared |= FSDP2
        self.processes = [
            start(
                _train,
                flags,
                cache / "launch.log",
                shared | _rank(rank, processes, hosts),
                hosts[rank].namespace if hosts else "",
            )
            for rank in range(processes)
        ]

    def wait(self) -> int:
        """The first exit code that is not 0, once all have ended."""
        for process in self.processes:
            process.join()
        return next((process.exitcode or 0 for process in self.processes if process.exitcode), 0)

    def poll(self) -> int | None:
        """As :meth:`wait`, but None where one still runs."""
        return None if any(process.is_alive() for process in self.processes) else self.wait()

    def kill(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)


def _rank(rank: int, processes: int, hosts: Sequence[Host]) -> dict[str, str]:
    if hosts:
        return {"RANK": str(rank), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": hosts[rank].interface}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}


def _train(flags: list[str], log: Path, environment: dict[str, str], namespace: str) -> None:
    from training.run import main

    if namespace:
        join(namespace)
    print_to(log)
    os.environ.update(environment)
    if environment.keys() >= FSDP2.keys():
        shard_on_cpus()
    sys.argv = ["training/run.py", *flags]
    code = 1
    try:
        with quick_pictures():
            code = main(flags)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
