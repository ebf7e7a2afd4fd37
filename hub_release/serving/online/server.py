"""Serve a package until the process is told to stop."""

import socket

import uvicorn

from hub_release.serving.online.application import Model, create_application
from hub_release.serving.online.limits import ImpatientProtocol
from hub_release.serving.online.options import Limits
from modeling.infer.classification import TextClassifier

_BACKLOG = 1_024
_SECONDS_IDLE = 75
"""An idle connection is kept for longer than proxies keep theirs (nginx: 60), which would otherwise use closed ones."""
_SECONDS_TO_STOP = 60
"""A client that does not take its answer cannot hold up a stop for longer."""


class AddressError(ValueError):
    """An address cannot be listened on; the message names the remedy."""


def to_model(classifier: TextClassifier, name: str, version: str, workers: int) -> Model:
    """A classifier as what is served; the encoder is loaded now, not by the first client."""
    classifier.predict_proba([""])
    return Model(name, classifier.computed, version, classifier.config, classifier.predict_proba, workers)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        AddressError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise AddressError(
            f"{host}, port {port} cannot be listened on ({error.strerror or error}). Remedy: name another --port or --host"
        ) from None
    # Else the second packet of an answer waits for the client's acknowledgement of the first: up to 40 ms on Linux.
    # asyncio does it only for sockets that name their protocol, which those of create_server do not.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def serve(model: Model, limits: Limits, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; what has begun is answered."""
    config = uvicorn.Config(
        create_application(model, limits),
        http=ImpatientProtocol,
        timeout_keep_alive=_SECONDS_IDLE,
        timeout_graceful_shutdown=_SECONDS_TO_STOP,
        access_log=False,  # the path of a request says nothing, and its text is nobody's business
        log_level="warning",
        server_header=False,
    )
    uvicorn.Server(config).run([listening])
