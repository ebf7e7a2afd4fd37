"""``hub_release container``: what is built serves the package, with neither PyTorch nor this project."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import InferenceClient
from typer.testing import CliRunner

from hub_release.cli import app
from hub_release.export import export
from hub_release.package import ReleaseError
from hub_release.serving.container import write_container
from modeling.infer import EmotionClassifier

WITHOUT = """
import runpy, sys
for name in ("torch", "transformers", "peft", "modeling", "training", "hub_release"):
    sys.modules[name] = None  # an import of it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def with_graph(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "Tiny model"
    export(finished_run, folder, ["onnx", "onnx-int8", "openvino"], max_loss=1)
    return folder


@pytest.fixture(scope="module")
def written(with_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("containers") / "tiny"
    done = CliRunner().invoke(app, ["container", str(with_graph), str(folder)])
    assert done.exit_code == 0 and "docker build" in done.output
    return folder


def command_of(folder: Path) -> list[str]:
    """The command of the image, as the Dockerfile has it."""
    found = re.search(r"^ENTRYPOINT (\[.*\])$", (folder / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    return list(json.loads(found[1]))


@pytest.fixture(scope="module")
def address(written: Path) -> Iterator[str]:
    """The server as the image runs it, but on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", WITHOUT, *command_of(written)[1:], "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(command, cwd=written, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{found}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.05)
    yield found
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert process.stdout and "Tiny_model, computed by ONNX Runtime in int8" in process.stdout.read()


def test_a_client_gets_the_package_s_answers(address: str, with_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    texts = ["sunny cake", "a dark cellar"]
    classifier = EmotionClassifier(with_graph, backend="onnx")
    for text in texts:
        row = classifier.predict_proba([text])[0]  # int8 rounds a text by what stands beside it
        found = InferenceClient(model=address).text_classification(text, top_k=3)
        assert [one.label for one in found] == [classifier.labels[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([one.score for one in found], np.sort(row)[::-1], atol=1e-6)
    told = json.loads(urllib.request.urlopen(f"{address}/info", timeout=5).read())
    assert (
        told["model_id"] == "Tiny_model"
        and told["version"] == json.loads((with_graph / "config.json").read_text())["goemotions_mistral_version"]
    )


def test_the_image_is_small_and_closed(written: Path) -> None:
    """One graph, pinned requirements without PyTorch, a user that is not root, a health check, a closed file system."""
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {"Dockerfile", "compose.yaml", "server.py", "requirements.txt"} < names
    assert {name for name in names if name.endswith((".onnx", ".pt", ".safetensors"))} == {
        "packages/Tiny_model/onnx/model_quantized.onnx"
    }
    lines = (written / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    installed = {line.split("==")[0] for line in lines}
    assert {"onnxruntime", "fastapi", "uvicorn"} < installed and not {"torch", "transformers", "openvino"} & installed
    dockerfile = (written / "Dockerfile").read_text()
    assert "USER 10001" in dockerfile and "HEALTHCHECK" in dockerfile and "{" not in dockerfile.replace("${BASE}", "")
    service: dict[str, Any] = yaml.safe_load((written / "compose.yaml").read_text())["services"]["classifier"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["ports"] == ["127.0.0.1:8080:8080"]


def test_the_server_explains_its_options_and_its_errors(written: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT, "server.py", *arguments], cwd=written, capture_output=True, text=True
        )

    done = run("--help")
    assert done.returncode == 0 and "--waiting" in done.stdout
    done = run(str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Remedy: " in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("packages/Tiny_model", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2 and "Remedy: name another --port" in done.stderr


def test_openvino_gets_its_own_graph_and_runtime(with_graph: Path, tmp_path: Path) -> None:
    write_container(with_graph, tmp_path / "c", "openvino", None)
    assert (tmp_path / "c" / "packages" / "Tiny_model" / "onnx" / "model.onnx").is_file()
    assert not (tmp_path / "c" / "packages" / "Tiny_model" / "onnx" / "model_quantized.onnx").exists()
    text = (tmp_path / "c" / "requirements.txt").read_text()
    assert "openvino==" in text and "onnxruntime" not in text
    assert command_of(tmp_path / "c")[-2:] == ["--backend", "openvino"]


@pytest.mark.parametrize(
    ("backend", "quantization", "message"),
    [("torch", None, "needs PyTorch"), ("onnx", "nf4", "has no graph for it"), ("openvino", "int8", "in int8")],
)
def test_what_no_small_image_can_serve(
    backend: str, quantization: str | None, message: str, with_graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError, match=message):
        write_container(with_graph, tmp_path / "c", backend, quantization)
    assert not list(tmp_path.iterdir())


def test_a_package_without_a_graph_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="Remedy: export the run again"):
        write_container(package, tmp_path / "c", "onnx", None)


def test_a_folder_that_is_not_free_is_left_alone(with_graph: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ReleaseError, match="already exists and is not empty"):
        write_container(with_graph, tmp_path, "onnx", None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_encoder_of_pytorch_is_refused(with_graph: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(with_graph, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | {"encoder": "minilm"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReleaseError, match="encoder minilm, which needs PyTorch"):
        write_container(copy, tmp_path / "c", "onnx", None)
    assert not (tmp_path / "c").exists()
