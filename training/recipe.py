"""A recipe: every setting of a run in one flat, typed, validated record."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.training_args import OptimizerNames

from modeling.adapters import ALL_LINEAR
from modeling.infer import ATTENTIONS, ENCODERS, INPUTS, POOLINGS, WINDOWS
from training.audit.rows import POLICIES
from training.data.balance import METHODS, MLSMOTE_LABELS, WHOLE_ROW_METHODS
from training.data.splits import PROTOCOLS


class RecipeError(ValueError):
    """A bad recipe or flag; the message names the key, where it stands and the accepted values."""


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may go on for a page."""
    return str(error).strip().partition("\n")[0]


def _setting(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    metadata = {"help": help} | ({"choices": choices} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Recipe:
    """What is trained, on what, and how."""

    # Corpus
    dataset: str = _setting("starter", "starter, goemotions, files (in data_dir) or a Hub dataset id")
    data_dir: str | None = _setting(None, "folder of a local corpus; for dataset files also one file, to be split")
    dataset_config: str | None = _setting(None, "configuration (subset) of a Hub dataset")
    dataset_revision: str | None = _setting(None, "revision of a Hub dataset")
    text_column: str = _setting("text", "column of the texts")
    label_column: str = _setting("labels", "column with label names, ids or lists; without it, one 0/1 column a label")
    id_column: str | None = _setting(None, "column of unique row ids")
    labels: list[str] = _setting(["goemotions-28"], "goemotions-28, goemotions-15, ekman, sentiment, or your labels")
    unlabelled: str = _setting("keep", "rows without a label of the run: keep (all-zero) or drop", ("keep", "drop"))
    split: str = _setting(
        "official",
        "official: the corpus's own; stratified: made anew, copies kept together; pooled-r2: the reference's order, "
        "whose scores are contaminated",
        PROTOCOLS,
    )
    audit_policy: str = _setting(
        "report",
        "training rows whose text stands in an evaluation split: report, drop-from-train or fail",
        POLICIES,
    )
    # Encoder
    encoder: str = _setting(
        "use-multilingual-v3", "use-multilingual-v3, use-v4, minilm or sentence-transformers/<model>"
    )
    # Balance, on training rows only
    balance: str = _setting("none", "oversampling of rare labels", METHODS)
    balance_target: int = _setting(0, "positive rows per label to oversample up to; 0 leaves it to balance_ratio")
    balance_ratio: float = _setting(
        0.0, "oversample until no label is rarer than the most frequent one by more; 0 means the mean ratio, as ML-ROS"
    )
    balance_labels: list[str] = _setting([], "labels to oversample; none named means all but neutral")
    balance_neighbours: int = _setting(5, "neighbours k of smote, mlsmote and ismote")
    mlsmote_labels: str = _setting("ranking", "labels of a row made by mlsmote", MLSMOTE_LABELS)
    neutral_keep: float = _setting(1.0, "rows labelled neutral alone to keep: up to 1 a fraction, above 1 a number")
    # Model
    head: str = _setting("backbone", "backbone, or mlp: a baseline without one, in seconds", ("backbone", "mlp"))
    mlp_hidden_size: int = _setting(576, "width of the mlp baseline")
    model_name: str = _setting("smollm2-135m", "backbone: a Hub id, a folder or smollm2-135m (bundled)")
    model_revision: str | None = _setting(None, "revision of a Hub backbone")
    num_hidden_layers: int = _setting(0, "layers of the backbone that are used, from the first; 0 uses all")
    quantization: str = _setting("none", "none, nf4 or 8bit", ("none", "nf4", "8bit"))
    loader: str = _setting(
        "transformers", "what loads the backbone; unsloth needs an environment of its own", ("transformers", "unsloth")
    )
    input: str = _setting(
        "embedding",
        "what the backbone reads: embedding, one token made of the sentence embedding; tokens, the words; hybrid, both",
        INPUTS,
    )
    pooling: str = _setting(
        "last",
        "what the classifier reads of the words' states: the last, their mean, or their mean by attention",
        POOLINGS,
    )
    attention: str = _setting("causal", "whether a word sees all others or those before it", ATTENTIONS)
    window_length: int = _setting(128, "tokens of a text that are read at once; training cuts the rest off")
    window_overlap: int = _setting(32, "tokens that neighbouring windows of a longer text share, when classifying")
    windows: str = _setting(
        "mean",
        "logits of a text in several windows: their mean, for what is said throughout; or max, for what one passage says, "
        "at the price of more that nobody said",
        WINDOWS,
    )
    prefix: str = _setting(
        "none", "bos: put the beginning-of-sequence token before what the backbone reads", ("none", "bos")
    )
    one_token: bool = _setting(
        True, "leave out what a lone token does not need (queries, keys, positions, vocabulary); same outputs"
    )
    token_norm: float = _setting(
        0.0, "length of a projected token at the start; 0 keeps torch's default initialisation"
    )
    embedding_noise: float = _setting(
        0.0, "standard deviation of Gaussian noise on the embeddings while training; 0.042 is USE's own per dimension"
    )
    head_dropout: float = _setting(0.1, "dropout before the classifier")
    lora_rank: int = _setting(16, "LoRA rank")
    lora_alpha: int = _setting(32, "LoRA alpha; the update is scaled by alpha / rank")
    lora_dropout: float = _setting(0.0, "LoRA dropout")
    lora_target_modules: list[str] = _setting(list(ALL_LINEAR), "linear layers of the backbone that get LoRA")
    # Loss
    gamma: float = _setting(2.0, "focusing exponent of the focal loss")
    alpha: str = _setting("r2", "r2, r2-card, uniform, inverse-frequency, or a JSON mapping label: value")
    teachers: list[str] = _setting(
        [],
        "folders of finished runs or packages of the same splits and labels: half of each target is what they say, the "
        "sigmoid of their mean logits; with gamma 0 and alpha uniform",
    )
    # Optimisation
    epochs: int = _setting(15, "epochs")
    batch_size: int = _setting(32, "rows per micro-batch and process")
    gradient_accumulation_steps: int = _setting(
        0, "micro-batches per optimizer step; 0 cuts batch_size into as few as fit the memory, by the plan"
    )
    learning_rate_projection: float = _setting(1e-4, "learning rate of the projection")
    learning_rate_classifier: float = _setting(1e-4, "learning rate of the classifier")
    learning_rate_lora: float = _setting(1e-4, "learning rate of LoRA")
    lr_scheduler_type: str = _setting(
        "cosine", "learning-rate schedule of transformers", ("cosine", "linear", "constant_with_warmup")
    )
    warmup: float = _setting(0.05, "share of the steps that warm up")
    weight_decay: float = _setting(0.01, "weight decay")
    max_grad_norm: float = _setting(1.0, "gradient clipping")
    optim: str = _setting("adamw_torch", "optimizer, by transformers' name")
    bf16: bool = _setting(
        False,
        "bfloat16 autocast while training, unless the CPU has no such products (AVX2 alone) and is faster in float32; "
        "final scores are always in the model's own precision",
    )
    gradient_checkpointing: bool = _setting(False, "recompute activations; costs time for one-token input")
    fused_layers: bool = _setting(
        True,
        "on a CPU, in bfloat16: each layer of one token trains as one function, its matrices held in three layouts",
    )
    torch_compile: bool = _setting(False, "compile the backbone's layers: a minute first, then faster large batches")
    metric_for_best_model: str = _setting(
        "macro_f1",
        "validation metric of the best checkpoint: macro_f1 (at 0.5) or macro_f1_tuned",
        ("macro_f1", "macro_f1_tuned"),
    )
    early_stopping_patience: int = _setting(0, "epochs without a better checkpoint before stopping; 0 never stops")
    checkpoint_minutes: float = _setting(
        0.0, "also save a checkpoint within an epoch when so many minutes have gone by; 0 only at its end"
    )
    save_total_limit: int = _setting(2, "checkpoints to keep")
    report_to: str = _setting("none", "none, tensorboard or trackio", ("none", "tensorboard", "trackio"))
    seed: int = _setting(3407, "seed of balancing, initialisation and training")


RANGES: dict[str, tuple[float, float | None]] = {
    "balance_target": (0, None),
    "balance_neighbours": (1, None),
    "balance_ratio": (0, None),
    "neutral_keep": (0, None),
    "mlp_hidden_size": (2, None),
    "num_hidden_layers": (0, None),
    "window_length": (1, None),
    "window_overlap": (0, None),
    "token_norm": (0, None),
    "embedding_noise": (0, None),
    "head_dropout": (0, 1),
    "lora_rank": (1, None),
    "lora_alpha": (1, None),
    "lora_dropout": (0, 1),
    "gamma": (0, None),
    "epochs": (1, None),
    "batch_size": (1, None),
    "gradient_accumulation_steps": (0, None),
    "learning_rate_projection": (0, None),
    "learning_rate_classifier": (0, None),
    "learning_rate_lora": (0, None),
    "warmup": (0, 1),
    "weight_decay": (0, None),
    "max_grad_norm": (0, None),
    "early_stopping_patience": (0, None),
    "checkpoint_minutes": (0, None),
    "save_total_limit": (1, None),
    "seed": (0, None),
}
"""Smallest and largest accepted value; None is unbounded."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse values out of range and settings that do not go together.

    Raises:
        RecipeError: the message names the field and the accepted values.
    """
    if recipe.input != "embedding" and recipe.balance not in WHOLE_ROW_METHODS:
        raise RecipeError(
            f"balance: {recipe.balance} makes rows between embeddings, which have no words to read. Remedy: with input "
            f"{recipe.input} use one of {', '.join(WHOLE_ROW_METHODS)}"
        )
    _check_input(recipe)
    _check_teachers(recipe)
    whole = recipe.prefix != "none" or not recipe.one_token
    if recipe.loader == "unsloth" and not (recipe.quantization == "nf4" and recipe.head == "backbone" and whole):
        raise RecipeError(
            "loader: unsloth loads a whole backbone in nf4. Remedy: quantization nf4, head backbone and one_token false, "
            "or loader transformers"
        )
    if recipe.head == "mlp" and recipe.quantization != "none":
        raise RecipeError(
            "quantization: head mlp has no backbone to quantise. Remedy: quantization none, or head backbone"
        )
    if recipe.torch_compile and (recipe.loader, recipe.quantization, recipe.head) != (
        "transformers",
        "none",
        "backbone",
    ):
        raise RecipeError(
            "torch_compile: what is compiled is a backbone in full precision, loaded by transformers. Remedy: "
            "torch_compile false, or head backbone, quantization none and loader transformers"
        )
    if recipe.encoder not in ENCODERS and not recipe.encoder.startswith("sentence-transformers/"):
        accepted = f"{', '.join(ENCODERS)} or sentence-transformers/<model>"
        raise RecipeError(f"encoder: {recipe.encoder!r} is unknown; accepted: {accepted}")
    if recipe.optim not in set(OptimizerNames):
        raise RecipeError(f"optim: {recipe.optim!r} is unknown; accepted: {', '.join(OptimizerNames)}")
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise RecipeError(f"report_to: {recipe.report_to} is not installed. Remedy: pip install {recipe.report_to}")
    if recipe.alpha.startswith("{"):
        _check_alpha(recipe.alpha)
    for name, (low, high) in RANGES.items():
        value = getattr(recipe, name)
        if not low <= value <= (math.inf if high is None else high):
            accepted = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
            raise RecipeError(f"{name}: {value} is out of range; accepted: {accepted}")


def _check_input(recipe: Recipe) -> None:
    words = recipe.input != "embedding"
    if words and recipe.head == "mlp":
        raise RecipeError("head: mlp has no backbone to read words. Remedy: head backbone, or input embedding")
    if words and recipe.loader == "unsloth":
        raise RecipeError(
            "loader: unsloth is called as the reference calls it, for one token. Remedy: loader transformers"
        )
    if not words and (recipe.pooling, recipe.attention) != ("last", "causal"):
        raise RecipeError("pooling and attention are of words. Remedy: input tokens or hybrid, or leave them out")
    if recipe.window_overlap >= recipe.window_length:
        raise RecipeError(
            f"window_overlap: {recipe.window_overlap} leaves nothing new to a window of window_length {recipe.window_length}; "
            f"accepted: 0 to {recipe.window_length - 1}"
        )


def _check_teachers(recipe: Recipe) -> None:
    if not recipe.teachers:
        return
    if recipe.balance not in WHOLE_ROW_METHODS:
        raise RecipeError(
            f"teachers: balance {recipe.balance} makes rows between embeddings, which have no text for a teacher to read. "
            f"Remedy: balance {' or '.join(WHOLE_ROW_METHODS)}"
        )
    twice = [teacher for index, teacher in enumerate(recipe.teachers) if teacher in recipe.teachers[:index]]
    if twice:
        raise RecipeError(f"teachers: {twice[0]} is given twice. Remedy: name each teacher once")
    if recipe.gamma or recipe.alpha != "uniform":
        raise RecipeError(
            "teachers: what they say lies between 0 and 1, for which the focal loss is not made. Remedy: gamma 0 and alpha "
            "uniform"
        )


def _check_alpha(alpha: str) -> None:
    try:
        values = json.loads(alpha)
    except json.JSONDecodeError as error:
        raise RecipeError(f"alpha: {alpha!r} is not JSON ({error}); accepted: a preset, or label: value") from None
    for label, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RecipeError(f"alpha: {label}: {value!r} is not a number from 0 to 1")
