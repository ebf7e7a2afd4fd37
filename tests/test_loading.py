"""Loading a backbone: quantized layers really are quantized, from any checkpoint; what cannot be loaded is an error."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    PixtralVisionConfig,
)

from modeling import infer
from modeling.adapters import IDLE, attach_lora, split_trained_weights
from modeling.backbones import load_frozen_backbone, read_backbone_config
from modeling.infer import (
    BUNDLED_BACKBONE,
    EmotionConfig,
    EmotionModel,
    FusedOneTokenMistral,
    OneTokenMistral,
    build_projection,
    load_backbone,
    load_encoder,
    quantization,
)
from modeling.recipe import ALL_LINEAR
from tests.conftest import DEVICES, EMBED_DIM, LABELS, ROOT, tiny_config
from training.fit.projection import standardize_projection

bitsandbytes = pytest.importorskip("bitsandbytes")

HIDDEN = 128
FORMS = pytest.mark.parametrize("one_token", [False, True], ids=["whole", "one_token"])
SKIPPED = ["lm_head", "vision_tower", "multi_modal_projector", "model.language_model.layers.0.mlp"]


def text_config() -> MistralConfig:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 256, "head_dim": 32}
    return MistralConfig(**{**tiny_config().to_dict(), **sizes})


def vision_model(text: MistralConfig) -> Mistral3ForConditionalGeneration:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = PixtralVisionConfig(**sizes, head_dim=8, image_size=28)
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def quantize(model: type[Any], source: Path, target: Path, **settings: Any) -> None:
    """Write a checkpoint that is already quantized."""
    config = BitsAndBytesConfig(**settings)
    model.from_pretrained(source, quantization_config=config, dtype=torch.bfloat16).save_pretrained(target)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of checkpoints with equal weights in the language model."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    plain = MistralModel(text_config())
    headed, vision = MistralForCausalLM(text_config()), vision_model(text_config())
    for other in (headed.model, vision.model.language_model):
        other.load_state_dict(plain.state_dict())
    for name, model in {"plain": plain, "headed": headed, "vision": vision}.items():
        model.save_pretrained(folder / name)
    # The layout of today's checkpoints: transformers writes the layout of the first release.
    vision.config.save_pretrained(folder / "vision-new")
    weights = {key: tensor.clone() for key, tensor in vision.state_dict().items() if "lm_head" not in key}
    save_file(weights, folder / "vision-new" / "model.safetensors", metadata={"format": "pt"})
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    double = {**nf4, "bnb_4bit_use_double_quant": True}
    quantize(MistralModel, folder / "plain", folder / "plain-nf4", **double)
    quantize(MistralModel, folder / "plain", folder / "plain-nf4-once", **nf4)
    quantize(MistralModel, folder / "plain", folder / "plain-fp4", load_in_4bit=True)
    quantize(MistralModel, folder / "plain", folder / "plain-8bit", load_in_8bit=True)
    quantize(
        Mistral3ForConditionalGeneration,
        folder / "vision",
        folder / "vision-nf4",
        **double,
        llm_int8_skip_modules=SKIPPED,
    )
    return folder


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def exact_weight(linear: Any) -> torch.Tensor:
    """The float32 weight that a linear layer represents."""
    if isinstance(linear, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
    if isinstance(linear, bitsandbytes.nn.Linear8bitLt):
        return linear.weight.data.float() * linear.weight.SCB[:, None] / 127
    return linear.weight.float()


def tokens(device: str = "cpu") -> torch.Tensor:
    return 40 * torch.randn(16, 1, HIDDEN, generator=torch.Generator().manual_seed(0)).to(device)


def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(inputs_embeds=inputs.to(next(model.norm.parameters()).dtype)).last_hidden_state  # type: ignore[union-attr]
    return hidden.float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
@pytest.mark.parametrize("source", ["plain", "headed", "vision", "prequantized"])
@FORMS
def test_the_weights_are_quantized(
    checkpoints: Path,
    source: str,
    quantization: str,
    one_token: bool,
    device: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = checkpoints / (f"plain-{quantization}" if source == "prequantized" else source)
    caplog.set_level("INFO")
    model = load_backbone(str(folder), quantization=quantization, one_token=one_token, device=device)
    linear = linear_layers(model)
    number = 2 * (5 if one_token else 7)
    assert len(linear) == number and f"{number} of {number} linear layers in {quantization}" in caplog.text
    for module in linear.values():
        weight: Any = module.weight
        if quantization == "nf4":
            assert isinstance(module, bitsandbytes.nn.Linear4bit) and weight.dtype == torch.uint8
            assert weight.quant_state.quant_type == "nf4" and weight.quant_state.nested
            assert (
                module.compute_dtype == torch.bfloat16
                and weight.numel() == module.in_features * module.out_features / 2
            )
        else:
            assert isinstance(module, bitsandbytes.nn.Linear8bitLt) and weight.dtype == torch.int8
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    assert len(norms) == 5 and {p.dtype for p in norms} == {torch.float32 if one_token else torch.bfloat16}
    # By hand: half a byte per weight, one byte per 64 weights, four bytes per 64 * 256, and two tables per layer.
    weights = sum(module.in_features * module.out_features for module in linear.values())
    nf4 = weights * (0.5 + 1 / 64 + 4 / (64 * 256)) + number * 4 * (256 + 16)
    rest = 5 * HIDDEN * 4 if one_token else (5 + 32) * HIDDEN * 2
    (logged,) = re.findall(r", ([\d.]+) MB", caplog.text)
    assert float(logged) == pytest.approx(({"nf4": nf4, "8bit": weights}[quantization] + rest) / 1e6, abs=0.01)


@FORMS
def test_a_layer_that_is_not_quantized_is_found(
    checkpoints: Path, one_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_backbone(str(checkpoints / "plain"), quantization="nf4", one_token=one_token)
    up = model.layers[1].mlp.up_proj
    for break_it in (
        lambda: setattr(model.layers[1].mlp, "up_proj", nn.Linear(HIDDEN, 256, bias=False)),
        lambda: setattr(up, "compute_dtype", torch.float32),
        lambda: setattr(up.weight.quant_state, "nested", False),
        lambda: setattr(up.weight, "quant_state", None),
    ):
        model.layers[1].mlp.up_proj = up
        assert "linear layers in nf4" in infer.check_quantized(model, "nf4")
        break_it()
        with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.up_proj is not in nf4\. Remedy:"):
            infer.check_quantized(model, "nf4")
        up.compute_dtype = torch.bfloat16
        if up.weight.quant_state is not None:
            up.weight.quant_state.nested = True
    # If bitsandbytes ignored an option, the layers would be in full precision.
    monkeypatch.setitem(quantization._QUANTIZATIONS, "nf4", {"load_in_4bit": True, "llm_int8_skip_modules": ["layers"]})
    with pytest.raises(RuntimeError, match="no linear layer is in nf4"):
        load_backbone(str(checkpoints / "plain"), quantization="nf4", one_token=one_token)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
def test_one_token_is_as_near_to_the_quantized_weights_as_the_stock_model(
    checkpoints: Path, quantization: str, device: str
) -> None:
    source = str(checkpoints / "plain")
    whole, one = (
        load_backbone(source, quantization=quantization, one_token=form, device=device) for form in (False, True)
    )
    weights = {name: exact_weight(module) for name, module in linear_layers(whole).items()}
    for name, module in linear_layers(one).items():
        torch.testing.assert_close(exact_weight(module), weights[name], rtol=0, atol=0)
    exact = load_backbone(source, device=device)
    for name, module in linear_layers(exact).items():
        module.weight.data = weights[name]
    expected = run(exact, tokens(device))
    stock, ours = ((run(model, tokens(device)) - expected).abs().mean() for model in (whole, one))
    assert ours < 1.1 * stock < 0.05 * expected.abs().mean()
    plain = load_backbone(source, device=device)
    assert (expected - run(plain, tokens(device))).abs().mean() > ours  # quantization itself changes more


def real_texts() -> list[str]:
    """2,000 of GoEmotions' test texts if they are available, otherwise the starter corpus's."""
    if folder := os.environ.get("GOEMOTIONS_DIR"):
        lines = (Path(folder) / "test.tsv").read_text(encoding="utf-8").splitlines()
        return [line.split("\t")[0] for line in lines[:2000]]
    with (ROOT / "training" / "data" / "starter" / "test.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def decide(*models: nn.Module, device: str = "cpu") -> list[torch.Tensor]:
    """Decisions of 28 random labels on the real texts with each backbone; the last one's mean logits are the cuts."""
    embeddings = load_encoder("use-multilingual-v3")(real_texts())
    assert len(embeddings) > 50
    torch.manual_seed(0)
    projection, classifier = build_projection(512, 576), nn.Linear(576, 28)
    standardize_projection(projection, embeddings, token_norm=960.0, seed=0)
    with torch.no_grad():
        inputs = projection(torch.from_numpy(embeddings))[:, None].to(device)
        classifier.to(device)
        logits = [classifier(torch.cat([run(model, part) for part in inputs.split(512)])[:, 0]) for model in models]
    return [rows > logits[-1].mean(dim=0) for rows in logits]


