"""A merged model: all weights in one file, loaded without PEFT and without a download, and read by servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MistralForSequenceClassification
from typer.testing import CliRunner

from hub_release.check.gate import check, inspect
from hub_release.cli import app
from hub_release.export import export
from hub_release.hub.client import connect
from hub_release.hub.commit import Destination, push_files
from hub_release.hub.pull import pull
from hub_release.package import LAYOUT, ReleaseError, package_files, seal
from hub_release.shipped.merged import merged_files, served_files, write_merged
from modeling.infer import (
    EmotionClassifier,
    EmotionConfig,
    EmotionModel,
    PackageError,
    load_backbone,
    merged_file,
    read_head,
    read_merged,
)
from tests import EXHAUSTIVE
from tests.conftest import EMBED_DIM, LABELS, fake_encoder, tiny_config, tiny_flags, tiny_tokenizer
from tests.hub_server import TestHub

TEXTS = ["sunny cake", "", "a slammed door " * 20, "what?", *(f"dark cellar {n} " * (n % 5 + 1) for n in range(20))]
SETTINGS: list[dict[str, Any]] = [
    {"input": "embedding"},
    {"input": "embedding", "one_token": False},
    {"input": "embedding", "prefix": "bos"},
    *(
        {"input": reads, "attention": attention, "pooling": pooling, "prefix": prefix}
        for reads, attention, pooling, prefix in product(
            ("tokens", "hybrid"), ("causal", "bidirectional"), ("last", "mean", "attention"), ("none", "bos")
        )
    ),
]
SERVED = [given for given in SETTINGS if EmotionConfig(**given, hidden_size=16).is_sequence_classifier]


def write_package(folder: Path, **settings: Any) -> Path:
    """What loading reads of a package on the tiny backbone, with random heads and a random adapter."""
    config = EmotionConfig(
        model_name="tiny/mistral",
        hidden_size=16,
        embed_dim=EMBED_DIM,
        emotion_labels=list(LABELS),
        backbone_config=tiny_config().to_diff_dict() | {"model_type": "mistral"},
        window_length=8,
        window_overlap=2,
        **settings,
    )
    torch.manual_seed(1)
    model = EmotionModel(config, load_backbone("tiny/mistral", one_token=config.reads_one_token))
    head = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    lora = LoraConfig(r=2, target_modules=["v_proj", "up_proj"], init_lora_weights=False)
    lora.base_model_name_or_path = config.model_name
    folder.mkdir(exist_ok=True)
    adapter = get_peft_model_state_dict(get_peft_model(model.backbone, lora))
    lora.save_pretrained(str(folder / "lora_adapter"))
    save_file(adapter, folder / LAYOUT.adapter)
    save_file(head, folder / LAYOUT.safe_head)
    (folder / LAYOUT.config).write_text(json.dumps(config.to_dict()))
    if config.reads_words:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.save(str(folder / LAYOUT.tokenizer))
    return folder


def probabilities(folder: Path, **options: Any) -> np.ndarray:
    return EmotionClassifier(folder, encoder=fake_encoder, **options).predict_proba(TEXTS)


def named(given: dict[str, Any]) -> str:
    return " ".join(map(str, given.values()))


@pytest.fixture(scope="module")
def merged(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a merged model, and with a graph."""
    folder = tmp_path_factory.mktemp("merged") / "package"
    done = CliRunner().invoke(app, ["export", str(finished_run), str(folder), "--merged", "--onnx"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def served(finished_run: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose merged model is a sequence classifier for servers."""
    from training.run import main

    base = tmp_path_factory.mktemp("served")
    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, base / "run")
    settings = "--input tokens --pooling mean --attention bidirectional --token_norm 0 --balance none"
    assert main([*flags, *settings.split()]) == 0
    export(base / "run", base / "package", merged=True)
    return base / "package"


# The same model


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_a_merged_model_is_the_same_without_peft_and_download(
    settings: dict[str, Any], tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_package(tmp_path / "package", **settings)
    expected = probabilities(folder)
    write_merged(folder)
    written = {name for name in LAYOUT.of_the_merged() if (folder / name).is_file()}
    assert written == set(merged_files(EmotionConfig(**settings))) and expected.std() > 1e-3
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("modeling.infer.model.fetch_backbone", lambda *_, **__: pytest.fail("a second download"))
    np.testing.assert_allclose(probabilities(folder), expected, atol=1e-5)
    np.testing.assert_allclose(probabilities(folder, fuse=False), expected, atol=1e-5)
    np.testing.assert_allclose(probabilities(folder, dtype=torch.bfloat16), expected, atol=0.05)


def test_another_copy_or_form_is_not_the_merged_one(tiny_backbone: str, tmp_path: Path) -> None:
    """It is made of the backbone that is named, and of the adapter."""
    folder = write_package(tmp_path / "package", input="embedding")
    expected = probabilities(folder)
    write_merged(folder)
    config = EmotionConfig.from_pretrained(folder)
    config.one_token = False
    model = EmotionModel.from_pretrained(folder, config=config)
    assert model.backbone.get_base_model().embed_tokens.weight.shape == (32, 16)
    found = EmotionClassifier.from_model(model, encoder=fake_encoder).predict_proba(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    quantized = EmotionModel.from_pretrained(folder, quantization="nf4")
    assert type(quantized.backbone).__name__ == "PeftModel"


def test_a_quantized_backbone_is_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_texts import tiny_model

    model = tiny_model()
    model.config.quantization = "nf4"
    monkeypatch.setattr(EmotionModel, "from_pretrained", lambda *_: model)
    with pytest.raises(ReleaseError, match=r"the backbone is in nf4.*Remedy: export without --merged"):
        write_merged(tmp_path)


# Servers


@pytest.mark.parametrize("settings", SERVED, ids=named)
def test_stock_transformers_reads_what_servers_read(
    settings: dict[str, Any], tiny_backbone: str, tmp_path: Path
) -> None:
    package = write_package(tmp_path / "package", **settings)
    write_merged(package)
    folder = (package / LAYOUT.served).parent
    stock, loaded = MistralForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"] and set(loaded["unexpected_keys"]) == {"score.bias"}
    assert stock.config.problem_type == "multi_label_classification"
    assert stock.config.id2label == dict(enumerate(LABELS)) and stock.config.pad_token_id == 2
    assert getattr(stock.config, "is_causal", True) == (settings["attention"] == "causal")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 8 + (settings["prefix"] == "bos")
    texts = ["sunny cake", "what? dark 7", "a slammed door"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    ours, first = Tokenizer.from_file(str(package / LAYOUT.tokenizer)), [1] * (settings["prefix"] == "bos")
    assert [first + ours.encode(text).ids for text in texts] == tokenizer(texts)["input_ids"]
    with torch.no_grad():
        hidden = stock.model(**batch).last_hidden_state
    mask = batch["attention_mask"]
    if settings["pooling"] == "mean":
        assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
        pooled = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    else:
        assert not (folder / "modules.json").exists()
        pooled = hidden[torch.arange(len(texts)), mask.sum(dim=1) - 1]
    weights = load_file(package / LAYOUT.served)
    found = torch.sigmoid(pooled @ weights["score.weight"].T + weights["score.bias"])
    np.testing.assert_allclose(found, EmotionClassifier(package).predict_proba(texts), atol=1e-5)


def test_sentence_transformers_pools_as_the_files_say(tiny_backbone: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    package = write_package(tmp_path / "package", input="tokens", attention="bidirectional", pooling="mean")
    write_merged(package)
    pooled = SentenceTransformer(str((package / LAYOUT.served).parent), device="cpu").encode(["sunny cake", "dark"])
    weights = load_file(package / LAYOUT.served)
    logits = pooled @ weights["score.weight"].numpy().T + weights["score.bias"].numpy()
    found = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found, EmotionClassifier(package).predict_proba(["sunny cake", "dark"]), atol=1e-5)


def test_a_token_that_begins_a_sequence_must_exist(tiny_backbone: str, tmp_path: Path) -> None:
    folder = write_package(tmp_path / "package", input="tokens", pooling="last", prefix="bos")
    config = json.loads((folder / LAYOUT.config).read_text())
    config["backbone_config"]["bos_token_id"] = 31
    (folder / LAYOUT.config).write_text(json.dumps(config))
    with pytest.raises(PackageError, match=r"tokenizer\.json has no token 31, with which a sequence begins"):
        served_files(folder)


# Packages


def test_a_merged_package_passes_its_check(merged: Path, served: Path) -> None:
    for folder, file in ((merged, LAYOUT.merged), (served, LAYOUT.served)):
        assert check(folder) == []
        assert merged_file(EmotionConfig.from_pretrained(folder)) == file
        needed = (folder / LAYOUT.requirements).read_text()
        assert "peft" not in needed and "transformers" in needed
        card = (folder / LAYOUT.card).read_text()
        assert f"`{file}` is the same model in one file in float32, with the weights of the language model" in card
        assert "The language model is fetched" not in card and file in card.partition("SHA-256 of the weights")[2]
    assert "`onnx/model.onnx` is the same model as one graph" in (merged / LAYOUT.card).read_text()
    assert "`is_causal: false`" in (served / LAYOUT.card).read_text()


def test_an_unmerged_package_needs_peft(package: Path) -> None:
    assert "\npeft>=" in (package / LAYOUT.requirements).read_text()
    assert "The encoder and the language model are fetched by name." in (package / LAYOUT.card).read_text()


@pytest.mark.parametrize("kind", ["served", "merged"] if EXHAUSTIVE else ["served"])
def test_a_stranger_needs_neither_peft_nor_the_backbone(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every way in, in a fresh process with an empty Hub cache where PEFT cannot be imported."""
    folder = request.getfixturevalue(kind)
    code = f"""
import sys
for name in ("peft", "modeling", "gguf"):
    sys.modules[name] = None
folder = {str(folder)!r}
sys.path.insert(0, folder)
import json
golden = json.load(open(folder + "/golden.json"))["rows"]
texts, wanted = [row["text"] for row in golden], [row["probabilities"] for row in golden]
import infer
assert abs(infer.EmotionClassifier(folder).predict_proba(texts) - wanted).max() < 1e-4
from handler import EndpointHandler
answers = [EndpointHandler(folder)({{"inputs": texts, "parameters": {{"threshold": 0.0}}}})]
from transformers import pipeline
answers.append(pipeline("text-classification", model=folder, trust_remote_code=True, top_k=None)(texts))
for answer in answers:
    for row, values in zip(answer, wanted):
        assert abs(max(entry["score"] for entry in row) - max(values)) < 1e-4 or not row
"""
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path),
        "HF_MODULES_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_merged_package_is_published_whole(served: Path, hub: TestHub, tmp_path: Path) -> None:
    api = connect()
    push_files(api, Destination("you/model"), package_files(served), "message", lambda plan: True)
    assert set(merged_files(EmotionConfig.from_pretrained(served))) <= set(
        hub.repositories["model", "you/model"].files()
    )
    pull(api, "you/model", tmp_path / "pulled")
    pulled, ours = (EmotionClassifier(folder).predict_proba(TEXTS) for folder in (tmp_path / "pulled", served))
    np.testing.assert_array_equal(pulled, ours)


def test_a_card_can_be_rendered_again(served: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(served, tmp_path / "package")
    assert CliRunner().invoke(app, ["card", str(copy), "--title", "Mine"]).exit_code == 0
    assert inspect(copy) == []


# Hostile files

Weights = dict[str, torch.Tensor]


def first_matrix(weights: Weights) -> str:
    return min(key for key in weights if key.endswith("layers.0.mlp.up_proj.weight"))


def changing(change: Callable[[torch.Tensor], torch.Tensor], key: str = "") -> Callable[[Weights], None]:
    def mutate(weights: Weights) -> None:
        name = key or first_matrix(weights)
        weights[name] = change(weights[name]).contiguous()

    return mutate


HOSTILE: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "no backbone": (lambda weights: weights.pop(first_matrix(weights)), "lacks tensors"),
    "one more tensor": (lambda weights: weights.update(evil=torch.ones(2)), "has unknown tensors: evil"),
    "another shape": (changing(lambda value: value.flatten()), "with shape"),
    "another direction": (changing(lambda value: value.T), "with shape"),
    "too large": (changing(lambda value: torch.zeros(2**21)), "bytes, more than"),
    "not a number": (changing(lambda value: value * torch.nan), "not finite"),
    "integers": (changing(lambda value: value.int()), "not finite floating-point"),
    "float8": (changing(lambda value: value.to(torch.float8_e4m3fn)), "not finite floating-point"),
}


@pytest.mark.parametrize("kind", ["merged", "served"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    change, said = HOSTILE[name]
    spoiled = shutil.copytree(request.getfixturevalue(kind), tmp_path / "package")
    file = merged_file(EmotionConfig.from_pretrained(spoiled))
    weights = load_file(spoiled / file)
    change(weights)
    save_file(weights, spoiled / file)
    refused(spoiled, file, said)


def refused(spoiled: Path, file: str, said: str) -> None:
    seal(spoiled)
    with pytest.raises(PackageError) as error:
        EmotionClassifier(spoiled)
    assert error.value.file == file and said in str(error.value) and "Remedy: " in str(error.value)
    assert any(str(problem).startswith(file) and said in str(problem) for problem in inspect(spoiled))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged"),
        (b"\xff" * 64, "is damaged"),
        ((2**30).to_bytes(8, "little") + b"{}", "the header has 1,073,741,824 bytes"),
        (b"\x80\x04\x95", "is damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(served: Path, tmp_path: Path, content: bytes, said: str) -> None:
    spoiled = shutil.copytree(served, tmp_path / "package")
    (spoiled / LAYOUT.served).write_bytes(content)
    refused(spoiled, LAYOUT.served, said)


def test_a_cut_file_is_refused(merged: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(merged, tmp_path / "package")
    os.truncate(spoiled / LAYOUT.merged, (spoiled / LAYOUT.merged).stat().st_size - 4)
    refused(spoiled, LAYOUT.merged, "is damaged")


def test_random_damage_never_escapes(served: Path, tmp_path: Path) -> None:
    """Whatever is changed in the header, it is refused as a package, or is the same model."""
    spoiled = shutil.copytree(served, tmp_path / "package")
    content = (served / LAYOUT.served).read_bytes()
    config, header = EmotionConfig.from_pretrained(served), 8 + int.from_bytes(content[:8], "little")
    head = read_head(served, config)
    generator, refusals = np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in generator.integers(0, header, 3):
            damaged[place] = generator.integers(32, 127) if place >= 8 else generator.integers(0, 256)
        (spoiled / LAYOUT.served).write_bytes(damaged)
        try:
            read_merged(spoiled, config, head)
        except PackageError as error:
            refusals += 1
            assert LAYOUT.served in str(error) and "Remedy: " in str(error)
    assert refusals > 150


@pytest.mark.parametrize("kind", ["merged", "served"])
def test_other_heads_than_the_package_s_are_refused(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    spoiled = shutil.copytree(request.getfixturevalue(kind), tmp_path / "package")
    file = merged_file(EmotionConfig.from_pretrained(spoiled))
    weights = load_file(spoiled / file)
    changing(lambda value: value + 1, "score.bias" if kind == "served" else "classifier.bias")(weights)
    save_file(weights, spoiled / file)
    seal(spoiled)
    with pytest.raises(PackageError, match=rf"head\.safetensors and {file} hold different weights"):
        EmotionClassifier(spoiled)
    assert any(f"and {file} hold different weights" in str(problem) for problem in inspect(spoiled))


def test_other_weights_of_the_backbone_are_found(served: Path, tmp_path: Path) -> None:
    """They load: only the golden probabilities can show them."""
    spoiled = shutil.copytree(served, tmp_path / "package")
    weights = load_file(spoiled / LAYOUT.served)
    save_file({key: value * 1.5 if "norm" in key else value for key, value in weights.items()}, spoiled / LAYOUT.served)
    shutil.copyfile(served / LAYOUT.card, spoiled / LAYOUT.card)
    assert CliRunner().invoke(app, ["card", str(spoiled)]).exit_code == 1  # the seal is broken
    from hub_release.card.render import write_card

    write_card(spoiled)
    assert [problem for problem in check(spoiled) if "the golden probabilities differ" in problem]


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "gpt2"},
        {"hidden_size": 8},
        {"num_hidden_layers": 1},
        {"intermediate_size": 32},
        {"num_attention_heads": 3, "num_key_value_heads": 2},
    ],
    ids=named,
)
def test_another_backbone_than_the_file_s_is_refused(served: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    spoiled = shutil.copytree(served, tmp_path / "package")
    config = json.loads((spoiled / LAYOUT.config).read_text())
    config["backbone_config"] |= settings
    (spoiled / LAYOUT.config).write_text(json.dumps(config))
    with pytest.raises(PackageError, match="Remedy: "):
        EmotionClassifier(spoiled)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"]
)
def test_what_servers_read_is_what_the_package_says(served: Path, tmp_path: Path, name: str) -> None:
    spoiled = shutil.copytree(served, tmp_path / "package")
    file = (spoiled / LAYOUT.served).parent / name
    content = json.loads(file.read_text())
    changed = [{**content[0], "type": "os.system"}] if isinstance(content, list) else content | {"auto_map": "evil.py"}
    file.write_text(json.dumps(changed))
    seal(spoiled)
    assert any(f"{name} is not made from config.json and tokenizer.json" in str(found) for found in inspect(spoiled))
    file.unlink()
    seal(spoiled)
    assert any(f"{name} is missing" in str(found) for found in inspect(spoiled))


@pytest.mark.parametrize(
    "settings", [{"pad_token_id": [2]}, {"rope_parameters": "rope_theta"}, {"bos_token_id": {}}], ids=named
)
def test_odd_settings_of_a_backbone_are_problems(served: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    spoiled = shutil.copytree(served, tmp_path / "package")
    config = json.loads((spoiled / LAYOUT.config).read_text())
    config["backbone_config"] |= settings
    (spoiled / LAYOUT.config).write_text(json.dumps(config))
    seal(spoiled)
    assert any("Remedy: " in str(found) for found in inspect(spoiled))


def test_a_file_of_another_kind_of_package_is_not_part_of_it(served: Path, merged: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(served, tmp_path / "package")
    shutil.copyfile(merged / LAYOUT.merged, spoiled / LAYOUT.merged)
    seal(spoiled)
    assert [str(found) for found in inspect(spoiled)] == [
        "model.safetensors is not part of a package. Remedy: delete it"
    ]
    shutil.rmtree((spoiled / LAYOUT.served).parent)
    seal(spoiled)
    found = [str(problem) for problem in inspect(spoiled)]
    assert any(f"{LAYOUT.served} is missing" in problem for problem in found)
