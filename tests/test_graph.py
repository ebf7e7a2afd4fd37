"""A package's graph: the same probabilities without PyTorch, and no session of a hostile file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from peft import LoraConfig, get_peft_model
from sklearn.metrics import f1_score, log_loss as sklearn_log_loss
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRMSNorm
from typer.testing import CliRunner

from hub_release.check.gate import check, inspect
from hub_release.cli import app
from hub_release.export import export
from hub_release.graphs.layers import RowScaled, replace_layers
from hub_release.graphs.measure import log_loss
from hub_release.graphs.write import write_graphs
from hub_release.hub.client import connect
from hub_release.hub.commit import Destination, push_files
from hub_release.hub.pull import pull
from hub_release.package import LAYOUT, ReleaseError, package_files, seal
from hub_release.shipped.bundle import bundle_without_torch
from hub_release.shipped.requirements import third_party_imports
from modeling.infer import EmotionClassifier, EmotionModel, Graph, PackageError, graph, graph_problems
from modeling.records import SCORED_TEXTS
from modeling.thresholds import macro_f1
from tests.conftest import EMBED_DIM, fake_encoder, tiny_flags, tiny_tokenizer
from tests.hub_server import TestHub
from tests.test_texts import tiny_model

TEXTS = [
    "sunny cake",
    "",
    "a slammed door " * 40,
    "what?",
    "dark cellar 😀",
    *(f"text {n}" * (n % 7 + 1) for n in range(30)),
]
SETTINGS: list[dict[str, Any]] = [
    {"input": "embedding"},
    {"input": "embedding", "one_token": False},
    {"input": "embedding", "prefix": "bos"},
    *(
        {"input": kind, "attention": attention, "pooling": pooling}
        for kind, attention, pooling in (
            ("tokens", "causal", "last"),
            ("tokens", "bidirectional", "attention"),
            ("tokens", "causal", "mean"),
            ("hybrid", "bidirectional", "mean"),
            ("hybrid", "causal", "attention"),
            ("hybrid", "bidirectional", "last"),
        )
    ),
    {"input": "hybrid", "attention": "bidirectional", "pooling": "mean", "prefix": "bos"},
]


@pytest.fixture(scope="module")
def with_graph(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with every graph."""
    folder = tmp_path_factory.mktemp("graph") / "package"
    flags = ["--onnx", "--int8", "--openvino", "--max-loss", "1"]  # its few rows say little
    done = CliRunner().invoke(app, ["export", str(finished_run), str(folder), *flags])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: " ".join(map(str, given.values())))
