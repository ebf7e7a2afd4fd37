"""A recipe: every setting of a run in one flat, typed record, with marks for other modules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from modeling.infer.encoders import ENCODERS
from modeling.infer.settings import ModelSettings, setting

GROUPS = ("corpus", "encoder", "balance", "model", "loss", "optimization")
"""Headings of the settings, in the order they are listed and written."""

SplitProtocol = Literal["official", "stratified", "cross-fit", "pooled-r2"]
AuditPolicy = Literal["report", "drop-from-train", "fail"]
Oversampling = Literal["none", "duplicate", "smote", "mlsmote", "ismote", "ismote-r2"]
WHOLE_ROW_METHODS: tuple[Oversampling, ...] = ("none", "duplicate")
"""Methods whose new rows are copies, so they have words to read."""
LabelFormat = Literal["auto", "names", "multi-hot", "ids"]
"""What the cells of a column of labels are; ``auto`` finds out, and takes numbers for ids only if the file says so."""
MlsmoteLabels = Literal["ranking", "union", "intersection"]

CONTAMINATED: SplitProtocol = "pooled-r2"
"""The split protocol that trains on rows made from test rows."""
CROSS_FIT: SplitProtocol = "cross-fit"
"""The split protocol that trains on every row, and scores each by a model that was not trained on it."""
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The reference's LoRA targets."""


