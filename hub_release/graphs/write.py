"""A package's graphs: the model with its adapter merged, as ONNX files in float32 and int8."""

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

from hub_release.graphs.layers import OPSET, replace_layers
from hub_release.package import ReleaseError
from hub_release.shipped.merged import merged_model
from modeling.infer import GRAPH_FILE, INT8_GRAPH_FILE, MAX_GRAPH_BYTES, EmotionModel, graph_problems, import_optional
from modeling.infer.runtimes import disable_telemetry

_EXTRA = "'goemotions-mistral[onnx]'"


def write_graphs(package: Path, float32: bool, int8: bool) -> None:
    """Write graphs of an otherwise complete package, for any number of rows and tokens.

    Args:
        package: its folder.
        float32: write ``onnx/model.onnx``.
        int8: write ``onnx/model_quantized.onnx``: weights of linear layers in int8, each output with its own scale;
            their inputs are quantized as they come, with one scale for all rows.

    Raises:
        ReleaseError: the backbone is quantized, or a file would be larger than a protocol buffer can be.
        ImportError: what exports is missing; the message says what to install.
    """
    disable_telemetry()
    for module in ("onnxscript", "onnxruntime"):
        import_optional(module, _EXTRA)
    model = _merged(package)
    (package / GRAPH_FILE).parent.mkdir()
    if float32:
        _write(model, package, GRAPH_FILE)
    if int8:
        from transformers.exporters.quantizers.quantizer_onnxruntime import (
            OnnxRuntimeDynamicConfig,
            OnnxRuntimeQuantizer,
        )

        replace_layers(model.backbone)
        # By name: its own choice takes ONNX's Attention for the older operator of ONNX Runtime.
        kinds = OnnxRuntimeDynamicConfig(per_channel=True, op_types_to_quantize=["Gather", "Gemm", "MatMul"])
        _write(model, package, INT8_GRAPH_FILE, quantizer=OnnxRuntimeQuantizer(kinds), opset_version=OPSET)


def _merged(package: Path) -> EmotionModel:
    """The package's model, with its adapter in the backbone's weights."""
    model = merged_model(package, "a graph")
    values = sum(parameter.numel() for parameter in model.parameters())
    if 4 * values > MAX_GRAPH_BYTES:
        raise ReleaseError(
            f"a graph of {values:,} weights would have more than {MAX_GRAPH_BYTES:,} bytes. Remedy: export without a graph"
        )
    return model.eval()


def _write(model: EmotionModel, package: Path, name: str, **options: Any) -> None:
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    inputs: dict[str, Any] = {
        name: value + 1 if name == "attention_mask" else value for name, value in model.dummy_inputs.items()
    }
    any_size = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys((0,) if name == "embeddings" else (0, 1), any_size) for name in inputs}
    with _quietly(), torch.no_grad():
        exported = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic_shapes=shapes, **options))
    graph = exported.program
    _forget_origins(graph)
    onnx_ir.save(graph, str(package / name))
    for problem in graph_problems((package / name).read_bytes()):
        raise ReleaseError(f"{name} {problem}, which no package may have. Remedy: report it with the run's recipe")


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
