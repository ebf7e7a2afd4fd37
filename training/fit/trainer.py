"""``FocalTrainer``: the stock Trainer with focal loss and a learning rate for each part of the model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling.adapters import learning_rate_groups
from modeling.focal import IGNORED_LABEL, focal_loss
from modeling.infer import EmotionModel, Features, at_most, seal, suits_one_thread, to_tensors
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)


class FeatureDataset(Dataset[dict[str, torch.Tensor]]):
    """What a model reads of N texts, and its targets, [N, L], as Trainer rows.

    Args:
        features: features of the texts.
        labels: multi-hot, or soft targets in [0, 1], [N, L].
        window_length: tokens beyond this many are cut off.
    """

    def __init__(self, features: Features, labels: np.ndarray, window_length: int) -> None:
        self.tokens, self.window_length = features.tokens, window_length
        self.embeddings = None
        if features.embeddings is not None:
            self.embeddings = torch.from_numpy(np.ascontiguousarray(features.embeddings, dtype=np.float32))
        self.labels = torch.from_numpy(labels.astype(np.float32))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {"labels": self.labels[index]}
        if self.embeddings is not None:
            row["embeddings"] = self.embeddings[index]
        if self.tokens is not None:
            row["input_ids"] = torch.from_numpy(self.tokens[index][: self.window_length])
        return row


def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of a :class:`FeatureDataset` → a batch for :meth:`EmotionModel.forward`."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
    if "input_ids" in rows[0]:
        batch |= to_tensors(Features(tokens=[row["input_ids"].numpy() for row in rows]))
    return batch


class LengthGroupedSampler(Sampler[int]):
    """Rows in random order, but of similar length within a batch, so that little is padded.

    Transformers' sampler of this name draws from torch's global generator, so a run resumed within an epoch cannot draw
    the same order again; this one is seeded by the epoch. It asks for the epoch because, with several processes,
    accelerate's ``set_epoch`` does not reach the sampler of a process that skips rows it has seen.

    Args:
        lengths: length of each row.
        batch_size: rows of an optimizer step.
        seed: seed of the order.
        epoch: returns the epoch that begins or continues.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


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
    and processes of a step (``num_items_in_batch``), and the loss divides by that count: the step is exact however
    a batch is cut, including the last of an epoch.

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
        self._one_thread_logged = False
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        settings = {**settings, "params": learning_rate_groups(model, **learning_rates, weight_decay=args.weight_decay)}
        super().__init__(
            model=model,
            args=args,
            compute_loss_func=partial(_loss, alpha=torch.tensor(alpha), gamma=gamma),
            optimizer_cls_and_kwargs=(optimizer, settings),
            callbacks=[*kwargs.pop("callbacks", []), PlainLog()],
            data_collator=collate,
            **kwargs,
        )
        # One kind of line: those of PlainLog, which the log file has too.
        for own in (PrinterCallback, ProgressCallback):
            self.remove_callback(own)
        if not args.disable_tqdm:
            self.add_callback(BarAlone())

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, in one thread if several would only wait for each other."""
        vectors = inputs["input_ids"].numel() if "input_ids" in inputs else len(inputs["labels"])
        alone = self.args.device.type == "cpu" and suits_one_thread(self.model, vectors)
        if alone and not self._one_thread_logged and torch.get_num_threads() > 1:
            logger.info("one CPU thread for such a small step: %d would wait for each other", torch.get_num_threads())
            self._one_thread_logged = True
        with at_most(1 if alone else torch.get_num_threads()):
            return super().training_step(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(rows, FeatureDataset) or rows.tokens is None:
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = [min(len(row), rows.window_length) for row in rows.tokens]
        return LengthGroupedSampler(lengths, step, self.args.seed, lambda: int(self.state.epoch or 0))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step and their label decisions, over all processes.

        With several processes, accelerate fills the last micro-batch of an epoch with rows already seen; they get the
        label that both the count and the loss ignore. How many they are is counted here: accelerate does not know it in
        an epoch that a resumed run continues.
        """
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self.accelerator.gradient_state.end_of_dataloader or self.args.world_size == 1:
            return batches, num_items
        own = len(batches[-1]["labels"])
        new = len(cast(FeatureDataset, self.train_dataset)) % (own * self.args.world_size)
        if not new:
            return batches, num_items
        batches[-1]["labels"][max(new - self.args.process_index * own, 0) :] = IGNORED_LABEL
        return batches, self._get_num_items_in_batch(batches, device)


class SealedCheckpoints(TrainerCallback):
    """Seal each checkpoint, and only then delete older ones, by their step.

    Trainer itself deletes them before the new one is on the disk, and by the clock, which may be set back.

    Args:
        run: the run folder.
        limit: how many checkpoints to keep.
    """

    def __init__(self, run: RunFolder, limit: int) -> None:
        self.run, self.limit = run, limit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the best checkpoint by where it is now: a run folder may have moved before it was resumed."""
        if state.best_global_step:
            state.best_model_checkpoint = str(self.run.checkpoint(state.best_global_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the new checkpoint when all processes have written their part of it."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(self.run.checkpoint(state.global_step))
            self.run.rotate(self.limit)


class CheckpointByTime(TrainerCallback):
    """Save a checkpoint ``minutes`` after the last one, so that a stopped run loses no more than that."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint; the main process's clock decides for all.

        None at the end of an epoch: its own checkpoint follows the evaluation. Resuming from one saved before would
        skip that evaluation.
        """
        if float(state.epoch or 0).is_integer():
            return control
        due = [time.monotonic() - self._saved >= 60 * self.minutes]
        if broadcast_object_list(due)[0]:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock again."""
        self._saved = time.monotonic()


class BarAlone(ProgressCallback):
    """Trainer's progress bars, without its own line for what it logs."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing."""


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
            logger.info(
                "epoch %.2f  step %d/%d  %s%s",
                state.epoch or 0,
                state.global_step,
                state.max_steps,
                values,
                self._describe_rest(state),
            )

    def _describe_rest(self, state: TrainerState) -> str:
        rest = state.max_steps - state.global_step
        if not rest:
            return ""
        seconds = (time.perf_counter() - self._started) / max(state.global_step - self._first_step, 1) * rest
        left = f"{math.ceil(seconds)} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"
        return f"  about {left} of training left"
