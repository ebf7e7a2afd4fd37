"""One token, exactly: leaving out, folding, fusing and reordering do not change the results."""

from __future__ import annotations

import copy
import gc
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from peft import PeftModel
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import MistralModel

from modeling.adapters import IDLE, LoraLinear, attach_lora
from modeling.backbones import compile_layers, restore_float32
from modeling.fused_layer import FEW_ROWS, FusedOneTokenLayer, fuse_layers
from modeling.infer import (
    BUNDLED_BACKBONE,
    FEWEST_ROWS,
    EmotionConfig,
    EmotionModel,
    FusedOneTokenMistral,
    OneTokenMistral,
    load_backbone,
    packs_matrices,
)
from tests.conftest import DEVICES, EMBED_DIM, LABELS, tiny_config, tiny_flags, write_corpus
from training.run import main


def model_with_lora(
    backbone: str,
    one_token: bool,
    dtype: torch.dtype = torch.float32,
    hidden_size: int = 16,
    num_hidden_layers: int | None = None,
) -> PeftModel:
    """A model whose LoRA is not zero, with equal weights for equal module names."""
    loaded = load_backbone(backbone, dtype=dtype, one_token=one_token, num_hidden_layers=num_hidden_layers)
    config = EmotionConfig(
        model_name=backbone,
        hidden_size=hidden_size,
        embed_dim=EMBED_DIM,
        emotion_labels=list(LABELS),
        one_token=one_token,
        head_dropout=0.0,
    )
    model = attach_lora(EmotionModel(config, loaded), 4, 8, 0.0).train()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            seed = int.from_bytes(name.encode()[-40:], "big") % 2**31
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(seed))
    return model


def gradients(model: PeftModel, autocast: bool = False, rows: int = 9) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(rows, EMBED_DIM, generator=generator)
    targets = (torch.rand(rows, 3, generator=generator) < 0.4).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(embeddings=embeddings).logits
    binary_cross_entropy_with_logits(logits.float(), targets).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("device", DEVICES)
