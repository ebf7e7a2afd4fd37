"""The values of the model card's body, each from the recorded files of a package."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hub_release.card_facts import Facts, Source, read_sources

_POLICIES = {"fixed": "0.5 for all labels", "global": "one for all labels", "per_label": "one for each label"}
_PARTS_OF_TEST = {"test": "test", "test_without_copies": "test, without texts of train"}
_NO_SETTINGS = {
    "dataset",
    "data_dir",
    "dataset_config",
    "dataset_revision",
    "text_column",
    "label_column",
    "id_column",
    "labels",
    "model_name",
    "model_revision",
    "encoder",
    "head",
    "mlp_hidden_size",
    "split",
    "balance",
    "report_to",
    "save_total_limit",
}
"""Fields of a recipe that the card names elsewhere, that do not bear on the result, or that name local files."""
_LONGEST_EXAMPLE = 80
_SPECIAL = re.compile(r"([\\`*\[\]<|])")

Row = tuple[str, ...]


def collect_body(facts: Facts) -> dict[str, Any]:
    """All values of the card's body."""
    return {
        **_identity(facts),
        **_scores(facts),
        **_reliability(facts),
        **_comparison(facts),
        **_architecture(facts),
        **_data(facts),
        **_training(facts),
        **_rights(facts),
    }


