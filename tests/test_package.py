"""The package for a stranger: parity in fresh processes, every option of the classifier, hostile input."""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import MistralModel

from hub_release.check.gate import inspect
from hub_release.export import export
from hub_release.package import LAYOUT, ReleaseError
from hub_release.shipped.bundle import bundle
from hub_release.shipped.requirements import project_version
from modeling import infer
from modeling.infer import EmotionClassifier, shell
from tests.conftest import LABELS, ROOT, add_to_hub_cache, tiny_flags
from training.commands.evaluate import load_classifier
from training.run import main

TEXTS = [
    "sunny cake",
    "",
    "slammed door 😀",
    "x " * 3_000,
    "δοκιμή テスト",
    "dark cellar",
    "  ",
    "sunny slammed dark",
]
SAYING = [text for text in TEXTS if text.strip()]
"""A text without a visible character carries no label."""


@pytest.fixture(scope="module")
def classifier(package: Path) -> EmotionClassifier:
    return EmotionClassifier(package)


def test_layout_and_head_twins(package: Path) -> None:
    assert (package / "infer.py").read_text() == bundle()
    assert [name for name in LAYOUT.files() if not (package / name).is_file()] == []
    head = torch.load(package / "head_weights.pt", weights_only=True)
    assert set(head) == {"projection", "classifier"}
    assert set(head["projection"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    (twin := package.parent / "twin").mkdir(exist_ok=True)
    shutil.copytree(package, twin, dirs_exist_ok=True)
    (twin / "head.safetensors").unlink()
    np.testing.assert_array_equal(
        EmotionClassifier(twin).predict_proba(TEXTS), EmotionClassifier(package).predict_proba(TEXTS)
    )
    config = json.loads((package / "config.json").read_text())
    assert {"model_name", "hidden_size", "embed_dim", "num_labels", "emotion_labels", "threshold"} <= set(config)
    assert config["problem_type"] == "multi_label_classification" and config["id2label"]["0"] == "joy"
    assert all(path.stat().st_size < 1_000_000 for path in package.rglob("*"))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_parity_for_every_batch_size_and_order(package: Path, batch_size: int) -> None:
    golden = json.loads((package / "golden.json").read_text())
    assert golden["labels"] == list(LABELS) and len(golden["rows"]) == 8
    texts = [row["text"] for row in golden["rows"]]
    wanted = np.array([row["probabilities"] for row in golden["rows"]])
    order = np.random.default_rng(batch_size).permutation(len(texts))
    found = EmotionClassifier(package, batch_size=batch_size).predict_proba([texts[i] for i in order])
    np.testing.assert_allclose(found, wanted[order], atol=1e-5)


def test_adapter_loads_with_only_peft(package: Path, classifier: EmotionClassifier) -> None:
    backbone = MistralModel.from_pretrained(classifier.config.model_name)
    model = PeftModel.from_pretrained(backbone, str(package / "lora_adapter"))
    changed = [p for name, p in model.named_parameters() if "lora_B" in name and p.abs().sum() > 0]
    assert len(changed) >= 10  # one token: q and k get no gradient, the other five matrices of both layers do
    inputs = torch.randn(2, 1, 16)
    torch.testing.assert_close(
        model(inputs_embeds=inputs).last_hidden_state, classifier.model.backbone(inputs_embeds=inputs).last_hidden_state
    )


STRANGER = """
import importlib.util, json, sys
sys.dont_write_bytecode = True


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling", "training", "hub_release"):
            raise ImportError(name)


sys.meta_path.insert(0, Blocker())
import numpy as np, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline
from transformers.pipelines.pt_utils import KeyDataset

folder, texts = sys.argv[1], json.loads(sys.argv[3])
embeddings = torch.tensor(json.loads(sys.stdin.read()))
said = {}
for place in (folder, sys.argv[2]):
    config = AutoConfig.from_pretrained(place, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=True)
    with torch.no_grad():
        logits = model(embeddings=embeddings).logits
    pipe = pipeline("text-classification", model=place, trust_remote_code=True, top_k=None)
    said[place] = {
        "config": config.thresholds,
        "pipe": pipe.model.config.thresholds,
        "logits": logits.tolist(),
        "one": pipe(texts[0]),
        "list": pipe(texts),
        "batches": pipe(texts, batch_size=3, truncation=True),
        "generator": list(pipe(text for text in texts)),
        "dataset": list(pipe(KeyDataset([{"t": text} for text in texts], "t"), batch_size=2)),
        "two": pipe(texts, top_k=2),
    }
specification = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(specification)
specification.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
said["endpoint"] = [
    endpoint({"inputs": texts, "parameters": {"threshold": 0.0}}),
    endpoint({"inputs": texts[0], "parameters": {"threshold": {"joy": 0.0}, "top_k": 1}}),
    endpoint({"inputs": texts}),
]
said["errors"] = []
for data in (
    {},
    {"inputs": [1]},
    {"inputs": "a", "parameters": {"treshold": 0.1}},
    {"inputs": "a", "parameters": {"threshold": 2}},
    {"inputs": "a", "parameters": {"threshold": float("nan")}},
    {"inputs": "a", "parameters": {"threshold": False}},
    [],
    {"inputs": "a", "parameters": {"threshold": {"hope": 0.2}}},
    {"inputs": "a", "parameters": {"top_k": 0}},
    {"inputs": "a", "parameters": {"exclude_unreliable": 1}},
):
    try:
        endpoint(data)
    except ValueError as error:
        said["errors"].append(str(error))
print(json.dumps(said))
"""


def scores(results: list[list[dict[str, Any]]]) -> np.ndarray:
    return np.array([[{row["label"]: row["score"] for row in result}[label] for label in LABELS] for result in results])


def test_auto_classes_pipeline_and_endpoint_in_a_process_of_a_stranger(
    package: Path, classifier: EmotionClassifier, tmp_path: Path
) -> None:
    """The same results as EmotionClassifier on raw text, from a folder and from the Hub's cache."""
    add_to_hub_cache("stranger/emotions", package)
    texts = [text for text in TEXTS if len(text) < 100]
    embeddings, probabilities = classifier.embed(texts), classifier.predict_proba(texts)
    result = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(package), "stranger/emotions", json.dumps(texts)],
        input=json.dumps(embeddings.tolist()),
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    with torch.no_grad():
        logits = classifier.model(torch.from_numpy(embeddings)).logits.numpy()
    for place in (str(package), "stranger/emotions"):
        found = said[place]
        assert found["config"] == found["pipe"] == classifier.config.thresholds
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
        np.testing.assert_allclose(scores(found["one"]), probabilities[:1], atol=1e-5)
        for way in ("list", "batches", "generator", "dataset"):
            np.testing.assert_allclose(scores(found[way]), probabilities, atol=1e-5)
        assert found["two"] == [row[:2] for row in found["list"]]
    everything, one, own = said["endpoint"]
    saying = [bool(text.strip()) for text in texts]
    assert [bool(rows) for rows in everything] == saying
    np.testing.assert_allclose(scores(list(filter(None, everything))), probabilities[saying], atol=1e-5)
    assert len(one) == 1 and len(one[0]) == 1
    assert [[row["label"] for row in rows] for rows in own] == [list(row) for row in classifier.predict(texts)]
    fields = ("inputs", "inputs", "parameters", "is 2. Remedy", "is nan. Remedy", "is False. Remedy", "request must be")
    fields += ("hope", "top_k is 0. Remedy", "exclude_unreliable")
    assert len(said["errors"]) == len(fields)
    assert all(field in error for field, error in zip(fields, said["errors"], strict=True))


def test_thresholds(classifier: EmotionClassifier) -> None:
    probabilities = classifier.predict_proba(SAYING)
    assert probabilities.shape == (len(SAYING), 3) and probabilities.dtype == np.float32
    everything = classifier.predict(SAYING, threshold=0.0)
    for row, result in zip(probabilities, everything, strict=True):
        assert set(result) == set(LABELS)
        assert list(result.values()) == sorted(result.values(), reverse=True)
        assert [result[label] for label in LABELS] == [float(value) for value in row]
    assert classifier.predict(SAYING, threshold=1) == [{}] * len(SAYING)
    assert classifier.predict(SAYING, threshold=0) == everything
    for kind in (np.float32, np.float64):
        half = classifier.predict(SAYING, threshold=kind(0.5), top_k=np.int64(2))
        assert half == classifier.predict(SAYING, threshold=0.5, top_k=2)
        assert half == classifier.predict(SAYING, threshold=dict.fromkeys(LABELS, kind(0.5)), top_k=2)
    own = classifier.config.thresholds
    for row, result in zip(probabilities, classifier.predict(SAYING), strict=True):
        assert set(result) == {label for label, value in zip(LABELS, row, strict=True) if value >= own[label]}
    for row, result in zip(probabilities, classifier.predict(SAYING, threshold={"joy": 0.0}), strict=True):
        assert "joy" in result
        assert ("fear" in result) == (row[2] >= own["fear"])
    reached = {"joy": float(classifier.predict_proba(SAYING[:1])[0, 0])}
    assert "joy" in classifier.predict(SAYING[:1], threshold=reached)[0]  # reaching the threshold is enough
    assert all(len(result) == 1 for result in classifier.predict(SAYING, threshold=0.0, top_k=1))
    assert set(classifier.config.unreliable_labels) == set(LABELS)  # 18 test rows
    assert classifier.predict(SAYING, threshold=0.0, exclude_unreliable=True) == [{}] * len(SAYING)
    with pytest.raises(ValueError, match="unknown labels in threshold: hope"):
        classifier.predict(SAYING, threshold={"hope": 0.1})


@pytest.mark.parametrize("wrong", [math.nan, 7, -0.01, 1.01, math.inf, True, np.True_, "0.5", [0.5], np.float32("nan")])
def test_an_invalid_threshold_is_refused_before_anything_is_computed(
    classifier: EmotionClassifier, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    monkeypatch.setattr(classifier, "embed", lambda texts: pytest.fail("texts were encoded"))
    with pytest.raises(ValueError, match=rf"the threshold is {re.escape(repr(wrong))}. Remedy: use a number from 0"):
        classifier.predict(TEXTS, threshold=wrong)
    with pytest.raises(ValueError, match=rf"threshold of anger is {re.escape(repr(wrong))}. Remedy: use a number from"):
        classifier.predict(TEXTS, threshold={"joy": 0.1, "anger": wrong})


@pytest.mark.parametrize("wrong", [-1, 0, True, 1.5, "2"])
def test_an_invalid_top_k(classifier: EmotionClassifier, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"top_k is {re.escape(repr(wrong))}. Remedy: use a whole number from 1"):
        classifier.predict(TEXTS, top_k=wrong)


def test_odd_input(classifier: EmotionClassifier, package: Path) -> None:
    assert classifier.predict([]) == [] and classifier.predict_proba([]).shape == (0, 3)
    assert classifier.predict_proba(["half " + chr(0xD83D)]).shape == (1, 3)
    with pytest.raises(TypeError, match=r"texts\[1\] is NoneType"):
        classifier.predict(["a", None])  # type: ignore[list-item]
    alone = np.concatenate([classifier.predict_proba([text]) for text in TEXTS])
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), alone, atol=1e-5)
    own = EmotionClassifier(package, encoder=lambda texts: np.ones((len(texts), 7), np.float32))
    with pytest.raises(ValueError, match="7 dimensions, the package expects 512"):
        own.predict(["a"])
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        EmotionClassifier(package / "nothing")


