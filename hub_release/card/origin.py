"""Values of the model card: what the model is made of, and what it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hub_release.card.facts import Facts, Source, read_sources
from hub_release.card.text import duration, find_plots, plain, unreliable_share
from hub_release.requirements import PROJECT, VERSION_KEY
from modeling.adapters import HEAD_PARTS
from modeling.recipe import not_on_card

_BEST = {"macro_f1": "macro F1 at 0.5", "macro_f1_tuned": "macro F1 with tuned thresholds"}


def collect_origin(facts: Facts) -> dict[str, Any]:
    """Architecture, data, audit, training, limitations, licence and citations."""
    return {**_architecture(facts), **_data(facts), **_training(facts), **_rights(facts)}


def _architecture(facts: Facts) -> dict[str, Any]:
    config, adapter = facts.config, facts.adapter_config
    backbone = facts.backbone_config()
    counts = {
        part: sum(math.prod(shape) for key, shape in facts.head_shapes.items() if key.startswith(f"{part}."))
        for part in HEAD_PARTS
    }
    lora = sum(math.prod(shape) for shape in facts.adapter_shapes.values())
    labels, hidden = facts.head_shapes["classifier.weight"]
    rows: list[tuple[str, str, str]] = []
    if counts["projection"]:
        first, second = facts.head_shapes["projection.0.weight"], facts.head_shapes["projection.2.weight"]
        shapes = f"{first[1]} → {first[0]}, GELU, {second[1]} → {second[0]}"
        rows.append(("projection", shapes, f"{counts['projection']:,}"))
    pooling = [("attention over words", f"{hidden} → 1", f"{counts['pooling']:,}")] if counts["pooling"] else []
    layers = sum("lora_A" in key for key in facts.adapter_shapes)
    quantization = "" if config["quantization"] == "none" else config["quantization"]
    precision = ", ".join(filter(None, (facts.backbone.precision, quantization))) or "not quantised"
    shape = (
        f"{backbone.model_type}, {backbone.num_hidden_layers} layers, width {backbone.hidden_size:,}, "
        f"{backbone.num_attention_heads} heads ({backbone.num_key_value_heads} for keys and values)"
    )
    total = sum(counts.values()) + lora
    return {
        **_path(facts),
        "trained_parameters": f"{total:,}",
        "weight_hashes": ", ".join(f"`{file}` {digest}" for file, digest in facts.weight_hashes.items()),
        "part_rows": [
            *rows,
            (f"backbone: {_name(facts.backbone)}, {precision}, frozen", shape, "0"),
            (
                "LoRA adapter",
                f"rank {adapter['r']}, alpha {adapter['lora_alpha']}, on {layers} linear layers",
                f"{lora:,}",
            ),
            *pooling,
            ("classifier", f"{hidden} → {labels}", f"{counts['classifier']:,}"),
            ("all", "", f"{total:,}"),
        ],
    }


_POOLED = {
    "last": "hidden state of the last word",
    "mean": "mean of the hidden states",
    "attention": "mean of the hidden states, weighted by attention",
}


def _path(facts: Facts) -> dict[str, str]:
    """How a text reaches the classifier, in words."""
    config = facts.config
    reads, width = config["input"], f"[{config['hidden_size']}]"
    begin = " after the token that begins a sequence" if config["prefix"] == "bos" else ""
    encoder = _name(facts.encoder, f" {config['encoder_version']}".rstrip())
    token = f"encoder ({encoder}) → embedding [{config['embed_dim']}] → projection → one token {width}"
    words = f"tokenizer → tokens, {config['window_length']} at once"
    attention = "" if reads == "embedding" else f" ({config['attention']} attention)"
    pooled = "last hidden state" if reads == "embedding" else _POOLED[config["pooling"]]
    read = {"embedding": token, "tokens": words, "hybrid": f"{token}, followed by the words: {words}"}[reads]
    parts = {
        "embedding": "a sentence encoder, a projection",
        "tokens": "a tokenizer",
        "hybrid": "a sentence encoder, a projection, a tokenizer",
    }[reads]
    return {
        "what_it_is": f"{parts}, a frozen language model with a LoRA adapter, and a linear classifier",
        "what_is_fetched": "the language model is fetched"
        if reads == "tokens"
        else "encoder and language model are fetched",
        "path_to_the_classifier": f"{read}{begin} → backbone{attention} → {pooled} {width}",
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
    labels = f" The labels are those of {facts.label_set.name}." if facts.label_set.name else ""
    return f"The rows are {origin}.{labels}"


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
    trained = recipe | {"bf16": environment.get("bf16", recipe["bf16"])}  # a CPU may not have it
    settings = {key: value for key, value in trained.items() if key not in not_on_card()}
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
        "distillation": _distillation(facts.audit.get("teachers", {})),
        "best_metric": _BEST[recipe["metric_for_best_model"]],
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"python": environment["python"], **environment["packages"]}.items()
        )
        + (f"; commit `{environment['git_commit']}` of the code that trained" if environment["git_commit"] else ""),
        "exporter": f"{PROJECT} {facts.config[VERSION_KEY]}",
        "setting_rows": [(f"`{key}`", _setting(value)) for key, value in settings.items()],
    }


def _distillation(teachers: Mapping[str, str]) -> str:
    if not teachers:
        return ""
    hashes = ", ".join(f"`{digest}`" for digest in teachers.values())
    models = "models" if len(teachers) > 1 else "model"
    return (
        f"Half of each training target is its label, the other half what {len(teachers)} finished {models}, trained on "
        f"the same splits, said of the text (the sigmoid of their mean logits). SHA-256 over each teacher's files: {hashes}."
    )


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
    return {
        "limitations": _limitations(facts),
        "licence": " ".join(["The code (`infer.py`, `handler.py`) is Apache-2.0.", weights, *stated]),
        **_citations(facts),
    }


def _citations(facts: Facts) -> dict[str, str]:
    """What the model stands on, part by part, and the entries of those parts whose works are known."""
    sources = read_sources()
    parts = [("backbone", facts.backbone), ("encoder", facts.encoder), ("rows", facts.dataset)]
    if facts.label_set.citation != facts.dataset.citation:
        parts.append(("labels", facts.label_set))
    used = {
        "lora": True,
        "focal": facts.recipe["gamma"],
        "ismote": facts.recipe["balance"].startswith("ismote"),
        "distillation": facts.audit.get("teachers"),
    }
    parts += [("method", Source(**sources["methods"][name])) for name, is_used in used.items() if is_used]
    entries, named = {}, []
    for part, source in parts:
        if source.citation:
            entries[source.citation] = entry = sources["citations"][source.citation]
            named.append(f"{plain(source.name)} ({part}): `{entry.split('{')[1].split(',')[0]}`")
        elif source.hub_id:
            named.append(f"{_name(source)} ({part}): as its page asks")
    return {"citation_note": "; ".join(named), "citations": "\n\n".join(entries.values())}


def weights_license(facts: Facts) -> str | None:
    """The licence that the trained weights can have; None where that of backbone or rows is not known."""
    return "Apache-2.0" if facts.backbone.license == "Apache-2.0" and facts.dataset.license else None


_WINDOWS = {"max": "highest", "mean": "mean"}


def _limitations(facts: Facts) -> list[str]:
    found = [source.about for source in (facts.dataset, facts.backbone, facts.encoder) if source.about]
    if not facts.dataset.name:
        found.append("The rows are not published, so that nobody else can repeat these scores.")
    if not facts.backbone.name:
        found.append(
            "The backbone is a folder of the publisher's own. Without it the package does not load; who has it sets "
            "`model_name` in `config.json`."
        )
    if facts.config["input"] == "embedding":
        found.append(
            "The language model sees one vector of the whole text, not its words: what the encoder drops is lost, in a "
            "long text more than in a short one."
        )
    else:
        cut = facts.audit["truncation"]["train"]
        found.append(
            f"Training read the first {facts.config['window_length']} tokens of a text, and so not all of "
            f"{cut['texts_longer']:,} of {cut['texts']:,} texts. A longer text is classified in windows that share "
            f"{facts.config['window_overlap']} tokens, each without the others; of a label the {_WINDOWS[facts.config['windows']]} "
            "logit counts."
        )
    found.append(
        "Thresholds fit the shares of labels in the validation rows. Where labels are rarer or more frequent, tune them "
        "on rows of your own."
    )
    if unreliable := facts.config["unreliable_labels"]:
        found.append(
            f"{unreliable_share(facts).capitalize()} {'has' if len(unreliable) == 1 else 'have'} scores that say little: "
            "see the unreliable labels above."
        )
    return found
