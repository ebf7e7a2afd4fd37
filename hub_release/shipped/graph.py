"""A package's graph: the model with its adapter merged, as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hub_release.package import ReleaseError
from hub_release.shipped.merged import merged_model
from modeling.infer import GRAPH_FILE, MAX_GRAPH_BYTES, graph_problems, import_optional

_EXTRA = "'goemotions-mistral[onnx]'"


def write_graph(package: Path) -> None:
    """Write ``onnx/model.onnx`` of an otherwise complete package: any number of rows and tokens, in float32.

    Raises:
        ReleaseError: the backbone is quantized, or the file would be larger than a protocol buffer can be.
        ImportError: what exports is missing; the message says what to install.
    """
    for module in ("onnxscript", "onnxruntime"):
        import_optional(module, _EXTRA)
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model = merged_model(package, "--onnx")
    values = sum(parameter.numel() for parameter in model.parameters())
    if 4 * values > MAX_GRAPH_BYTES:
        raise ReleaseError(
            f"a graph of {values:,} weights would have more than {MAX_GRAPH_BYTES:,} bytes. Remedy: export without --onnx"
        )
    inputs: dict[str, Any] = {
        name: value + 1 if name == "attention_mask" else value for name, value in model.dummy_inputs.items()
    }
    any_size = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys((0,) if name == "embeddings" else (0, 1), any_size) for name in inputs}
    with _quietly(), torch.no_grad():
        exported = OnnxExporter().export(model.eval(), inputs, config=OnnxConfig(dynamic_shapes=shapes))
    graph = exported.program
    _forget_origins(graph)
    (package / GRAPH_FILE).parent.mkdir()
    onnx_ir.save(graph, str(package / GRAPH_FILE))
    for problem in graph_problems((package / GRAPH_FILE).read_bytes()):
        raise ReleaseError(
            f"{GRAPH_FILE} {problem}, which no package may have. Remedy: report it with the run's recipe"
        )


def _forget_origins(model: object) -> None:
    """Delete notes on where each operator comes from: they have this machine's paths."""
    import onnx_ir

    assert isinstance(model, onnx_ir.Model)
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the exporter's notes on its own progress and on libraries that are not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
