"""The memory plan against real tensors, real optimizers and the measured peak of real runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from peft import PeftModel
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import MistralModel

from modeling.adapters import attach_lora
from modeling.backbones import SMOLLM2_135M, load_frozen_backbone, read_backbone_config
from modeling.infer import BUNDLED_BACKBONE, EmotionConfig, EmotionModel, OneTokenMistral
from modeling.memory.meter import constants_nf4
from modeling.memory.plan import GIB, GPUS, RESERVE, Setting, optimizer_bytes, plan_memory, smallest_gpu
from modeling.recipe import ALL_LINEAR
from tests import EXHAUSTIVE
from tests.benchmarks.memory import run
from tests.conftest import EMBED_DIM, LABELS, tiny_config
from training.commands.plan import savings
from training.fit.batch import fit_batch, read_setting
from training.options import parse
from training.recipe import RecipeError
from training.run import main


def tiny_setting(**changes: Any) -> Setting:
    config = EmotionConfig(
        hidden_size=16,
        embed_dim=EMBED_DIM,
        emotion_labels=list(LABELS),
        head_dropout=0.0,
        quantization=changes.pop("quantization", "none"),
        one_token=changes.pop("one_token", True),
        backbone_config=tiny_config().to_diff_dict() | {"model_type": "mistral"},
    )
    plain = Setting(
        config=config,
        dtype=torch.float32,
        scoring_dtype=torch.float32,
        lora_rank=4,
        lora_dropout=0.0,
        lora_target_modules=ALL_LINEAR,
        batch_size=200,
        gradient_accumulation_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        fused_layers=True,
        optim="adamw_torch",
        device="cpu",
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_of_real_runs_is_within_15_percent() -> None:
    for line in run(["bfloat16, medium", *(["float32, small"] if EXHAUSTIVE else [])]):
        for what in ("training", "inference"):
            assert line[f"{what}_measured"] > 100e6, line
            assert 0.85 < line[f"{what}_ratio"] < 1.15, line


def test_fused_layers_hold_their_matrices_twice_more() -> None:
    on_cpu: dict[str, Any] = {"device": "cpu", "dtype": torch.bfloat16}
    fused, plain = (plan_memory(tiny_setting(fused_layers=form, **on_cpu)).training["step"] for form in (True, False))
    assert sum(fused.values()) - sum(plain.values()) == 2 * plain["frozen matrices"] > 0


def saved_by_autograd(model: PeftModel, bf16: bool, **batch: torch.Tensor) -> int:
    """Bytes that autograd saves for the backward pass of a batch, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(**batch).logits
        binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits, dtype=torch.float32))
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_what_autograd_saves(bf16: bool) -> None:
    setting = tiny_setting(bf16=bf16)
    model = attach_lora(EmotionModel(setting.config, OneTokenMistral(tiny_config())), 4, 8, 0.0).train()
    real = saved_by_autograd(model, bf16, embeddings=torch.randn(200, EMBED_DIM))
    # The loss differs (focal here), and the hooks do not see tensors that the caller holds: [B, L] and [B, E].
    assert abs(plan_memory(setting).training["step"]["activations"] - real) < 0.05 * real


@pytest.mark.parametrize("bf16", [False, True])
def test_words_keep_their_attention_on_a_cpu(bf16: bool, tiny_backbone: Path) -> None:
    setting = tiny_setting(bf16=bf16, dtype=torch.bfloat16 if bf16 else torch.float32, batch_size=16)
    reads: dict[str, Any] = {"input": "tokens", "pooling": "mean", "attention": "bidirectional", "window_length": 64}
    setting = dataclasses.replace(setting, config=EmotionConfig(**setting.config.to_dict() | reads | {"embed_dim": 0}))
    tokens, saved = torch.randint(32, (16, 64)), []
    for layers in (1, 2):
        backbone = load_frozen_backbone(
            str(tiny_backbone), None, "none", "cpu", dtype=setting.dtype, num_hidden_layers=layers
        )
        held = {name: parameter.nbytes for name, parameter in backbone.named_parameters() if parameter.ndim == 2}
        model = attach_lora(EmotionModel(setting.config, backbone), 4, 8, 0.0).train()
        saved.append(saved_by_autograd(model, bf16, input_ids=tokens, attention_mask=torch.ones_like(tokens)))
    plan = plan_memory(setting)
    assert abs(plan.layer_activations - (saved[1] - saved[0])) < 0.05 * plan.layer_activations
    assert plan.training["step"]["embed_tokens"] == held.pop("embed_tokens.weight")
    assert plan.training["step"]["frozen matrices"] == sum(held.values())
    assert plan_memory(dataclasses.replace(setting, device="cuda")).layer_activations < 0.8 * plan.layer_activations


