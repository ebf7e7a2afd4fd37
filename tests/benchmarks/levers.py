"""Does a change that no recipe has raise the score?

    python tests/benchmarks/levers.py LEVER --recipe goemotions_tokens --data_dir path/to/goemotions --output_dir FOLDER

trains a recipe with one change; without LEVER it lists the changes. Use ``training/run.py compare-runs`` to compare the
run folder with a run of the same recipe without the change. The run folder keeps scores and predictions but no weights:
its recipe does not say how they were made, so nobody should publish them. A change that helps becomes a setting; the
others stay here. This folder's README has the results so far.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback, get_linear_schedule_with_warmup

import training.commands.train
import training.run
from modeling.backbones import load_frozen_backbone
from modeling.focal import IGNORED_LABEL, focal_loss
from training.data.taxonomy import TAXONOMIES
from training.fit.prepare import Prepared
from training.fit.trainer import FeatureDataset, FocalTrainer, LengthGroupedSampler, collate
from training.options import parse

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits and multi-hot targets, both [B, L] → the loss of each decision, [B, L]."""

cross_entropy: Loss = functools.partial(functional.binary_cross_entropy_with_logits, reduction="none")


def train_with(trainer: FocalTrainer, loss: Loss) -> None:
    """Replace the loss by the mean of another loss over the decisions of a step."""

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        counted = labels != IGNORED_LABEL
        total = (counted * loss(outputs.logits.float(), torch.where(counted, labels, 0).float())).sum()
        return total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)

    trainer.compute_loss_func = compute


def asymmetric_loss(trainer: FocalTrainer, data: Prepared) -> None:
    """Asymmetric loss (Ridnik et al., ICCV 2021): no focus on positives; gamma 2 and a shift of 0.05 for negatives."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        negative = (torch.sigmoid(logits) - 0.05).clamp(min=0)
        positive_part = targets * functional.logsigmoid(logits)
        return -0.5 * (positive_part + (1 - targets) * negative.square() * torch.log1p(-negative.clamp(max=1 - 1e-6)))

    train_with(trainer, loss)


def class_balanced_loss(trainer: FocalTrainer, data: Prepared) -> None:
    """Weight each label by its effective number of positives, beta 0.999 (Cui et al., CVPR 2019), mean weight 1."""
    positives = torch.from_numpy(data.rows.labels.sum(axis=0)).float()
    weights = (1 - 0.999) / (1 - 0.999**positives)
    weights = weights / weights.mean()
    train_with(trainer, lambda logits, targets: 0.5 * weights * cross_entropy(logits, targets))


def label_smoothing(trainer: FocalTrainer, data: Prepared) -> None:
    """Targets of 0.95 and 0.05 × the label's share of rows instead of 1 and 0."""
    share = torch.from_numpy(data.rows.labels.mean(axis=0)).float()
    train_with(trainer, lambda logits, targets: 0.5 * cross_entropy(logits, 0.95 * targets + 0.05 * share))


def group_loss(trainer: FocalTrainer, data: Prepared) -> None:
    """Label hierarchy: half the loss, and a quarter of the mean loss over Ekman and sentiment groups (any member)."""
    labels = data.corpus.labels
    groups = []
    for name in ("ekman", "sentiment"):
        taxonomy = TAXONOMIES[name]
        groups += [
            [labels.index(label) for label in labels if taxonomy.sources[label] == group] for group in taxonomy.labels
        ]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        none = [functional.logsigmoid(-logits[:, members]).sum(dim=1) for members in groups]
        log_none = torch.stack(none, dim=1).clamp(max=-1e-6)
        some = torch.stack([targets[:, members].amax(dim=1) for members in groups], dim=1)
        entropy = -(some * torch.log(-torch.expm1(log_none)) + (1 - some) * log_none)
        return 0.5 * cross_entropy(logits, targets) + 0.25 * entropy.mean(dim=1, keepdim=True)

    train_with(trainer, loss)


def prior_bias(trainer: FocalTrainer, data: Prepared) -> None:
    """Start the classifier's bias at each label's share of rows (Lin et al., ICCV 2017, section 4.1)."""
    share = torch.from_numpy(data.rows.labels.mean(axis=0)).float()
    for name, parameter in trainer.model.named_parameters():
        if "classifier" in name and name.endswith("bias"):
            parameter.data.copy_(torch.logit(share))


