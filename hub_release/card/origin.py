"""Values of the model card: what the model is made of, and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hub_release.card.facts import Facts, Source, read_sources
from hub_release.card.text import Markdown, code, duration, plain
from hub_release.package import LAYOUT
from hub_release.shipped.requirements import PROJECT
from modeling.adapters import HEAD_PARTS
from modeling.infer import VERSION_KEY
from modeling.recipe import not_on_card
from modeling.records import GraphRecord


def collect_origin(facts: Facts) -> dict[str, Any]:
    """Architecture, data, audit, training, limitations, licenses and citations."""
    return {
        **_path(facts),
        **_architecture(facts),
        **_data(facts),
        **_audit(facts.audit),
        **_training(facts),
        **_limits(facts),
        **_rights(facts),
        **_citations(facts),
    }


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
    precision = ", ".join(filter(None, (facts.backbone.precision, quantization))) or "not quantized"
    shape = (
        f"{backbone.model_type}, {backbone.num_hidden_layers} layers, width {backbone.hidden_size:,}, "
        f"{backbone.num_attention_heads} heads ({backbone.num_key_value_heads} for keys and values)"
    )
    total = sum(counts.values()) + lora
    return {
        "trained_parameters": f"{total:,}",
        **_graphs(facts),
        "has_merged": facts.merged is not None,
        "for_servers": facts.merged == LAYOUT.served,
        "with_backbone": [
            *([(facts.merged, "in one file in float32")] if facts.merged else []),
            *((name, _FORMS[name]) for name in facts.graph_files),
        ],
        "weight_hashes": Markdown(", ".join(f"{code(file)} {digest}" for file, digest in facts.weight_hashes.items())),
        "part_rows": [
            *rows,
            (Markdown(f"backbone: {_name(facts.backbone)}, {plain(precision)}, frozen"), shape, "0"),
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


_FORMS = {LAYOUT.graph: "as one graph in float32", LAYOUT.int8_graph: "as one graph in int8"}
_COMPUTED_BY = {
    "torch": "PyTorch in float32",
    "onnx": "ONNX Runtime in float32",
    "onnx-int8": "ONNX Runtime in int8",
    "openvino": "OpenVINO",
}


def _graphs(facts: Facts) -> dict[str, Any]:
    """The package's graphs, and what was measured of each."""
    record: GraphRecord = facts.graphs or {"cpu": "", "threads": 0, "batch_size": 0, "graphs": {}}
    rows = [
        (
            _COMPUTED_BY[name],
            f"{graph['validation']['macro_f1']:.3f}",
            f"{graph['test']['macro_f1']:.3f}",
            f"{graph['validation']['log_loss']:.4f}",
            f"{graph['test']['log_loss']:.4f}",
            f"{graph['texts_per_second']:.0f}",
        )
        for name, graph in record["graphs"].items()
    ]
    return {
        "graph_rows": rows,
        "graph_threads": record["threads"],
        "graph_batch": record["batch_size"],
        "graph_cpu": record["cpu"],
        "has_openvino": "openvino" in record["graphs"],
    }


def _path(facts: Facts) -> dict[str, Any]:
    """How a text reaches the classifier."""
    config = facts.config
    reads_words = config["input"] != "embedding"
    settings_of_words = ("attention", "pooling", "window_length", "window_overlap", "windows")
    return {
        "reads_embedding": config["input"] != "tokens",
        "reads_words": reads_words,
        "encoder": _name(facts.encoder, f" {config['encoder_version']}".rstrip()),
        "embedding_width": str(config["embed_dim"]),
        "hidden_width": str(config["hidden_size"]),
        "begins_sequence": config["prefix"] == "bos",
        "usual_tokens": " to ".join(f"{end:.2f}" for end in config.get("characters_per_token") or ()),
        **{key: config[key] if reads_words else None for key in settings_of_words},
    }


def _name(source: Source, suffix: str = "") -> Markdown:
    """The part's name, linked if it is on the Hub."""
    if not source.name:
        return Markdown("of the publisher's own, not published")
    name = plain(source.name + suffix)
    return Markdown(f"[{name}](https://huggingface.co/{source.hub_id})") if source.hub_id else name


def _data(facts: Facts) -> dict[str, Any]:
    source, audit = facts.dataset, facts.audit
    rows = audit["training_rows"]
    outside = rows["synthetic_with_parent_outside_train"]
    name = plain(source.name)
    link = Markdown(f"[{name}](https://huggingface.co/datasets/{source.hub_id})")
    return {
        "dataset_link": link if source.hub_id else name,
        "dataset_on_hub": source.hub_id is not None,
        "dataset_config": source.config,
        "dataset_revision": facts.config["dataset_revision"],
        "label_set": facts.label_set.name,
        "split_rows": [
            (split, f"{found['rows']:,}", f"{found['rows_without_label']:,}", code(found["sha256"]))
            for split, found in audit["splits"].items()
        ],
        "real_rows": f"{rows['real']:,}",
        "synthetic_rows": f"{rows['synthetic']:,}",
        "oversampled": bool(rows["synthetic"]),
        "rows_from_outside_train": f"{outside:,}" if outside else None,
        "balance": facts.recipe["balance"],
    }