def test_the_weights_of_a_4_bit_backbone(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = tiny_config()
    config.hidden_size, config.intermediate_size = 256, 1344
    MistralModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    real = load_frozen_backbone(str(tmp_path), None, "nf4", "cpu", one_token=True)
    matrices = [p for p in real.parameters() if type(p).__name__ == "Params4bit"]
    constants = 0
    for matrix in matrices:
        state = matrix.quant_state  # type: ignore[attr-defined]
        tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
        constants += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    setting = tiny_setting(quantization="nf4", dtype=torch.bfloat16, scoring_dtype=torch.bfloat16)
    setting.config.hidden_size = 256
    setting.config.backbone_config = config.to_diff_dict() | {"model_type": "mistral"}
    plan = plan_memory(setting)
    assert len(matrices) == 2 * 5
    assert plan.inference["quantized matrices"] == sum(matrix.nbytes for matrix in matrices)
    assert plan.inference["constants of the quantized matrices"] == constants
    assert plan.inference["norms and buffers"] == sum(p.nbytes for p in real.parameters() if p.ndim == 1)
    assert plan.parameters["quantized matrices"] == 2 * sum(matrix.nbytes for matrix in matrices)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit"])
def test_the_states_of_an_optimizer(optim: str) -> None:
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in (100, 5_000, 4_096)]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters)
    if optim == "adamw_bnb_8bit":
        optimizer = pytest.importorskip("bitsandbytes").optim.AdamW8bit(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name != "step" and not name.startswith("qmap")
    ]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert optimizer_bytes(tiny_setting(optim=optim), [p.numel() for p in parameters])[0] == expected > 0


def test_every_saving_saves() -> None:
    plain = plan_memory(tiny_setting())
    activations = plain.training["step"]["activations"]
    double = plan_memory(tiny_setting(batch_size=400)).training["step"]["activations"]
    assert activations < double <= 2 * activations  # only the adapters' scaled copies do not grow
    assert plain.layer_activations > 0
    checkpointed = plan_memory(tiny_setting(gradient_checkpointing=True))
    assert checkpointed.training["step"]["activations"] < 0.5 * activations
    assert checkpointed.layer_activations == 200 * 16 * 4  # only the layer's input
    whole = plan_memory(tiny_setting(one_token=False))
    queries_and_keys, adapters = 2 * (16 * 16 + 16 * 8), 2 * 4 * ((16 + 16) + (16 + 8))
    assert whole.inference["embed_tokens"] == 4 * 32 * 16
    assert whole.parameters["frozen matrices"] - plain.parameters["frozen matrices"] == queries_and_keys
    assert whole.parameters["adapters"] - plain.parameters["adapters"] == adapters
    accumulated = plan_memory(tiny_setting(batch_size=50, gradient_accumulation_steps=4)).training["step"]
    trainable = plain.parameters["adapters"] + plain.parameters["head"]
    assert accumulated["gradients"] == 4 * trainable > plain.training["step"]["gradients"]
    eight_bit = plan_memory(tiny_setting(quantization="8bit", dtype=torch.bfloat16, scoring_dtype=torch.bfloat16))
    assert eight_bit.inference["quantized matrices"] == plain.parameters["frozen matrices"]


