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

CONTAMINATED = "pooled-r2"
_WARNING = (
    "> **These scores are contaminated.** The training rows were oversampled before the split, so that many stem from "
    "test rows. The figures below do not measure the model.\n"
)
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
        per_label = [row for row in csv.DictReader(file) if row["split"] == "test"]
    calibration = read(LAYOUT.calibration)
    rows = audit["training_rows"]
    return {
        "metadata": _metadata(config, metrics),
        "title": f"Emotions of {config['dataset']} on {config['model_name']}",
        "label_count": str(len(config["emotion_labels"])),
        "model_name": config["model_name"],
        "encoder": f"{config['encoder']} {config['encoder_version']}".strip(),
        "trained_parameters": f"{_count_weights(package):,}",
        "warning": _WARNING if metrics["protocol"] == CONTAMINATED else "",
        "unreliable_labels": ", ".join(config["unreliable_labels"]) or "none",
        "dataset": config["dataset"],
        "score_rows": "\n".join(_score_row(name, metrics["test"][policy]) for policy, name in _POLICIES.items()),
        "per_label_rows": "\n".join(_label_row(label, per_label) for label in config["emotion_labels"]),
        "calibration": calibration["method"],
        "calibration_before": f"{calibration['test']['before']['expected_calibration_error']:.4f}",
        "calibration_after": f"{calibration['test']['after']['expected_calibration_error']:.4f}",
        "protocol": metrics["protocol"],
        "split_rows": "\n".join(
            f"- {name}: {split['rows']:,} rows, SHA-256 `{split['sha256'][:16]}…`"
            for name, split in audit["splits"].items()
        ),
        "real_rows": f"{rows['real']:,}",
        "synthetic_rows": f"{rows['synthetic']:,}",
        "origin_of_synthetic_rows": _origin(rows),
        "test_copies": str(audit["splits"]["test"]["texts_also_in_train"]),
        "hyperparameters": "\n".join(f"- {key}: `{recipe[key]}`" for key in _SHOWN),
        "environment": ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
    }


def _origin(rows: dict[str, int]) -> str:
    outside = rows["synthetic_with_parent_outside_train"]
    if outside:
        return f"{outside:,} of the synthetic rows were made from rows outside train."
    return "Every synthetic row stems from training rows alone, as the run's audit verified."


def _label_row(label: str, rows: list[dict[str, str]]) -> str:
    own, fixed = ({row["thresholds"]: row for row in rows if row["label"] == label}[p] for p in ("per_label", "fixed"))
    f1 = f"{float(own['f1']):.3f} [{float(own['f1_low']):.3f}, {float(own['f1_high']):.3f}]"
    others = [f"{float(row[key]):.3f}" for row, key in ((own, "average_precision"), (fixed, "f1"))]
    cells = [own["support"], *(f"{float(own[key]):.3f}" for key in ("threshold", "precision", "recall")), f1, *others]
    return f"| {' | '.join([label, *cells])} |"


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