def test_a_graph_computes_what_its_model_does(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of rows and tokens, with the adapter."""
    model = tiny_model(**settings)
    model.tokenizer = tiny_tokenizer() if model.config.reads_words else None
    lora = LoraConfig(r=2, target_modules=r".*\.(?:v_proj|up_proj)", init_lora_weights=False)
    model.backbone = get_peft_model(model.backbone, lora)
    classifier = EmotionClassifier.from_model(model, encoder=fake_encoder)
    expected = classifier.predict_proba(TEXTS)
    monkeypatch.setattr(EmotionModel, "from_pretrained", lambda *_: model)
    (tmp_path / LAYOUT.config).write_text(json.dumps(model.config.to_dict()))
    int8 = settings in SETTINGS[::4]
    write_graphs(tmp_path, float32=True, int8=int8)
    monkeypatch.setattr(graph, "read_tokenizer", lambda *_: model.tokenizer)
    options: dict[str, Any]
    for rows, threads, tolerance, options in (
        (64, 1, 1e-5, {"backend": "onnx", "quantization": "none"}),
        (1, 1, 1e-5, {"backend": "onnx", "quantization": "none"}),
        (24, 2, 1e-5, {"backend": "onnx", "quantization": "none"}),
        (24, 2, 1e-5, {"backend": "openvino", "dtype": "float32"}),
        (24, 2, 0.02, {"backend": "openvino"}),
        *([(24, 2, 0.02, {"backend": "onnx"})] if int8 else []),
    ):
        found = EmotionClassifier(tmp_path, encoder=fake_encoder, batch_size=rows, threads=threads, **options)
        assert ("in int8" in str(found)) == (tolerance > 1e-5 and options["backend"] == "onnx")
        np.testing.assert_allclose(found.predict_proba(TEXTS), expected, atol=tolerance)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: " ".join(map(str, given.values())))
def test_layers_for_int8_compute_what_they_replace(settings: dict[str, Any]) -> None:
    """In exact numbers, with padding on either side."""
    model = tiny_model(**settings).eval()
    inputs: dict[str, Any] = {}
    if model.config.reads_embedding:
        inputs["embeddings"] = torch.randn(3, EMBED_DIM)
    if model.config.reads_words:
        inputs["input_ids"] = torch.randint(0, 8, (3, 5))
        inputs["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0, 0, 0, 0, 1]])
    with torch.no_grad():
        expected = model(**inputs).logits
        before = {type(part) for part in model.backbone.modules()}
        replace_layers(model.backbone)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert not before & {MistralAttention, MistralRMSNorm} & {type(part) for part in model.backbone.modules()}


def test_scaled_rows_give_the_same_product() -> None:
    """Whatever the sizes of the rows; a row of zeros too."""
    layer = torch.nn.Linear(16, 4, bias=False)
    rows = torch.randn(3, 5, 16) * torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1e4])[:, None]
    with torch.no_grad():
        wanted = layer(rows)
        scale = wanted.abs().amax(-1, keepdim=True).clamp(min=1e-38)
        assert ((RowScaled(layer)(rows) - wanted).abs() / scale).max() < 1e-5


def test_a_package_with_a_graph_passes_its_check(with_graph: Path) -> None:
    assert set(LAYOUT.of_the_graphs()) <= {path.relative_to(with_graph).as_posix() for path in with_graph.rglob("*")}
    assert check(with_graph) == []
    card = (with_graph / LAYOUT.card).read_text()
    for name, form in ((LAYOUT.graph, "float32"), (LAYOUT.int8_graph, "int8")):
        assert f"`{name}` is the same model as one graph in {form}, with the weights of the language model" in card
    for line in ("| PyTorch in float32 | ", "| ONNX Runtime in int8 | ", "| OpenVINO | "):
        assert line in card
    assert ', and `backend="openvino"` with OpenVINO: it loads faster' in card
    size = {name: (with_graph / name).stat().st_size for name in (LAYOUT.graph, LAYOUT.int8_graph)}
    assert size[LAYOUT.int8_graph] < size[LAYOUT.graph]
    assert "onnxruntime" in (with_graph / LAYOUT.requirements).read_text()
    assert "torch" not in (with_graph / LAYOUT.graph_requirements).read_text()


def test_a_graph_has_no_path_of_this_machine(with_graph: Path) -> None:
    for name in (LAYOUT.graph, LAYOUT.int8_graph):
        content = (with_graph / name).read_bytes()
        assert str(Path(__file__).parents[1]).encode() not in content and b".py" not in content


def test_a_stranger_needs_no_torch(with_graph: Path, tmp_path: Path) -> None:
    """In a fresh process where torch and transformers cannot be imported: from the shell and from Python."""
    assert third_party_imports(bundle_without_torch()) == {"huggingface-hub", "numpy", "tokenizers", "tqdm"}
    code = f"""
import sys
for name in ("torch", "transformers", "peft", "modeling"):
    sys.modules[name] = None
sys.path.insert(0, {str(with_graph)!r})
import json, infer_onnx
classifier = infer_onnx.EmotionClassifier({str(with_graph)!r}, quantization="none")
golden = json.load(open({str(with_graph / "golden.json")!r}))["rows"]
said = classifier.predict_proba([row["text"] for row in golden])
assert abs(said - [row["probabilities"] for row in golden]).max() < 1e-4
assert infer_onnx.main(["sunny cake", "--threshold", "0", "--backend", "openvino"]) == 0
print(classifier)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line, said = done.stdout.splitlines()
    assert set(json.loads(line)["emotions"]) == {"joy", "anger", "fear"} and "by ONNX Runtime" in said


def test_both_backends_give_the_same_labels(with_graph: Path) -> None:
    by_torch = EmotionClassifier(with_graph)
    by_graph = EmotionClassifier(with_graph, backend="onnx", quantization="none")
    assert by_torch.labels == by_graph.labels
    for ours, theirs in zip(by_torch.predict(TEXTS), by_graph.predict(TEXTS), strict=True):
        assert ours.keys() == theirs.keys()
    again = pickle.loads(pickle.dumps(by_graph))  # noqa: S301  # as datasets.map does for its processes
    assert again.predict(TEXTS) == by_graph.predict(TEXTS)
    assert by_graph.device.type == "cpu" and not hasattr(by_graph, "model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "tflite"}, "unknown backend 'tflite'. Remedy: use torch or onnx or openvino"),
        (
            {"backend": "onnx", "device": "cuda"},
            "device is 'cuda', but a graph is computed on the CPU. Remedy: leave device out",
        ),
        ({"backend": "onnx", "quantization": "nf4"}, "quantization is 'nf4', but onnx computes the package's graph in"),
        (
            {"backend": "openvino", "quantization": "int8"},
            "quantization is 'int8', but onnx computes the package's graph in",
        ),
        ({"backend": "openvino", "dtype": "float16"}, "dtype is 'float16', but openvino computes in"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "dtype is 'bfloat16', but openvino computes in"),
        ({"quantization": "int8"}, "quantization int8 is a graph's. Remedy"),
    ],
)
def test_odd_options_are_refused(with_graph: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        EmotionClassifier(with_graph, **options)


def test_a_package_without_a_graph_says_so(package: Path) -> None:
    for backend in ("onnx", "openvino"):
        with pytest.raises(PackageError, match=rf"onnx/model\.onnx is not in the package. Remedy: .*--{backend}"):
            EmotionClassifier(package, backend=backend)  # type: ignore[arg-type]
    with pytest.raises(PackageError, match=r"onnx/model_quantized\.onnx is not in the package. Remedy: .*--int8"):
        EmotionClassifier(package, backend="onnx", quantization="int8")


def test_a_graph_has_thresholds_of_its_own(with_graph: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(with_graph, tmp_path / "package")
    record = json.loads((changed / LAYOUT.graph_record).read_text())
    for name, value in (("onnx", 0.0), ("onnx-int8", 1.0)):
        record["graphs"][name]["thresholds"] = dict.fromkeys(record["graphs"][name]["thresholds"], value)
    (changed / LAYOUT.graph_record).write_text(json.dumps(record))
    every = EmotionClassifier(changed, backend="onnx", quantization="none")
    assert all(len(found) == len(every.labels) for found in every.predict(["sunny cake", "what?"]))
    assert EmotionClassifier(changed, backend="onnx").predict(["sunny cake", "what?"]) == [{}, {}]
    own, tuned = EmotionClassifier(changed, backend="openvino"), record["graphs"]["openvino"]["thresholds"]
    assert own.config.thresholds == tuned
    assert (
        EmotionClassifier(changed).config.thresholds == json.loads((changed / "config.json").read_text())["thresholds"]
    )


@pytest.mark.parametrize(
    "thresholds", [{"joy": 2}, {"joy": 0.5}, {"joy": "0.5", "anger": 0.5, "fear": 0.5}, {"other": 0.5}, [0.5], None]
)
def test_odd_thresholds_of_a_graph_are_refused(with_graph: Path, tmp_path: Path, thresholds: Any) -> None:
    changed = shutil.copytree(with_graph, tmp_path / "package")
    record = json.loads((changed / LAYOUT.graph_record).read_text())
    record["graphs"]["onnx"]["thresholds"] = thresholds
    (changed / LAYOUT.graph_record).write_text(json.dumps(record))
    with pytest.raises(PackageError, match=r"graphs\.json has thresholds of onnx that are not"):
        EmotionClassifier(changed, backend="onnx", quantization="none")


def test_a_graph_that_was_not_measured_says_so(
    with_graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = shutil.copytree(with_graph, tmp_path / "package")
    record = json.loads((changed / LAYOUT.graph_record).read_text())
    del record["graphs"]["openvino"]
    (changed / LAYOUT.graph_record).write_text(json.dumps(record))
    found = EmotionClassifier(changed, backend="openvino")
    assert found.config.thresholds == json.loads((changed / LAYOUT.config).read_text())["thresholds"]
    assert "no thresholds were tuned for openvino" in caplog.text


# The gate


def test_a_graph_that_loses_too_much_is_refused(finished_run: Path, tmp_path: Path) -> None:
    """Graphs that are exact lose nothing, which is more than less than nothing."""
    with pytest.raises(ReleaseError, match=r"the graph onnx has .* macro F1 .*loses .*Remedy: .*--max-loss"):
        export(finished_run, tmp_path / "package", ["onnx"], max_loss=-0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_is_scored_on_the_rows_of_its_run(with_graph: Path, finished_run: Path) -> None:
    record = json.loads((with_graph / LAYOUT.graph_record).read_text())["graphs"]
    metrics = json.loads((finished_run / "metrics.json").read_text())
    for split in ("validation", "test"):
        expected = metrics[split]["per_label"]["macro_f1"]
        assert record["torch"][split]["macro_f1"] == pytest.approx(expected, abs=1e-6)
        assert record["onnx"][split]["macro_f1"] == pytest.approx(expected, abs=1e-6)
        assert record["onnx"][split]["log_loss"] == pytest.approx(record["torch"][split]["log_loss"], abs=1e-5)
    assert record["onnx"]["golden_difference"] < 1e-5 < record["onnx-int8"]["golden_difference"]


def test_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probabilities, references = generator.random((50, 4)), generator.integers(0, 2, (50, 4))
    references[:, 3] = 0
    expected = f1_score(references, probabilities >= 0.5, average="macro", zero_division=0)
    assert macro_f1(probabilities >= 0.5, references) == pytest.approx(expected)
    expected = np.mean(
        [sklearn_log_loss(y, p, labels=[0, 1]) for p, y in zip(probabilities.T, references.T, strict=True)]
    )
    assert log_loss(probabilities, references) == pytest.approx(expected)


def test_a_limit_without_a_graph_is_refused(finished_run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(finished_run), str(tmp_path / "package"), "--max-loss", "0.1"])
    assert done.exit_code == 2 and "--max-loss is about graphs" in done.output


@pytest.mark.parametrize("damage", ["no texts", "fewer texts"])
def test_a_run_without_its_texts_gets_no_graph(finished_run: Path, tmp_path: Path, damage: str) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    lines = (run / SCORED_TEXTS).read_text().splitlines(keepends=True)
    (run / SCORED_TEXTS).unlink() if damage == "no texts" else (run / SCORED_TEXTS).write_text("".join(lines[1:]))
    with pytest.raises(ReleaseError, match="Remedy: train again"):
        export(run, tmp_path / "package", ["onnx"])
    assert not (tmp_path / "package").exists()


TAMPERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "names": lambda record: record["graphs"].pop("onnx-int8"),
    "threads": lambda record: record.update(threads=0),
    "list different labels": lambda record: record["graphs"]["onnx"]["thresholds"].pop("joy"),
    "that no rows have": lambda record: record["graphs"]["openvino"]["test"].update(macro_f1=1.5),
    "golden_difference": lambda record: record["graphs"]["onnx-int8"].update(golden_difference=0.9),
    "without a speed": lambda record: record["graphs"]["onnx"].update(texts_per_second=0),
    "a macro_f1 of PyTorch": lambda record: record["graphs"]["torch"]["test"].update(macro_f1=0.999),
}


@pytest.mark.parametrize("said", TAMPERED)
def test_a_record_that_cannot_be_true_is_found(with_graph: Path, tmp_path: Path, said: str) -> None:
    changed = shutil.copytree(with_graph, tmp_path / "package")
    record = json.loads((changed / LAYOUT.graph_record).read_text())
    TAMPERED[said](record)
    (changed / LAYOUT.graph_record).write_text(json.dumps(record))
    seal(changed)
    assert any(problem.file == LAYOUT.graph_record and said in str(problem) for problem in inspect(changed))


def test_a_quantized_backbone_has_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.config.quantization = "nf4"
    monkeypatch.setattr(EmotionModel, "from_pretrained", lambda *_: model)
    with pytest.raises(ReleaseError, match=r"the backbone is in nf4.*Remedy"):
        write_graphs(tmp_path, float32=True, int8=False)


def test_a_failed_graph_leaves_no_package(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(package: Path, *_: bool) -> None:
        (package / "onnx").mkdir()
        raise ReleaseError("no graph. Remedy: none")

    monkeypatch.setattr("hub_release.export.write_graphs", fail)
    with pytest.raises(ReleaseError):
        export(finished_run, tmp_path / "package", ["onnx"])
    assert list(tmp_path.iterdir()) == []


# Hostile graphs


def node(operator: str, *inputs: str, domain: str = "", **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """Add an operator whose result nothing reads."""

    def add(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(operator, list(inputs), ["unread"], domain=domain, **attributes))

    return add


def constant(name: str, values: Any) -> Callable[[onnx.ModelProto], None]:
    def add(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))

    return add


def all_of(*changes: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for part in changes:
            part(model)

    return change


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    def move(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return move


def huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**20]


def domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="evil.operators", version=1)


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("evil", "f", [], [], [], [helper.make_opsetid("", 20)]))


def body() -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [])


def listed_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("big", TensorProto.INT64, [2], [2**20, 2**20]))
    node("Expand", "embeddings", "big")(model)


