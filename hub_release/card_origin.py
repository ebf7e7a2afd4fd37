"""Values of the model card: what the model is made of, and what it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hub_release.card_facts import Facts, Source, read_sources
from hub_release.card_text import duration, find_plots, plain
from hub_release.requirements import PROJECT, VERSION_KEY

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


def collect_origin(facts: Facts) -> dict[str, Any]:
    """Architecture, data, audit, training, limitations, licence and citations."""
    return {**_architecture(facts), **_data(facts), **_training(facts), **_rights(facts)}


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
        "weight_hashes": ", ".join(f"`{file}` {digest}" for file, digest in facts.weight_hashes.items()),
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
        "data_plots": find_plots(
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
    name = plain(source.name)
    if source.hub_id:
        name = f"[{name}](https://huggingface.co/datasets/{source.hub_id})"
    config = f"configuration `{source.config}`" if source.config else ""
    origin = ", ".join(part for part in (name, config, f"revision `{revision}`" if revision else "") if part)
    if source.hub_id and not facts.published_test:
        origin += "; but the test rows are not its test split as it is published"
    return f"The rows are {origin}."


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
        f"training {duration(timing['seconds_of_training'])} for {timing['epochs']:g} epochs, "
        f"scoring "
        f"{duration(timing['seconds_of_scoring'])}."
    )
    if timing["resumed"]:
        time += " The run was resumed from a checkpoint: the times are those of its last part."
    return {
        "hardware": f"Trained on {environment['cpu']}, {environment['cores']} cores, {environment['memory_gib']:g} GiB of "
        f"memory, {gpu}; {processes}.",
        "time": time,
        "emissions": f"Emissions: {emissions['grams']:.3g} g of CO2 equivalent with the electricity of "
        f"{emissions['location']}, as {emissions['source']} estimates them."
        if emissions
        else "",
        "best_metric": recipe["metric_for_best_model"],
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"python": environment["python"], **environment["packages"]}.items()
        ),
        "exporter": f"{PROJECT} {facts.config[VERSION_KEY]}",
        "setting_rows": [(f"`{key}`", _setting(value)) for key, value in settings.items()],
    }


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
