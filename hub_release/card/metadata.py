"""The metadata of the model card: what the Hub lists, filters and shows as results."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hub_release.card.facts import Facts
from hub_release.card.origin import weights_license
from hub_release.card.own import CardDetails
from modeling.recipe import CROSS_FIT
from modeling.records import Policy, ScoreName

_RESULT_THRESHOLDS: dict[Policy, str] = {
    "per_label": "one threshold for each label",
    "fixed": "threshold 0.5 for all labels",
}
_METRICS: dict[ScoreName, tuple[str, str, dict[str, str]]] = {
    "macro_f1": ("f1", "macro F1", {"average": "macro"}),
    "micro_f1": ("f1", "micro F1", {"average": "micro"}),
    "exact_accuracy": ("accuracy", "exact accuracy", {}),
}
_REVISION = re.compile(r"[\w./-]+")
"""A branch, tag or commit; the revision of rows from files is free text."""


def build_metadata(facts: Facts) -> ModelCardData:
    """Metadata for the Hub, without the scores of a contaminated run."""
    names = [re.sub(r"[^\w.]+", "-", name.rsplit("/", 1)[-1]) for name in (facts.backbone.name, facts.dataset.name)]
    details = facts.details or CardDetails()
    license_name = details.license or weights_license(facts)
    own: dict[str, Any] = {
        key: value for key, value in details.given.items() if key in ("title", "contact", "intended_use")
    }
    if start := facts.audit.get("start"):
        own["started_from"] = {"model": start["hub_id"], "sha256": start["sha256"]}
    return ModelCardData(
        model_name=details.name or "-".join(name for name in names if name) or "multi-label-classifier",
        language=list(details.language) or facts.dataset.language,
        license=license_name.lower() if license_name else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[
            "multi-label-classification",
            *facts.dataset.tags,
            "lora",
            *(["focal-loss"] if facts.recipe["gamma"] else []),
        ],
        datasets=[facts.dataset.hub_id] if facts.dataset.hub_id else None,
        metrics=["f1", "accuracy"],
        base_model=facts.backbone.hub_id,
        base_model_relation="adapter" if facts.backbone.hub_id else None,
        eval_results=None if facts.contaminated else _results(facts),
        co2_eq_emissions=_emissions(facts),
        widget=[{"text": text} for text in details.examples] or None,
        **own,
    )


def _tuned_on(facts: Facts) -> str:
    where = "from the other parts of the rows" if facts.metrics["protocol"] == CROSS_FIT else "tuned on validation"
    return f", {where}" + ("; the package's own are adapted to other texts" if facts.adaptation else "")


def _results(facts: Facts) -> list[EvalResult]:
    dataset, published = facts.dataset, facts.published_test
    revision = facts.config["dataset_revision"]
    called = dataset.name or "not published"
    if dataset.hub_id and not published:
        called += ", other rows than its test split"
    return [
        EvalResult(
            task_type="text-classification",
            task_name="multi-label text classification",
            dataset_type=str(dataset.hub_id) if published else "unpublished",
            dataset_name=called,
            dataset_config=dataset.config if published else None,
            dataset_split="test",
            dataset_revision=revision if published and _REVISION.fullmatch(revision) else None,
            dataset_args={"split_protocol": facts.metrics["protocol"]},
            metric_type=kind,
            metric_name=name,
            metric_value=round(facts.metrics["test"][policy][key], 3),  # as the card writes it
            metric_config=f"{thresholds}{_tuned_on(facts) if policy == 'per_label' else ''}",
            metric_args={**arguments, "threshold_policy": policy},
            verified=False,
        )
        for policy, thresholds in _RESULT_THRESHOLDS.items()
        for key, (kind, name, arguments) in _METRICS.items()
    ]


def _emissions(facts: Facts) -> dict[str, Any] | None:
    """The measured emissions of a run in the Hub's format; None if nothing was measured."""
    measured = facts.timing.get("emissions")
    if measured is None:
        return None
    environment = facts.environment
    return {
        "emissions": measured["grams"],
        "source": measured["source"],
        "training_type": "fine-tuning",
        "geographical_location": measured["location"],
        "hardware_used": environment["gpu"] or environment["cpu"],
    }