@pytest.mark.parametrize("device", DEVICES)
def test_decisions_on_real_texts_with_the_real_backbone(device: str) -> None:
    """The one-token form is at least as close to its exact 4-bit weights as the quantized stock model."""
    stock, one = (
        load_backbone(BUNDLED_BACKBONE, quantization="nf4", one_token=form, device=device) for form in (False, True)
    )
    exact = load_backbone(BUNDLED_BACKBONE, one_token=True, device=device)
    for name, module in linear_layers(exact).items():
        module.weight.data = exact_weight(stock.get_submodule(name))
    *others, expected = decide(stock, one, exact, device=device)
    assert 0.3 < expected.float().mean() < 0.7
    theirs, ours = ((rows != expected).float().mean() for rows in others)
    print(f"decisions other than the exact ones: stock {theirs:.5f}, one token {ours:.5f} of {expected.numel()}")
    assert ours <= theirs < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_decisions_on_real_texts_with_the_real_backbone(device: str) -> None:
    """In bfloat16 the classifier's backbone is at least as close to float32 as the stock model."""
    stock, one = (
        load_backbone(BUNDLED_BACKBONE, dtype=torch.bfloat16, one_token=form, device=device) for form in (False, True)
    )
    exact = load_backbone(BUNDLED_BACKBONE, device=device)
    *others, expected = decide(stock, FusedOneTokenMistral(one), exact, device=device)
    theirs, ours = ((rows != expected).float().mean() for rows in others)
    print(f"decisions other than in float32: stock {theirs:.5f}, ours {ours:.5f} of {expected.numel()}")
    assert ours <= theirs < 0.02


