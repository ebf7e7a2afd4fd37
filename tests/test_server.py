"""``hub_release serve``: real clients over real sockets, requests that share a batch, and hostile ones."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from huggingface_hub import InferenceClient
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from hub_release.cli import app
from hub_release.serving.online import limits as server_limits
from hub_release.serving.online.application import Model, create_application
from hub_release.serving.online.options import Limits
from hub_release.serving.online.server import to_model
from modeling.infer import EmotionClassifier
from tests.conftest import LABELS

TEXTS = ["sunny cake", "a slammed door", "", "dark cellar 😀"]


@contextlib.contextmanager
def served(model: Model, limits: Limits) -> Iterator[int]:
    """The port of a server in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_application(model, limits),
            http=server_limits.ImpatientProtocol,
            access_log=False,
            log_level="warning",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def model(package: Path) -> Model:
    return to_model(EmotionClassifier(package, threads=1), package.name, "0", workers=1)


@pytest.fixture(scope="module")
def port(model: Model) -> Iterator[int]:
    with served(model, Limits(body_bytes=50_000, body_seconds=1, texts=8, characters=1_000)) as found:
        yield found


@pytest.fixture(scope="module")
def expected(package: Path) -> np.ndarray:
    return EmotionClassifier(package, threads=1).predict_proba(TEXTS)


def ask(port: int, path: str, body: bytes | Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, content and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(
        "POST" if content is not None else "GET", path, content, {"content-type": "application/json", **headers}
    )
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, json.loads(text) if is_json else text.decode(), dict(answer.headers)


def metrics(port: int) -> dict[str, float]:
    """Samples by name and labels."""
    families = text_string_to_metric_families(ask(port, "/metrics")[1])
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_hub_s_own_client_gets_the_classifier_s_probabilities(
    port: int, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"http://127.0.0.1:{port}")
    for text, row in zip(TEXTS, expected, strict=True):
        found = client.text_classification(text)
        assert [element.label for element in found] == [LABELS[i] for i in np.argsort(-row, kind="stable")]
        np.testing.assert_allclose([element.score for element in found], -np.sort(-row), atol=1e-5)
    assert len(client.text_classification(TEXTS[0], top_k=2)) == 2


def test_the_inference_api(port: int, expected: np.ndarray, package: Path) -> None:
    """Lists of texts, thresholds, and the package's own thresholds."""
    status, found, _ = ask(port, "/", {"inputs": TEXTS, "parameters": {"threshold": 0.5}})
    assert status == 200
    assert [{e["label"] for e in row} for row in found] == [
        {label for label, value in zip(LABELS, row, strict=True) if value >= 0.5} for row in expected
    ]
    _, found, _ = ask(port, "/", {"inputs": "sunny cake", "parameters": {"threshold": "package"}})
    own = EmotionClassifier(package, threads=1).predict(["sunny cake"])[0]
    assert [{element["label"]: pytest.approx(element["score"], abs=1e-5) for element in row} for row in found] == [own]
    assert ask(port, "/", {"inputs": [" "], "parameters": {"threshold": "package"}})[1] == [[]]
    assert ask(port, "/", {"inputs": []})[:2] == (200, [])


def test_the_api_of_text_embeddings_inference(port: int, expected: np.ndarray) -> None:
    """One text, several, and lists of one; logits; what it is; pairs are refused."""
    status, one, _ = ask(port, "/predict", {"inputs": TEXTS[0], "truncate": True})
    assert status == 200 and [element["score"] for element in one] == pytest.approx(-np.sort(-expected[0]), abs=1e-5)
    _, several, _ = ask(port, "/predict", {"inputs": TEXTS[:2]})
    _, lists, _ = ask(port, "/predict", {"inputs": [[text] for text in TEXTS[:2]]})
    assert lists == several and [element["label"] for element in several[0]] == [element["label"] for element in one]
    _, raw, _ = ask(port, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    chances = 1 / (1 + np.exp(-np.array([element["score"] for element in raw])))
    np.testing.assert_allclose(chances, -np.sort(-expected[0]), atol=1e-5)
    assert ask(port, "/predict", {"inputs": [["a", "b"]]})[0] == 422
    info = ask(port, "/info")[1]
    assert list(info["model_type"]["classifier"]["id2label"].values()) == list(LABELS)
    assert info["max_client_batch_size"] == 8 and info["thresholds"].keys() == set(LABELS)
    assert ask(port, "/health")[:2] == (200, "ok")
    assert {"/", "/predict", "/health", "/info", "/metrics"} <= ask(port, "/openapi.json")[1]["paths"].keys()


HOSTILE: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"{", 422),
    (b"\xff\xfe", 422),
    (b"null", 422),
    (b"[" * 20_000, 422),
    (b'{"inputs": ' + b"[" * 20_000, 422),
    (b'{"inputs": ' + b"[" * 600 + b"]" * 600 + b"}", 422),
    (b'{"inputs": [' + b"1," * 20_000 + b"1]}", 422),
    (b'{"inputs": "a", "parameters": {"\\ud83d": 1}}', 422),
    (b'{"inputs": 5}', 422),
    (b'{"inputs": null}', 422),
    (b'{"inputs": {"a": "b"}}', 422),
    (b'{"inputs": ["a", 5]}', 422),
    (b'{"inputs": "a", "parameters": {"top_k": 0}}', 422),
    (b'{"inputs": "a", "parameters": {"top_k": true}}', 422),
    (b'{"inputs": "a", "parameters": {"threshold": NaN}}', 422),
    (b'{"inputs": "a", "parameters": {"threshold": 2}}', 422),
    (b'{"inputs": "a", "parameters": {"function_to_apply": "softmax"}}', 422),
    (b'{"inputs": "a", "parameters": {"unknown": 1}}', 422),
    (b'{"inputs": 1' + b"0" * 10_000 + b"}", 422),
    (b'{"inputs": "' + b"a" * 1_001 + b'"}', 413),
    (b'{"inputs": [' + b'"a",' * 8 + b'"a"]}', 413),
    (b" " * 50_001, 413),
    (b'{"inputs": "half \\ud83d"}', 200),
    (b'{"inputs": "\\u0000\\u202e"}', 200),
    (b'{"inputs": ["half \\ud83d", ""]}', 200),
]