def plain(text: str) -> str:
    """Text that Markdown takes as it is, also within a table."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def with_interval(value: float, low: float, high: float) -> str:
    """A score with its interval."""
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _score(scores: Mapping[str, Any], name: str) -> str:
    return with_interval(scores[name], *scores["intervals_95"][name])


def _label_score(row: Mapping[str, str], name: str) -> str:
    return with_interval(*(float(row[key]) for key in (name, f"{name}_low", f"{name}_high")))


def _plots(facts: Facts, plots: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(caption, file) for file, caption in plots.items() if file in facts.files]


def _identity(facts: Facts) -> dict[str, Any]:
    test = facts.metrics["test"]
    of = f" of {facts.dataset.name}" if facts.dataset.name else ""
    on = f" on {facts.backbone.name}" if facts.backbone.name else ""
    return {
        "title": f"Multi-label text classifier: {len(facts.labels)} labels{of}{on}",
        "contaminated": facts.contaminated,
        "label_count": str(len(facts.labels)),
        "dataset": facts.dataset.name or "rows that are not published",
        "headline": _score(test["per_label"], "macro_f1"),
        "headline_fixed": _score(test["fixed"], "macro_f1"),
        "test_rows": f"{facts.audit['splits']['test']['rows']:,}",
        "examples": [
            (plain(row["text"]), _found(facts, row["probabilities"]))
            for row in facts.golden["rows"]
            if len(row["text"]) <= _LONGEST_EXAMPLE
        ],
        "requirements": "requirements.txt" in facts.files,
        "threshold_example": json.dumps({facts.labels[0]: 0.3}, ensure_ascii=False),
    }


def _found(facts: Facts, probabilities: Sequence[float]) -> str:
    thresholds = facts.config["thresholds"]
    reached = sorted(
        (-probability, label)
        for label, probability in zip(facts.golden["labels"], probabilities, strict=True)
        if probability >= thresholds[label]
    )
    return ", ".join(f"{plain(label)} {-negative:.3f}" for negative, label in reached) or "none"


def _scores(facts: Facts) -> dict[str, Any]:
    copies = facts.audit["copies"]["test_in_train"]["rows"]
    note = "No test text has a copy in train (see the audit below)."
    if copies:
        note = f"{copies:,} of the test rows have a copy in train (see the audit below)"
        apart = "test_without_copies" in facts.metrics
        note += "; the scores without them stand apart." if apart else ", which leaves no rows to score apart."
    return {
        "protocol": facts.metrics["protocol"],
        "bootstrap_draws": f"{facts.context['bootstrap_draws']:,}",
        "score_rows": [
            (
                rows,
                policy,
                *(_score(facts.metrics[part][key], name) for name in ("macro_f1", "micro_f1", "exact_accuracy")),
            )
            for part, rows in _PARTS_OF_TEST.items()
            if part in facts.metrics
            for key, policy in _POLICIES.items()
        ],
        "copies_note": note,
        "label_rows": [_label_row(facts, label) for label in facts.labels],
        "score_plots": _plots(
            facts, {"per_label.png": "F1 of each label", "precision_recall.png": "Precision and recall of each label"}
        ),
    }


def _label_row(facts: Facts, label: str) -> Row:
    own, fixed = (facts.test_row(label, policy) for policy in ("per_label", "fixed"))
    scores = (_label_score(own, name) for name in ("precision", "recall", "f1", "average_precision"))
    support = f"{int(own['support']):,}"
    return (plain(label), support, f"{float(own['threshold']):.3f}", *scores, f"{float(fixed['f1']):.3f}")


def _reliability(facts: Facts) -> dict[str, Any]:
    rule, calibration = facts.context["unreliable"], facts.calibration
    rows = [facts.test_row(label, "per_label") for label in facts.config["unreliable_labels"]]
    method = {
        "none": "The probabilities are not calibrated",
        "temperature": "One temperature for all labels, fitted on validation, is folded into the classifier",
        "platt": "A scale and a bias for each label (Platt), fitted on validation, are folded into the classifier",
    }[calibration["method"]]
    names = ("expected_calibration_error", "mean_label_calibration_error", "brier_score")
    return {
        "rule_rows": f"{rule['positives_below']:,}",
        "rule_width": f"{rule['f1_interval_wider_than']:g}",
        "unreliable_count": str(len(rows)),
        "unreliable_rows": [(plain(row["label"]), f"{int(row['support']):,}", _label_score(row, "f1")) for row in rows],
        "calibration": f"{method}. Why: {calibration['reason']}.",
        "calibration_rows": [
            (split, when, *(f"{calibration[split][when][name]:.4f}" for name in names))
            for split in ("validation", "test")
            for when in ("before", "after")
        ],
        "calibration_plots": _plots(facts, {"reliability.png": "Share of positives against probability"}),
    }


def _comparison(facts: Facts) -> dict[str, Any]:
    own = facts.metrics["test"]["per_label"]
    protocol = facts.metrics["protocol"]
    this = (f"{protocol} test split, thresholds from validation", _score(own, "macro_f1"), _score(own, "micro_f1"))
    others = [
        (plain(row["system"]), plain(row["protocol"]), *(f"{row[k]:g}" if row[k] is not None else "" for k in names))
        for names in [("macro_f1", "micro_f1")]
        for row in facts.context["published"]
    ]
    return {
        "published_rows": [("**this model**", *this), *others] if others else [],
        "published_note": "" if protocol == "official" else "This model was not tested on the official test split.",
    }


def _architecture(facts: Facts) -> dict[str, Any]:
    config, adapter = facts.config, facts.adapter_config
    backbone = facts.backbone_config()
    counts = {
        part: sum(math.prod(shape) for key, shape in facts.head_shapes.items() if key.startswith(f"{part}."))
        for part in ("projection", "classifier")
    }
    lora = sum(math.prod(shape) for shape in facts.adapter_shapes.values())
    first, second = facts.head_shapes["projection.0.weight"], facts.head_shapes["projection.2.weight"]
    labels, hidden = facts.head_shapes["classifier.weight"]
    layers = sum("lora_A" in key for key in facts.adapter_shapes)
    precision = {"none": "full precision"}.get(config["quantization"], config["quantization"])
    shape = (
        f"{backbone.model_type}, {backbone.num_hidden_layers} layers, width {backbone.hidden_size:,}, "
        f"{backbone.num_attention_heads} heads ({backbone.num_key_value_heads} for keys and values)"
    )
    total = sum(counts.values()) + lora
    return {
        "encoder": _name(facts.encoder, f" {config['encoder_version']}".rstrip()),
        "embed_dim": str(config["embed_dim"]),
        "hidden_size": str(config["hidden_size"]),
        "model_input": "one token" if config["prefix"] == "none" else "one token after the one that begins a sequence",
        "trained_parameters": f"{total:,}",
        "part_rows": [
            ("projection", f"{first[1]} → {first[0]}, GELU, {second[1]} → {second[0]}", f"{counts['projection']:,}"),
            (f"backbone: {_name(facts.backbone)}, {precision}, frozen", shape, "0"),
            (
                "LoRA adapter",
                f"rank {adapter['r']}, alpha {adapter['lora_alpha']}, on {layers} linear layers",
                f"{lora:,}",
            ),
            ("classifier", f"{hidden} → {labels}", f"{counts['classifier']:,}"),
            ("all", "", f"{total:,}"),
        ],
    }


def _name(source: Source, suffix: str = "") -> str:
    """The part's name, linked where the Hub has it."""
    if not source.name:
        return "of the publisher's own, not published"
    name = plain(source.name + suffix)
    return f"[{name}](https://huggingface.co/{source.hub_id})" if source.hub_id else name