def test_options_of_from_pretrained(package: Path, tmp_path: Path) -> None:
    assert infer.EmotionModel.from_pretrained(package, cache_dir=tmp_path, token=False).config.emotion_labels
    with pytest.raises(TypeError, match="a package does not take torch_dytpe"):
        infer.EmotionModel.from_pretrained(package, torch_dytpe="float16")


def test_another_encoder_version_is_reported(package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = shutil.copytree(package, tmp_path / "older")
    config = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps({**config, "encoder_version": "0.0.1"}))
    EmotionClassifier(package).predict(["a"])
    assert "was made with version" not in caplog.text
    EmotionClassifier(older).predict(["a"])
    assert "was made with version 0.0.1 of use-multilingual-v3" in caplog.text


@pytest.mark.parametrize("processes", [None, 2])
def test_columns(classifier: EmotionClassifier, processes: int | None) -> None:
    rows = Dataset.from_dict({"text": TEXTS, "id": range(len(TEXTS))})
    mapped = rows.map(classifier, batched=True, batch_size=3, num_proc=processes)
    np.testing.assert_allclose(np.array(mapped["probabilities"]), classifier.predict_proba(TEXTS), atol=1e-5)
    assert [set(names) for names in mapped["emotions"]] == [set(result) for result in classifier.predict(TEXTS)]
    assert mapped["id"][:] == list(range(len(TEXTS)))


