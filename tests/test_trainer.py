"""Runs that must give the same result: accumulation, processes, resume, repetition."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import MistralModel, TrainerControl, TrainerState, TrainingArguments

from modeling.adapters import attach_lora, learning_rate_groups
from modeling.fused_layer import FusedOneTokenLayer
from modeling.infer import EmotionConfig, EmotionModel, Features, at_most, predict
from modeling.memory.plan import RESERVE, plan_memory
from modeling.recipe import choices
from tests import EXHAUSTIVE
from tests.conftest import EMBED_DIM, LABELS, ROOT, tiny_config, tiny_flags, write_corpus
from tests.forks import Training
from training.fit.batch import read_setting
from training.fit.trainer import CheckpointByTime, FeatureDataset, FocalTrainer, LengthGroupedSampler
from training.options import parse
from training.run import main
from training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("pixels")

RATES = {"projection": 1e-2, "classifier": 5e-3, "lora": 2e-3}


def data(rows: int, reads: str) -> FeatureDataset:
    generator = np.random.default_rng(0)
    embeddings, labels = generator.normal(size=(rows, EMBED_DIM)), generator.random((rows, 3)) < 0.4
    tokens = [generator.integers(32, size=size) for size in generator.integers(1, 9, size=rows)]
    features = Features(embeddings if reads != "tokens" else None, tokens if reads != "embedding" else None)
    return FeatureDataset(features, labels, window_length=6)


def train(
    folder: Path, micro: int, accumulate: int, rows: int = 64, reads: str = "embedding"
) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = EmotionConfig(
        hidden_size=16,
        embed_dim=EMBED_DIM,
        emotion_labels=list(LABELS),
        head_dropout=0.0,
        input=reads,
        pooling="attention",
    )
    model = attach_lora(EmotionModel(config, MistralModel(tiny_config())), 4, 8, 0.0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        max_grad_norm=1.0,
    )
    trainer = FocalTrainer(
        model, arguments, alpha=[0.75, 0.25, 0.5], gamma=2.0, learning_rates=RATES, train_dataset=data(rows, reads)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return losses, weights


@pytest.mark.parametrize(("product", "matrix", "expected"), [(2**40, 2**22, 1), (1, 2**22, 3), (2**40, 1, 3)])
def test_small_products_are_computed_in_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, product: int, matrix: int, expected: int
) -> None:
    monkeypatch.setattr(predict, "SMALL_PRODUCT", product)
    monkeypatch.setattr(predict, "SMALL_MATRIX", matrix)
    used: list[int] = []
    monkeypatch.setattr(EmotionModel, "_read_token", spy(EmotionModel._read_token, used))
    with at_most(torch.get_num_threads()):
        torch.set_num_threads(3)
        train(tmp_path, 32, 1, rows=32)
        assert torch.get_num_threads() == 3
    assert used == [expected] * 3


def test_the_matrices_of_fused_layers_are_laid_out_once(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out: list[FusedOneTokenLayer] = []
    original = FusedOneTokenLayer._lay_out

    def count(layer: FusedOneTokenLayer, *weights: torch.Tensor) -> Any:
        laid_out.append(layer)
        return original(layer, *weights)

    monkeypatch.setattr(FusedOneTokenLayer, "_lay_out", count)
    monkeypatch.setattr("training.commands.train.fit_precision", lambda recipe: recipe)
    flags = [*tiny_flags(write_corpus(tmp_path / "corpus"), tiny_backbone, tmp_path / "run"), "--bf16", "true"]
    assert main([*flags, "--epochs", "2", "--batch_size", "8", "--gradient_accumulation_steps", "2"]) == 0
    assert len(set(laid_out)) == 2 and len(laid_out) == 2 * 2  # layers × epochs: an evaluation discards them
    assert "layers train as one function each" in (tmp_path / "run" / "train.log").read_text()
    laid_out.clear()
    assert main([*flags, "--epochs", "1", "--fused_layers", "false", "--overwrite"]) == 0
    assert not laid_out


@pytest.mark.parametrize("has_instructions", [False, True])
def test_float32_replaces_bfloat16_on_a_cpu_without_its_instructions(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    autocast: set[bool] = set()
    original = EmotionModel.forward

    @functools.wraps(original)
    def forward(model: EmotionModel, *inputs: Any, **named: Any) -> Any:
        if model.training:
            autocast.add(torch.is_autocast_enabled("cpu"))
        return original(model, *inputs, **named)

    monkeypatch.setattr(EmotionModel, "forward", forward)
    flags = [*tiny_flags(write_corpus(tmp_path / "corpus"), tiny_backbone, tmp_path / "run"), "--bf16", "true"]
    assert main([*flags, "--epochs", "1", "--fused_layers", "false"]) == 0
    assert autocast == {has_instructions}
    run = tmp_path / "run"
    assert json.loads((run / "environment.json").read_text())["bf16"] == has_instructions
    assert yaml.safe_load((run / "recipe.yaml").read_text())["bf16"]
    assert ("no bfloat16 products" in (run / "train.log").read_text()) != has_instructions
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not has_instructions)
    assert main([*flags, "--epochs", "1", "--fused_layers", "false", "--resume"]) == 0


def spy(function: Callable[..., torch.Tensor], used: list[int]) -> Callable[..., torch.Tensor]:
    def call(*args: Any) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return function(*args)

    return call


@pytest.mark.parametrize("reads", choices("input"))
@pytest.mark.parametrize("rows", [64, 54])  # 54 leaves a ragged last step
def test_one_batch_equals_accumulated_batches(tmp_path: Path, rows: int, reads: str) -> None:
    losses, weights = train(tmp_path / "a", 32, 1, rows, reads)
    cut_losses, cut_weights = train(tmp_path / "b", 8, 4, rows, reads)
    assert len(losses) == 6
    np.testing.assert_allclose(cut_losses, losses, rtol=1e-5)
    for name in weights:
        torch.testing.assert_close(cut_weights[name], weights[name], rtol=1e-4, atol=1e-6)


def test_a_small_memory_changes_the_cut_and_not_the_run(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, whole, cut = write_corpus(tmp_path / "corpus", rows=72), tmp_path / "whole", tmp_path / "cut"
    shared = ["--batch_size", "32", "--head_dropout", "0", "--embedding_noise", "0"]
    assert main([*tiny_flags(corpus, tiny_backbone, whole), *shared, "--gradient_accumulation_steps", "1"]) == 0
    flags = [*tiny_flags(corpus, tiny_backbone, cut), *shared, "--gradient_accumulation_steps", "0"]
    monkeypatch.setattr(
        "modeling.memory.plan.evaluation_rows", lambda reads_words: 1
    )  # for such a small step the peak would be in scoring
    recipe = parse([*flags, "--batch_size", "4", "--gradient_accumulation_steps", "8"]).recipe
    limit = plan_memory(dataclasses.replace(read_setting(recipe), device="cpu")).training_peak + RESERVE
    monkeypatch.setattr("training.fit.batch.free_memory", lambda state: limit)
    assert main(flags) == 0
    assert "a step of 4 x 8 rows" in (cut / "train.log").read_text()
    first, second = (state_of(run)["log_history"] for run in (whole, cut))
    assert len(first) == len(second) and state_of(cut)["global_step"] == 9
    for one, other in zip(first, second, strict=True):
        assert one["step"] == other["step"]
        assert other.get("loss", 0) == pytest.approx(one.get("loss", 0), rel=1e-4)
    first, second = weights_of(whole), weights_of(cut)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)


def state_of(run: Path) -> dict[str, Any]:
    """What Trainer recorded at the end of the last epoch."""
    checkpoint, _ = RunFolder(run).inspect_checkpoints()
    assert checkpoint is not None
    return dict(json.loads((checkpoint / "trainer_state.json").read_text()))


def test_each_part_has_its_learning_rate() -> None:
    config = EmotionConfig(hidden_size=16, embed_dim=EMBED_DIM, emotion_labels=list(LABELS))
    model = attach_lora(EmotionModel(config, MistralModel(tiny_config())), 4, 8, 0.0)
    groups = learning_rate_groups(model, **RATES, weight_decay=0.1)
    listed = [p for group in groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(listed) == len({id(p) for p in listed}) == 6 + 2 * 2 * 7
    for group in groups:
        assert group["lr"] == RATES[group["part"]]
        assert (group["weight_decay"] == 0) == all(p.ndim == 1 for p in group["params"])


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "adapter_model.safetensors")


def launch(flags: list[str], cache: Path, processes: int = 1, forked: bool = not EXHAUSTIVE) -> int:
    """Train in processes of their own; returns the exit code. Forked ones start without the launcher's 20 seconds."""
    if forked:
        return Training(flags, cache, processes).wait()
    launcher = ["--num_cpu_threads_per_process", "1", "--num_processes", str(processes)]
    # On a machine without GPUs, accelerate ignores the number of processes without --multi_gpu.
    launcher += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher]
    environment = {
        **os.environ,
        "GOEMOTIONS_MISTRAL_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    with (cache / "launch.log").open("ab") as log:
        return subprocess.run(
            [*command, "training/run.py", *flags], cwd=ROOT, env=environment, stdout=log, stderr=log
        ).returncode


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, tiny_backbone: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", rows=96)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(tiny_flags(corpus, tiny_backbone, whole), tmp_path) == 0
    process = Training([*tiny_flags(corpus, tiny_backbone, cut), "--save_total_limit", "9"], tmp_path, 1)
    deadline = time.monotonic() + 120
    while not (cut / "checkpoints" / "checkpoint-12" / "SHA256SUMS").exists():
        assert time.monotonic() < deadline and process.poll() in (None, 0), (tmp_path / "launch.log").read_text()[
            -3000:
        ]
        time.sleep(0.005)
    process.kill()
    process.wait()
    # Everything after the first epoch is lost, and the last checkpoint is only half written.
    for step in (24, 36):
        shutil.rmtree(cut / "checkpoints" / f"checkpoint-{step}", ignore_errors=True)
    (cut / "checkpoints" / "checkpoint-24").mkdir()
    (cut / "metrics.json").unlink(missing_ok=True)
    flags = [*tiny_flags(corpus, tiny_backbone, cut), "--save_total_limit", "9"]
    assert launch([*flags, "--resume"], tmp_path) == 0
    resumed = (cut / "train.log").read_text().split("resuming from")[1]
    assert "epoch 2.00" in resumed and "epoch 1.00" not in resumed  # a new start would give the same weights
    assert RunFolder(cut).read("metrics.json") == RunFolder(whole).read("metrics.json")
    first, second = weights_of(whole), weights_of(cut)
    assert len(first) == len(second) > 20
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)


