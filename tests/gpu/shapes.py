"""The real shapes of Mistral Small 3.1 24B with random NF4 weights: memory against the plan, rows and texts per second.

Speed and memory do not depend on what the weights are. Three ways: one token and tokens as the recipes have them, and
the reference's way (8 x 4 rows, checkpointing, whole attention) at the same effective batch.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from modeling.adapters import HEAD_PARTS, attach_lora
from modeling.infer import EmotionModel, Features, predict_logits
from modeling.memory.plan import INFERENCE_ROWS, Setting, plan_memory
from tests.gpu import TINY, emit
from tests.gpu.backbone import random_nf4_backbone
from tests.gpu.clock import DEVICE, finish, forget_peak, matrix_rate, peak, seconds
from training.commands.plan import REFERENCE
from training.fit.batch import read_setting
from training.fit.trainer import FeatureDataset, FocalTrainer
from training.options import parse

WAYS = {
    "one token": ("mistral_24b", {"gradient_accumulation_steps": 1}),
    "the reference's way": ("mistral_24b", REFERENCE),
    "tokens": ("mistral_24b_tokens", {}),
}
TINY_SHAPES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512}
STEPS, WARM_STEPS = (2, 1) if TINY else (8, 3)
TEXTS = (1, 2) if TINY else (1, 64, 512)
USUAL_TOKENS = 20
"""Of a text of GoEmotions; the plan and the training steps have texts of ``window_length``."""


class StepClock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        finish()
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        finish()
        self.seconds.append(time.perf_counter() - self.started)


def read_way(name: str) -> Setting:
    """The setting of a way, on this device."""
    recipe, changes = WAYS[name]
    flags = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    setting = read_setting(parse(["--recipe", recipe, *flags]).recipe)
    if TINY:
        config = setting.config
        config.backbone_config = (config.backbone_config or {}) | TINY_SHAPES
        config.hidden_size = TINY_SHAPES["hidden_size"]
    return dataclasses.replace(setting, device=DEVICE.type)


def random_features(setting: Setting, rows: int, tokens: int) -> Features:
    """What the model reads of so many random texts."""
    generator, config = np.random.default_rng(0), setting.config
    words = generator.integers(3, 500, size=(rows, tokens)) if config.reads_words else None
    embeddings = generator.normal(size=(rows, config.embed_dim)).astype(np.float32) / 20
    return Features(embeddings if config.reads_embedding else None, None if words is None else list(words))


def train(name: str, setting: Setting, model: PeftModel) -> None:
    """A few real steps: peak memory against the plan, rows per second, and the share of the matrix rate."""
    rows = setting.batch_size * setting.gradient_accumulation_steps
    config, clock = setting.config, StepClock()
    features = random_features(setting, rows * STEPS, config.window_length)
    labels = (np.random.default_rng(1).random((rows * STEPS, len(config.emotion_labels))) < 0.1).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=setting.batch_size,
            gradient_accumulation_steps=setting.gradient_accumulation_steps,
            optim=setting.optim,
            bf16=setting.bf16,
            use_cpu=DEVICE.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=DEVICE.type == "cuda",
        )
        FocalTrainer(
            model=model,
            args=arguments,
            alpha=[0.5] * len(config.emotion_labels),
            gamma=2.0,
            learning_rates={"projection": 1e-4, "classifier": 1e-4, "lora": 1e-4},
            train_dataset=FeatureDataset(features, labels, config.window_length),
            callbacks=[clock],
        ).train()
    memory = against_plan(plan_memory(setting).training_peak)  # now: timing products takes memory, too
    taken = float(np.median(clock.seconds[WARM_STEPS:]))
    # A product for the answer and one for the gradient; what checkpointing computes again does not count.
    operations = 4.0 * frozen_weights(model) * rows * (config.window_length if config.reads_words else 1)
    emit(
        "shapes",
        "training",
        way=name,
        rows_per_second=round(rows / taken, 2),
        seconds_per_step=round(taken, 4),
        share_of_matrix_rate=round(operations / taken / matrix_rate(), 4),
        **memory,
    )


def frozen_weights(model: nn.Module) -> int:
    """Weights in the backbone's matrices."""
    linear: list[Any] = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    return sum(module.in_features * module.out_features for module in linear)


def against_plan(planned: int) -> dict[str, Any]:
    """The peak, what the plan says, and their ratio."""
    measured = peak()
    return {
        "planned_bytes": planned,
        "measured_bytes": measured,
        "measured_to_planned": None if measured is None else round(measured / planned, 4),
    }


def classify(name: str, setting: Setting, model: PeftModel) -> None:
    """Texts per second from features to logits, and the peak memory against the plan."""
    plain: Any = model.get_base_model()
    for head in HEAD_PARTS:
        if hasattr(plain, head):
            setattr(plain, head, getattr(plain, head).modules_to_save["default"])
    plain.requires_grad_(False)
    gc.collect()
    forget_peak()
    longest = random_features(setting, INFERENCE_ROWS, setting.config.window_length)
    predict_logits(plain, longest, INFERENCE_ROWS)
    emit("shapes", "inference_memory", way=name, **against_plan(plan_memory(setting).inference_peak))
    for texts in TEXTS:
        features = random_features(setting, texts, USUAL_TOKENS)
        taken = seconds(lambda features=features, texts=texts: predict_logits(plain, features, texts))
        emit(
            "shapes",
            "inference",
            way=name,
            texts_at_once=texts,
            texts_per_second=round(texts / taken, 1),
            milliseconds=round(1_000 * taken, 2),
        )


def main() -> None:
    for name in WAYS:
        setting = read_way(name)
        forget_peak()
        started = time.perf_counter()
        backbone, about = random_nf4_backbone(setting.config, DEVICE)
        emit("shapes", "weights", way=name, about=about, seconds=round(time.perf_counter() - started, 1))
        model = cast(
            PeftModel,
            attach_lora(
                EmotionModel(setting.config, backbone).to(DEVICE),
                setting.lora_rank,
                2 * setting.lora_rank,
                setting.lora_dropout,
                setting.lora_target_modules,
            ),
        )
        if setting.gradient_checkpointing:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        forget_peak()
        train(name, setting, model)
        if name != "the reference's way":
            classify(name, setting, model)
        del model, backbone
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