def many_dimensions(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**62] * 50_000


def long_name(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = "a" * 10_000


def many(model: onnx.ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Neg", ["a"], [f"out{n}"]) for n in range(70_000))


HOSTILE: dict[str, Callable[[onnx.ModelProto], None]] = {
    "data outside": external("../../secret"),
    "data at an absolute path": external("/etc/passwd"),
    "data in another file": external("model.onnx_data"),
    "a huge tensor": huge,
    "a huge constant shape": all_of(constant("big", [2**20, 2**20]), node("Expand", "embeddings", "big")),
    "a huge listed shape": listed_shape,
    "a range of fractions": all_of(constant("step", np.float32(1e-9)), node("Range", "zero", "one", "step")),
    "a range from far below": all_of(constant("low", -(2**40)), node("Range", "low", "one", "two")),
    "many dimensions": many_dimensions,
    "a long name": long_name,
    "a huge range": all_of(constant("big", 2**40), node("Range", "zero", "big", "one")),
    "a huge repetition": all_of(node("Constant", value_ints=[2**30, 4]), node("Tile", "embeddings", "unread")),
    "operators of strangers": all_of(domain, node("Run", domain="evil.operators")),
    "an operator of a stranger": node("Run", domain="evil.operators"),
    "a python operator": node("PyOp", domain="ai.onnx.contrib"),
    "a loop": node("Loop", "", "", body=body()),
    "a branch": node("If", "a", then_branch=body(), else_branch=body()),
    "a scan": node("Scan", "a", body=body(), num_scan_inputs=1),
    "a graph in a plain operator": node("Add", "a", "b", body=body()),
    "texts": all_of(constant("names", ["a", "b"])),
    "an own function": function,
    "too many operators": many,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_session_is_made_of_a_hostile_graph(
    name: str, with_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = shutil.copytree(with_graph, tmp_path / "package")
    model = onnx.load(spoiled / LAYOUT.graph)
    HOSTILE[name](model)
    (spoiled / LAYOUT.graph).write_bytes(model.SerializeToString())
    seal(spoiled)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was made"))
    monkeypatch.setattr(openvino.Core, "read_model", lambda *_, **__: pytest.fail("OpenVINO read it"))
    for backend in ("onnx", "openvino"):
        with pytest.raises(PackageError, match=r"onnx/model\.onnx .*Remedy: "):
            Graph(spoiled, backend, quantization="none")
    assert any(problem.startswith(LAYOUT.graph) for problem in check(spoiled))


def varint(value: int, padding: int = 0) -> bytes:
    """A number as protocol buffers write it, with some bytes more than it needs."""
    parts = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * padding
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def hidden(key: int, value: bytes) -> list[bytes]:
    """A field whose number runtimes cut to what they know, or that is longer than it need be."""
    length = varint(len(value))
    return [
        varint(key + 2**32) + length + value,
        varint(key + 2**35) + length + value,
        varint(key, 1) + length + value,
        varint(key) + varint(len(value), 2) + value,
    ]


def test_nothing_is_hidden_from_the_reading() -> None:
    """Runtimes keep the last 32 bits of a field's number: what has other bits, too, would mean one thing here, another there."""
    plain = helper.make_node("Identity", ["a"], ["b"]).SerializeToString()
    operator = b"Loop"
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "a").SerializeToString()
    outside = TensorProto(external_data=[{"key": "location", "value": "secret"}]).SerializeToString()[2:]
    nodes = [plain + field for field in hidden(4 << 3 | 2, operator)]
    tensors = [tensor + field for field in hidden(13 << 3 | 2, outside)]
    tensors += [tensor + varint(14 << 3 | 2**32) + varint(1), tensor + varint(14 << 3) + varint(1 + 2**64)]
    for number, parts in ((1, nodes), (5, tensors)):
        for part in parts:
            graph = varint(number << 3 | 2) + varint(len(part)) + part
            assert list(graph_problems(varint(7 << 3 | 2) + varint(len(graph)) + graph)), part
    model = varint(7 << 3 | 2) + varint(len(plain) + 2) + varint(1 << 3 | 2) + varint(len(plain)) + plain
    assert list(graph_problems(model)) == []


def test_a_field_twice_is_refused() -> None:
    """Runtimes take the last, or merge them."""
    node_twice = helper.make_node("Identity", ["a"], ["b"]).SerializeToString() * 2
    graph = varint(1 << 3 | 2) + varint(len(node_twice)) + node_twice
    assert "twice" in " ".join(graph_problems(varint(7 << 3 | 2) + varint(len(graph)) + graph))


def test_reading_ends() -> None:
    graph = b"".join(varint(1 << 3 | 2) + b"\0" for _ in range(2**20 + 1))
    assert "fields" in " ".join(graph_problems(varint(7 << 3 | 2) + varint(len(graph)) + graph))


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08", b"\x3a\xff\xff\xff\xff\x0f", b"{}", b"\x3b"])
def test_what_is_no_graph_is_refused(content: bytes) -> None:
    assert list(graph_problems(content))


def test_random_damage_never_escapes(with_graph: Path) -> None:
    """Whatever is changed, the answer is a list of problems: nothing else is raised, and nothing takes long."""
    content = (with_graph / LAYOUT.graph).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content[: generator.integers(1, len(content))])
        for place in generator.integers(0, len(damaged), 20):
            damaged[place] = generator.integers(0, 256)
        assert isinstance(list(graph_problems(bytes(damaged))), list)


def test_a_graph_of_other_labels_is_refused(with_graph: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(with_graph, tmp_path / "package")
    config = json.loads((spoiled / LAYOUT.config).read_text())
    kept = config["emotion_labels"][:2]
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
    config |= {"emotion_labels": kept, "thresholds": {}, "unreliable_labels": []}
    (spoiled / LAYOUT.config).write_text(json.dumps(config))
    (spoiled / LAYOUT.graph_record).unlink()  # its thresholds would be refused first
    with pytest.raises(PackageError, match=r"onnx/model\.onnx reads embeddings .*not logits of the package's labels"):
        Graph(spoiled, "onnx", quantization="none")


def test_a_graph_of_other_weights_is_found(with_graph: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(with_graph, tmp_path / "package")
    model = onnx.load(spoiled / LAYOUT.graph)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    (spoiled / LAYOUT.graph).write_bytes(model.SerializeToString())
    seal(spoiled)
    assert [problem for problem in check(spoiled) if "the golden probabilities differ" in problem]


@pytest.mark.parametrize("name", [LAYOUT.graph_record, LAYOUT.graph_code, LAYOUT.graph_requirements])
def test_a_graph_without_its_files_is_not_whole(with_graph: Path, tmp_path: Path, name: str) -> None:
    spoiled = shutil.copytree(with_graph, tmp_path / "package")
    (spoiled / name).unlink()
    seal(spoiled)
    assert any(problem.startswith(f"{name} is missing") for problem in check(spoiled))


def test_words_through_the_whole_way(finished_run: Path, tiny_backbone: str, tmp_path: Path) -> None:
    """A run whose backbone reads words: export with a graph, check, and the graph's own tokenizer."""
    from training.run import main

    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, tmp_path / "run")
    assert main([*flags, "--input", "hybrid", "--pooling", "mean", "--token_norm", "0", "--balance", "none"]) == 0
    export(tmp_path / "run", tmp_path / "package", ["onnx"])
    assert check(tmp_path / "package") == []


def test_a_graph_is_published_with_its_package(with_graph: Path, hub: TestHub, tmp_path: Path) -> None:
    api = connect()
    push_files(api, Destination("you/model"), package_files(with_graph), "message", lambda plan: True)
    assert {*LAYOUT.files(graphs=[LAYOUT.graph]), LAYOUT.int8_graph} <= set(
        hub.repositories["model", "you/model"].files()
    )
    pull(api, "you/model", tmp_path / "pulled")
    found = EmotionClassifier(tmp_path / "pulled", backend="onnx").predict_proba(TEXTS)
    np.testing.assert_array_equal(found, EmotionClassifier(with_graph, backend="onnx").predict_proba(TEXTS))


def test_the_embedding_s_width_is_the_package_s(with_graph: Path) -> None:
    assert EMBED_DIM != 512  # the finished run has the real encoder
    with pytest.raises(ValueError, match=r"the encoder gives 12 dimensions, the package expects 512"):
        EmotionClassifier(with_graph, backend="onnx", encoder=fake_encoder).predict(["a"])
    assert os.environ.get("HF_HUB_OFFLINE")