def layerwise_rates(trainer: FocalTrainer, data: Prepared) -> None:
    """Multiply LoRA's learning rate by 0.9 for each layer below the last."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    settings: dict[str, Any] = trainer.optimizer_cls_and_kwargs[1]
    layers = trainer.model.config.num_hidden_layers
    groups = []
    for group in settings["params"]:
        for parameter in group["params"]:
            layer = re.search(r"\.layers\.(\d+)\.", names[id(parameter)])
            factor = 0.9 ** (layers - 1 - int(layer[1])) if layer else 1.0
            groups.append({**group, "params": [parameter], "lr": group["lr"] * factor})
    settings["params"] = groups


class LoraEmbedding(nn.Module):
    """A frozen vocabulary with a low-rank update, as in PEFT: the token's row of A times B."""

    def __init__(self, frozen: nn.Embedding, rank: int, scaling: float) -> None:
        super().__init__()
        self.frozen, self.scaling = frozen, scaling
        self.lora_a = nn.Parameter(torch.zeros(frozen.num_embeddings, rank))
        self.lora_b = nn.Parameter(torch.randn(frozen.embedding_dim, rank))

    @property
    def weight(self) -> torch.Tensor:
        """The frozen matrix, for code that reads its precision or its rows."""
        return self.frozen.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids → their vectors."""
        update = functional.embedding(tokens, self.lora_a) @ self.lora_b.t() * self.scaling
        frozen: torch.Tensor = self.frozen(tokens)
        return frozen + update.to(frozen.dtype)


def lora_on_embeddings(trainer: FocalTrainer, data: Prepared) -> None:
    """LoRA of rank 16 on the vocabulary too; not in checkpoints, so only for one epoch, whose end is scored."""
    backbone: Any = trainer.model.base_model.model.backbone
    backbone.embed_tokens = LoraEmbedding(backbone.embed_tokens, rank=16, scaling=2.0)
    settings: dict[str, Any] = trainer.optimizer_cls_and_kwargs[1]
    rate = next(group["lr"] for group in settings["params"] if group["part"] == "lora")
    added = [backbone.embed_tokens.lora_a, backbone.embed_tokens.lora_b]
    settings["params"].append({"params": added, "lr": rate, "weight_decay": 0.0, "part": "lora"})


class AverageWeights(TrainerCallback):
    """An exponential moving average of the trained weights, which replaces them when the last epoch ends."""

    def __init__(self, decay: float) -> None:
        self.decay, self.average = decay, dict[str, torch.Tensor]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Add the step's weights to the average."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                mean = self.average.setdefault(name, parameter.detach().clone())
                mean.lerp_(parameter.detach(), 1 - min(self.decay, state.global_step / (10 + state.global_step)))

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the average in place, before the evaluation and the checkpoint of the last epoch."""
        if math.isclose(state.epoch, args.num_train_epochs):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.data.copy_(self.average[name])


def weight_averaging(trainer: FocalTrainer, data: Prepared) -> None:
    """Exponential moving average of the weights, decay 0.995."""
    trainer.add_callback(AverageWeights(0.995))