@dataclass
class Recipe(ModelSettings):
    """What is trained, on what data, and how; the model's settings are inherited.

    A field's metadata has marks for other modules:

    - ``decides_rows``: the rows of the corpus depend on it.
    - ``local_path``: it names paths on this machine; a package hides it, and a resumed run may change it.
    - ``free``: a resumed run may change it.
    - ``on_card=False``: the model card's table of settings leaves it out.
    """

    dataset: str = setting(
        "starter",
        "starter, goemotions, files (in data_dir) or a Hub dataset id",
        "corpus",
        decides_rows=True,
        on_card=False,
    )
    data_dir: str | None = setting(
        None,
        "folder of a local corpus; with dataset files also a single file to split (.csv, .tsv, .jsonl, .ndjson, .json "
        "or .parquet)",
        "corpus",
        decides_rows=True,
        local_path=True,
    )
    dataset_config: str | None = setting(
        None, "configuration (subset) of a Hub dataset", "corpus", decides_rows=True, on_card=False
    )
    dataset_revision: str | None = setting(
        None, "revision of a Hub dataset", "corpus", decides_rows=True, on_card=False
    )
    text_column: str = setting("text", "column of the texts", "corpus", decides_rows=True, on_card=False)
    label_column: str = setting(
        "labels",
        "column with the labels of each row; without it, one 0/1 column per label",
        "corpus",
        decides_rows=True,
        on_card=False,
    )
    label_format: LabelFormat = setting(
        "auto",
        "what label_column has: names, multi-hot vectors, or ids in the order of the labels; auto finds out, but takes "
        "numbers for ids only if the file declares them",
        "corpus",
        decides_rows=True,
        on_card=False,
    )
    label_separator: str | None = setting(
        None,
        "what separates the labels of a cell; by default the one of , ; | tab and line break that fits",
        "corpus",
        decides_rows=True,
        on_card=False,
    )
    id_column: str | None = setting(None, "column of unique row ids", "corpus", decides_rows=True, on_card=False)
    labels: list[str] = setting(
        ["goemotions-28"],
        "goemotions-28, goemotions-15, ekman, sentiment, or your labels, one or more",
        "corpus",
        decides_rows=True,
        on_card=False,
    )
    unlabelled: Literal["keep", "drop"] = setting(
        "keep", "rows with none of the run's labels: keep (all zeros) or drop", "corpus", decides_rows=True
    )
    split: SplitProtocol = setting(
        "official",
        "official: the corpus's own; stratified: a new split that keeps copies together; cross-fit: every row is trained "
        "on, and scored by a model that was not trained on its fold; pooled-r2: the reference's order, whose scores are "
        "contaminated",
        "corpus",
        on_card=False,
    )
    split_seed: int = setting(
        3407,
        "seed of a new split (stratified, cross-fit, pooled-r2); other seeds of training keep its rows",
        "corpus",
        least=0,
    )
    folds: int = setting(
        5, "folds of split cross-fit: models that are trained before the one that is kept", "corpus", least=2
    )
    audit_policy: AuditPolicy = setting(
        "report",
        "training rows whose text is also in an evaluation split: report them, drop them from train, or fail",
        "corpus",
    )
    leave_out: str | None = setting(
        None,
        "a file as the verb suspects writes it: the training rows that it lists are left out; rows that are scored stay",
        "corpus",
        local_path=True,
    )
    encoder: str = setting(
        "use-multilingual-v3",
        f"{', '.join(ENCODERS)} or sentence-transformers/<model>",
        "encoder",
        on_card=False,
    )
    balance: Oversampling = setting("none", "oversampling of rare labels", "balance", on_card=False)
    balance_target: int = setting(
        0, "oversample each label to this many positive rows; 0 uses balance_ratio", "balance", least=0
    )
    balance_ratio: float = setting(
        0.0,
        "oversample until the most frequent label is at most this many times any other; 0 uses the mean ratio (ML-ROS)",
        "balance",
        least=0,
    )
    balance_labels: list[str] = setting([], "labels to oversample; if empty, all except neutral", "balance")
    balance_neighbours: int = setting(5, "neighbors k of smote, mlsmote and ismote", "balance", least=1)
    mlsmote_labels: MlsmoteLabels = setting("ranking", "labels of a row made by mlsmote", "balance")
    neutral_keep: float = setting(
        1.0, "rows labeled only neutral to keep: a fraction up to 1, a number above 1", "balance", least=0
    )
    mlp_hidden_size: int = setting(576, "width of the mlp baseline", "model", least=2, on_card=False)
    model_name: str = setting(
        "smollm2-135m", "backbone: a Hub id, a folder or smollm2-135m (bundled)", "model", on_card=False
    )
    model_revision: str | None = setting(None, "revision of a Hub backbone", "model", on_card=False)
    start_from: str | None = setting(
        None,
        "a finished run, a package or a Hub id to start from: adapter, projection, pooling and the classifier's rows of the "
        "same labels are taken over, and the settings that must agree with it",
        "model",
        local_path=True,
    )
    num_hidden_layers: int = setting(
        0, "number of backbone layers to use, from the first; 0 uses all", "model", least=0
    )
    bnb_4bit_quant_storage: Literal["uint8", "bfloat16"] = setting(
        "uint8",
        "type of the tensors that 4-bit weights are packed in; FSDP shards them only in bfloat16, which changes no value",
        "model",
        on_card=False,
    )
    loader: Literal["transformers", "unsloth"] = setting(
        "transformers", "library that loads the backbone; unsloth needs its own environment", "model"
    )
    token_norm: float = setting(
        0.0, "initial length of a projected token; 0 keeps torch's default initialization", "model", least=0
    )
    lora_rank: int = setting(16, "LoRA rank", "model", least=1)
    lora_alpha: int = setting(32, "LoRA alpha; the update is scaled by alpha / rank", "model", least=1)
    lora_dropout: float = setting(0.0, "LoRA dropout", "model", least=0, most=1)
    lora_target_modules: list[str] = setting(list(ALL_LINEAR), "linear layers of the backbone that get LoRA", "model")
    gamma: float = setting(2.0, "focusing exponent of the focal loss", "loss", least=0)
    alpha: str = setting("r2", "r2, r2-card, uniform, inverse-frequency, or a JSON mapping label: value", "loss")
    teachers: list[str] = setting(
        [],
        "folders of finished runs or packages with the same splits and labels: half of each target is the sigmoid of "
        "their mean logits; needs gamma 0 and alpha uniform",
        "loss",
        local_path=True,
    )
    epochs: int = setting(15, "epochs", "optimization", least=1)
    min_steps: int = setting(
        0, "train more epochs than that if they would give fewer optimizer steps than this", "optimization", least=0
    )
    batch_size: int = setting(32, "rows per micro-batch and process", "optimization", least=1)
    gradient_accumulation_steps: int = setting(
        0,
        "micro-batches per optimizer step; 0 splits batch_size into as few as the plan says fit in memory",
        "optimization",
        least=0,
    )
    learning_rate_projection: float = setting(1e-4, "learning rate of the projection", "optimization", least=0)
    learning_rate_classifier: float = setting(1e-4, "learning rate of the classifier", "optimization", least=0)
    learning_rate_lora: float = setting(1e-4, "learning rate of LoRA", "optimization", least=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = setting(
        "cosine", "learning-rate schedule of transformers", "optimization"
    )
    warmup: float = setting(0.05, "share of the steps that warm up", "optimization", least=0, most=1)
    weight_decay: float = setting(0.01, "weight decay", "optimization", least=0)
    max_grad_norm: float = setting(1.0, "gradient clipping", "optimization", least=0)
    optim: str = setting("adamw_torch", "optimizer, by its name in transformers", "optimization")
    bf16: bool = setting(
        False,
        "bfloat16 autocast while training, unless the CPU has no bfloat16 products (AVX2 only) and float32 is faster; "
        "final scores always use the model's own precision",
        "optimization",
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations; costs time for one-token input", "optimization"
    )
    fused_layers: bool = setting(
        True,
        "on a CPU in bfloat16: train each one-token layer as one function; holds its matrices in three layouts",
        "optimization",
    )
    torch_compile: bool = setting(
        False, "compile the backbone's layers: takes a minute, then large batches are faster", "optimization"
    )
    metric_for_best_model: Literal["macro_f1", "macro_f1_tuned"] = setting(
        "macro_f1", "validation metric of the best checkpoint: macro_f1 (at 0.5) or macro_f1_tuned", "optimization"
    )
    early_stopping_patience: int = setting(
        0, "epochs without a better checkpoint before stopping; 0 never stops", "optimization", least=0
    )
    checkpoint_minutes: float = setting(
        0.0,
        "also save a checkpoint within an epoch after this many minutes; 0 saves only at the epoch's end",
        "optimization",
        least=0,
    )
    save_total_limit: int = setting(2, "checkpoints to keep", "optimization", least=1, free=True, on_card=False)
    report_to: Literal["none", "tensorboard", "trackio"] = setting(
        "none", "where training curves go", "optimization", free=True, on_card=False
    )
    seed: int = setting(3407, "seed of balancing, initialization and training", "optimization", least=0)


FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for group in GROUPS for field in dataclasses.fields(Recipe) if field.metadata["group"] == group
}
"""The settings, group by group."""


