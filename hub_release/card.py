"""The model card, filled from the package's recorded facts by a strict template."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined, meta
from safetensors import safe_open

from hub_release.package import LAYOUT, ReleaseError, template_path
from modeling.infer import BUNDLED_BACKBONE

_POLICIES = {"fixed": "0.5", "global": "one for all labels", "per_label": "one per label"}
_SHOWN = [
    "lora_rank",
    "lora_alpha",
    "lora_target_modules",
    "gamma",
    "alpha",
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate_projection",
    "learning_rate_classifier",
    "learning_rate_lora",
    "token_norm",
    "prefix",
    "quantization",
    "seed",
]


def render_card(package: Path) -> str:
    """The card of a package folder.

    Raises:
        ReleaseError: a variable of the template has no value, or a value has no place in the template.
    """
    template = template_path().read_text(encoding="utf-8")
    values = _collect(package)
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    wanted = meta.find_undeclared_variables(environment.parse(template))
    if wanted != set(values):
        raise ReleaseError(f"the card's template and its values differ: {', '.join(sorted(wanted ^ set(values)))}")
    return environment.from_string(template).render(values)


def _collect(package: Path) -> dict[str, str]:
    def read(name: str) -> Any:
        return json.loads((package / name).read_text(encoding="utf-8"))

    config, metrics, audit, environment = (
        read(name) for name in (LAYOUT.config, LAYOUT.metrics, LAYOUT.audit, LAYOUT.environment)
    )
    recipe = yaml.safe_load((package / LAYOUT.recipe).read_text(encoding="utf-8"))
    with (package / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
        per_label = list(csv.reader(file))[1:]
    rows = audit["training_rows"]
    return {
        "metadata": _metadata(config, metrics),
        "title": f"Emotions of {config['dataset']} on {config['model_name']}",
        "label_count": str(len(config["emotion_labels"])),
        "model_name": config["model_name"],
        "encoder": f"{config['encoder']} {config['encoder_version']}".strip(),
        "trained_parameters": f"{_count_weights(package):,}",
        "unreliable_below": "100",
        "unreliable_labels": ", ".join(config["unreliable_labels"]) or "none",
        "dataset": config["dataset"],
        "score_rows": "\n".join(_score_row(name, metrics["test"][policy]) for policy, name in _POLICIES.items()),
        "per_label_rows": "\n".join(f"| {' | '.join(row)} |" for row in per_label),
        "split_rows": "\n".join(
            f"- {name}: {split['rows']:,} rows, SHA-256 `{split['sha256'][:16]}…`"
            for name, split in audit["splits"].items()
        ),
        "real_rows": f"{rows['real']:,}",
        "synthetic_rows": f"{rows['synthetic']:,}",
        "test_copies": str(audit["splits"]["test"]["texts_also_in_train"]),
        "hyperparameters": "\n".join(f"- {key}: `{recipe[key]}`" for key in _SHOWN),
        "environment": ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
    }


def _score_row(name: str, score: dict[str, Any]) -> str:
    cells = [name]
    for key in ("macro_f1", "micro_f1"):
        low, high = score["intervals_95"][key]
        cells.append(f"{score[key]:.3f} [{low:.3f}, {high:.3f}]")
    cells.append(f"{score['exact_accuracy']:.3f}")
    return f"| {' | '.join(cells)} |"


def _metadata(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    test = metrics["test"]["per_label"]
    is_hub_dataset = "/" in config["dataset"]
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=config["dataset"],
            dataset_name=config["dataset"],
            dataset_split="test",
            metric_type="f1",
            metric_name=name,
            metric_value=round(test[key], 4),
            metric_args={"threshold": "per label, tuned on validation"},
        )
        for key, name in (("macro_f1", "macro F1"), ("micro_f1", "micro F1"))
    ]
    data = ModelCardData(
        model_name=config["model_name"].rsplit("/", 1)[-1] + "-emotions",
        language="en",
        license="apache-2.0",
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["emotion", "multi-label", "lora", "focal-loss"],
        datasets=[config["dataset"]] if is_hub_dataset else None,
        base_model=_base_model(config["model_name"]),
        base_model_relation="adapter" if _base_model(config["model_name"]) else None,
        eval_results=results,
    )
    return str(data).strip()


def _base_model(name: str) -> str | None:
    """The Hub id to name as base model; None for a folder."""
    if name == BUNDLED_BACKBONE:
        return "HuggingFaceTB/SmolLM2-135M-Instruct"
    return name if name.count("/") == 1 and not Path(name).exists() else None


def _count_weights(package: Path) -> int:
    total = 0
    for name in (LAYOUT.safe_head, LAYOUT.adapter):
        with safe_open(package / name, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118
                total += math.prod(file.get_slice(key).get_shape())
    return total
