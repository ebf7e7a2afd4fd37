"""Hosts of a cluster: network namespaces of this machine, joined by a cable of their own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
"""From sched.h."""


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        namespace: its name, for ``ip netns exec``.
        interface: its end of the cable.
        address: of that end.
    """

    namespace: str
    interface: str
    address: str


def can_make_hosts() -> bool:
    """Is this root, on a Linux with iproute2, and may it make network namespaces? In a container it often may not."""
    if os.name != "posix" or os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else; they are gone afterwards."""
    names = [f"host{number}-{os.getpid()}" for number in range(2)]
    hosts = [Host(name, f"veth{number}", f"10.77.0.{number + 1}") for number, name in enumerate(names)]
    with ExitStack() as undo:
        for host in hosts:
            _ip("netns", "add", host.namespace)
            undo.callback(_ip, "netns", "del", host.namespace)
        one, two = hosts
        cable = ["link", "add", one.interface, "netns", one.namespace, "type", "veth"]
        _ip(*cable, "peer", "name", two.interface, "netns", two.namespace)
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", interface, "up")
        yield one, two


def join(namespace: str) -> None:
    """Move this thread, and the threads and processes that it starts from now on, to a host."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open("rb") as file:
        if library.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot join {namespace}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