def _data(facts: Facts) -> dict[str, Any]:
    audit = facts.audit
    rows, real = audit["training_rows"], audit["training_rows"]["real"]
    outside = rows["synthetic_with_parent_outside_train"]
    origin = "Every synthetic row stems from training rows alone, as the run's audit verified."
    if outside:
        origin = f"{outside:,} of the synthetic rows were made from rows outside train."
    if not rows["synthetic"]:
        origin = "Every row is a row of train, as the run's audit verified."
    return {
        "data_origin": _data_origin(facts),
        "split_rows": [
            (name, f"{split['rows']:,}", f"{split['rows_without_label']:,}", f"`{split['sha256']}`")
            for name, split in audit["splits"].items()
        ],
        "real_rows": f"{real:,}",
        "synthetic_rows": f"{rows['synthetic']:,}",
        "balance": facts.recipe["balance"],
        "origin_of_synthetic_rows": origin,
        "data_plots": _plots(
            facts, {"label_frequencies.png": "Training rows of each label, before and after balancing"}
        ),
        "copy_rows": [
            (split, other, *(f"{found[kind]:,}" for kind in ("exact", "normalised", "near", "labels_differ")))
            for split, other in (("validation", "train"), ("test", "train"), ("validation", "test"))
            for found in [audit["copies"][f"{split}_in_{other}"]]
        ],
        "audit_findings": _findings(audit),
    }


def _data_origin(facts: Facts) -> str:
    source, revision = facts.dataset, facts.config["dataset_revision"]
    if not source.name:
        return "The rows are the publisher's own and are not published."
    of_hub = f"`datasets` https://huggingface.co/datasets/{source.hub_id}" if source.hub_id else ""
    config = f"configuration `{source.config}`" if source.config else ""
    parts = [plain(source.name), of_hub, config, f"revision `{revision}`" if revision else ""]
    return f"The rows are {', '.join(part for part in parts if part)}."


def _findings(audit: Mapping[str, Any]) -> list[str]:
    repeated, findings = audit["repeated_in_train"], []
    if "audit_policy" in audit:  # a pooled split has none: nothing is dropped from it
        policy = audit["audit_policy"]
        findings.append(
            f"Policy for such rows of train: `{policy['policy']}`; {policy['rows_dropped']:,} were dropped."
        )
    findings.append(
        f"{repeated['groups']:,} texts stand more than once in train ({repeated['rows']:,} rows); "
        f"{repeated['groups_with_different_labels']:,} of them with different labels."
    )
    for split, labels in audit["labels_without_positives"].items():
        if labels:
            findings.append(f"No row of {split} has {', '.join(map(plain, labels))}.")
    suspects = [
        f"{', '.join(f'{plain(name)} like {plain(other)}' for name, other in suspect['meaning'].items())} ({split})"
        for split, found in audit["suspected_label_permutations"].items()
        for suspect in found
    ]
    findings.append(
        f"Labels that look exchanged against those of train: {'; '.join(suspects)}."
        if suspects
        else "No labels look exchanged between train and the other splits."
    )
    return findings