def test_resumed_within_an_epoch_equals_uninterrupted(tmp_path: Path, tiny_backbone: str) -> None:
    """With dropout and batches by length: the resumed run must reproduce their order."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [
        *tiny_flags(write_corpus(tmp_path / "corpus"), tiny_backbone, whole),
        *("--input", "tokens", "--pooling", "mean", "--balance", "none", "--lora_dropout", "0.2"),
        *("--checkpoint_minutes", "1e-9", "--save_total_limit", "99"),
    ]
    assert main(flags) == 0
    # There is a checkpoint after every step. Everything after step 3 of 6 of the second epoch is lost.
    cut_off(whole, cut, last=9, steps=18)
    assert main([*flags, "--output_dir", str(cut), "--resume"]) == 0
    assert "checkpoint-9" in (cut / "train.log").read_text().split("resuming from")[1]
    assert RunFolder(cut).read("metrics.json") == RunFolder(whole).read("metrics.json")
    first, second = weights_of(whole), weights_of(cut)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)


@pytest.mark.parametrize("goes_on_with", ["16 1", "8 2"])
def test_smaller_batches_go_on_if_a_step_keeps_its_rows(
    goes_on_with: str, tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an attempt that was stopped while it wrote its settings; other steps are refused."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [
        *tiny_flags(write_corpus(tmp_path / "corpus"), tiny_backbone, whole),
        *("--input", "tokens", "--pooling", "mean", "--balance", "none", "--head_dropout", "0"),
        *("--checkpoint_minutes", "1e-9", "--save_total_limit", "99", "--batch_size", "16"),
    ]
    assert main(flags) == 0
    steps = len(list((whole / "checkpoints").iterdir()))
    cut_off(whole, cut, last=steps // 2, steps=steps)
    resume = [*flags, "--output_dir", str(cut), "--resume"]
    smaller = ["--batch_size", "8", "--gradient_accumulation_steps", "2"]
    assert main([*resume, "--batch_size", "8"]) == 2
    with monkeypatch.context() as stopped:
        stopped.setattr(RunFolder, "write_recipe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*resume, *smaller]) == 130
    rows, parts = goes_on_with.split()
    assert main([*resume, "--batch_size", rows, "--gradient_accumulation_steps", parts]) == 0
    first, second = weights_of(whole), weights_of(cut)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-5)


def cut_off(whole: Path, cut: Path, last: int, steps: int) -> None:
    """Copy a run as if it had been killed after its checkpoint of the step ``last``."""
    shutil.copytree(whole, cut)
    assert {path.name for path in (cut / "checkpoints").iterdir()} == {f"checkpoint-{n}" for n in range(1, steps + 1)}
    for step in range(last + 1, steps + 1):
        shutil.rmtree(cut / "checkpoints" / f"checkpoint-{step}")
    shutil.rmtree(cut / "model")
    for name in ("metrics.json", "timing.json"):
        (cut / name).unlink()


def test_batches_have_similar_lengths_and_repeat_in_the_same_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=1_000).tolist()
    epochs = iter((0, 1, 0))
    sampler = LengthGroupedSampler(lengths, 8, seed=3, epoch=lambda: next(epochs))
    orders = [list(sampler) for _ in range(3)]
    assert sorted(orders[0]) == list(range(1_000)) == sorted(orders[1]) and len(sampler) == 1_000
    assert orders[0] == orders[2] != orders[1]
    padded = sum(8 * max(lengths[i] for i in orders[0][at : at + 8]) for at in range(0, 1_000, 8))
    assert padded < 1.1 * sum(lengths)  # random batches: 1.7 times


def test_a_checkpoint_is_due_after_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("training.fit.trainer.time.monotonic", lambda: clock[0])
    callback, arguments, state = CheckpointByTime(2), TrainingArguments("x", use_cpu=True), TrainerState()
    asked = []
    for state.epoch, clock[0] in ((0.1, 60), (0.2, 119), (0.3, 121), (0.4, 200), (0.5, 240), (1.0, 242), (1.1, 243)):
        control = callback.on_step_end(arguments, state, TrainerControl())
        asked.append(control.should_save)
        if control.should_save:
            callback.on_save(arguments, state, control)
    assert asked == [False, False, True, False, False, False, True]  # the end of an epoch saves anyway


def test_early_stopping_keeps_its_patience_over_a_resume(tmp_path: Path, tiny_backbone: str) -> None:
    run = RunFolder(tmp_path / "run")
    still = [f"--learning_rate_{part}=0" for part in RATES]  # nothing learns: epoch 1 stays the best
    flags = [
        *tiny_flags(write_corpus(tmp_path / "corpus"), tiny_backbone, run.path),
        *still,
        *("--epochs", "6", "--early_stopping_patience", "2", "--save_total_limit", "9"),
    ]
    assert main(flags) == 0
    assert run.read("timing.json")["epochs"] == 3
    shutil.rmtree(run.checkpoints / "checkpoint-18")
    assert main([*flags, "--resume"]) == 0
    assert run.read("timing.json")["epochs"] == 3


# One process gets both of the last 2 rows; 618 rows are more than the sampler of words sorts at once.
@pytest.mark.parametrize(("reads", "rows"), [("embedding", 58), ("tokens", 618)])
def test_two_processes_equal_one(tmp_path: Path, tiny_backbone: str, reads: str, rows: int) -> None:
    corpus = write_corpus(tmp_path / "corpus", rows=rows)
    one, two = tmp_path / "one", tmp_path / "two"
    shared = ["--head_dropout", "0", "--embedding_noise", "0", "--input", reads, "--balance", "none"]
    assert launch([*tiny_flags(corpus, tiny_backbone, one), *shared, "--batch_size", "16"], tmp_path) == 0
    cut = ["--batch_size", "4", "--gradient_accumulation_steps", "2"]
    forked = reads == "tokens" and not EXHAUSTIVE  # the launcher itself is tested with the other
    done = launch([*tiny_flags(corpus, tiny_backbone, two), *shared, *cut], tmp_path, 2, forked)
    assert done == 0, (tmp_path / "launch.log").read_text()[-3000:]
    assert RunFolder(two).read("environment.json")["processes"] == 2
    first, second = weights_of(one), weights_of(two)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reads", ["embedding", "tokens"])
def test_two_processes_resumed_within_an_epoch_equal_uninterrupted(
    tmp_path: Path, tiny_backbone: str, reads: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [
        # The last step of an epoch has 6 rows; accelerate fills it up with rows already seen.
        *tiny_flags(write_corpus(tmp_path / "corpus", rows=46), tiny_backbone, whole),
        *("--input", reads, "--balance", "none", "--batch_size", "4", "--epochs", "2"),
        *("--checkpoint_minutes", "1e-9", "--save_total_limit", "99"),
    ]
    done = launch(flags, tmp_path, processes=2)
    assert done == 0, (tmp_path / "launch.log").read_text()[-3000:]
    # There is a checkpoint after every step. Everything after step 2 of 6 of the second epoch is lost.
    cut_off(whole, cut, last=8, steps=12)
    assert launch([*flags, "--output_dir", str(cut), "--resume"], tmp_path, processes=2) == 0
    assert "checkpoint-8" in (cut / "train.log").read_text().split("resuming from")[1]
    first, second = weights_of(whole), weights_of(cut)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)
