"""A package as a container: its graph, the server as one file, and how to build an image of them."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path

from hub_release.package import LAYOUT, ReleaseError, require_folder, require_free
from hub_release.serving import online
from hub_release.shipped.bundle import STAND_IN, bundle
from hub_release.shipped.requirements import parse_requirements, requirements_of
from modeling.infer import ENCODERS, GRAPH_FILE, INT8_GRAPH_FILE, publish, staging

_TEMPLATES = Path(online.__path__[0])


def write_container(package: Path, folder: Path, backend: str, quantization: str | None) -> str:
    """Write what ``docker build`` needs: the Dockerfile, the server, its requirements and one graph of the package.

    Args:
        package: a package that was exported with a graph.
        folder: to write; must be new or empty.
        backend: ``onnx`` or ``openvino``.
        quantization: ``none`` or ``int8``; None for int8 if the package has it and ONNX Runtime computes.

    Returns:
        the name of the image.

    Raises:
        ReleaseError: the package has no such graph or an encoder that no small image has, something to pin is not
            installed here, or the folder is not free.
    """
    require_folder(package)
    require_free(folder)
    graph = _find_graph(package, backend, quantization)
    encoder = _find_encoder(package)
    code = bundle(("main",), online.__name__, STAND_IN)
    model = re.sub(r"[^\w.-]", "_", package.resolve().name)
    name = re.sub("[^a-z0-9]+", "-", model.lower()).strip("-") or "classifier"
    chosen = "int8" if graph == INT8_GRAPH_FILE else "none"
    values = {
        "model": model,
        "name": name,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "backend": backend,
        "quantization": f', "--quantization", "{chosen}"' if backend == "onnx" else "",
    }
    with staging(folder.parent, ".container-") as temporary:
        written = temporary / "container"
        own = written / "packages" / model
        (own / graph).parent.mkdir(parents=True)
        for file in (LAYOUT.card, LAYOUT.config, LAYOUT.graph_record, LAYOUT.tokenizer, graph):
            if (package / file).is_file():
                shutil.copyfile(package / file, own / file)
        (written / "server.py").write_text(code, encoding="utf-8")
        (written / "requirements.txt").write_text(_pinned(encoder, backend, code), encoding="utf-8")
        for template in ("Dockerfile", "compose.yaml"):
            text = (_TEMPLATES / template).read_text(encoding="utf-8")
            (written / template).write_text(text.format(**values), encoding="utf-8")
        require_free(folder)
        for path in written.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        publish(written, folder)
    return name


def _find_graph(package: Path, backend: str, quantization: str | None) -> str:
    if backend not in ("onnx", "openvino"):
        raise ReleaseError(f"--backend {backend} needs PyTorch, which no small image has. Remedy: use onnx or openvino")
    if backend == "openvino" and quantization == "int8":
        raise ReleaseError("OpenVINO does not compute graphs in int8. Remedy: leave out --quantization")
    wanted = [INT8_GRAPH_FILE, GRAPH_FILE] if backend == "onnx" else [GRAPH_FILE]
    if quantization:
        wanted = [{"none": GRAPH_FILE, "int8": INT8_GRAPH_FILE}.get(quantization, "")]
    for graph in wanted:
        if graph and (package / graph).is_file():
            return graph
    raise ReleaseError(
        f"{package} has no graph for it. Remedy: export the run again, with --onnx, --int8 or --openvino"
    )


def _find_encoder(package: Path) -> str:
    """The encoder that the model reads embeddings of; "" if it reads none."""
    config = json.loads((package / LAYOUT.config).read_text(encoding="utf-8"))
    if config["input"] == "tokens":
        return ""
    encoder = str(config["encoder"])
    if encoder not in ENCODERS or not ENCODERS[encoder].precisions:
        raise ReleaseError(
            f"{package} has the encoder {encoder}, which needs PyTorch, TensorFlow or a download at the start. Remedy: "
            "use hub_release serve"
        )
    return encoder


def _pinned(encoder: str, backend: str, code: str) -> str:
    """What the server needs, in the versions that are installed here."""
    needed = requirements_of("", encoder, "none", code, merged=True)
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[backend]
    names = sorted({requirement.name for requirement in parse_requirements(needed)} | {runtime})
    try:
        return "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        raise ReleaseError(
            f"{error.name} is not installed here, so its version cannot be pinned. Remedy: pip install "
            f"'goemotions-mistral[serve,{'onnx' if backend == 'onnx' else backend}]'"
        ) from None