def _audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    repeated = audit["repeated_in_train"]
    policy = audit.get("audit_policy")  # a pooled split has none: nothing is dropped from it
    return {
        "copy_rows": [
            (split, other, *(f"{found[kind]:,}" for kind in ("exact", "normalised", "near", "labels_differ")))
            for split, other in (("validation", "train"), ("test", "train"), ("validation", "test"))
            for found in [audit["copies"][f"{split}_in_{other}"]]
        ],
        "left_out": f"{audit['left_out']['rows']:,}" if "left_out" in audit else None,
        "audit_policy": policy["policy"] if policy else None,
        "rows_dropped": f"{policy['rows_dropped']:,}" if policy else None,
        "repeated_texts": f"{repeated['groups']:,}",
        "repeated_rows": f"{repeated['rows']:,}",
        "repeated_with_other_labels": f"{repeated['groups_with_different_labels']:,}",
        "labels_without_rows": [
            (split, labels) for split, labels in audit["labels_without_positives"].items() if labels
        ],
        "exchanged_labels": [
            (split, list(suspect["meaning"].items()))
            for split, found in audit["suspected_label_permutations"].items()
            for suspect in found
        ],
    }


def _training(facts: Facts) -> dict[str, Any]:
    environment, timing, recipe = facts.environment, facts.timing, facts.recipe
    trained = recipe | {"bf16": environment.get("bf16", recipe["bf16"])}  # a CPU may not have it
    hidden = not_on_card()
    settings = {key: value for key, value in trained.items() if key not in hidden}
    emissions = timing.get("emissions")
    versions = {"python": environment["python"], **environment["packages"]}
    return {
        **{key: environment[key] for key in ("cpu", "cores", "processes", "threads", "git_commit")},
        "gpu": f"{environment['gpus']} × {environment['gpu']}" if environment["gpu"] else None,
        "memory": f"{environment['memory_gib']:g}",
        "preparation_time": duration(timing["seconds_of_preparation"]),
        "training_time": duration(timing["seconds_of_training"]),
        "scoring_time": duration(timing["seconds_of_scoring"]),
        "epochs": f"{timing['epochs']:g}",
        "resumed": timing["resumed"],
        "emissions": emissions and {**emissions, "grams": f"{emissions['grams']:.3g}"},
        "teachers": list(facts.audit.get("teachers", {}).values()),
        "start": facts.audit.get("start"),
        "best_metric": recipe["metric_for_best_model"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "exporter": f"{PROJECT} {facts.config[VERSION_KEY]}",
        "setting_rows": [(code(key), _setting(value)) for key, value in settings.items()],
    }


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _limits(facts: Facts) -> dict[str, Any]:
    cut = facts.audit["truncation"]["train"] if facts.config["input"] != "embedding" else None
    return {
        "known_limits": [part.about for part in (facts.dataset, facts.backbone, facts.encoder) if part.about],
        "texts_cut": f"{cut['texts_longer']:,}" if cut else None,
        "texts_in_train": f"{cut['texts']:,}" if cut else None,
    }


def _rights(facts: Facts) -> dict[str, Any]:
    parts = {"backbone": facts.backbone, "encoder": facts.encoder, "dataset": facts.dataset}
    return {
        "weights_license": weights_license(facts),
        "stated_license": facts.details.license if facts.details else "",
        "part_licenses": [(source.name, part, source.license) for part, source in parts.items() if source.license],
    }


def _citations(facts: Facts) -> dict[str, Any]:
    """The works that the model builds on, each with its part and citation key, and the known BibTeX entries."""
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
    entries: dict[str, str] = {}
    works: list[tuple[Markdown, str, str | None]] = []
    for part, source in parts:
        if source.citation:
            entries[source.citation] = entry = sources["citations"][source.citation]
            works.append((plain(source.name), part, entry.split("{")[1].split(",")[0]))
        elif source.hub_id:
            works.append((_name(source), part, None))
    return {"works": works, "citations": Markdown("\n\n".join(entries.values()))}


def weights_license(facts: Facts) -> str | None:
    """The license that the trained weights can have; None if that of the backbone, the rows or the start is not known."""
    if "start" in facts.audit:
        return None
    return "Apache-2.0" if facts.backbone.license == "Apache-2.0" and facts.dataset.license else None
