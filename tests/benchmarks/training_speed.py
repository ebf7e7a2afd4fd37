"""Training rows per second: the reference's setting against ours, with the same effective batch.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/training_speed.py

The reference's setting is 8 rows × 4 accumulated, gradient checkpointing, the whole attention, and LoRA on all seven
matrices as PEFT computes it. Ours is one token, 32 rows at once. Both have the bundled backbone's matrices in bfloat16
and start from the same weights. Prints one JSON line for each setting and number of threads, one and all (median of
five alternating rounds), the share of the machine's bfloat16 matrix rate, and the largest difference between the losses
of ten steps. The ratio is to the reference with its best number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from timing import alternate, emit, matrix_product
from torch.nn.functional import binary_cross_entropy_with_logits

from modeling.adapters import HEAD_PARTS, attach_lora
from modeling.backbones import compile_layers
from modeling.fused_layer import fuse_layers
from modeling.infer import BUNDLED_BACKBONE, EmotionConfig, EmotionModel, at_most, load_backbone
from modeling.recipe import ALL_LINEAR

LABELS = [str(number) for number in range(28)]


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    micro_batch: int
    accumulate: int = 1
    one_token: bool = True
    lora_of_peft: bool = False
    checkpointing: bool = False
    fused_optimizer: bool = False
    fused_layers: bool = False
    compile: bool = False


REFERENCE = "reference: 8 x 4, checkpointing"
SETTINGS = {
    REFERENCE: Setting(8, 4, one_token=False, lora_of_peft=True, checkpointing=True),
    "32, whole attention": Setting(32, one_token=False, lora_of_peft=True),
    "32, whole attention, LoRA in one function": Setting(32, one_token=False),
    "32, one token": Setting(32),
    "32, one token, fused layers": Setting(32, fused_layers=True),
    "32, one token, fused AdamW": Setting(32, fused_optimizer=True),
    "32, one token, fused AdamW, fused layers": Setting(32, fused_optimizer=True, fused_layers=True),
    "32, one token, fused AdamW, compiled": Setting(32, fused_optimizer=True, compile=True),
    "128, one token, fused AdamW, fused layers": Setting(128, fused_optimizer=True, fused_layers=True),
    "512, whole attention": Setting(512, one_token=False),
    "512, one token": Setting(512),
    "512, one token, fused AdamW, fused layers": Setting(512, fused_optimizer=True, fused_layers=True),
    "512, one token, fused AdamW, compiled": Setting(512, fused_optimizer=True, compile=True),
}


def build(setting: Setting) -> PeftModel:
    """The model of a setting; equal weights for equal names."""
    torch.manual_seed(0)
    config = EmotionConfig(
        hidden_size=576, embed_dim=512, emotion_labels=list(LABELS), one_token=setting.one_token, head_dropout=0.0
    )
    backbone = load_backbone(BUNDLED_BACKBONE, dtype=torch.bfloat16, one_token=setting.one_token)
    model = EmotionModel(config, backbone)
    if setting.lora_of_peft:
        adapters = rf"backbone\.layers\..*\.({'|'.join(ALL_LINEAR)})"
        heads = [part for part in HEAD_PARTS if hasattr(model, part)]
        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules=adapters, modules_to_save=heads)
        model = get_peft_model(model, peft_config).train()
    else:
        model = attach_lora(model, 16, 32, 0.0).train()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            seed = sum(name.encode())
            parameter.data.uniform_(-0.04, 0.04, generator=torch.Generator().manual_seed(seed))
    trained = model.get_base_model().backbone
    if setting.checkpointing:
        trained.gradient_checkpointing_enable({"use_reentrant": False})
    if setting.compile:
        compile_layers(trained)
    elif setting.fused_layers:
        assert fuse_layers(trained)
    return model


def build_step(setting: Setting) -> Callable[[int], float]:
    """A function that does a training step as Trainer does, with this many threads, and returns the loss."""
    model, rows = build(setting), setting.micro_batch * setting.accumulate
    generator = torch.Generator().manual_seed(1)
    embeddings = 0.044 * torch.randn(rows, 512, generator=generator)
    targets = (torch.rand(rows, len(LABELS), generator=generator) < 0.05).float()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=setting.fused_optimizer)

    def step(threads: int) -> float:
        total = 0.0
        for part, labels in zip(embeddings.split(setting.micro_batch), targets.split(setting.micro_batch), strict=True):
            model.train()
            with at_most(threads):
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(embeddings=part).logits
                loss = binary_cross_entropy_with_logits(logits.float(), labels) / setting.accumulate
                loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def operations(model_rows: int) -> float:
    """Operations of the frozen matrices of one token, in the forward pass and in the backward pass to their inputs."""
    hidden, inner, values, layers = 576, 1536, 192, 30
    weights = layers * (hidden * values + hidden * hidden + 3 * hidden * inner)
    return 2.0 * 2.0 * weights * model_rows


def repeats(setting: Setting) -> int:
    """Steps of a round: with few rows the first step is slow, because its weights are not in the caches."""
    return 4 if setting.micro_batch <= 32 else 1


def main() -> None:
    steps = {name: build_step(setting) for name, setting in SETTINGS.items()}
    losses = {name: [step(1) for _ in range(10)] for name, step in steps.items() if SETTINGS[name].micro_batch <= 32}
    for name, values in losses.items():
        apart = max(abs(a - b) for a, b in zip(values, losses[REFERENCE], strict=True))
        emit("training_losses", setting=name, first=values[0], last=values[-1], greatest_difference=apart)
    product, product_operations = matrix_product()

    def repeated(name: str, threads: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats(SETTINGS[name])):
                steps[name](threads)

        return run

    threads = sorted({1, torch.get_num_threads()})
    timed = {(name, count): repeated(name, count) for name in steps for count in threads}
    seconds = alternate({**timed, "matrix product": product})
    seconds |= {(name, count): seconds[name, count] / repeats(SETTINGS[name]) for name, count in timed}
    rate = product_operations / seconds["matrix product"]
    reference = min(seconds[REFERENCE, count] for count in threads)
    for name, count in timed:
        rows = SETTINGS[name].micro_batch * SETTINGS[name].accumulate
        taken = seconds[name, count]
        emit(
            "training_rows_per_second",
            setting=name,
            in_threads=count,
            rows_per_second=round(rows / taken, 1),
            times_the_reference=round(rows / taken / (32 / reference), 1),
            share_of_matrix_rate=round(operations(rows) / taken / rate, 3),
        )
    emit("matrix_rate", gflops=round(rate / 1e9))


if __name__ == "__main__":
    main()
