"""How many CPU threads a process may use, and how many it is told to use."""

import numbers
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling.infer.errors import import_optional

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """CPU cores that this process may use, at least 1.

    It is the least of its affinity (``taskset``), its control group's quota (a container's ``--cpus``), and
    ``OMP_NUM_THREADS``. The host's number of cores says none of these.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP allows one number per nested level
    limits = [own, _quota() or own, int(wanted) if wanted.isdigit() else own]
    return max(min(limits), 1)


def check_threads(threads: Any) -> int:
    """The number of threads to use: as given, or :func:`usable_cores` for None.

    Raises:
        ValueError: neither None nor a whole number from 1.
    """
    if threads is None:
        return usable_cores()
    if not isinstance(threads, numbers.Integral) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads is {threads!r:.80}. Remedy: use a whole number from 1, or None for all usable cores")
    return int(threads)


def _quota() -> int | None:
    """Whole cores of the tightest quota of this process's control groups, rounded up; None if there is none."""
    quotas = [found for folder in _group_folders() if (found := _read_quota(folder)) is not None]
    return max(-int(-min(quotas) // 1), 1) if quotas else None


def _group_folders() -> Iterator[Path]:
    """Folders of this process's control groups, in version 2 and version 1, up to the root as this process sees it."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = _GROUPS / "cpu" if controllers else _GROUPS
        group = mounted / path.lstrip("/")
        yield from [group, *(parent for parent in group.parents if parent.is_relative_to(mounted))]


def _read_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no such group; or its quota is "max"
        return None


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Let PyTorch use at most this many CPU threads for the operations inside."""
    torch = import_optional("torch", "torch")  # what needs no PyTorch uses the rest of this module

    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