def marked(mark: str, default: bool = False) -> list[str]:
    """Names of the settings with a mark, see :class:`Recipe`."""
    return [name for name, field in FIELDS.items() if field.metadata.get(mark, default)]


def not_on_card() -> list[str]:
    """Settings that the card names elsewhere, that do not affect the result, or that name local files."""
    local, shown = marked("local_path"), marked("on_card", True)
    return [name for name in FIELDS if name in local or name not in shown]


def free_on_resume() -> list[str]:
    """Settings that may differ when a run is resumed; rows and teachers are compared by content."""
    return marked("free") + marked("local_path")


def hide_local_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """The content of a ``recipe.yaml`` without paths on this machine."""
    defaults = dataclasses.asdict(Recipe())
    return {key: defaults[key] if key in marked("local_path") else value for key, value in recipe.items()}


def rows_of_a_fold(rows: int, split: str, folds: int) -> int:
    """How many of so many training rows a model of a fold is trained on; all of them if there are no folds."""
    return max(rows * (folds - 1) // folds, 1) if split == CROSS_FIT else rows


def rows_of_step(recipe: Mapping[str, Any], processes: int) -> int:
    """Rows of an optimizer step, of all processes; an accumulation of 0 only cuts the step of a process."""
    return int(recipe["batch_size"] * max(recipe["gradient_accumulation_steps"], 1) * processes)


def planned_epochs(epochs: int, min_steps: int, rows: int, rows_per_step: int) -> int:
    """The epochs of a run: ``epochs``, or as many as give ``min_steps`` optimizer steps.

    Args:
        epochs: of the recipe.
        min_steps: of the recipe.
        rows: training rows of a model after balancing; with folds, of a fold's model.
        rows_per_step: of all processes.
    """
    return max(epochs, math.ceil(min_steps / math.ceil(rows / rows_per_step)))


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's model settings, as arguments of :class:`modeling.infer.EmotionConfig`."""
    return {field.name: getattr(recipe, field.name) for field in dataclasses.fields(ModelSettings)}


def choices(name: str) -> tuple[str, ...]:
    """The accepted values of a setting with a fixed list."""
    return get_args(get_type_hints(Recipe)[name])
