"""Predicted against measured peak memory, of training steps and of classifying, on a CPU.

    python tests/benchmarks/memory.py            # every case, about five minutes
    python tests/benchmarks/memory.py float32    # the cases whose names begin with float32

A Mistral with random weights is saved, loaded as in training, trained for three optimizer steps by ``FocalTrainer``,
scored, and then used to classify. The allocator returns freed memory at once. The measured figure is the process's peak
resident memory minus what it held before the model was loaded. Before that, a model of two layers goes the same way, so
that libraries and the kernels that oneDNN compiles for each shape (about 30 MiB for any number of layers) do not count
as the model's. Prints one JSON line per figure.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    hidden: int
    inner: int
    layers: int
    batch_size: int = 32
    accumulate: int = 1
    bf16: bool = False
    checkpointing: bool = False
    optim: str = "adamw_torch"
    quantization: str = "none"
    one_token: bool = True
    rank: int = 16
    words: int = 0
    """Tokens of each text; 0 reads one sentence embedding."""


SMALL, LARGE, LARGER = (512, 2048, 8), (1024, 4096, 12), (1536, 6144, 12)
CASES = {
    "float32, small": Case(*SMALL, batch_size=256),
    "float32, large": Case(*LARGE, batch_size=256),
    "float32, large, 64 x 4": Case(*LARGE, batch_size=64, accumulate=4),
    "float32, large, checkpointing": Case(*LARGE, batch_size=1024, checkpointing=True),
    "float32, large, 1024 rows": Case(*LARGE, batch_size=1024),
    "float32, large, whole attention": Case(*LARGE, one_token=False),
    "float32, large, rank 256": Case(*LARGE, rank=256),
    "bfloat16, small": Case(*SMALL, batch_size=256, bf16=True),
    "bfloat16, large": Case(*LARGE, batch_size=256, bf16=True),
    "bfloat16, large, 1024 rows": Case(*LARGE, batch_size=1024, bf16=True),
    "bfloat16, large, rank 256, 8-bit optimizer": Case(*LARGE, bf16=True, rank=256, optim="adamw_bnb_8bit"),
    "bfloat16, medium": Case(768, 3072, 8, batch_size=64, bf16=True),
    "nf4, large": Case(*LARGE, batch_size=256, bf16=True, quantization="nf4"),
    "nf4, large, 1024 rows": Case(*LARGE, batch_size=1024, bf16=True, quantization="nf4"),
    "nf4, larger": Case(*LARGER, batch_size=256, bf16=True, quantization="nf4"),
    "float32, large, 16 texts of 64 words": Case(*LARGE, batch_size=16, words=64),
    "bfloat16, large, 16 texts of 64 words": Case(*LARGE, batch_size=16, words=64, bf16=True),
    "bfloat16, large, 16 texts of 256 words": Case(*LARGE, batch_size=16, words=256, bf16=True),
    "nf4, large, 16 texts of 64 words": Case(*LARGE, batch_size=16, words=64, bf16=True, quantization="nf4"),
}


def resident(field: str) -> int:
    """The process's memory in bytes: ``VmRSS`` for now, ``VmHWM`` for the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> int:
    """Start a new peak; returns the memory held now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def measure(case: Case) -> dict[str, int]:
    """Predicted and measured bytes of training and of classifying."""
    import numpy as np
    import torch
    from transformers import MistralConfig, MistralModel, TrainingArguments

    from modeling.adapters import HEAD_PARTS, attach_lora
    from modeling.backbones import load_frozen_backbone, restore_float32
    from modeling.fused_layer import fuse_layers
    from modeling.infer import EmotionConfig, EmotionModel, Features, predict_logits
    from modeling.memory.plan import INFERENCE_ROWS, Setting, evaluation_rows, plan_memory
    from modeling.recipe import ALL_LINEAR
    from training.fit.trainer import FeatureDataset, FocalTrainer

    backbone_config = MistralConfig(
        vocab_size=1024,
        hidden_size=case.hidden,
        intermediate_size=case.inner,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=None,
    )
    reads = {"input": "tokens", "pooling": "mean", "attention": "bidirectional", "window_length": case.words}
    config = EmotionConfig(
        hidden_size=case.hidden,
        embed_dim=0 if case.words else 512,
        emotion_labels=[str(number) for number in range(28)],
        quantization=case.quantization,
        one_token=case.one_token,
        backbone_config=backbone_config.to_diff_dict() | {"model_type": "mistral"},
        **(reads if case.words else {}),
    )
    short = config.reads_one_token or config.reads_words
    held = torch.bfloat16 if case.quantization != "none" or (case.bf16 and short) else torch.float32
    # As in a run: a model that reads words is scored in float32, one token in the precision of training.
    scored_in = torch.float32 if case.words and case.quantization == "none" else held
    setting = Setting(
        config=config,
        dtype=held,
        scoring_dtype=scored_in,
        lora_rank=case.rank,
        lora_dropout=0.0,
        lora_target_modules=ALL_LINEAR,
        batch_size=case.batch_size,
        gradient_accumulation_steps=case.accumulate,
        bf16=case.bf16,
        gradient_checkpointing=case.checkpointing,
        fused_layers=True,
        optim=case.optim,
        device="cpu",
    )
    plan = plan_memory(setting)
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            random = MistralModel(backbone_config)
        random.to_empty(device="cpu")
        for parameter in random.parameters():
            parameter.data.uniform_(-0.04, 0.04)
        # Saved in the precision that is held: in another one, the norms would keep the file mapped (reclaimable).
        random.to(scored_in).save_pretrained(folder)
        del random
        before = forget_peak()
        backbone = load_frozen_backbone(folder, None, case.quantization, "cpu", config.reads_one_token, held)
        if case.quantization != "none" or held != scored_in:  # norms that are views keep the whole file mapped
            for parameter in backbone.parameters():
                parameter.data = parameter.data.clone()
        model = attach_lora(EmotionModel(config, backbone), case.rank, 32, 0.0)
        if held == torch.bfloat16:
            fuse_layers(backbone)
        if case.checkpointing:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        rows = case.batch_size * case.accumulate
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=3,
            per_device_train_batch_size=case.batch_size,
            gradient_accumulation_steps=case.accumulate,
            optim=case.optim,
            bf16=case.bf16,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        generator = np.random.default_rng(0)
        features = Features(generator.normal(size=(3 * rows, 512)).astype(np.float32))
        if case.words:
            features = Features(tokens=list(generator.integers(1024, size=(3 * rows, case.words))))
        targets = (generator.random((3 * rows, 28)) < 0.1).astype(np.float32)
        trainer = FocalTrainer(
            model=model,
            args=arguments,
            alpha=[0.5] * 28,
            gamma=2.0,
            learning_rates={"projection": 1e-4, "classifier": 1e-4, "lora": 1e-4},
            train_dataset=FeatureDataset(features, targets, window_length=max(case.words, 1)),
        )
        loaded = forget_peak()
        trainer.train()
        plain = model.get_base_model()
        if held != scored_in:
            config.model_name = folder
            restore_float32(plain)
        scored = evaluation_rows(config.reads_words)
        predict_logits(plain, features.take(np.arange(scored) % (3 * rows)), scored)
        figures = {"training_predicted": plan.training_peak, "training_measured": resident("VmHWM") - before}
        figures |= {"loaded": loaded - before}
        for name in filter(partial(hasattr, plain), HEAD_PARTS):
            setattr(plain, name, getattr(plain, name).modules_to_save["default"])
        plain.requires_grad_(False)
        del trainer, model, backbone
        forget_peak()
        predict_logits(plain, features.take(np.arange(INFERENCE_ROWS) % (3 * rows)), INFERENCE_ROWS)
        return figures | {"inference_predicted": plan.inference_peak, "inference_measured": resident("VmHWM") - before}


def run(names: list[str]) -> list[dict[str, Any]]:
    """The figures of these cases from a separate process, with the ratios of measured to predicted."""
    command = [sys.executable, __file__, "--cases", *names]
    printed = subprocess.run(command, env=os.environ | ALLOCATOR, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith('{"figure"')]


def describe(name: str) -> dict[str, Any]:
    """The figures of one case, measured in this process."""
    logging.disable(logging.WARNING)
    case = CASES[name]
    measure(replace(case, layers=2))
    figures = measure(case)
    ratios = {
        f"{what}_ratio": round(figures[f"{what}_measured"] / figures[f"{what}_predicted"], 3)
        for what in ("training", "inference")
    }
    return {"figure": "memory", "case": name, **figures, **ratios}


def main() -> None:
    if sys.argv[1:2] == ["--cases"]:
        for name in sys.argv[2:]:
            print(json.dumps(describe(name)), flush=True)
        return
    for name in CASES:
        if name.startswith(sys.argv[1] if sys.argv[1:] else ""):
            print(json.dumps(run([name])[0]), flush=True)


if __name__ == "__main__":
    main()