@pytest.mark.parametrize(("body", "status"), HOSTILE, ids=lambda given: repr(given)[:40])
def test_hostile_requests_are_answered_or_refused(body: bytes, status: int, port: int) -> None:
    """With a reason and a remedy, and without what was sent."""
    found, answer, _ = ask(port, "/", body)
    assert found in ((status, 400) if status == 422 else (status,))
    if found != 200:
        assert answer["error_type"] == "validation" and answer["error"] and "aaaa" not in answer["error"]
    assert ask(port, "/health")[0] == 200


def read_all(connection: socket.socket) -> bytes:
    """What a server sends until it closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            found += part
    return found


def test_bodies_without_an_end_are_cut(port: int) -> None:
    """One that says that it has gigabytes, one in chunks without a length, and one that does not come."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: 9000000000\r\n\r\n")
        assert b" 413 " in read_all(connection)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(600):
                connection.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
        found = read_all(connection)
        assert b" 413 " in found or not found  # who still sends may see the end of the connection alone
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b'Content-Length: 20\r\n\r\n{"inp')
        assert b" 408 " in read_all(connection)
    assert ask(port, "/health")[0] == 200


def test_slow_heads_are_closed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first request and at a later one, while quick clients are answered."""
    monkeypatch.setattr(server_limits, "HEADER_SECONDS", 0.4)
    with served(model, Limits()) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
            assert read_all(silent) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += slow.recv(65_536)
            slow.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert ask(port, "/health")[0] == 200
            assert read_all(slow) == b""


class Gate:
    """A classifier that waits until it is let go."""

    def __init__(self, model: Model) -> None:
        self.open, self.classify, self.sizes = threading.Event(), model.classify, list[int]()

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.sizes.append(len(texts))
        self.open.wait(30)
        return self.classify(texts)


def test_requests_of_the_same_moment_share_a_batch(model: Model, expected: np.ndarray) -> None:
    """Whoever comes while a batch is computed is in the next one, and gets the answer to its own text."""
    gate = Gate(model)
    with served(replace(model, classify=gate), Limits(batch=64)) as port, ThreadPoolExecutor(40) as clients:
        first = clients.submit(ask, port, "/", {"inputs": TEXTS[0]})
        while not gate.sizes:
            time.sleep(0.01)
        others = [clients.submit(ask, port, "/predict", {"inputs": TEXTS[i % 4]}) for i in range(30)]
        while metrics(port)["waiting_texts"] < 30:
            time.sleep(0.01)
        gate.open.set()
        assert first.result()[0] == 200
        for index, other in enumerate(others):
            status, found, _ = other.result()
            scores = {element["label"]: element["score"] for element in found}
            assert status == 200
            assert [scores[label] for label in LABELS] == pytest.approx(expected[index % 4], abs=1e-4)
        assert gate.sizes == [1, 30]
        found = metrics(port)
        assert found["batch_texts_count"] == 2 and found["requests_total /predict 200"] == 30
        assert found["request_seconds_count /predict"] == 30 and found["waiting_texts"] == 0


def test_a_full_queue_refuses_and_recovers(model: Model) -> None:
    gate = Gate(model)
    with served(replace(model, classify=gate), Limits(batch=1, waiting=3)) as port, ThreadPoolExecutor(20) as clients:
        asked = [clients.submit(ask, port, "/", {"inputs": "a"}) for _ in range(10)]
        while sum(future.done() for future in asked) < 6:
            time.sleep(0.01)
        for status, answer, headers in (future.result() for future in asked if future.done()):
            assert status == 429 and answer["error_type"] == "overloaded" and int(headers["retry-after"]) >= 1
        assert ask(port, "/health")[0] == 200
        gate.open.set()
        assert sorted(future.result()[0] for future in asked) == [200] * 4 + [429] * 6
        assert ask(port, "/", {"inputs": "a"})[0] == 200


def test_a_failure_of_the_model_costs_its_batch_alone(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    def fail_once(texts: list[str]) -> np.ndarray:
        if "break" in texts:
            raise RuntimeError("broken")
        return model.classify(texts)

    with served(replace(model, classify=fail_once), Limits()) as port:
        status, answer, _ = ask(port, "/", {"inputs": "break"})
        assert status == 500 and answer["error_type"] == "backend" and "RuntimeError" in answer["error"]
        assert ask(port, "/", {"inputs": "a"})[0] == 200


def test_clients_that_go_are_forgotten(model: Model) -> None:
    """Their texts are not classified, and the others are answered."""
    gate = Gate(model)
    with served(replace(model, classify=gate), Limits()) as port, ThreadPoolExecutor(2) as clients:
        first = clients.submit(ask, port, "/", {"inputs": "a"})
        while not gate.sizes:
            time.sleep(0.01)
        body = b'{"inputs": "gone"}'
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        gone = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        for connection in gone:
            connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while metrics(port)["waiting_texts"] < 5:
            time.sleep(0.01)
        for connection in gone:
            connection.close()
        while metrics(port)["waiting_texts"]:
            time.sleep(0.01)
        gate.open.set()
        assert first.result()[0] == 200 and ask(port, "/", {"inputs": "b"})[0] == 200
        assert gate.sizes == [1, 1]


def test_a_panic_does_not_end_the_server(model: Model) -> None:
    """Rust code raises what is no Exception."""

    class PanicException(BaseException):
        pass

    def panic(texts: list[str]) -> np.ndarray:
        if "break" in texts:
            raise PanicException
        return model.classify(texts)

    with served(replace(model, classify=panic), Limits()) as port:
        assert ask(port, "/", {"inputs": "break"})[0] == 500
        assert ask(port, "/", {"inputs": "a"})[0] == 200


def test_a_head_without_an_end_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(1_000):
                connection.sendall(f"X-{number}: {'a' * 1_000}\r\n".encode())
        found = read_all(connection)
        assert b" 400 " in found or not found
    assert ask(port, "/health")[0] == 200


def test_a_port_in_use_is_named(package: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = CliRunner().invoke(app, ["serve", str(package), "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 2 and "Remedy: name another --port or --host" in done.output


def test_no_text_is_logged(port: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    unknown = {"inputs": "a", "parameters": {"secret": 1}}
    for body in (
        unknown,
        {"inputs": "a secret text"},
        {"inputs": {"a": "a secret text"}},
        {"inputs": ["a secret text" * 200]},
    ):
        answer = ask(port, "/", body)[1]
        assert "secret" not in json.dumps(answer)
    out, err = capfd.readouterr()
    assert "secret" not in caplog.text + out + err


def test_sigterm_finishes_what_has_begun(package: Path) -> None:
    """The verb itself, in its own process, on loopback; a request that is being computed is answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hub_release.cli", "serve", str(package), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert f"answers at http://127.0.0.1:{port}" in process.stdout.readline()
    for _ in range(100):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
            break
        time.sleep(0.1)
    body = {"inputs": ["a long text " * 4_000] * 8}
    with ThreadPoolExecutor(1) as clients:
        begun = clients.submit(ask, port, "/", body)
        while metrics(port).get("batch_texts_count", 0) < 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert begun.result()[0] == 200
    said = process.stdout.read()
    assert process.wait(30) == 0 and said.strip() == "stopped"
