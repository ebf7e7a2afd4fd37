"""Serve a package until the process is told to stop."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import uvicorn

from hub_release.package import ReleaseError
from hub_release.serving.application import Limits, Model, create_application
from hub_release.serving.limits import ImpatientProtocol
from hub_release.shipped.requirements import project_version
from modeling.infer import EmotionClassifier, check_threads

_BACKLOG = 1_024
_SECONDS_TO_STOP = 60
"""A client that does not take its answer cannot hold up a stop for longer."""


def load_model(package: Path, backend: str, quantization: str | None, threads: int | None) -> Model:
    """A package as what is served.

    A graph's session is used by several threads, each with a batch of its own; PyTorch shares one batch among its own
    threads.
    """
    at_once = check_threads(threads)
    workers = 1 if backend == "torch" else at_once
    named: dict[str, Any] = {"backend": backend, "quantization": quantization}
    classifier = EmotionClassifier(package, threads=at_once // workers, **named)
    classifier.predict_proba([""])  # the encoder is loaded now, not by the first client
    return Model(
        package.resolve().name,
        classifier.computed,
        project_version(),
        classifier.config,
        classifier.predict_proba,
        workers,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ReleaseError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ReleaseError(
            f"{host}, port {port} cannot be listened on ({error.strerror or error}). Remedy: name another --port or --host"
        ) from None


def serve(model: Model, limits: Limits, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; what has begun is answered."""
    config = uvicorn.Config(
        create_application(model, limits),
        http=ImpatientProtocol,
        timeout_graceful_shutdown=_SECONDS_TO_STOP,
        access_log=False,  # the path of a request says nothing, and its text is nobody's business
        log_level="warning",
        server_header=False,
    )
    uvicorn.Server(config).run([listening])
