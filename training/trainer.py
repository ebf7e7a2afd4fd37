"""``FocalTrainer``: the stock Trainer with focal loss and a learning rate for each part of the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling.adapters import learning_rate_groups
from modeling.focal import IGNORED_LABEL, focal_loss
from modeling.infer import EmotionModel

logger = logging.getLogger(__name__)


class EmbeddingDataset(Dataset[dict[str, torch.Tensor]]):
    """Embeddings [N, E] and multi-hot labels [N, L] as Trainer rows."""

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        self.embeddings = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
        self.labels = torch.from_numpy(labels.astype(np.float32))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embeddings[index], "labels": self.labels[index]}


def _loss(
    outputs: SequenceClassifierOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    alpha: torch.Tensor,
    gamma: float,
) -> torch.Tensor:
    assert outputs.logits is not None
    logits = outputs.logits.float()
    return focal_loss(logits, labels, alpha.to(logits.device), gamma, num_items_in_batch)


class FocalTrainer(Trainer):
    """Trainer with focal loss.

    The loss is Trainer's own ``compute_loss_func`` and the learning rates are its own ``optimizer_cls_and_kwargs``;
    saving, resuming and loading the best model are untouched. Trainer counts the label decisions of all micro-batches
    and processes of a step (``num_items_in_batch``), and the loss divides by that count: the step is exact for every
    way to cut a batch, the last of an epoch included.

    Args:
        model: an emotion model, with LoRA attached where it has a backbone.
        args: training arguments.
        alpha: weight of a positive per label, [L].
        gamma: focusing exponent.
        learning_rates: ``projection``, ``classifier`` and ``lora``.
        **kwargs: as for Trainer.
    """

    def __init__(
        self,
        model: PeftModel | EmotionModel,
        args: TrainingArguments,
        alpha: Sequence[float],
        gamma: float,
        learning_rates: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self.alpha, self.gamma = list(alpha), gamma
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        settings = {**settings, "params": learning_rate_groups(model, **learning_rates, weight_decay=args.weight_decay)}
        super().__init__(
            model=model,
            args=args,
            compute_loss_func=partial(_loss, alpha=torch.tensor(alpha), gamma=gamma),
            optimizer_cls_and_kwargs=(optimizer, settings),
            callbacks=[*kwargs.pop("callbacks", []), PlainLog()],
            **kwargs,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step and their label decisions, over all processes.

        Over several processes accelerate fills the last micro-batch of an epoch with rows that were seen already;
        they get the label that neither the count nor the loss reads.
        """
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        loader = self.accelerator.gradient_state
        if not loader.end_of_dataloader or loader.remainder <= 0:
            return batches, num_items
        own = len(batches[-1]["labels"])
        batches[-1]["labels"][max(loader.remainder - self.args.process_index * own, 0) :] = IGNORED_LABEL
        return batches, self._get_num_items_in_batch(batches, device)


class PlainLog(TrainerCallback):
    """One plain line for each evaluation and each logging step, with the time left, for the log file."""

    def __init__(self) -> None:
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock at the step where this process starts, which is not 0 after a resume."""
        self._started, self._first_step = time.perf_counter(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        if not state.is_world_process_zero or not logs:
            return
        wanted = ("loss", "eval_loss", "eval_macro_f1", "eval_macro_f1_tuned", "eval_micro_f1", "eval_exact_accuracy")
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in wanted if name in logs)
        if values:
            done = max(state.global_step - self._first_step, 1)
            left = (time.perf_counter() - self._started) / done * (state.max_steps - state.global_step)
            logger.info(
                "epoch %.2f  step %d/%d  %s  about %.0f min left",
                state.epoch or 0,
                state.global_step,
                state.max_steps,
                values,
                left / 60,
            )