def r_drop(trainer: FocalTrainer, data: Prepared) -> None:
    """R-Drop (Liang et al., NeurIPS 2021): every text twice, plus half the divergence; without accumulation."""
    alpha, gamma = torch.tensor(trainer.alpha), trainer.gamma

    def compute_loss(
        model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        rows = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        if not model.training:
            outputs = model(**rows)
            loss = focal_loss(outputs.logits.float(), inputs["labels"], alpha, gamma)
            return (loss, outputs) if return_outputs else loss
        twice = model(**{name: torch.cat([tensor, tensor]) for name, tensor in rows.items()}).logits.float()
        first, second = twice.chunk(2)
        answer = focal_loss(twice, torch.cat([inputs["labels"]] * 2), alpha, gamma)
        # The sum of both Kullback-Leibler divergences between Bernoullis is (p − q)(logit p − logit q).
        return answer + 0.5 * ((torch.sigmoid(first) - torch.sigmoid(second)) * (first - second)).mean()

    trainer.compute_loss = compute_loss  # type: ignore[method-assign]


PRACTICE_TEXTS = 14_400
"""A third of an epoch."""


def practice(trainer: FocalTrainer, data: Prepared) -> None:
    """First masked next-token prediction on a third of the training texts, by all layers and in both directions.

    LLM2Vec (BehnamGhader et al., COLM 2024): where the token before a masked one stands, the backbone says which it was.
    LoRA and projection learn; the layers above those that the recipe uses help to say it, and are dropped again.
    """
    model, size, generator = cast(Any, trainer.model), trainer.args.train_batch_size, torch.Generator().manual_seed(0)
    inner, mask_token = model.base_model.model, cast(int, cast(Tokenizer, data.tokenizer).token_to_id("_"))
    own, config = inner.backbone.layers, inner.backbone.config
    whole: Any = load_frozen_backbone(inner.config.model_name, None, "none", "cpu", dtype=torch.bfloat16)
    inner.backbone.layers = nn.ModuleList([*own, *list(whole.layers)[len(own) :]])
    config.num_hidden_layers = len(inner.backbone.layers)
    table = inner.backbone.get_input_embeddings().weight.to(torch.bfloat16)  # its tokens' vectors are the head, too
    groups = [group for group in trainer.optimizer_cls_and_kwargs[1]["params"] if group["part"] != "classifier"]
    optimizer = torch.optim.AdamW([{**group, "lr": group["lr"] / 2} for group in groups], fused=True)
    rows = cast(FeatureDataset, trainer.train_dataset)
    chosen = torch.randperm(len(rows), generator=generator)[:PRACTICE_TEXTS].tolist()
    lengths = [len(cast(Any, rows.tokens)[row]) for row in chosen]
    order = LengthGroupedSampler(lengths, size, trainer.args.seed, lambda: 0)
    batches = DataLoader(Subset(rows, chosen), size, sampler=order, collate_fn=collate)
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    pool, inner._pool = inner._pool, lambda hidden, mask: hidden
    model.train()
    mean = 0.0
    for step, batch in enumerate(batches):
        words, present = batch["input_ids"], batch["attention_mask"].bool()
        hide = (torch.rand(words.shape, generator=generator) < 0.2) & present
        hide[:, 0] |= ~hide.any(dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
            projected = inner.projection(batch["embeddings"])
            read = inner.backbone.get_input_embeddings()(torch.where(hide, mask_token, words))
            hidden = inner._read_words(projected, read, present)[:, :-1]  # the embedding stands before the first word
            loss = functional.cross_entropy((hidden[hide].to(table.dtype) @ table.t()).float(), words[hide])
        loss.backward()
        nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean += (loss.item() - mean) / min(step + 1, 100)
        if step % 100 == 0 or step + 1 == len(batches):
            sys.stderr.write(f"practice: step {step:,} of {len(batches):,}, loss {mean:.3f}\n")
    inner._pool, inner.backbone.layers, config.num_hidden_layers = pool, own, len(own)


LEVERS: dict[str, Callable[[FocalTrainer, Prepared], None]] = {
    lever.__name__: lever
    for lever in (
        asymmetric_loss,
        class_balanced_loss,
        label_smoothing,
        group_loss,
        prior_bias,
        layerwise_rates,
        lora_on_embeddings,
        weight_averaging,
        r_drop,
        practice,
    )
}


def main() -> int:
    if sys.argv[1:2] == [] or sys.argv[1] not in LEVERS:
        sys.stderr.write("".join(f"{name:20} {lever.__doc__}\n" for name, lever in LEVERS.items()))
        return 2
    lever, flags, build = LEVERS[sys.argv[1]], sys.argv[2:], training.commands.train.build_trainer

    def build_with_lever(model: Any, recipe: Any, data: Prepared, run: Any) -> FocalTrainer:
        trainer = build(model, recipe, data, run)
        lever(trainer, data)
        return trainer

    training.commands.train.build_trainer = build_with_lever
    status = training.run.main(flags)
    if status == 0:
        for name in ("model", "checkpoints"):
            shutil.rmtree(Path(str(parse(flags).options.output_dir)) / name)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
