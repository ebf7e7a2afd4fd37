"""Parts on a Ray cluster: tasks read the files, and actors with a classifier each score the parts and write them."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hub_release.package import LAYOUT, ReleaseError
from hub_release.serving.load import load_classifier
from hub_release.serving.offline.read import Source, read_parts
from hub_release.serving.offline.work import Piece, Work
from modeling.infer import import_optional, usable_cores

LOCAL = "local"
_CORES_PER_READER = 8
"""Reading is far faster than scoring."""
_RESTARTS = 5
_SECONDS_TO_ANSWER = 10


@dataclass(frozen=True)
class Cluster:
    """Where to score, and with what.

    Attributes:
        address: :data:`LOCAL` for a cluster of this machine's own, or what ``ray.init`` takes.
        cpus, gpus: of each actor.
        actors: how many; None for as many as there is room for.
    """

    address: str
    cpus: int
    gpus: float
    actors: int | None


class Scorer:
    """An actor.

    Args:
        work: what to do.
        computed: how the driver's classifier computes; on CPUs others must do the same, or parts would differ.
        package_hash: of the package's seal.
        device: ``cpu`` or ``cuda``.

    Raises:
        ReleaseError: its machine has another package, or computes in another precision.
    """

    def __init__(self, work: Work, computed: str, package_hash: str, device: str) -> None:
        self.work, self.device, settings = work, device, work.settings
        if seal_of(work.package) != package_hash:
            raise ReleaseError(
                f"{work.package} on {os.uname().nodename} is another package than here. Remedy: copy it there, or use a "
                "folder that all machines share"
            )
        options = {"quantization": settings.quantization, "batch_size": settings.batch_size, "device": device}
        self.classifier = load_classifier(work.package, settings.backend, threads=settings.threads, **options)
        if self.device == "cpu" and self.classifier.computed != computed:
            raise ReleaseError(
                f"{os.uname().nodename} computes {self.classifier.computed}, and this machine {computed}. Remedy: use "
                "machines of one kind, or another --backend"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score pieces and write their files; what comes back has no rows."""
        for piece in batch["piece"]:
            self.work.score(piece, self.classifier)
        return batch


def seal_of(package: Path) -> str:
    """What tells a package from others."""
    path = package / LAYOUT.sums
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read(batch: dict[str, np.ndarray], work: Work) -> Iterator[dict[str, np.ndarray]]:
    """Files → the pieces of their parts, one by one."""
    for source in batch["source"]:
        own = replace(work, columns=copy.deepcopy(work.columns))
        for piece in own.pieces(read_parts([source], work.settings.text_column, work.settings.rows_per_part)):
            yield {"piece": _column([piece])}


def run_on_ray(work: Work, sources: Sequence[Source], cluster: Cluster, computed: str) -> Iterator[Piece]:
    """Read and score all files on a cluster.

    Args:
        work: what to do.
        sources: the files.
        cluster: where.
        computed: how a classifier of this process computes.

    Raises:
        ReleaseError: the cluster cannot be used, or an actor or a task failed for a reason that would come again.
    """
    if any(place.has_key for place in (work.place, *(source.place for source in sources))):
        raise ReleaseError(
            "a URI holds a key, which the cluster would keep in its list of jobs. Remedy: give keys to its machines by "
            "the environment or a role"
        )
    ray = import_optional("ray", "'goemotions-mistral[ray]'")
    ray_data = import_optional("ray.data", "'goemotions-mistral[ray]'")
    with _connected(ray, cluster):
        actors = cluster.actors or _room(ray.nodes(), cluster)
        if actors < 1:
            wanted = f"{cluster.cpus} CPUs{f' and {cluster.gpus:g} GPUs' if cluster.gpus else ''}"
            raise ReleaseError(f"no machine of the cluster has the {wanted} of an actor. Remedy: ask for fewer")
        work, sources = _from_anywhere(work), [replace(one, place=one.place.absolute()) for one in sources]
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        context.execution_no_progress_timeout_s = -1  # a part may take long
        context.target_max_block_size = 1  # a part is a block of its own, so a lost machine costs its parts alone
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told below
        readers = max(1, int(ray.cluster_resources().get("CPU", 1)) // _CORES_PER_READER)
        files = ray_data.from_items([{"source": source} for source in sources], override_num_blocks=len(sources))
        pieces = files.map_batches(
            read,
            batch_size=1,
            fn_kwargs={"work": work},
            num_cpus=0,
            compute=ray_data.TaskPoolStrategy(size=readers),
        ).map_batches(
            Scorer,
            batch_size=1,
            fn_constructor_args=(work, computed, seal_of(work.package), "cuda" if cluster.gpus else "cpu"),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus or None,
            max_restarts=_RESTARTS,  # parts that kill each actor that they come to end the run
            # An actor whose machine is gone waits for room elsewhere, which idle ones make by ending.
            compute=ray_data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        )
        for row in pieces.iter_rows():
            yield row["piece"]


def _room(nodes: Sequence[dict[str, Any]], cluster: Cluster) -> int:
    """How many actors fit; each is on one machine."""
    room = 0
    for node in nodes:
        has = node["Resources"] if node["Alive"] else {}
        fit = has.get("CPU", 0) // cluster.cpus
        room += int(min(fit, has.get("GPU", 0) // cluster.gpus) if cluster.gpus else fit)
    return room


def _from_anywhere(work: Work) -> Work:
    """The same with paths that hold whatever folder a process is in."""
    return replace(work, package=work.package.absolute(), place=work.place.absolute())


def _column(values: Sequence[Any]) -> np.ndarray:
    """A column of Python objects."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


@contextlib.contextmanager
def _connected(ray: Any, cluster: Cluster) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is told below
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.address == LOCAL:
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _require_answer(cluster.address)
        ray.init(address=cluster.address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ReleaseError(
            f"no Ray cluster answers at {cluster.address} ({error!s:.200}). Remedy: run ray start --head, or say "
            "--ray local"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there
    try:
        yield
    except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
        raise ReleaseError(f"the cluster failed: {_cause(error)}") from None
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens, which Ray would ask again for many minutes."""
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if found and port.isdigit():
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()


def _cause(error: BaseException | None) -> str:
    """What an actor or a task said, with a remedy: the last line that has one, or else the last of all."""
    said: list[str] = []
    while error is not None:
        said += filter(None, map(str.strip, (str(error) or type(error).__name__).splitlines()))
        error = getattr(error, "cause", None) or error.__cause__
        error = error if isinstance(error, BaseException) else None
    ours = [line for line in said if "Remedy: " in line]
    if ours:
        return re.sub(r"^[\w.]+(?:Error|Exception): ", "", ours[-1])
    return f"{said[-1]:.400}. Remedy: mend it, and go on with --resume"