def _training(facts: Facts) -> dict[str, Any]:
    environment, timing, recipe = facts.environment, facts.timing, facts.recipe
    gpu = f"{environment['gpus']} × {environment['gpu']}" if environment["gpu"] else "no GPU"
    number, threads = environment["processes"], environment["threads"]
    processes = f"{number} process{'es' if number > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    emissions = timing.get("emissions")
    settings = {key: value for key, value in recipe.items() if key not in _NO_SETTINGS}
    time = (
        f"Preparation (reading, encoding unless cached, balancing) took {duration(timing['seconds_of_preparation'])}, "
        f"training {duration(timing['seconds_of_training'])} for {timing['epochs']:g} epochs, scoring "
        f"{duration(timing['seconds_of_scoring'])}."
    )
    if timing["resumed"]:
        time += " The run was resumed from a checkpoint: the times are those of its last part."
    return {
        "hardware": f"Trained on {environment['cpu']}, {environment['cores']} cores, {environment['memory_gib']:g} GiB of "
        f"memory, {gpu}; {processes}.",
        "time": time,
        "emissions": f"Emissions: {emissions['grams']:.3g} g of CO2 equivalent in {emissions['location']}, "
        f"{emissions['source']}."
        if emissions
        else "",
        "best_metric": recipe["metric_for_best_model"],
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"python": environment["python"], **environment["packages"]}.items()
        ),
        "setting_rows": [(f"`{key}`", _setting(value)) for key, value in settings.items()],
    }


def duration(seconds: float) -> str:
    """Seconds up to two minutes, minutes up to two hours, then hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(plain(str(item)) for item in value) or "none"
    return plain(str(value)) if isinstance(value, str) else json.dumps(value)


def _rights(facts: Facts) -> dict[str, Any]:
    parts = {"backbone": facts.backbone, "encoder": facts.encoder, "dataset": facts.dataset}
    stated = [f"{plain(source.name)} ({part}) is {source.license}." for part, source in parts.items() if source.license]
    weights = "The trained weights are Apache-2.0, like the code."
    if not weights_license(facts):
        weights = (
            "The licence of the trained weights is not stated here: it depends on the backbone and on the rows, of "
            "which this package knows no licence."
        )
    methods = ["lora"]
    if facts.recipe["gamma"]:
        methods.append("focal")
    if facts.recipe["balance"].startswith("ismote"):
        methods.append("ismote")
    keys = [source.citation for source in parts.values() if source.citation] + methods
    unknown = [_name(source) for source in parts.values() if source.hub_id and not source.citation]
    return {
        "limitations": _limitations(facts),
        "licence": " ".join(["The code (`infer.py`) is Apache-2.0.", weights, *stated]),
        "citation_note": " ".join(
            ["What this model stands on:", *(f"{name}, as its page asks;" for name in unknown), "and the works below."]
            if unknown
            else ["What this model stands on:"]
        ),
        "citations": "\n\n".join(read_sources()["citations"][key] for key in keys),
    }


def weights_license(facts: Facts) -> str | None:
    """The licence that the trained weights can have; None where that of backbone or rows is not known."""
    return "Apache-2.0" if facts.backbone.license == "Apache-2.0" and facts.dataset.license else None


def _limitations(facts: Facts) -> list[str]:
    found = [source.about for source in (facts.dataset, facts.encoder) if source.about]
    if not facts.dataset.name:
        found.append("The rows are not published, so that nobody else can repeat these scores.")
    if not facts.backbone.name:
        found.append(
            "The backbone is a folder of the publisher's own. Without it the package does not load; who has it sets "
            "`model_name` in `config.json`."
        )
    found.append(
        "The language model sees one vector of the whole text, not its words: what the encoder drops is lost, in a long "
        "text more than in a short one."
    )
    found.append(
        "Thresholds fit the shares of labels in the validation rows. Where labels are rarer or more frequent, tune them "
        "on rows of your own."
    )
    if facts.config["unreliable_labels"]:
        found.append("Some labels are too rare in the test split for their scores to say much; they are listed above.")
    return found