def test_shell(package: Path, tmp_path: Path, classifier: EmotionClassifier) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    command = [sys.executable, "-I", str(package / "infer.py"), "--input", "in.jsonl", "--output", "out.jsonl"]
    subprocess.run([*command, "--threshold", "0"], cwd=tmp_path, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    found = [[row["emotions"][label] for label in LABELS] for row in rows if row["text"] in SAYING]
    np.testing.assert_allclose(found, classifier.predict_proba(SAYING), atol=1e-5)


def test_shell_ends_with_a_message(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {"number": '{"text": 3}', "other": '{"txt": "a"}', "list": '["a"]', "no": "I am no JSON"}
    for name, line in lines.items():
        (tmp_path / f"{name}.jsonl").write_text(f'"fine"\n\n{line}\n')
    (tmp_path / "latin.txt").write_bytes("a\ncittà".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    for flags, words in (
        (["--input", "nothing.txt"], "nothing.txt: no such file or folder. Remedy"),
        (["--input", str(tmp_path)], "is a folder, not .csv, .* Remedy"),
        (["--input", str(tmp_path / "latin.txt")], "latin.txt, line 2: byte 6 is not UTF-8: .* Remedy"),
        (["--input", str(tmp_path / "number.jsonl")], "line 3, column 'text' is not a text: 3. Remedy"),
        (["--input", str(tmp_path / "other.jsonl")], "line 3 has no column 'text', only 'txt'. Remedy"),
        (["--input", str(tmp_path / "list.jsonl")], "line 3: .* is not an object. Remedy"),
        (["--input", str(tmp_path / "no.jsonl")], "no.jsonl, line 3: 'I am no JSON' is not JSON .* Remedy"),
        (["--input", str(tmp_path / "empty.txt")], "empty.txt, line 1: the file is empty. Remedy"),
        (["a", "--model", "nothing"], "neither a folder nor a Hub id"),
        (["a", "--model", "packages/mistyped"], "not a folder here, and the Hub cannot be asked, .* Remedy: correct"),
        (["a", "--device", "toaster"], "device toaster cannot be used .* Remedy: use cpu, cuda"),
        (["a", "--device", "meta"], "device meta cannot be used .* Remedy: use cpu, cuda"),
        (["a", "--threshold", "nan"], "the threshold is nan. Remedy: use a number from 0 to 1"),
        (["a", "--threshold", "50"], "the threshold is 50.0. Remedy"),
        (["a", "--top_k", "-1"], "top_k is -1. Remedy"),
    ):
        assert shell.main(["--model", str(package), *flags]) == 2
        said = capsys.readouterr()
        assert re.search(f"^error: .*{words}", said.err, re.MULTILINE) and not said.out, said.err
    with pytest.raises(SystemExit, match="2"):
        shell.main(["--model", str(package)])
    assert "no text given" in capsys.readouterr().err


def test_shell_does_not_lose_results(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output that cannot be written is refused before classifying; if writing fails later, what is written stays."""
    classified: list[object] = []
    real = EmotionClassifier.predict
    monkeypatch.setattr(EmotionClassifier, "predict", lambda *a: classified.append(a) or real(*a))
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "missing" / "out.jsonl", tmp_path, tmp_path / "file" / "out.jsonl"):
        assert shell.main(["--model", str(package), "a", "--output", str(output)]) == 2
        assert (
            re.match(r"error: --output .* Remedy: (make that folder|name a file in it)", capsys.readouterr().err)
            and not classified
        )
    if Path("/dev/full").exists():
        assert shell.main(["--model", str(package), "a", "--output", "/dev/full"]) == 4
        assert "the disk is full" in capsys.readouterr().err and classified
    monkeypatch.setattr(shell, "_TEXTS_PER_WRITE", 2)
    (tmp_path / "in.jsonl").write_text('"a"\n"b"\n"c"\n3\n')
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    for same in ("in.jsonl", "link.jsonl"):
        command = ["--model", str(package), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / same)]
        assert shell.main(command) == 2 and "is the file of --input. Remedy: " in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_text().count("\n") == 4
    output = tmp_path / "out.jsonl"
    output.write_text("earlier")
    assert shell.main(["--model", str(tmp_path / "none"), "a", "--output", str(output)]) == 2
    assert output.read_text() == "earlier"
    command = ["--model", str(package), "--input", str(tmp_path / "in.jsonl"), "--output", str(output)]
    assert shell.main(command) == 2
    assert re.search(r"line 4: .* is not an object.* \(2 results are in .*out\.jsonl\)", capsys.readouterr().err)
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == ["a", "b"]


def test_shell_keeps_the_columns(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers, lists, dates and half an emoji too; a column with the name of the results is refused."""
    values = {"id": 7, "body": "so happy", "tags": ["a"], "odd": "half \ud83d"}
    (tmp_path / "in.jsonl").write_text(json.dumps(values) + "\n")
    command = ["--model", str(package), "--text_column", "body", "--input"]
    assert shell.main([*command, str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert row.pop("emotions") is not None and row == values | {"odd": "half ?"}
    pd.DataFrame({"body": ["so happy"], "day": [pd.Timestamp("2024-02-29")]}).to_parquet(tmp_path / "in.parquet")
    assert shell.main([*command, str(tmp_path / "in.parquet")]) == 0
    assert json.loads(capsys.readouterr().out)["day"] == "2024-02-29 00:00:00"
    (tmp_path / "in.csv").write_text("body,emotions\nso happy,joy\n")
    assert shell.main([*command, str(tmp_path / "in.csv")]) == 2
    assert "has the column 'emotions', as the results do. Remedy: rename it" in capsys.readouterr().err


def test_shell_on_a_screen_that_is_not_utf8(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", screen)
    assert shell.main(["So happy 😭 é", "--model", str(package), "--threshold", "0"]) == 0
    screen.flush()
    row = json.loads(screen.buffer.getvalue().decode("cp1252"))  # type: ignore[attr-defined]
    assert row["text"] == "So happy 😭 é" and set(row["emotions"]) == set(LABELS)


@pytest.mark.parametrize("name", ["in.CSV", "in.tsv", "in.ndjson", "in.JSONL", "in.json", "in.parquet", "in.csv.gz"])
def test_shell_reads_the_texts_of_every_format(
    package: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"said": ["Thank you, you", 'tab\tand "quotes"'], "labels": ["joy", "fear"]})
    path = tmp_path / name
    match name.lower().partition(".")[2]:
        case "parquet":
            table.to_parquet(path)
        case "json":
            table.to_json(path, orient="records")
        case "jsonl" | "ndjson":
            table.to_json(path, orient="records", lines=True)
        case suffix:
            table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    assert shell.main(["--model", str(package), "--input", str(path), "--text_column", "said"]) == 0
    assert [json.loads(line)["said"] for line in capsys.readouterr().out.splitlines()] == table.said.tolist()


def test_a_package_of_the_reference_loads(
    package: Path, classifier: EmotionClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has six keys, a pickled head, and an adapter of the vision-language checkpoint."""
    folder = tmp_path / "reference"
    shutil.copytree(package / "lora_adapter", folder / "lora_adapter")
    shutil.copyfile(package / "head_weights.pt", folder / "head_weights.pt")
    config = json.loads((package / "config.json").read_text())
    keys = ("model_name", "hidden_size", "embed_dim", "num_labels", "emotion_labels", "threshold")
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in keys}))
    adapter = load_file(folder / LAYOUT.adapter)
    renamed = {key.replace("model.model.", "model.model.language_model."): value for key, value in adapter.items()}
    vision = {"base_model.model.vision_tower.layers.0.attention.q_proj.lora_A.weight": torch.ones(16, 4)}
    save_file(renamed | vision, folder / LAYOUT.adapter)
    settings = json.loads((folder / LAYOUT.adapter_config).read_text())
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    made_of = {"base_model_class": "Mistral3Model", "parent_library": "transformers.models.mistral3.modeling_mistral3"}
    settings |= {"target_modules": targets, "auto_mapping": made_of, "lora_dropout": 0.1}
    (folder / LAYOUT.adapter_config).write_text(json.dumps(settings))
    found = EmotionClassifier(folder, encoder=classifier.encoder)
    np.testing.assert_array_equal(found.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert "left out 1 tensors of the vision tower" in caplog.text
    assert found.predict(["a"], threshold=None) == found.predict(["a"], threshold=0.5)


def test_six_keys_are_enough(package: Path, classifier: EmotionClassifier, tmp_path: Path) -> None:
    """The reference's configuration with all other files as we publish them."""
    folder = shutil.copytree(package, tmp_path / "package")
    config = json.loads((package / "config.json").read_text())
    keys = ("model_name", "hidden_size", "embed_dim", "num_labels", "emotion_labels", "threshold")
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in keys}))
    found = EmotionClassifier(folder, encoder=classifier.encoder)
    np.testing.assert_array_equal(found.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert found.predict(TEXTS) == classifier.predict(TEXTS, threshold=config["threshold"])


def test_export_refuses(finished_run: Path, package: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="already exists"):
        export(finished_run, package)
    half = shutil.copytree(finished_run, tmp_path / "half")
    (half / "metrics.json").unlink()
    with pytest.raises(ReleaseError, match=r"metrics\.json is missing"):
        export(half, tmp_path / "package")
    assert not (tmp_path / "package").exists() and not list(tmp_path.glob(".export*"))


def test_a_contaminated_run_says_so_everywhere(
    finished_run: Path, package: Path, tiny_backbone: str, tmp_path: Path
) -> None:
    run = tmp_path / "pooled"
    flags = [*tiny_flags(finished_run.parent / "corpus", tiny_backbone, run), "--balance_target", "90"]
    assert main([*flags, "--split", "pooled-r2", "--balance", "ismote-r2"]) == 0
    assert "CONTAMINATED" in (run / "train.log").read_text(encoding="utf-8")
    assert json.loads((run / "metrics.json").read_text())["protocol"] == "pooled-r2"
    export(run, tmp_path / "package")
    (refused,) = inspect(tmp_path / "package")
    assert "has contaminated scores" in str(refused)
    assert inspect(tmp_path / "package", allow_contaminated=True) == []
    card = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    assert "These scores are contaminated" in card and "were made from rows outside train" in card
    assert "contaminated" not in (package / "README.md").read_text(encoding="utf-8")


def test_a_package_carries_no_rows_of_the_corpus(finished_run: Path, package: Path) -> None:
    rows = [
        json.loads(line)["text"] for path in (finished_run.parent / "corpus").glob("*.jsonl") for line in path.open()
    ]
    written = [
        path.read_text(encoding="utf-8") for path in package.rglob("*") if path.suffix in (".json", ".md", ".csv")
    ]
    assert len(rows) == 84 and len(written) >= 8
    assert not any(row in text for row in rows for text in written)


def test_a_null_test_is_not_exported(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "null")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"null_test": "noise"}))
    with pytest.raises(ReleaseError, match="is a null test"):
        export(run, tmp_path / "package")


def test_a_baseline_is_not_exported(finished_run: Path, tiny_backbone: str, tmp_path: Path) -> None:
    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, tmp_path / "mlp")
    assert main([*flags, "--head", "mlp", "--mlp_hidden_size", "16"]) == 0
    log = (tmp_path / "mlp" / "train.log").read_text(encoding="utf-8")
    assert "can be scored and compared, but not exported" in log.splitlines()[0], "said before the training"
    with pytest.raises(ReleaseError, match="baseline without a backbone"):
        export(tmp_path / "mlp", tmp_path / "package")
    golden = json.loads((tmp_path / "mlp" / "golden.json").read_text())
    found = load_classifier(str(tmp_path / "mlp")).predict_proba([row["text"] for row in golden["rows"]])
    np.testing.assert_allclose(found, [row["probabilities"] for row in golden["rows"]], atol=1e-6)
    weights = tmp_path / "mlp" / "model" / "model.safetensors"
    tensors = load_file(weights)
    for change, said in (
        ({"evil": torch.ones(2)}, "has unknown tensors: evil"),
        ({"classifier.bias": torch.ones(4)}, "has classifier.bias with shape"),
        ({"classifier.bias": torch.full((3,), torch.inf)}, "has values in classifier.bias that are not finite"),
    ):
        save_file(tensors | change, weights)
        with pytest.raises(infer.PackageError, match=rf"^model\.safetensors {said}.* Remedy: "):
            load_classifier(str(tmp_path / "mlp"))
    save_file({key: value for key, value in tensors.items() if key != "classifier.bias"}, weights)
    with pytest.raises(infer.PackageError, match=r"^model\.safetensors lacks tensors: classifier\.bias"):
        load_classifier(str(tmp_path / "mlp"))


def test_a_whole_model_with_a_backbone_is_not_a_package(package: Path, tmp_path: Path) -> None:
    """Weights of a whole model are loaded only if the adapter is merged into them."""
    copy = shutil.copytree(package, tmp_path / "package")
    weights = EmotionClassifier(copy, fuse=False).model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, copy / "model.safetensors")
    with pytest.raises(infer.PackageError, match=r"model\.safetensors lacks tensors: .*Remedy: "):
        EmotionClassifier(copy)


def test_a_package_names_what_made_it(package: Path) -> None:
    version = json.loads((package / "config.json").read_text())["goemotions_mistral_version"]
    assert version == importlib.metadata.version("goemotions-mistral") == project_version()
    assert f"This package was exported by goemotions-mistral {version}." in (package / "README.md").read_text()
    older = EmotionClassifier(package)  # the field does not depend on schema_version: older readers ignore it
    assert older.config.goemotions_mistral_version == version and older.config.schema_version == 1


def test_card_has_the_recorded_figures(package: Path) -> None:
    card = (package / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((package / "metrics.json").read_text())
    for policy in ("fixed", "global", "per_label"):
        assert f"{metrics['test'][policy]['macro_f1']:.3f} [" in card
    assert (
        "{{" not in card and str(ROOT) not in card and str(package.parent) not in (package / "recipe.yaml").read_text()
    )