def test_the_real_backbone_in_every_form(device: str) -> None:
    stock, one = (load_backbone(BUNDLED_BACKBONE, one_token=form, device=device) for form in (False, True))
    assert isinstance(one, OneTokenMistral)
    left = {name for name, _ in stock.named_parameters()} - {name for name, _ in one.named_parameters()}
    assert len(left) == 30 * 2 + 1 and {name.split(".")[-2] for name in left} == IDLE | {"embed_tokens"}
    tokens = 40 * torch.randn(16, 1, 576, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        expected = stock(inputs_embeds=tokens).last_hidden_state
        found = [one(inputs_embeds=tokens).last_hidden_state, FusedOneTokenMistral(one)(tokens).last_hidden_state]
    if device == "cpu":
        torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
    for hidden in found:  # thirty layers of rounding to 1.2e-7; a GPU chooses other kernels for other shapes
        allowed = (2e-6 if device == "cpu" else 2e-5) * expected.abs().amax(-1)
        assert ((hidden - expected).abs().amax(-1) < allowed).all()
    with pytest.raises(ValueError, match="reads one token, got 2"):
        load_backbone(BUNDLED_BACKBONE, one_token=True)(inputs_embeds=tokens[:2].view(1, 2, 576))


def test_gradients_equal_the_whole_model_s(tiny_backbone: str) -> None:
    whole, one = (model_with_lora(tiny_backbone, one_token) for one_token in (False, True))
    (expected, theirs), (found, ours) = gradients(whole), gradients(one)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    idle = {name for name in theirs if name.split(".")[-4] in IDLE}
    assert len(idle) == 2 * 2 * 2 and all(theirs[name].abs().max() < 1e-7 for name in idle)
    assert set(ours) == set(theirs) - idle
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert sum(isinstance(module, LoraLinear) for module in one.modules()) == 2 * 5


def test_bfloat16_matrices_train_as_autocast_does(tiny_backbone: str) -> None:
    full, half = (model_with_lora(tiny_backbone, True, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert {p.dtype for name, p in half.named_parameters() if "base_layer" in name} == {torch.bfloat16}
    assert {p.dtype for name, p in half.named_parameters() if "base_layer" not in name} == {torch.float32}
    (expected, theirs), (found, ours) = gradients(full, autocast=True), gradients(half, autocast=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for name in theirs:  # two gradients are rounded before or after they are added
        assert torch.cosine_similarity(ours[name].flatten(), theirs[name].flatten(), dim=0) > 0.9999


@pytest.fixture(params=["oneDNN's layout", "plain matrices"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of frozen matrices: this CPU library's own, or the plain one of every other machine."""
    if request.param == "plain matrices":
        monkeypatch.setattr("modeling.infer.fused.packs_matrices", lambda weight: False)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_layers_train_equally_under_the_same_names(tiny_backbone: str, checkpointing: bool) -> None:
    plain, fused = (model_with_lora(tiny_backbone, one_token=True) for _ in range(2))
    backbone = fused.get_base_model().backbone
    if checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    assert fuse_layers(backbone)
    (expected, theirs), (found, ours) = gradients(plain), gradients(fused)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert set(ours) == set(theirs) and len(ours) > 20
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert list(fused.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("rows", [9, 4 * FEW_ROWS])
def test_fused_layers_differ_from_others_in_bfloat16_only_by_rounding(rows: int) -> None:
    # Six layers only: after thirty, the size of the rounding error is random.
    real = {"one_token": True, "hidden_size": 576, "num_hidden_layers": 6}
    exact = model_with_lora(BUNDLED_BACKBONE, **real)
    plain, fused = (model_with_lora(BUNDLED_BACKBONE, dtype=torch.bfloat16, **real) for _ in range(2))
    assert fuse_layers(fused.get_base_model().backbone)
    expected, theirs = gradients(exact, rows=rows)
    errors = []
    for model in (plain, fused):
        found, ours = gradients(model, autocast=True, rows=rows)
        of_parts = {"logits": [float((found - expected).norm() / expected.norm())]}
        for name in theirs:
            error = (ours[name] - theirs[name]).norm() / theirs[name].norm()
            of_parts.setdefault(name.split(".")[-4] if "lora" in name else "head", []).append(float(error))
        errors.append({part: sum(values) / len(values) for part, values in of_parts.items()})
    assert len(errors[0]) == 2 + 5
    for part, error in errors[1].items():
        assert error < 1.25 * errors[0][part], part


def test_a_step_learns_what_the_reference_s_does(tiny_backbone: str) -> None:
    """Equal losses: 8 rows × 4 with checkpointing and whole attention, or 32 rows with one token and fused layers."""
    reference, ours = (model_with_lora(tiny_backbone, one_token) for one_token in (False, True))
    reference.get_base_model().backbone.gradient_checkpointing_enable({"use_reentrant": False})
    assert fuse_layers(ours.get_base_model().backbone)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(32, EMBED_DIM, generator=generator)
    targets = (torch.rand(32, 3, generator=generator) < 0.4).float()

    def train(model: PeftModel, rows: int, fused: bool) -> list[float]:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, losses = torch.optim.AdamW(trained, lr=1e-2, fused=fused), []
        for _ in range(10):
            parts = [
                binary_cross_entropy_with_logits(model(embeddings=part).logits, wanted) * rows / 32
                for part, wanted in zip(embeddings.split(rows), targets.split(rows), strict=True)
            ]
            for part in parts:
                part.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(sum(part.item() for part in parts))
        return losses

    expected = train(reference, 8, fused=False)
    assert expected[-1] < 0.9 * expected[0]
    assert train(ours, 32, fused=True) == pytest.approx(expected, rel=1e-4)


def test_fused_layers_are_the_parent_s_where_that_is_meant(tiny_backbone: str) -> None:
    plain, fused = (model_with_lora(tiny_backbone, one_token=True) for _ in range(2))
    backbone = fused.get_base_model().backbone
    assert fuse_layers(backbone) and all(isinstance(layer, FusedOneTokenLayer) for layer in backbone.layers)
    embeddings = torch.randn(3, EMBED_DIM, generator=torch.Generator().manual_seed(0))
    fused(embeddings=embeddings).logits.sum().backward()
    assert all(layer.frozen is not None for layer in backbone.layers)
    tokens = torch.randn(3, 1, 16)
    with plain.disable_adapter(), fused.disable_adapter():
        found, expected = (m.get_base_model().backbone(inputs_embeds=tokens).last_hidden_state for m in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert copy.deepcopy(fused).get_base_model().backbone.layers[0].frozen is None
    for weight in (parameter for name, parameter in backbone.named_parameters() if "base_layer" in name):
        weight.data.zero_()
    fused.eval()  # weights may be replaced before it trains again, as for scoring
    assert all(layer.frozen is None for layer in backbone.layers)
    fused.train()(embeddings=embeddings)
    frozen = backbone.layers[0].frozen
    assert not frozen.down.forward(torch.ones(1, backbone.config.intermediate_size)).any()
    fused.train()  # as Trainer calls it before every micro-batch
    assert backbone.layers[0].frozen is frozen


def test_a_changed_scaling_is_used(tiny_backbone: str) -> None:
    plain, fused = (model_with_lora(tiny_backbone, one_token=True) for _ in range(2))
    assert fuse_layers(fused.get_base_model().backbone)
    gradients(fused)
    for changed in (["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ["down_proj"]):
        for model in (plain, fused):
            for name, module in model.named_modules():
                if isinstance(module, LoraLinear) and name.rsplit(".", 1)[-1] in changed:
                    module.scaling["default"] *= 0.5
        torch.testing.assert_close(gradients(fused)[0], gradients(plain)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [["v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]])
def test_layers_without_lora_everywhere_are_not_fused(tiny_backbone: str, targets: list[str]) -> None:
    config = EmotionConfig(hidden_size=16, embed_dim=EMBED_DIM, emotion_labels=list(LABELS))
    model = EmotionModel(config, load_backbone(tiny_backbone, one_token=True))
    assert not fuse_layers(model.backbone)
    attach_lora(model, 4, 8, 0.0, targets)
    assert not fuse_layers(model.backbone)
    whole = EmotionModel(config, load_backbone(tiny_backbone))
    attach_lora(whole, 4, 8, 0.0)
    assert not fuse_layers(whole.backbone)


def test_compiled_layers_train_equally_under_the_same_names(tiny_backbone: str) -> None:
    plain, compiled = (model_with_lora(tiny_backbone, one_token=True) for _ in range(2))
    torch._dynamo.utils.counters.clear()
    compile_layers(compiled.get_base_model().backbone)
    (expected, theirs), (found, ours) = gradients(plain), gradients(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert set(ours) == set(theirs) and len(ours) > 20
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_compiling_without_a_compiler_says_so(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    flags = tiny_flags(write_corpus(tmp_path / "corpus"), tiny_backbone, tmp_path / "run")
    assert main([*flags, "--torch_compile", "true"]) == 2
    assert "torch_compile: torch.compile finds no C++ compiler. Remedy: install g++" in capsys.readouterr().err


def test_float32_comes_back_for_scoring(tiny_backbone: str) -> None:
    full, half = (model_with_lora(tiny_backbone, True, dtype) for dtype in (torch.float32, torch.bfloat16))
    restore_float32(half.get_base_model())
    expected, found = (model.get_base_model().backbone.state_dict() for model in (full, half))
    assert set(expected) == set(found) and len(found) == 2 * (5 * 3 + 2) + 1
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read from /proc")
def test_a_fused_backbone_keeps_no_checkpoint_in_memory(tmp_path: Path) -> None:
    MistralModel(tiny_config()).save_pretrained(tmp_path)
    maps = Path("/proc/self/maps")
    model = model_with_lora(str(tmp_path), one_token=True).get_base_model()
    assert str(tmp_path) in maps.read_text()
    fused = FusedOneTokenMistral(model.backbone)
    del model
    gc.collect()
    assert len(fused.matrices) == 2 and str(tmp_path) not in maps.read_text()


@pytest.mark.usefixtures("layout")
def test_an_adapter_is_merged_into_the_fused_backbone(tiny_backbone: str) -> None:
    model = model_with_lora(tiny_backbone, one_token=True).get_base_model()
    tokens = torch.randn(2 * FEWEST_ROWS, 1, 16)
    with torch.no_grad():
        expected = model.backbone(inputs_embeds=tokens).last_hidden_state
        fused = FusedOneTokenMistral(model.backbone)
        for rows in (1, FEWEST_ROWS - 1, FEWEST_ROWS, len(tokens)):
            found = fused(inputs_embeds=tokens[:rows]).last_hidden_state
            torch.testing.assert_close(found, expected[:rows], rtol=1e-5, atol=1e-6)
    assert not list(model.backbone.layers)  # removed one by one, so the weights are never in memory twice
    copied = copy.deepcopy(fused)(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(copied, found, rtol=0, atol=0)


@pytest.mark.skipif(
    not packs_matrices(torch.zeros(1, dtype=torch.bfloat16)), reason="this CPU has no bfloat16 products"
)
def test_bfloat16_is_as_near_to_float32_as_the_stock_model_is() -> None:
    tokens = 40 * torch.randn(64, 1, 576, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = load_backbone(BUNDLED_BACKBONE)(inputs_embeds=tokens).last_hidden_state
        stock = load_backbone(BUNDLED_BACKBONE, dtype=torch.bfloat16)(inputs_embeds=tokens.bfloat16()).last_hidden_state
        fused = FusedOneTokenMistral(load_backbone(BUNDLED_BACKBONE, dtype=torch.bfloat16, one_token=True))
        fused = copy.deepcopy(fused)
        assert fused.matrices[0][0].is_mkldnn
        error = (fused(inputs_embeds=tokens).last_hidden_state - exact).abs().mean()
    assert error < (stock.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