def test_mistral_small_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = parse(["--recipe", "mistral_24b", "--gradient_accumulation_steps", "1"]).recipe
    plan = plan_memory(read_setting(recipe))
    matrices = [5120 * 1024, 4096 * 5120, 5120 * 32768, 5120 * 32768, 32768 * 5120]
    assert plan.parameters["quantized matrices"] == 40 * sum(matrices) == 21_181_235_200
    for parts in [*plan.training.values(), plan.inference]:
        assert parts["quantized matrices"] == 40 * sum(matrices) // 2
        assert parts["constants of the quantized matrices"] == 40 * sum(map(constants_nf4, matrices))
    assert plan.inference["workspace"] > 2 * 5120 * 32768  # one matrix in bfloat16
    assert smallest_gpu(plan.inference_peak) == 12 and smallest_gpu(plan.training_peak) == 16
    assert plan.inference_peak + RESERVE < 12 * GIB and plan.training_peak + RESERVE < 16 * GIB
    settings = savings(recipe)
    reference = settings["the reference's way: all of it off, and lm_head loaded"]
    assert reference.output_layer and (reference.batch_size, reference.gradient_accumulation_steps) == (8, 4)
    assert len(settings) == 7 and not reference.config.one_token
    assert not list(tmp_path.iterdir())


def test_words_take_more_than_one_token() -> None:
    recipe = parse(["--recipe", "mistral_24b_tokens"]).recipe
    settings = savings(recipe)
    plan = plan_memory(settings["the recipe as it stands"])
    assert plan.inference["embed_tokens"] == 131_072 * 5_120 * 2 and plan.parameters["head"] == 5_120 * 28 + 28
    # Checkpointing keeps only a layer's input: 32 texts of 64 tokens, 5,120 wide, in bfloat16.
    assert 32 * 64 * 5_120 * 2 <= plan.layer_activations <= 1.3 * 32 * 64 * 5_120 * 2
    eight = settings["--gradient_checkpointing false"]
    eight.config.backbone_config = eight.config.backbone_config | {"num_hidden_layers": 8}
    assert 5 * plan_memory(eight).training["step"]["activations"] > 20 * plan.training["step"]["activations"]
    assert smallest_gpu(plan.training_peak) == 24 and smallest_gpu(plan.inference_peak) == 24
    assert "--window_length 32 --window_overlap 16" in settings and "--one_token false" not in settings


def test_the_flag_trains_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--model_name", str(tiny_backbone), "--labels", "a", "b", "c"]) == 0
    printed = capsys.readouterr().out
    cells = [line.split() for line in printed.splitlines()]
    table = [line for line in printed.splitlines() if line.startswith(("frozen", "adapters", "projection", "sum"))]
    assert len(table) == 4 and any(row[:3] == ["smallest", "common", "GPU"] for row in cells)
    assert "--one_token false" in printed and not list(tmp_path.iterdir())
    words = f"--model_name {tiny_backbone} --labels a b --input tokens --balance none --window_length 33"
    assert "--window_length 16 --window_overlap 15" in savings(parse(words.split()).recipe)