@FORMS
def test_a_quantized_checkpoint_is_the_plain_one_quantized(checkpoints: Path, one_token: bool) -> None:
    quantized, plain = (
        load_backbone(str(checkpoints / name), quantization="nf4", one_token=one_token)
        for name in ("plain-nf4", "plain")
    )
    torch.testing.assert_close(run(quantized, tokens()), run(plain, tokens()), rtol=0, atol=0)


def test_a_checkpoint_quantized_once_stays_so(checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load_backbone(str(checkpoints / "plain-nf4-once"), quantization="nf4", one_token=True)
    assert "10 of 10 linear layers in nf4, " in caplog.text


@FORMS
def test_a_checkpoints_skip_list(checkpoints: Path, one_token: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The list has names from the whole vision model; ours differ, and the head is not in the list."""
    caplog.set_level("INFO")
    source = checkpoints / "vision-nf4"
    backbone = load_frozen_backbone(str(source), None, "nf4", "cpu", one_token)
    in_full = {name for name, module in linear_layers(backbone).items() if type(module) is nn.Linear}
    assert in_full == {f"layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert ("7 of 10" if one_token else "11 of 14") + " linear layers in nf4" in caplog.text
    expected = exact_weight(load_backbone(str(checkpoints / "plain"), dtype=torch.bfloat16).layers[0].mlp.up_proj)
    torch.testing.assert_close(exact_weight(backbone.layers[0].mlp.up_proj), expected, rtol=0, atol=0)  # type: ignore[index, union-attr]
    model = emotion_model(backbone, "nf4", one_token)
    assert model(torch.randn(3, EMBED_DIM)).logits.isfinite().all()
    for part in (model.projection[0], model.projection[2], model.classifier):
        assert type(part) is nn.Linear and part.weight.dtype == torch.float32
    trained = attach_lora(model, 4, 8, 0.0)
    assert trained(embeddings=torch.randn(3, EMBED_DIM), labels=torch.ones(3, 3)).loss.backward() is None


def test_both_forms_of_a_skip_list_agree(checkpoints: Path) -> None:
    source = str(checkpoints / "vision-nf4")
    whole, one = (load_backbone(source, quantization="nf4", one_token=form) for form in (False, True))
    weights = {name: exact_weight(module) for name, module in linear_layers(whole).items()}
    for name, module in linear_layers(one).items():
        torch.testing.assert_close(exact_weight(module), weights[name], rtol=0, atol=0)
    expected = run(whole, tokens())
    assert (run(one, tokens()) - expected).abs().mean() < 0.02 * expected.abs().mean()


def emotion_model(backbone: nn.Module, quantization: str, one_token: bool) -> EmotionModel:
    torch.manual_seed(0)
    config = EmotionConfig(
        hidden_size=HIDDEN,
        embed_dim=EMBED_DIM,
        emotion_labels=list(LABELS),
        quantization=quantization,
        one_token=one_token,
        prefix="none" if one_token else "bos",
        head_dropout=0.0,
    )
    return EmotionModel(config, backbone)


def gradients_around_an_evaluation(
    backbone: nn.Module, quantization: str, one_token: bool, device: str
) -> list[torch.Tensor]:
    """The gradient of everything that trains, before and after a forward pass without gradients."""
    model = attach_lora(emotion_model(backbone, quantization, one_token), 4, 8, 0.0).to(device)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            seed = int.from_bytes(name.encode()[-40:], "big") % 2**31
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.data.copy_(0.1 * drawn)
    embeddings = torch.randn(8, EMBED_DIM, generator=torch.Generator().manual_seed(1)).to(device)
    targets = (torch.arange(8 * len(LABELS)).view(8, -1) % 2).float().to(device)
    found = []
    for _ in range(2):
        model.zero_grad()
        model.train()(embeddings=embeddings, labels=targets).loss.backward()
        trained = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
        found.append(torch.cat([gradient.flatten() for gradient in trained]))
        with torch.no_grad():
            model.eval()(embeddings=embeddings)
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
@FORMS
def test_the_gradient_with_lora_is_right_after_an_evaluation(
    checkpoints: Path, quantization: str, one_token: bool, device: str
) -> None:
    source = str(checkpoints / "plain")
    backbone = load_frozen_backbone(source, None, quantization, device, one_token)
    weights = {name: exact_weight(module) for name, module in linear_layers(backbone).items()}
    before, after = gradients_around_an_evaluation(backbone, quantization, one_token, device)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    exact = load_frozen_backbone(source, None, "none", device, one_token)
    for name, module in linear_layers(exact).items():
        module.weight.data = weights[name]
    expected, _ = gradients_around_an_evaluation(exact, "none", one_token, device)
    assert torch.cosine_similarity(before, expected, dim=0) > 0.999


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
@FORMS
def test_a_package_computes_what_training_did(
    checkpoints: Path, quantization: str, one_token: bool, device: str
) -> None:
    """Equal to the last bit: PEFT's LoRA layers round differently, and the package's check would allow 1e-4."""
    source = str(checkpoints / "plain")
    names = [name for name in ALL_LINEAR if not (one_token and name in IDLE)]
    backbone = load_frozen_backbone(source, None, quantization, device, one_token)
    trained = attach_lora(emotion_model(backbone, quantization, one_token), 4, 8, 0.0).to(device)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    _, adapter = split_trained_weights(get_peft_model_state_dict(trained))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names)
    loaded_again = load_backbone(source, quantization=quantization, one_token=one_token, device=device)
    published = get_peft_model(loaded_again, config)
    loaded = set_peft_model_state_dict(published, adapter)
    assert not loaded.unexpected_keys and len(adapter) == 2 * 2 * len(names)
    expected = run(trained.get_base_model().backbone, tokens(device))  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(run(published.get_base_model(), tokens(device)), expected, rtol=0, atol=0)


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="this CPU's weights are not repacked")
@FORMS
def test_without_the_guard_the_gradient_is_wrong(checkpoints: Path, one_token: bool) -> None:
    """Prove that the test above can fail: bitsandbytes still repacks the weights without the guard."""
    backbone: Any = load_backbone(str(checkpoints / "plain"), quantization="nf4", one_token=one_token)
    for module in linear_layers(backbone).values():
        assert not module.support_avx512bf16_for_cpu  # type: ignore[truthy-function]
        module.__dict__["support_avx512bf16_for_cpu"] = True
    before, after = gradients_around_an_evaluation(backbone.requires_grad_(False), "nf4", one_token, "cpu")
    assert torch.cosine_similarity(before, after, dim=0) < 0.99


@pytest.mark.parametrize("source", ["headed", "vision", "vision-new"])
@FORMS
def test_the_language_model_is_taken_out(checkpoints: Path, source: str, one_token: bool) -> None:
    keys = set(load_file(checkpoints / source / "model.safetensors"))
    assert {"headed": "model.layers.0", "vision": "language_model.model.layers.0"}.get(
        source, "model.language_model.layers.0"
    ) in {".".join(key.split(".")[:-3]) for key in keys}
    found = load_backbone(str(checkpoints / source), one_token=one_token)
    assert type(found) is (OneTokenMistral if one_token else MistralModel)
    expected = run(MistralModel.from_pretrained(checkpoints / "plain"), tokens())
    torch.testing.assert_close(run(found, tokens()), expected, rtol=1e-5, atol=1e-5)
    assert read_backbone_config(str(checkpoints / source)).model_type == "mistral"


@FORMS
def test_adapters_stay_in_the_language_model(checkpoints: Path, one_token: bool) -> None:
    whole = get_peft_model(vision_model(text_config()), LoraConfig(target_modules=list(ALL_LINEAR)))
    # Plain PEFT puts LoRA into the vision tower too.
    assert any("vision_tower" in name and "lora_A" in name for name, _ in whole.named_parameters())
    backbone = load_frozen_backbone(str(checkpoints / "vision"), None, "none", "cpu", one_token)
    model = attach_lora(emotion_model(backbone, "none", one_token), 4, 8, 0.0)
    places = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(places) == 2 * (5 if one_token else 7)
    assert all(place.startswith("base_model.model.backbone.layers.") for place in places)


def test_a_checkpoint_without_its_weights(checkpoints: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoints / "plain" / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((checkpoints / "plain" / "config.json").read_text())
    for one_token in (False, True):
        with pytest.raises(ValueError, match=r"lacks the weights layers\.1\.mlp\.up_proj\.weight"):
            load_backbone(str(tmp_path), one_token=one_token)


NOT_SUPPORTED = {
    "an unknown quantization": ("plain", "int3", "cpu", ValueError, r"unknown quantization 'int3'. Remedy: use none"),
    "nf4 checkpoint, none": ("plain-nf4", "none", "cpu", ValueError, r"in nf4, but .* is none. Remedy: use quant.*nf4"),
    "nf4 checkpoint, 8bit": ("plain-nf4", "8bit", "cpu", ValueError, r"in nf4, but .* is 8bit. Remedy: use .*nf4, or"),
    "8bit checkpoint, none": ("plain-8bit", "none", "cpu", ValueError, r"in 8bit, .* Remedy: use quant.* 8bit, or"),
    "8bit checkpoint, nf4": ("plain-8bit", "nf4", "cpu", ValueError, r"in 8bit, .* Remedy: use quant.* 8bit, or"),
    "fp4 checkpoint, nf4": ("plain-fp4", "nf4", "cpu", ValueError, r"in fp4, .* Remedy: use a checkpoint in full prec"),
    "gptq checkpoint, nf4": ("gptq", "nf4", "cpu", ValueError, r"in gptq, .* Remedy: use a checkpoint in full prec"),
    "fp8 checkpoint, none": ("fp8", "none", "cpu", ValueError, r"in fp8, .* Remedy: use a checkpoint in full prec"),
    "nf4 on an Arm CPU": ("plain", "nf4", "aarch64", ValueError, r"not supported on aarch64. Remedy: .* none, an x86"),
    "8bit on an Arm CPU": ("plain", "8bit", "arm64", ValueError, r"not supported on arm64. Remedy: .* none, an x86"),
    "nf4 on Apple's GPU": ("plain", "nf4", "mps", ValueError, r"not supported on mps. Remedy: .* none"),
    "nf4 without bitsandbytes": ("plain", "nf4", "no bitsandbytes", ImportError, r"Remedy: pip install bitsandbytes"),
    "8bit without bitsandbytes": ("plain", "8bit", "no bitsandbytes", ImportError, r"Remedy: pip install bitsandbytes"),
    "no GPU": ("plain", "none", "no GPU", ValueError, r"sees no GPU for device cuda:0. Remedy: use device cpu"),
    "nf4, no GPU": ("plain", "nf4", "no GPU", ValueError, r"sees no GPU for device cuda:0. Remedy: use device cpu"),
}


@pytest.mark.parametrize("prefix", ["none", "bos"])
@pytest.mark.parametrize("case", NOT_SUPPORTED)
def test_what_is_not_supported_names_the_remedy(
    checkpoints: Path, tmp_path: Path, case: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, quantization, place, error, message = NOT_SUPPORTED[case]
    folder = checkpoints / source
    if source in ("gptq", "fp8"):
        folder = tmp_path
        MistralModel.from_pretrained(checkpoints / "plain").save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": source}}))
    device = {"mps": "mps", "no GPU": "cuda:0"}.get(place, "cpu")
    if place in ("aarch64", "arm64"):
        monkeypatch.setattr(platform, "machine", lambda: place)
    if place == "no GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if place == "no bitsandbytes":
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = EmotionConfig(prefix=prefix)
    with pytest.raises(error, match=message):
        load_backbone(str(folder), quantization=quantization, device=device, one_token=config.reads_one_token)


def test_another_architecture(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"architecture gpt2, not mistral. Remedy: use one_token false"):
        load_backbone(str(tmp_path), one_token=True)
