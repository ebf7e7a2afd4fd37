"""A strict Hub on this machine: it speaks ``huggingface_hub``'s HTTP, and can fail at any request.

    with TestHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # or HF_ENDPOINT, for another process

It checks requests as the Hub does: tokens, parents of commits, hashes and sizes of uploads, base64, metadata. Large
files are under another host name, which must never get the token.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from huggingface_hub.utils._http import default_client_factory

from tests.hub_routes import ROUTES
from tests.hub_store import File, RefusalError, Repository

TOKENS = {"hf_writerMARKEDtoken": ("you", "write"), "hf_readerMARKEDtoken": ("you", "read")}
WRITER, READER = TOKENS
FAULTS = ("500", "503 page", "429", "reset", "lost answer", "silence", "silence after", "race")
"""What can happen to a request. It takes effect only with "lost answer" and "silence after"."""


class TestHub:
    """The server and its contents.

    Attributes:
        repositories: by kind (model, dataset, space) and name.
        objects: LFS objects, by SHA-256.
        requests: method and path of every request since :meth:`count_from_here`.
        complaints: what a correct client never does, such as a request to an unknown path or a token sent elsewhere.
        page: entries per page of a file tree.
        retry_after: seconds to wait that a 429 answer asks for.
        naps: seconds that the client of this process would have waited.
        kill_client: called at the request that :meth:`fail` selects, for the faults "kill before" and "kill after".
    """

    __test__ = False

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = 3
        self.retry_after = 1
        self.naps: list[float] = []
        self.refuse_all: RefusalError | None = None
        self.kill_client: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self._fault, self._fault_at, self._fault_in = "", range(0), ""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another name of this machine: to a client it is another host, like the Hub's storage.
        self.storage_url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> TestHub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.repositories.clear()
            self.objects.clear()
            self.complaints.clear()
            self.naps.clear()
            self.page, self.retry_after, self.refuse_all = 3, 1, None
            self.count_from_here()

    def count_from_here(self) -> None:
        """Number requests from 1 again, without faults."""
        with self.lock:
            self.requests.clear()
            self._fault, self._fault_at, self._fault_in = "", range(0), ""

    def fail(self, fault: str, first: int = 1, times: int = 1, within: str = "") -> None:
        """Let ``times`` requests fail from number ``first`` on, counting from now requests that contain ``within``."""
        self.count_from_here()
        self._fault, self._fault_at, self._fault_in = fault, range(first, first + times), within

    def next_fault(self, request: str) -> str:
        if request == "GET /api/agent-harnesses":  # the client sends this once per day and process, for any use
            return ""
        with self.lock:
            self.requests.append(request)
            number = sum(self._fault_in in earlier for earlier in self.requests)
            return self._fault if self._fault_in in request and number in self._fault_at else ""

    def add(self, kind: str, name: str, files: dict[str, bytes], oid: str | None = None) -> Repository:
        """Add a repository with files; files that are large by its rules go to LFS."""
        repository = self.repositories[kind, name] = Repository(kind, name)
        there = dict(repository.resolve("main").files)
        for path, content in files.items():
            there[path] = File(content, repository.is_large(path, len(content)))
        self.objects |= {file.sha256: file.content for file in there.values() if file.is_lfs}
        repository.add_commit("main", there, "files", oid)
        return repository

    def race(self) -> None:
        """Commit to every repository, as somebody else."""
        for repository in self.repositories.values():
            files = {**repository.resolve("main").files, "theirs.txt": File(b"theirs")}
            repository.add_commit("main", files, "theirs")


class _Handler(BaseHTTPRequestHandler):
    hub: TestHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20

    def log_message(self, *arguments: object) -> None:
        """Log nothing: pytest's own output is enough."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        fault = self.hub.next_fault(f"{self.command} {url.path}")
        if fault in ("reset", "kill before"):
            return self._hang_up(kill=fault == "kill before")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "silence":
            return self._stay_silent()
        if fault == "500":
            return self._answer(500, {"error": "Internal Error"})
        if fault == "503 page":
            return self._answer(503, b"<html><h1>503 Service Unavailable</h1></html>", {"Content-Type": "text/html"})
        if fault == "429":
            return self._answer(429, {"error": "Too many requests"}, {"Retry-After": str(self.hub.retry_after)})
        with self.hub.lock:
            if fault == "race":
                self.hub.race()
            answer = self._handle(url.path)
        if fault in ("lost answer", "kill after"):
            return self._hang_up(kill=fault == "kill after")
        if fault == "silence after":
            return self._stay_silent()
        return self._answer(*answer)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def _handle(self, path: str) -> tuple[int, Any, dict[str, str]]:
        try:
            if self.hub.refuse_all is not None:
                raise self.hub.refuse_all
            for method, pattern, function in ROUTES:
                found = pattern.fullmatch(path)
                if found and method == self.command.replace("HEAD", "GET"):
                    named = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                    if "repo" in named:
                        named["repo"] = self._repository(named.pop("kind", "model"), named["repo"])
                    answer = function(self, **named)
                    return answer if isinstance(answer, tuple) else (200, answer, {})
            self.hub.complaints.append(f"unknown: {self.command} {path}")
            raise RefusalError(404, "Not Found")
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            return refusal.status, {"error": refusal.message, **refusal.body}, headers

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self._headers_buffer.append(b"\r\n")  # type: ignore[attr-defined]
        if self.command != "HEAD":
            self._headers_buffer.append(content)  # type: ignore[attr-defined]
        self.flush_headers()  # in one packet with the content

    def _hang_up(self, kill: bool) -> None:
        if kill:
            self.hub.kill_client()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # with linger zero this is a reset, not a regular close

    def _stay_silent(self) -> None:
        self.close_connection = True
        select.select([self.connection], [], [], 10)  # until the client hangs up

    # The user of a request

    def user(self) -> tuple[str, str] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if header.removeprefix("Bearer ") not in TOKENS:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return TOKENS[header.removeprefix("Bearer ")]

    def _repository(self, kind: str, name: str) -> Repository:
        user = self.user()
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and user is None):
            raise RefusalError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    def require_write(self, name: str) -> str:
        user = self.user()
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        if user[1] != "write" or name.split("/")[0] != user[0]:
            raise RefusalError(403, f"You don't have the required permissions on {name}")
        return user[0]


@contextlib.contextmanager
def connected(hub: TestHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[None]:
    """Make this Hub the only one for this process and its children, with the writer's token and no real waits."""
    for name, value in (
        ("ENDPOINT", hub.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),  # with Xet, uploads never fall back to LFS
        ("HF_HUB_CACHE", str(home / "hub")),
        ("HF_TOKEN_PATH", str(home / "token")),
    ):
        monkeypatch.setattr(constants, name, value)
    for name, text in environment(hub, home).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(time, "sleep", hub.naps.append)
    disable_progress_bars()
    hub.reset()
    yield
    enable_progress_bars()
    set_client_factory(default_client_factory)
    assert hub.complaints == []


def environment(hub: TestHub, home: Path) -> dict[str, str]:
    """Environment variables that make this Hub the only one for a child process."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": WRITER,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