def test_the_plan_times_real_steps_on_this_machine(
    finished_run: Path,
    tiny_backbone: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only what the command says about this machine is tested here, so the other savings are not planned.
    monkeypatch.setattr(
        "training.commands.plan.savings", lambda recipe: {"the recipe as it stands": read_setting(recipe)}
    )
    corpus = finished_run.parent / "corpus"
    found = []
    for extra in (["--epochs", "3"], ["--epochs", "6"], ["--input", "hybrid", "--balance", "none"]):
        flags = f"--dataset files --data_dir {corpus} --labels {' '.join(LABELS)} --model_name {tiny_backbone}".split()
        assert main(["plan", *flags, "--batch_size", "8", "--balance_target", "30", *extra]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        shown = re.fullmatch(
            r"A step takes ([\d.]+) s .*\. (\d) epochs of (\d+) rows, (\d+) steps each, .* about ([\d.]+) min, .*", last
        )
        assert shown, last
        found.append(shown)
    audit = json.loads((finished_run / "audit.json").read_text())["training_rows"]
    assert int(found[0][3]) == audit["real"] + audit["synthetic"] and int(found[2][3]) == 48
    assert [int(shown[4]) for shown in found] == [math.ceil(int(shown[3]) / 8) for shown in found]
    assert (
        main(["plan", "--model_name", tiny_backbone, "--dataset", "files", "--data_dir", str(tmp_path / "no.csv")]) == 0
    )
    assert "Minutes: not estimated: " in capsys.readouterr().out
    assert main(["plan", "--recipe", "mistral_24b"]) == 0
    assert "is not on this machine" in capsys.readouterr().out


def test_what_cannot_be_planned_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "goemotions_mlp", "--optim", "galore_adamw"]) == 2
    assert "galore_adamw are not known to the memory plan. Remedy: use one of adamw_torch" in capsys.readouterr().err
    recipe = parse(["--model_name", "nobody/knows-this"]).recipe
    with pytest.raises(RecipeError, match=r"shapes of nobody/knows-this cannot be read .* Remedy: give a folder"):
        read_setting(recipe)
    with pytest.raises(RecipeError, match="--null_test, --plan are different verbs"):
        parse(["--plan", "--null_test"])


def test_a_step_is_cut_into_as_few_micro_batches_as_fit(
    tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--model_name", tiny_backbone, "--labels", *LABELS, "--batch_size", "24"]
    recipe = parse([*flags, "--gradient_accumulation_steps", "0"]).recipe

    def needs(rows: int, steps: int) -> int:
        cut = dataclasses.replace(recipe, batch_size=rows, gradient_accumulation_steps=steps)
        return plan_memory(dataclasses.replace(read_setting(cut), device="cpu")).training_peak + RESERVE

    def chosen(free: int) -> tuple[int, int]:
        monkeypatch.setattr("training.fit.batch.free_memory", lambda state: free)
        fitted = fit_batch(recipe, PartialState(cpu=True))
        return fitted.batch_size, fitted.gradient_accumulation_steps

    caplog.set_level("INFO", "training")
    monkeypatch.setattr(
        "modeling.memory.plan.evaluation_rows", lambda reads_words: 1
    )  # for such a small step the peak would be in scoring
    assert chosen(needs(24, 1)) == (24, 1)
    assert chosen(needs(24, 1) - 1) == (12, 2)
    assert "a step of 12 x 2 rows: 0.50 GiB free; 24 x 1 needs 0.50; 12 x 2 needs 0.50" in caplog.text
    assert chosen(needs(8, 3)) == (8, 3)
    with pytest.raises(
        RecipeError, match=r"batch_size: one row at a time needs .* Remedy: use gradient_checkpointing true"
    ):
        chosen(RESERVE)
    whole = dataclasses.replace(recipe, gradient_accumulation_steps=5)
    assert fit_batch(whole, PartialState(cpu=True)) is whole
    unknown = dataclasses.replace(recipe, optim="galore_adamw")
    with pytest.raises(RecipeError, match=r"not known to the memory plan.* or give gradient_accumulation_steps"):
        fit_batch(unknown, PartialState(cpu=True))


def test_the_plan_shows_what_is_tried_first(capsys: pytest.CaptureFixture[str], tiny_backbone: str) -> None:
    assert (
        main(["plan", "--model_name", tiny_backbone, "--batch_size", "24", "--gradient_accumulation_steps", "0"]) == 0
    )
    printed = capsys.readouterr().out
    assert "a step of 24 rows x 1" in printed and "--batch_size 6 --gradient_accumulation_steps 4" in printed


def test_the_bundled_shapes_are_those_of_the_file() -> None:
    read = read_backbone_config(BUNDLED_BACKBONE).to_diff_dict()
    assert {name: read[name] for name in SMOLLM2_135M} == SMOLLM2_135M


def test_a_gpu_that_is_too_small_is_not_named() -> None:
    assert [smallest_gpu(int(size * GIB) - RESERVE) for size in GPUS.values()] == list(GPUS)
    assert smallest_gpu(int(max(GPUS.values()) * GIB)) is None
